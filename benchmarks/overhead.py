"""One transaction with one query by primary key, beside that of a plain Session."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from database import Note, PlainNote, create_roles, fill, first_id, tenants_database
from database import tenant_name as name
from measure import interleave, ratio, say, spread, table, times
from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from servers import Database
from sqlalchemy_tenants.aio.managers import PostgresManager as AsyncPostgresManager
from sqlalchemy_tenants.managers import PostgresManager

TENANTS = 10
#: Transactions that are timed together: the clock's resolution and, with asyncio, the
#: start of the event loop disappear in them.
BATCH = 20

DRIVERS = ("psycopg", "psycopg-async", "asyncpg")

#: The aim, for the median.
AIM = 1.15


def run(options: Any) -> dict[str, Any]:
    rounds = 300 if options.full else 60
    results: dict[str, Any] = {}
    for version in options.versions[-1:]:
        with tenants_database(version) as database:
            create_roles(database, 1, TENANTS)
            fill(database, TENANTS)
            results[str(version)] = {}
            for driver in DRIVERS:
                say(f"PostgreSQL {version}, {driver}")
                results[str(version)][driver] = _run_driver(database, driver, rounds)
    return {"postgresql": results}


def report(results: dict[str, Any]) -> None:
    rows = []
    for version, drivers in results["postgresql"].items():
        for driver, cases in drivers.items():
            for case, result in cases.items():
                rows.append(
                    (
                        f"{version}, {driver}, {case}",
                        f"{result['plain']['median'] * 1e3:.0f} µs",
                        times(result["wall"]),
                        times(result["cpu"]),
                        "yes" if result["wall"]["median"] <= AIM else "no",
                    )
                )
    print("A transaction of a tenant, as a ratio to the same one of a plain Session.")
    print("CPU is that of the Python process, where the round trips do not count.\n")
    table(("", "plain", "time", "CPU", f"time ≤ {AIM}"), rows)


def _run_driver(database: Database, driver: str, rounds: int) -> dict[str, Any]:
    run_driver = _run_sync if driver == "psycopg" else _run_async
    with asyncio.Runner() as runner:
        candidates, dispose = run_driver(database, driver, runner)
        cpu: dict[str, list[float]] = {each: [] for each in candidates}

        def timed(each: str) -> Callable[[], None]:
            def call() -> None:
                started = time.process_time()
                candidates[each]()
                cpu[each].append(time.process_time() - started)

            return call

        wall = interleave({each: timed(each) for each in candidates}, rounds, warmup=5)
        dispose()
    results = {}
    for each in candidates:
        base = "plain, one session" if each.endswith("one session") else "plain"
        if each != base:
            results[each] = {
                "plain": spread([sample / BATCH for sample in wall[base]]),
                "wall": ratio(wall[each], wall[base]),
                "cpu": ratio(cpu[each][5:], cpu[base][5:]),
            }
    return results


def _run_sync(
    database: Database, driver: str, runner: asyncio.Runner
) -> tuple[dict[str, Callable[[], None]], Callable[[], None]]:
    engines = {
        login: create_engine(database.url(login), pool_size=1)
        for login in ("owner", "app", "app_shared")
    }
    role = PostgresManager.from_engine(engines["app"], schema="public")
    shared = PostgresManager.from_engine(
        engines["app_shared"], schema="public", isolation="shared"
    )

    def plain() -> None:
        for number in range(BATCH):
            with Session(engines["owner"]) as session:
                _read(session, PlainNote, number)

    def tenant(manager: PostgresManager) -> Callable[[], None]:
        def call() -> None:
            for number in range(BATCH):
                with manager.new_session(name(_tenant(number))) as session:
                    _read(session, Note, number)

        return call

    def plain_one_session() -> None:
        with Session(engines["owner"]) as session:
            for _ in range(BATCH):
                _read(session, PlainNote, 0)

    def one_session(manager: PostgresManager) -> Callable[[], None]:
        def call() -> None:
            with manager.new_session(name(1)) as session:
                for _ in range(BATCH):
                    _read(session, Note, 0)

        return call

    def dispose() -> None:
        for engine in engines.values():
            engine.dispose()

    return {
        "plain": plain,
        "role": tenant(role),
        "shared": tenant(shared),
        "plain, one session": plain_one_session,
        "role, one session": one_session(role),
        "shared, one session": one_session(shared),
    }, dispose


def _run_async(
    database: Database, driver: str, runner: asyncio.Runner
) -> tuple[dict[str, Callable[[], None]], Callable[[], None]]:
    engines = {
        login: create_async_engine(
            database.url(login, driver.removesuffix("-async")), pool_size=1
        )
        for login in ("owner", "app", "app_shared")
    }
    role = AsyncPostgresManager.from_engine(engines["app"], schema="public")
    shared = AsyncPostgresManager.from_engine(
        engines["app_shared"], schema="public", isolation="shared"
    )

    async def plain() -> None:
        for number in range(BATCH):
            async with AsyncSession(engines["owner"]) as session:
                await _read_async(session, PlainNote, number)

    def tenant(manager: AsyncPostgresManager) -> Callable[[], Awaitable[None]]:
        async def call() -> None:
            for number in range(BATCH):
                async with manager.new_session(name(_tenant(number))) as session:
                    await _read_async(session, Note, number)

        return call

    async def plain_one_session() -> None:
        async with AsyncSession(engines["owner"]) as session:
            for _ in range(BATCH):
                await _read_async(session, PlainNote, 0)

    def one_session(manager: AsyncPostgresManager) -> Callable[[], Awaitable[None]]:
        async def call() -> None:
            async with manager.new_session(name(1)) as session:
                for _ in range(BATCH):
                    await _read_async(session, Note, 0)

        return call

    async def dispose() -> None:
        for engine in engines.values():
            await engine.dispose()

    def blocking(function: Callable[[], Any]) -> Callable[[], None]:
        return lambda: runner.run(function())

    return {
        "plain": blocking(plain),
        "role": blocking(tenant(role)),
        "shared": blocking(tenant(shared)),
        "plain, one session": blocking(plain_one_session),
        "role, one session": blocking(one_session(role)),
        "shared, one session": blocking(one_session(shared)),
    }, blocking(dispose)


def _tenant(number: int) -> int:
    return number % TENANTS + 1


def _read(session: Session, model: type[Any], number: int) -> None:
    id = first_id(_tenant(number))
    row = session.execute(select(model.id, model.body).where(model.id == id)).one()
    assert row.id == id
    session.commit()


async def _read_async(session: AsyncSession, model: type[Any], number: int) -> None:
    id = first_id(_tenant(number))
    query = select(model.id, model.body).where(model.id == id)
    row = (await session.execute(query)).one()
    assert row.id == id
    await session.commit()
