"""BEGIN and scope in one message: errors, interruptions, and what falls back."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import asyncpg
import psycopg
import psycopg.generators
import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DBAPIError, PendingRollbackError, ResourceClosedError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session

from proxy import Proxy
from servers import Database
from sqlalchemy_tenants import ScopeError, TenantNotFound, TenantSession, drivers
from sqlalchemy_tenants.aio import AsyncTenantSession
from sqlalchemy_tenants.drivers import Driver, driver_of, log_once
from sqlalchemy_tenants.drivers.asyncpg import ScopedConnection
from sqlalchemy_tenants.managers import PostgresManager
from tenancy import (  # noqa: F401
    Note,
    World,
    driver_fixture,
    isolation_fixture,
    migrated_fixture,
    on_each_driver,
    raw_state,
    role_world_fixture,
    statements,
    world_fixture,
)


@pytest.fixture(name="seeded")
def seeded_fixture(world: World) -> World:
    world.create("acme", "globex")
    world.fill(Note, "acme", "globex")
    return world


def bodies(session: Session) -> set[str]:
    return set(session.scalars(select(Note.body)))


def sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


# --- errors --------------------------------------------------------------------------


@on_each_driver
def test_an_error_is_sqlalchemys_and_the_pool_can_use_the_connection(
    role_world: World,
) -> None:
    world = role_world
    engine = world.engine()
    pid = backend(engine)
    world.database.execute("CREATE ROLE tenant_forbidden IN ROLE tenants")
    for tenant, state in (("missing", "22023"), ("forbidden", "42501")):
        with world.session(tenant, engine) as session:
            with pytest.raises((TenantNotFound, ScopeError)) as raised:
                session.connection()
            error = raised.value.__cause__
            assert isinstance(error, DBAPIError)
            assert sqlstate(error) == state
            assert "SET LOCAL ROLE" in str(error.statement)
            assert error.orig is not None
            assert error.__cause__ is not None
            assert isinstance(error.orig, engine.dialect.loaded_dbapi.Error)
            assert not error.connection_invalidated
    assert backend(engine) == pid
    assert raw_state(engine)[0] == "app"


def backend(engine: Engine) -> int:
    return backends(engine, 1)[0]


def backends(engine: Engine, count: int) -> list[int]:
    """The process ids of that many connections of a pool."""
    with ExitStack() as stack:
        connections = [stack.enter_context(engine.connect()) for _ in range(count)]
        query = text("SELECT pg_backend_pid()")
        return [connection.scalar(query) for connection in connections]


def terminate(world: World, pid: int) -> None:
    query = "SELECT pg_terminate_backend(%s, 5000)"
    assert world.database.rows(query, [pid]) == [(True,)]


@on_each_driver
def test_a_backend_that_died_between_transactions(seeded: World, world: World) -> None:
    engine = world.engine(pool_size=2, pool_use_lifo=True)
    pids = backends(engine, 2)
    with world.session("acme", engine) as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        session.commit()
        terminate(world, pid)
        with pytest.raises(DBAPIError) as raised:
            bodies(session)
        assert raised.value.connection_invalidated
        if world.driver != "asyncpg":  # which has noticed before it is asked
            assert sqlstate(raised.value) == "57P01"
        with pytest.raises(ScopeError, match="roll it back"):
            bodies(session)
        session.rollback()
        assert bodies(session) == {"row of acme"}
    # also the pool's other connection was given up, as SQLAlchemy does it
    assert not set(pids) & set(backends(engine, 2))


@on_each_driver
def test_a_backend_that_died_within_a_transaction(seeded: World, world: World) -> None:
    engine = world.engine()
    with world.session("acme", engine) as session:
        terminate(world, session.scalar(text("SELECT pg_backend_pid()")))
        with pytest.raises(DBAPIError) as raised:
            bodies(session)
        assert raised.value.connection_invalidated
        with pytest.raises(PendingRollbackError):
            bodies(session)  # not on another connection
        session.rollback()
        assert bodies(session) == {"row of acme"}


@on_each_driver
def test_pre_ping_reconnects(seeded: World, world: World) -> None:
    engine = world.engine(pool_pre_ping=True)
    terminate(world, backend(engine))
    with world.session("acme", engine) as session:
        assert bodies(session) == {"row of acme"}
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        session.commit()
        terminate(world, pid)
        assert bodies(session) == {"row of acme"}


@on_each_driver
def test_a_network_that_fails_within_begin(seeded: World, world: World) -> None:
    with Proxy(world.database.server) as proxy:
        name = world.driver.removesuffix("-async")
        engine = world.engine(url=proxy.url(world.database.url(world.login, name)))
        with world.session("acme", engine) as session:
            assert bodies(session) == {"row of acme"}
            session.commit()
            proxy.on_request = lambda data: proxy.cut() if b"BEGIN" in data else None
            with pytest.raises(DBAPIError) as raised:
                bodies(session)
            assert raised.value.connection_invalidated
            proxy.on_request = None
            session.rollback()
            assert bodies(session) == {"row of acme"}
        engine.dispose()


@on_each_driver
def test_a_statement_timeout_within_begin(role_world: World) -> None:
    world = role_world
    world.create("acme", "globex")
    world.fill(Note, "globex")
    engine = world.engine()
    with engine.begin() as connection:
        connection.execute(text("SET statement_timeout = '300ms'"))
    with world.session("acme", engine) as session:
        assert bodies(session) == set()
    with world.session("globex", engine) as session:
        with world.database.server.connect("test") as other:
            # SET ROLE waits where it has to look up the role
            other.execute("BEGIN; LOCK TABLE pg_catalog.pg_authid")
            with pytest.raises(DBAPIError) as raised:
                bodies(session)
            other.execute("ROLLBACK")
        assert sqlstate(raised.value) == "57014"
        assert not raised.value.connection_invalidated
        session.rollback()
        assert bodies(session) == {"row of globex"}


@on_each_driver
def test_an_unknown_error_is_not_wrapped(
    seeded: World, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Driver):
        def begin(self, connection: Any, scope: str) -> bool:
            raise ZeroDivisionError

    engine = world.engine()
    pid = backend(engine)
    monkeypatch.setattr("sqlalchemy_tenants.scope.driver_of", lambda _: Broken())
    with world.session("acme", engine) as session:
        with pytest.raises(ZeroDivisionError):
            bodies(session)
        with pytest.raises(ScopeError, match="roll it back"):
            bodies(session)
        monkeypatch.undo()
        session.rollback()
        assert bodies(session) == {"row of acme"}
    # nobody knew in what state it was
    assert backend(engine) != pid


@on_each_driver
def test_an_error_that_the_server_knows_nothing_of(
    seeded: World, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has aborted no transaction, and would execute the next statement."""
    engine = world.engine()
    pid = backend(engine)

    class Broken(Driver):
        def begin(self, connection: Any, scope: str) -> bool:
            raise engine.dialect.loaded_dbapi.InterfaceError("confused")

    monkeypatch.setattr("sqlalchemy_tenants.scope.driver_of", lambda _: Broken())
    with world.session("acme", engine) as session:
        with pytest.raises(DBAPIError, match="confused") as raised:
            bodies(session)
        assert raised.value.connection_invalidated
        monkeypatch.undo()
        session.rollback()
        assert bodies(session) == {"row of acme"}
    assert backend(engine) != pid


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@on_each_driver
def test_an_unknown_error_gives_up_a_core_connection(
    error: type[BaseException],
    seeded: World,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(Driver):
        def begin(self, connection: Any, scope: str) -> bool:
            raise error

    engine = world.engine()
    pid = backend(engine)
    with world.manager(engine).connect("acme") as connection:
        connection.commit()
        monkeypatch.setattr("sqlalchemy_tenants.scope.driver_of", lambda _: Broken())
        with pytest.raises(error):
            connection.execute(text("SELECT 1"))
        monkeypatch.undo()
        with pytest.raises(ResourceClosedError):
            connection.execute(text("SELECT 1"))
    assert backend(engine) != pid


# --- interruptions -------------------------------------------------------------------


def test_ctrl_c_within_begin(migrated: Database) -> None:
    world = World(migrated, "psycopg", "role")
    world.create("acme", "globex")
    world.fill(Note, "acme", "globex")
    with Proxy(migrated.server) as proxy:
        engine = world.engine(url=proxy.url(migrated.app_url))
        pid = backend(engine)
        main = threading.main_thread().ident
        assert main is not None

        def interrupt(data: bytes) -> None:
            if b"BEGIN" in data:
                proxy.on_request = None
                signal.pthread_kill(main, signal.SIGINT)

        with world.session("acme", engine) as session:
            # a signal that arrives in a callback of the garbage collector is swallowed
            gc.collect()
            gc.disable()
            proxy.on_request = interrupt
            try:
                with pytest.raises(KeyboardInterrupt):
                    bodies(session)
            finally:
                gc.enable()
            with pytest.raises(ScopeError, match="roll it back"):
                bodies(session)
            session.rollback()
            assert bodies(session) == {"row of acme"}
        assert backend(engine) != pid
        assert raw_state(engine)[0] == "app"
        engine.dispose()


@pytest.mark.parametrize("name", ["psycopg", "asyncpg"])
async def test_cancellation_at_every_await(
    name: str,
    migrated: Database,
    isolation: str,
    make_async_engine: Callable[..., AsyncEngine],
) -> None:
    world = World(migrated, name, isolation)
    world.create("acme", "globex")
    world.fill(Note, "acme", "globex")
    url = migrated.url(world.login, name)
    engine = make_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=5)
    kw: Any = {"isolation": isolation, "schema": "public"}
    seen = []

    async def use(tenant: str) -> set[str]:
        async with AsyncTenantSession(engine, tenant=tenant, **kw) as session:
            seen.append(set(await session.scalars(select(Note.body))))
            await session.commit()
            return set(await session.scalars(select(Note.body)))

    await use("acme")
    points = 0
    while await cancelled(use("acme"), points):
        points += 1
        assert await use("globex") == {"row of globex"}
        async with engine.connect() as connection:
            row = await connection.exec_driver_sql("SELECT current_user")
            assert row.scalar_one() == world.login
    # BEGIN, query, COMMIT, BEGIN, query, ROLLBACK at the least
    assert points >= 6
    assert {frozenset(rows) for rows in seen} <= {
        frozenset({"row of acme"}),
        frozenset({"row of globex"}),
    }


