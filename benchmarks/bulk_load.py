"""Many rows of one tenant at once: ways to load them, beside COPY without tenants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from database import Note, create_roles, tenants_database
from measure import (
    Candidate,
    interleave,
    milliseconds,
    ratio,
    say,
    spread,
    table,
    times,
)
from sqlalchemy import create_engine, insert, text
from sqlalchemy.ext.asyncio import create_async_engine

from servers import Database
from sqlalchemy_tenants.aio.managers import PostgresManager as AsyncPostgresManager
from sqlalchemy_tenants.managers import PostgresManager

# A tenant's own temporary table, gone with the transaction: what were left on a pooled
# connection, the next tenant of isolation="shared" could read.
STAGING = "CREATE TEMPORARY TABLE staging (amount integer, body text) ON COMMIT DROP"
MERGE = "INSERT INTO notes (amount, body) SELECT amount, body FROM pg_temp.staging"
UNNEST = """
    INSERT INTO notes (amount, body)
    SELECT * FROM unnest(CAST(:amounts AS integer[]), CAST(:bodies AS text[]))
"""

#: The baseline: COPY into a table without row-level security, by its owner.
BASE = "COPY, no tenants"


def run(options: Any) -> dict[str, Any]:
    rows = 50_000 if options.full else 10_000
    rounds = 9 if options.full else 7
    results: dict[str, Any] = {}
    for version in options.versions[-1:]:
        with tenants_database(version) as database, asyncio.Runner() as runner:
            create_roles(database, 1, 1)
            results[str(version)] = {}
            for isolation in ("role", "shared"):
                say(f"PostgreSQL {version}, {isolation}, {rows:,} rows")
                candidates, dispose = _candidates(database, isolation, rows, runner)
                samples = interleave(candidates, rounds, warmup=1)
                dispose()
                results[str(version)][isolation] = {
                    name: {**spread(each), "ratio": ratio(each, samples[BASE])}
                    for name, each in samples.items()
                }
    return {"rows": rows, "postgresql": results}


def report(results: dict[str, Any]) -> None:
    print(
        f"{results['rows']:,} rows into a table with an index, as ratios to COPY into"
    )
    print("the same table without row-level security.\n")
    rows = [
        (
            f"{version}, {isolation}, {name}",
            milliseconds(result),
            times(result["ratio"]),
        )
        for version, isolations in results["postgresql"].items()
        for isolation, ways in isolations.items()
        for name, result in ways.items()
    ]
    table(("", "time", "ratio"), rows)


def _candidates(
    database: Database, isolation: Any, rows: int, runner: asyncio.Runner
) -> tuple[dict[str, Candidate], Callable[[], None]]:
    records = [(number, f"row {number}") for number in range(rows)]
    login = "app" if isolation == "role" else "app_shared"
    engine = create_engine(database.url(login), pool_size=1)
    manager = PostgresManager.from_engine(engine, schema="public", isolation=isolation)
    async_engine = create_async_engine(database.url(login, "asyncpg"), pool_size=1)
    async_manager = AsyncPostgresManager.from_engine(
        async_engine, schema="public", isolation=isolation
    )
    owner = create_engine(database.owner_url, pool_size=1)

    def emptied(load: Callable[[], None]) -> Candidate:
        def call() -> float:
            database.execute("TRUNCATE notes, plain_notes")
            started = time.perf_counter()
            load()
            return time.perf_counter() - started

        return call

    def copy_plain() -> None:
        with owner.begin() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            with (
                raw.cursor() as cursor,
                cursor.copy(
                    "COPY plain_notes (tenant, amount, body) FROM STDIN"
                ) as copy,
            ):
                for record in records:
                    copy.write_row(("t1", *record))

    def stage() -> None:
        with manager.begin("t1") as connection:
            connection.execute(text(STAGING))
            raw = connection.connection.driver_connection
            assert raw is not None
            with (
                raw.cursor() as cursor,
                cursor.copy("COPY pg_temp.staging FROM STDIN") as copy,
            ):
                for record in records:
                    copy.write_row(record)
            connection.execute(text(MERGE))

    def unnest() -> None:
        amounts, bodies = map(list, zip(*records, strict=True))
        with manager.begin("t1") as connection:
            connection.execute(text(UNNEST), {"amounts": amounts, "bodies": bodies})

    def insert_many() -> None:
        with manager.new_session("t1") as session:
            session.execute(
                insert(Note),
                [{"amount": amount, "body": body} for amount, body in records],
            )
            session.commit()

    def add_all() -> None:
        with manager.new_session("t1") as session:
            session.add_all(Note(amount=amount, body=body) for amount, body in records)
            session.commit()

    async def stage_async() -> None:
        async with async_manager.begin("t1") as connection:
            await connection.execute(text(STAGING))
            raw = (await connection.get_raw_connection()).driver_connection
            assert raw is not None
            await raw.copy_records_to_table(
                "staging", schema_name="pg_temp", records=records
            )
            await connection.execute(text(MERGE))

    async def unnest_async() -> None:
        amounts, bodies = map(list, zip(*records, strict=True))
        async with async_manager.begin("t1") as connection:
            await connection.execute(
                text(UNNEST), {"amounts": amounts, "bodies": bodies}
            )

    async def insert_many_async() -> None:
        async with async_manager.new_session("t1") as session:
            await session.execute(
                insert(Note),
                [{"amount": amount, "body": body} for amount, body in records],
            )
            await session.commit()

    def blocking(function: Callable[[], Any]) -> Callable[[], None]:
        return lambda: runner.run(function())

    def dispose() -> None:
        engine.dispose()
        owner.dispose()
        runner.run(async_engine.dispose())

    ways = {
        BASE: copy_plain,
        "COPY to staging, psycopg": stage,
        "COPY to staging, asyncpg": blocking(stage_async),
        "unnest, psycopg": unnest,
        "unnest, asyncpg": blocking(unnest_async),
        "insert(Note), psycopg": insert_many,
        "insert(Note), asyncpg": blocking(insert_many_async),
        "add_all, psycopg": add_all,
    }
    return {name: emptied(way) for name, way in ways.items()}, dispose
