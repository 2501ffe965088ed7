"""The floor: plain sessions, whose driver puts the scope behind each BEGIN by itself.

They take what the server takes for the scope, the role and the policies, and what
waiting for it costs. What sessions of tenants take beyond that is Python.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import cache
from typing import Any

import psycopg
from psycopg import generators, pq
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sqlalchemy_tenants import Tenancy
from sqlalchemy_tenants.drivers.asyncpg import ScopedConnection
from sqlalchemy_tenants.scope import tenant_scope


class _Scope:
    """What goes behind each BEGIN."""

    text = ""


@cache
def text_of(tenant: str, isolation: Any) -> str:
    """Return what confines a transaction to a tenant."""
    return str(tenant_scope(tenant, isolation, Tenancy(), "public").text)


def set_text(text: str) -> None:
    """Confine the transactions that begin from now on."""
    _Scope.text = text


def create_floor(url: str) -> Engine:
    """Return an engine whose connections confine their transactions."""
    conninfo = _conninfo(url)
    return create_engine(
        url, pool_size=1, creator=lambda: _Connection.connect(conninfo)
    )


def create_async_floor(url: str) -> AsyncEngine:
    """Return the same for asyncio, of psycopg or asyncpg."""
    if make_url(url).drivername.endswith("asyncpg"):
        arguments = {"connection_class": _AsyncpgConnection}
        return create_async_engine(url, pool_size=1, connect_args=arguments)
    conninfo = _conninfo(url)
    return create_async_engine(
        url, pool_size=1, async_creator=lambda: _AsyncConnection.connect(conninfo)
    )


def _conninfo(text: str) -> str:
    url = make_url(text)
    return f"host={url.host} port={url.port} user={url.username} dbname={url.database}"


def _begin(connection: Any) -> Generator[Any, Any, None]:
    if connection.pgconn.transaction_status == pq.TransactionStatus.IDLE:
        connection.pgconn.send_query(f"BEGIN; {_Scope.text}".encode())
        yield from generators.execute(connection.pgconn)


class _Connection(psycopg.Connection[Any]):
    _start_query = _begin


class _AsyncConnection(psycopg.AsyncConnection[Any]):
    _start_query = _begin


class _AsyncpgConnection(ScopedConnection):
    async def execute(
        self, query: str, *args: Any, timeout: float | None = None
    ) -> str:
        if query.startswith("BEGIN"):
            query = f"BEGIN; {_Scope.text}"
        return await super().execute(query, *args, timeout=timeout)