async def cancelled(coroutine: Coroutine[Any, Any, Any], point: int) -> bool:
    """Whether a task was cancelled when it waited for the n-th time."""

    class Counting:
        """Passes on what the coroutine waits for, and counts."""

        def __await__(self) -> Any:
            task = asyncio.current_task()
            assert task is not None
            waits = 0
            inner = coroutine.__await__()
            value: Any = None
            error: BaseException | None = None
            while True:
                try:
                    future = inner.send(value) if error is None else inner.throw(error)
                except StopIteration as stop:
                    return stop.value
                if waits == point:
                    # takes effect as soon as the task waits for the future
                    asyncio.get_running_loop().call_soon(task.cancel)
                waits += 1
                value, error = None, None
                try:
                    value = yield future
                except BaseException as raised:
                    error = raised

    async def run() -> None:
        await Counting()

    task = asyncio.create_task(run())
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


# --- several users of an engine ------------------------------------------------------


def test_threads_that_share_an_engine(migrated: Database) -> None:
    world = World(migrated, "psycopg", "role")
    tenants = ["acme", "globex", "initech", "umbrella"]
    world.create(*tenants)
    world.fill(Note, *tenants)
    engine = world.engine(pool_size=3, pool_timeout=30)
    manager = PostgresManager.from_engine(engine, "public")

    def use(number: int) -> bool:
        tenant = tenants[number % 4]
        with manager.new_session(tenant) as session:
            found = bodies(session)
            session.commit()
            return found == bodies(session) == {f"row of {tenant}"}

    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(use, range(200)))
    engine.dispose()


