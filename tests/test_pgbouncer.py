"""PgBouncer in transaction mode: many clients share few connections to the server.

``TENANTS_TRANSACTIONS`` sets the number of transactions for each combination of
driver and isolation; ``TENANTS_LONG=1`` sets it to 20,000.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine, func, insert, select, text
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from pgbouncer import PgBouncer
from servers import Database
from sqlalchemy_tenants import context_value
from sqlalchemy_tenants.aio.managers import PostgresManager as AsyncPostgresManager
from sqlalchemy_tenants.managers import PostgresManager
from tenancy import Note, grant_logins, migrate

LONG = bool(os.environ.get("TENANTS_LONG"))
TRANSACTIONS = int(os.environ.get("TENANTS_TRANSACTIONS", "20000" if LONG else "250"))
SERVER_CONNECTIONS = 5
MARKER = context_value("marker")
TENANTS = [f"tenant {number}" for number in range(20)]

# SQLSTATEs, https://www.postgresql.org/docs/current/errcodes-appendix.html
DIVISION_BY_ZERO = "22012"
INVALID_SQL_STATEMENT_NAME = "26000"  # prepared on another connection to the server
DUPLICATE_PREPARED_STATEMENT = "42P05"  # by another client, on this one

#: What the drivers need behind PgBouncer in transaction mode. A statement that is
#: prepared stays on one connection to the server, and the client's next transaction
#: may get another one.
RIGHT: dict[str, dict[str, Any]] = {
    "psycopg": {"prepare_threshold": None},
    "psycopg-async": {"prepare_threshold": None},
    "asyncpg": {"statement_cache_size": 0, "prepared_statement_cache_size": 0},
}

#: The drivers' caches at work. (psycopg's default is to prepare a statement at its
#: fifth use, asyncpg's to prepare all.)
WRONG: dict[str, dict[str, Any]] = {
    "psycopg": {"prepare_threshold": 0},
    "psycopg-async": {"prepare_threshold": 0},
    "asyncpg": {},
}

each_driver = pytest.mark.parametrize("driver", RIGHT)
each_isolation = pytest.mark.parametrize("isolation", ["role", "shared"])


@dataclass
class Tally:
    """What the clients of one run saw."""

    transactions: int = 0
    foreign: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    server_connections: set[int] = field(default_factory=set)
    client_connections: set[int] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def counting_errors(self) -> Iterator[None]:
        """Count errors by SQLSTATE, or by type where a result was not understood."""
        try:
            yield
        except (DBAPIError, InvalidRequestError) as error:
            state = getattr(getattr(error, "orig", None), "sqlstate", None)
            with self.lock:
                self.errors[state or type(error).__name__] += 1


def transact(session: Session, tenant: str, tally: Tally) -> None:
    """Read all rows that the session sees, write one, and end in one of three ways."""
    query = select(Note.tenant, Note.body, func.pg_backend_pid(), MARKER)
    rows = session.execute(query).all()
    marker = getattr(session, "context", {}).get("marker")
    written = session.scalars(
        insert(Note).values(body=tenant).returning(Note.tenant)
    ).all()
    raw = session.connection().connection.driver_connection
    with tally.lock:
        tally.transactions += 1
        tally.foreign += sum(row[:2] != (tenant, tenant) for row in rows)
        tally.foreign += sum(row[3] != marker for row in rows)
        tally.foreign += sum(name != tenant for name in written)
        tally.server_connections.update(row[2] for row in rows)
        tally.client_connections.add(id(raw))
    ending = random.random()
    if ending < 0.1:
        session.rollback()
    elif ending < 0.2:
        session.execute(text("SELECT 1 / 0"))
    else:
        session.commit()


def work(session: Session, tenant: str, tally: Tally, count: int) -> None:
    """Do ``count`` transactions in one session, whatever comes."""
    for _ in range(count):
        with tally.counting_errors():
            try:
                transact(session, tenant, tally)
            finally:
                session.rollback()


def sessions(transactions: int) -> Iterator[tuple[str, int]]:
    """One client's tenants, and how many transactions a session of each does."""
    while transactions:
        count = min(transactions, random.randint(1, 3))
        transactions -= count
        yield random.choice(TENANTS), count


def context() -> dict[str, str] | None:
    """A context for a session, with a value of its own, or none."""
    return {"marker": str(random.random())} if random.random() < 0.5 else None


