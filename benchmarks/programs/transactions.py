"""Transactions of one query by primary key: ``transactions.py WAY [ARGUMENT ...]``.

A way is a module in ``ways``. ``Note`` is the model that it queries, its
``sessions(engine)`` returns what opens a session of a tenant, and its
``async_sessions(engine)`` the same for asyncio; ``prepare(url, tenants)`` makes an
empty database ready, where ours is not the one to use.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

from serve import serve
from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import create_async_engine

_module, *_arguments = sys.argv[1:]
way = importlib.import_module(f"ways.{_module}")
Note = way.Note
runner = asyncio.Runner()

#: What opens a session of a tenant, by driver and URL.
opened: dict[tuple[str, str], Callable[[str], Any]] = {}


def connect(driver: str, url: str) -> None:
    """Be ready to run transactions.

    :param driver: ``psycopg``, ``psycopg-async`` or ``asyncpg``.
    """
    if driver == "psycopg":
        engine = create_engine(url, pool_size=1)
        opened[driver, url] = way.sessions(engine, *_arguments)
    else:
        async_engine = create_async_engine(url, pool_size=1)
        opened[driver, url] = way.async_sessions(async_engine, *_arguments)


def run(
    driver: str, url: str, rows: list[tuple[str, int]], one_session: bool
) -> tuple[float, float]:
    """Read each row in a transaction, and return the seconds that it took, and those of
    the processor.

    :param rows: tenant and primary key.
    :param one_session: have all transactions in the first one's tenant's session.
    """
    sessions = opened[driver, url]
    if driver == "psycopg":
        return _run(sessions, rows, one_session)
    return runner.run(_run_async(sessions, rows, one_session))


def _run(
    sessions: Callable[[str], Any], rows: list[tuple[str, int]], one_session: bool
) -> tuple[float, float]:
    started, cpu = time.perf_counter(), time.process_time()
    if one_session:
        with sessions(rows[0][0]) as session:
            for _, id in rows:
                found = session.execute(_query(id)).one()
                session.commit()
                assert found.id == id
    else:
        for tenant, id in rows:
            with sessions(tenant) as session:
                found = session.execute(_query(id)).one()
                session.commit()
                assert found.id == id
    return time.perf_counter() - started, time.process_time() - cpu


async def _run_async(
    sessions: Callable[[str], Any], rows: list[tuple[str, int]], one_session: bool
) -> tuple[float, float]:
    started, cpu = time.perf_counter(), time.process_time()
    if one_session:
        async with sessions(rows[0][0]) as session:
            for _, id in rows:
                found = (await session.execute(_query(id))).one()
                await session.commit()
                assert found.id == id
    else:
        for tenant, id in rows:
            async with sessions(tenant) as session:
                found = (await session.execute(_query(id))).one()
                await session.commit()
                assert found.id == id
    return time.perf_counter() - started, time.process_time() - cpu


def _query(id: int) -> Any:
    return select(Note.id, Note.body).where(Note.id == id)


def prepare(url: str, tenants: list[str]) -> None:
    """Make an empty database ready, as the peer's documentation says."""
    way.prepare(url, tenants)


serve(connect=connect, run=run, prepare=prepare)