@pytest.mark.parametrize("name", ["psycopg", "asyncpg"])
async def test_tasks_that_share_an_engine(
    name: str, migrated: Database, make_async_engine: Callable[..., AsyncEngine]
) -> None:
    world = World(migrated, name, "role")
    tenants = ["acme", "globex", "initech", "umbrella"]
    world.create(*tenants)
    world.fill(Note, *tenants)
    engine = make_async_engine(migrated.url("app", name), pool_size=3, max_overflow=0)

    async def use(number: int) -> bool:
        tenant = tenants[number % 4]
        session = AsyncTenantSession(engine, tenant=tenant, schema="public")
        async with session:
            found = set(await session.scalars(select(Note.body)))
            await session.commit()
            again = set(await session.scalars(select(Note.body)))
            return found == again == {f"row of {tenant}"}

    assert all(await asyncio.gather(*map(use, range(200))))


def test_fork_after_connect(migrated: Database) -> None:
    world = World(migrated, "psycopg", "role")
    world.create("acme", "globex")
    world.fill(Note, "acme", "globex")
    engine = world.engine()
    with world.session("acme", engine) as session:
        assert bodies(session) == {"row of acme"}
    child = os.fork()
    if child == 0:  # pragma: no cover
        status = 1
        try:
            engine.dispose(close=False)  # as SQLAlchemy asks for after a fork
            with world.session("globex", engine) as session:
                status = int(bodies(session) != {"row of globex"})
            engine.dispose()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    with world.session("acme", engine) as session:
        assert bodies(session) == {"row of acme"}
    engine.dispose()