def run_clients(
    bouncer: PgBouncer,
    driver: str,
    isolation: Any,
    settings: dict[str, Any],
    *,
    clients: int = 50,
    transactions: int = TRANSACTIONS,
) -> Tally:
    """Run clients at the same time, each on a connection of its own."""
    tally = Tally()
    login = "app" if isolation == "role" else "app_shared"
    url = bouncer.url(login, driver.removesuffix("-async"))
    kw = {"pool_size": clients, "max_overflow": 0, "connect_args": settings}
    each = transactions // clients
    if driver == "psycopg":
        _run_threads(url, kw, isolation, tally, clients, each)
    else:
        asyncio.run(_run_tasks(url, kw, isolation, tally, clients, each))
    return tally


def _run_threads(
    url: str, kw: Any, isolation: Any, tally: Tally, clients: int, each: int
) -> None:
    engine = create_engine(url, **kw)
    manager = PostgresManager.from_engine(engine, schema="public", isolation=isolation)
    together = threading.Barrier(clients, timeout=60)

    def client() -> None:
        with engine.connect():
            together.wait()
        for tenant, count in sessions(each):
            with (
                tally.counting_errors(),
                manager.new_session(tenant, context=context()) as session,
            ):
                work(session, tenant, tally, count)

    with ThreadPoolExecutor(clients) as executor:
        futures = [executor.submit(client) for _ in range(clients)]
    for future in futures:
        future.result()
    engine.dispose()


async def _run_tasks(
    url: str, kw: Any, isolation: Any, tally: Tally, clients: int, each: int
) -> None:
    engine = create_async_engine(url, **kw)
    manager = AsyncPostgresManager.from_engine(
        engine, schema="public", isolation=isolation
    )

    async def client() -> None:
        for tenant, count in sessions(each):
            with tally.counting_errors():
                async with manager.new_session(tenant, context=context()) as session:
                    await session.run_sync(work, tenant, tally, count)

    await asyncio.gather(*(client() for _ in range(clients)))
    await engine.dispose()


@pytest.fixture
def tenants(database: Database) -> Database:
    """A migrated database, with tenants that have a note each."""
    migrate(database)
    grant_logins(database)
    app, admin = create_engine(database.app_url), create_engine(database.admin_url)
    manager = PostgresManager.from_engine(app, admin_engine=admin)
    manager.create_tenants(TENANTS)
    app.dispose()
    admin.dispose()
    database.execute(
        "INSERT INTO notes (tenant, body) SELECT t, t FROM unnest(%s::text[]) t",
        [TENANTS],
    )
    return database


@contextmanager
def one_server_connection(
    database: Database, isolation: Any, **settings: str
) -> Iterator[tuple[PostgresManager, Any]]:
    """A manager, and an engine of the same login, on one connection to the server."""
    login = "app" if isolation == "role" else "app_shared"
    with PgBouncer(database, {"default_pool_size": "1", **settings}) as bouncer:
        engine = create_engine(
            bouncer.url(login), poolclass=NullPool, connect_args=RIGHT["psycopg"]
        )
        manager = PostgresManager.from_engine(
            engine, schema="public", isolation=isolation
        )
        yield manager, engine
        engine.dispose()


def notes(session: Session) -> list[str]:
    return list(session.scalars(select(Note.tenant)))


def foreign_rows(database: Database) -> list[Any]:
    return database.rows("SELECT * FROM notes WHERE tenant <> body")


@each_driver
@each_isolation
def test_no_row_of_another_tenant(
    tenants: Database, driver: str, isolation: str
) -> None:
    with PgBouncer(tenants) as bouncer:
        tally = run_clients(bouncer, driver, isolation, RIGHT[driver])
    if LONG:
        count = f"{tally.transactions:,} transactions, {tally.foreign} foreign rows"
        print(f"{driver}, {isolation}: {count}", file=sys.stderr)
    assert tally.foreign == 0
    assert not foreign_rows(tenants)
    assert set(tally.errors) <= {DIVISION_BY_ZERO}
    assert tally.transactions == TRANSACTIONS
    assert len(tally.client_connections) == 50
    assert len(tally.server_connections) == SERVER_CONNECTIONS


