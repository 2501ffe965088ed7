"""One transaction with one query by primary key, beside that of a plain Session.

A third candidate is the floor, see ``programs/same_text.py``.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from cores import CLIENT, SERVER, on
from database import Note, PlainNote, create_roles, fill, first_id, tenants_database
from database import tenant_name as name
from measure import Aim, interleave, ratio, say, spread, table, times
from programs.same_text import create_async_floor, create_floor, set_text, text_of
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
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
        with ExitStack() as stack:
            with on(SERVER):
                database = stack.enter_context(tenants_database(version))
            create_roles(database, 1, TENANTS)
            fill(database, TENANTS)
            results[str(version)] = {}
            for driver in DRIVERS:
                say(f"PostgreSQL {version}, {driver}")
                with on(CLIENT):
                    results[str(version)][driver] = _run_driver(
                        database, driver, rounds
                    )
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
                        times(result["floor wall"]),
                        times(result["cpu"]),
                        times(result["floor cpu"]),
                        times(result["python"]),
                        "yes" if result["python"]["median"] <= AIM else "no",
                    )
                )
    print("A transaction of a tenant, as a ratio to the same one of a plain Session.")
    print("The floor is what the server and the waiting for it take, without Python of")
    print(
        "this package; CPU is that of the Python process, and the overhead is that of"
    )
    print("tenants over that of the floor.\n")
    headers = ("", "plain", "time", "floor", "CPU", "floor", "overhead", f"≤ {AIM}")
    table(headers, rows)


def aims(results: dict[str, Any]) -> list[Aim]:
    """The worst of all drivers, isolations and kinds of sessions."""
    drivers = list(results["postgresql"].values())[-1]
    found = []
    for what, against, key in (
        ("Python's time for a transaction", "the same statements without it", "python"),
        ("the process's CPU time for a transaction", "plain SQLAlchemy", "cpu"),
    ):
        ratios = {
            f"{case}, {driver}": result[key]["median"]
            for driver, cases in drivers.items()
            for case, result in cases.items()
        }
        worst = max(ratios, key=ratios.__getitem__)
        text = f"{min(ratios.values()):.2f} to {ratios[worst]:.2f}; most: {worst}"
        aim = f"at most {AIM:.2f}"
        found.append(Aim(what, against, aim, text, ratios[worst] <= AIM))
    return found


def _run_driver(database: Database, driver: str, rounds: int) -> dict[str, Any]:
    run_driver = _run_sync if driver == "psycopg" else _run_async
    with asyncio.Runner() as runner, ExitStack() as stack:
        candidates = run_driver(database, driver, runner, stack)
        cpu: dict[str, list[float]] = {each: [] for each in candidates}

        def timed(each: str) -> Callable[[], None]:
            def call() -> None:
                started = time.process_time()
                candidates[each]()
                cpu[each].append(time.process_time() - started)

            return call

        # not what the benchmarks before have left
        gc.collect()
        gc.freeze()
        wall = interleave(
            {each: timed(each) for each in candidates},
            rounds,
            warmup=5,
            seconds=rounds / 4,
        )
        cpu = {each: samples[5:] for each, samples in cpu.items()}
    results = {}
    for kind in ("", ", one session"):
        plain = "plain" + kind
        for isolation in ("role", "shared"):
            tenant, floor = isolation + kind, f"floor {isolation}{kind}"
            results[tenant] = {
                "plain": spread([sample / BATCH for sample in wall[plain]]),
                "wall": ratio(wall[tenant], wall[plain]),
                "floor wall": ratio(wall[floor], wall[plain]),
                "cpu": ratio(cpu[tenant], cpu[plain]),
                "floor cpu": ratio(cpu[floor], cpu[plain]),
                "python": ratio(cpu[tenant], cpu[floor]),
            }
    return results


_LOGINS = {"role": "app", "shared": "app_shared"}


def _create_plain(url: str) -> Engine:
    return create_engine(url, pool_size=1)


def _create_async_plain(url: str) -> AsyncEngine:
    return create_async_engine(url, pool_size=1)


def _run_sync(
    database: Database, driver: str, runner: asyncio.Runner, stack: ExitStack
) -> dict[str, Callable[[], None]]:
    def engine(login: str, create: Callable[[str], Engine] = _create_plain) -> Engine:
        engine = create(database.url(login))
        stack.callback(engine.dispose)
        return engine

    candidates: dict[str, Callable[[], None]] = {}

    def add(case: str, open_session: Callable[[int], Any], model: type[Any]) -> None:
        def each_its_session() -> None:
            for number in range(BATCH):
                with open_session(number % TENANTS) as session:
                    _read(session, model, number)

        def one_session() -> None:
            with open_session(0) as session:
                for _ in range(BATCH):
                    _read(session, model, 0)

        candidates[case] = each_its_session
        candidates[f"{case}, one session"] = one_session

    plain = engine("owner")
    add("plain", lambda number: Session(plain), PlainNote)
    for isolation, login in _LOGINS.items():
        manager = PostgresManager.from_engine(
            engine(login),
            schema="public",
            isolation=isolation,  # type: ignore[arg-type]
        )
        floor = engine(login, create_floor)
        add(isolation, _of_manager(manager), Note)
        add(f"floor {isolation}", _of_floor(Session, floor, isolation), Note)
    return candidates


def _run_async(
    database: Database, driver: str, runner: asyncio.Runner, stack: ExitStack
) -> dict[str, Callable[[], None]]:
    def engine(
        login: str, create: Callable[[str], AsyncEngine] = _create_async_plain
    ) -> AsyncEngine:
        engine = create(database.url(login, driver.removesuffix("-async")))
        stack.callback(lambda: runner.run(engine.dispose()))
        return engine

    candidates: dict[str, Callable[[], None]] = {}

    def add(case: str, open_session: Callable[[int], Any], model: type[Any]) -> None:
        async def each_its_session() -> None:
            for number in range(BATCH):
                async with open_session(number % TENANTS) as session:
                    await _read_async(session, model, number)

        async def one_session() -> None:
            async with open_session(0) as session:
                for _ in range(BATCH):
                    await _read_async(session, model, 0)

        candidates[case] = lambda: runner.run(each_its_session())
        candidates[f"{case}, one session"] = lambda: runner.run(one_session())

    plain = engine("owner")
    add("plain", lambda number: AsyncSession(plain), PlainNote)
    for isolation, login in _LOGINS.items():
        manager = AsyncPostgresManager.from_engine(
            engine(login),
            schema="public",
            isolation=isolation,  # type: ignore[arg-type]
        )
        floor = engine(login, create_async_floor)
        add(isolation, _of_manager(manager), Note)
        add(f"floor {isolation}", _of_floor(AsyncSession, floor, isolation), Note)
    return candidates


def _of_manager(
    manager: PostgresManager | AsyncPostgresManager,
) -> Callable[[int], Any]:
    return lambda number: manager.new_session(name(number + 1))


def _of_floor(
    session_class: Callable[[Any], Any], engine: Any, isolation: str
) -> Callable[[int], Any]:
    def open_session(number: int) -> Any:
        set_text(text_of(name(number + 1), isolation))
        return session_class(engine)

    return open_session


def _read(session: Session, model: type[Any], number: int) -> None:
    id = first_id(number % TENANTS + 1)
    row = session.execute(select(model.id, model.body).where(model.id == id)).one()
    assert row.id == id
    session.commit()


async def _read_async(session: AsyncSession, model: type[Any], number: int) -> None:
    id = first_id(number % TENANTS + 1)
    query = select(model.id, model.body).where(model.id == id)
    row = (await session.execute(query)).one()
    assert row.id == id
    await session.commit()