# --- what falls back -----------------------------------------------------------------


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    log_once.cache_clear()
    with caplog.at_level(logging.WARNING, "sqlalchemy_tenants"):
        yield caplog
    log_once.cache_clear()


@on_each_driver
def test_an_unknown_driver_falls_back_and_says_so_once(
    seeded: World,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    log: pytest.LogCaptureFixture,
) -> None:
    fallback = Driver()
    monkeypatch.setattr("sqlalchemy_tenants.scope.driver_of", lambda _: fallback)
    engine = world.engine()
    sent = statements(engine)
    for _ in range(2):
        with world.session("acme", engine) as session:
            assert bodies(session) == {"row of acme"}
            session.commit()
            assert bodies(session) == {"row of acme"}
    assert raw_state(engine)[0] == world.login
    assert sum(statement.startswith("SET LOCAL ROLE") for statement in sent) == 4
    assert len(log.records) == 1
    assert "additional round trips" in log.text
    if world.isolation == "role":
        with world.session("missing", engine) as session:
            with pytest.raises(TenantNotFound):
                bodies(session)
            with pytest.raises(ScopeError, match="roll it back"):
                bodies(session)


def test_unknown_drivers_have_the_fallback() -> None:
    for name in ("psycopg2", "pg8000"):
        assert type(drivers._driver(name, False)) is Driver


def test_connections_of_asyncpg_that_are_not_ours_fall_back(
    migrated: Database, log: pytest.LogCaptureFixture
) -> None:
    world = World(migrated, "asyncpg", "role")
    world.create("acme", "globex")
    world.fill(Note, "acme", "globex")

    async def creator(*args: Any, **kw: Any) -> Any:
        assert "connection_class" not in kw  # it decides by itself
        port = migrated.server.port
        return await asyncpg.connect(
            host="127.0.0.1", port=port, user="app", database="test"
        )

    class Own(asyncpg.Connection):  # type: ignore[misc]
        pass

    def run() -> None:
        opened_before = world.engine(prepared=False)
        backend(opened_before)
        engines = [
            opened_before,
            world.engine(connect_args={"connection_class": Own}),
            world.engine(async_creator=creator),
            world.engine(connect_args={"async_creator_fn": creator}),
        ]
        for engine in engines:
            for _ in range(2):
                with world.session("acme", engine) as session:
                    assert bodies(session) == {"row of acme"}
            assert raw_state(engine)[0] == "app"
            with (
                world.session("missing", engine) as session,
                pytest.raises(TenantNotFound),
            ):
                bodies(session)

        # the pool's later connections are ours
        opened_before.dispose()
        with opened_before.connect() as connection:
            found = type(connection.connection.driver_connection)
            assert found is ScopedConnection

    world.run(run)
    assert len(log.records) == 1