@each_isolation
def test_a_scope_for_the_session_would_leak_and_be_noticed(
    tenants: Database, isolation: str
) -> None:
    """The tests above can fail: what they must not see is there to be seen."""
    tally = Tally()
    with PgBouncer(tenants) as bouncer:
        engine = create_engine(
            bouncer.url("app" if isolation == "role" else "app_shared"),
            pool_size=20,
            connect_args=RIGHT["psycopg"],
        )

        def client() -> None:
            for tenant, count in sessions(5):
                scope = (
                    f'SET ROLE "tenant_{tenant}"'
                    if isolation == "role"
                    else f"SET ROLE tenants_shared; SET tenancy.tenant = '{tenant}'"
                )
                with tally.counting_errors(), Session(engine) as session:
                    session.connection().exec_driver_sql(scope)
                    session.commit()
                    work(session, tenant, tally, count)

        with ThreadPoolExecutor(20) as executor:
            futures = [executor.submit(client) for _ in range(20)]
        for future in futures:
            future.result()
        engine.dispose()
    assert tally.foreign > 0
    assert foreign_rows(tenants)


@each_driver
@each_isolation
def test_prepared_statements_give_errors_and_no_foreign_rows(
    tenants: Database, driver: str, isolation: str
) -> None:
    with PgBouncer(tenants) as bouncer:
        tally = run_clients(
            bouncer, driver, isolation, WRONG[driver], clients=20, transactions=100
        )
    assert tally.foreign == 0
    assert not foreign_rows(tenants)
    assert {INVALID_SQL_STATEMENT_NAME, DUPLICATE_PREPARED_STATEMENT} & set(
        tally.errors
    )


@pytest.mark.parametrize(
    "statement",
    [
        "SET tenancy.tenant = 'tenant 1'",
        "SET search_path = pg_temp, pg_catalog",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    ],
)
@each_isolation
def test_what_another_client_set_for_its_session_changes_nothing(
    tenants: Database, statement: str, isolation: str
) -> None:
    with one_server_connection(tenants, isolation) as (manager, engine):
        with engine.begin() as connection:
            connection.exec_driver_sql(statement)
        with manager.new_session("tenant 2") as session:
            assert notes(session) == ["tenant 2"]


def test_the_role_that_another_client_set_for_its_session_changes_nothing(
    tenants: Database,
) -> None:
    with one_server_connection(tenants, "role") as (manager, engine):
        with engine.begin() as connection:
            connection.exec_driver_sql('SET ROLE "tenant_tenant 1"')
        with manager.new_session("tenant 2") as session:
            assert notes(session) == ["tenant 2"]
            session.commit()
            assert notes(session) == ["tenant 2"]


@each_isolation
def test_row_security_switched_off_by_another_client_is_an_error(
    tenants: Database, isolation: str
) -> None:
    with one_server_connection(tenants, isolation) as (manager, engine):
        with engine.begin() as connection:
            connection.exec_driver_sql("SET row_security = off")
        with (
            manager.new_session("tenant 2") as session,
            pytest.raises(DBAPIError, match="affected by row-level security policy"),
        ):
            notes(session)


@each_isolation
def test_a_temporary_table_of_another_tenant_shadows_nothing(
    tenants: Database, isolation: str
) -> None:
    with one_server_connection(tenants, isolation) as (manager, _):
        with manager.new_session("tenant 1") as session:
            session.execute(text("CREATE TEMPORARY TABLE notes AS TABLE public.notes"))
            session.commit()
        with manager.new_session("tenant 2") as session:
            assert notes(session) == ["tenant 2"]


@pytest.mark.parametrize(
    "settings",
    [
        {"server_reset_query": ""},
        {"server_reset_query_always": "1"},
        {"server_reset_query_always": "1", "server_reset_query": "RESET ALL"},
        {"pool_mode": "session"},
    ],
    ids=lambda settings: " ".join(map("=".join, settings.items())),
)
@each_isolation
def test_other_settings_of_pgbouncer(
    tenants: Database, settings: dict[str, str], isolation: str
) -> None:
    with one_server_connection(tenants, isolation, **settings) as (manager, _):
        for tenant in TENANTS[:3]:
            with manager.new_session(tenant) as session:
                assert notes(session) == [tenant]
                session.commit()
                assert notes(session) == [tenant]


@each_isolation
def test_statement_mode_is_refused(tenants: Database, isolation: str) -> None:
    with (
        one_server_connection(tenants, isolation, pool_mode="statement") as (
            manager,
            _,
        ),
        pytest.raises(DBAPIError, match="transaction blocks not allowed"),
        manager.new_session("tenant 1"),
    ):
        pass