@pytest.mark.parametrize("driver", ["psycopg", "psycopg-async"])
def test_pipeline_mode_is_refused_and_its_connection_given_up(
    migrated: Database, driver: str
) -> None:
    world = World(migrated, driver, "role")
    world.create("acme")
    world.fill(Note, "acme")

    def run() -> None:
        engine = world.engine()
        manager = world.manager(engine)
        for open_ in (manager.new_session, manager.connect):
            pid = backend(engine)
            with engine.connect() as connection:
                # as psycopg does where executemany() is cancelled
                raw: Any = connection.connection.driver_connection
                raw.pgconn.enter_pipeline_mode()
            with pytest.raises(ScopeError, match="pipeline mode"):
                open_("acme").__enter__()
            with open_("acme") as handle:
                assert set(handle.execute(select(Note.body)).scalars()) == {
                    "row of acme"
                }
            assert backend(engine) != pid

    world.run(run)


def test_a_transaction_that_has_begun_may_enter_pipeline_mode(
    migrated: Database,
) -> None:
    world = World(migrated, "psycopg", "role")
    world.create("acme")
    engine = world.engine()
    with world.session("acme", engine) as session:
        raw: Any = session.connection().connection.driver_connection
        with raw.pipeline():  # in which SQLAlchemy finds no rows
            for body in ("one", "two"):
                write = text("INSERT INTO notes (body) VALUES (:body)")
                session.execute(write, {"body": body})
        assert bodies(session) == {"one", "two"}
        session.commit()
        assert bodies(session) == {"one", "two"}
    engine.dispose()


def test_the_engine_is_prepared_once(migrated: Database) -> None:
    engine = create_async_engine(migrated.url("app", "asyncpg")).sync_engine
    driver = driver_of(engine.dialect)
    for _ in range(3):
        driver.register(engine.dialect)
        copy = engine.execution_options(isolation_level="SERIALIZABLE")
        TenantSession(copy, tenant="acme")
        PostgresManager.from_engine(engine)
    assert len(list(engine.dialect.dispatch.do_connect)) == 1


# --- undocumented parts of the drivers -----------------------------------------------


def test_psycopg_has_what_we_use() -> None:
    assert inspect.isfunction(psycopg.errors.error_from_result)
    parameters = inspect.signature(psycopg.errors.error_from_result).parameters
    assert list(parameters)[:2] == ["result", "encoding"]
    assert callable(psycopg.generators.execute)
    for cls in (psycopg.Connection, psycopg.AsyncConnection):
        assert list(inspect.signature(cls.wait).parameters)[:2] == ["self", "gen"]


async def test_asyncpg_begins_a_transaction_as_we_expect(migrated: Database) -> None:
    sent = []

    class Recording(ScopedConnection):
        async def execute(self, query: str, *args: Any, **kw: Any) -> str:
            sent.append(query)
            return await super().execute(query, *args, **kw)

    connection = await asyncpg.connect(
        host="127.0.0.1",
        port=migrated.server.port,
        user="app",
        database="test",
        connection_class=Recording,
    )
    transaction = connection.transaction(isolation="serializable", readonly=True)
    await transaction.start()
    await transaction.rollback()
    assert sent == ["BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;", "ROLLBACK;"]
    await connection.close()


@on_each_driver
def test_both_know_when_a_transaction_is_aborted(seeded: World, world: World) -> None:
    with world.engine().connect() as connection:
        driver = driver_of(connection.dialect)
        assert driver.in_transaction(connection) is False
        connection.execute(text("SELECT 1"))
        assert driver.in_transaction(connection) is True
        with pytest.raises(DBAPIError):
            connection.execute(text("SELECT 1 / 0"))
        assert driver.is_aborted(connection)
        connection.rollback()
        assert driver.in_transaction(connection) is False
        assert not driver.is_aborted(connection)
