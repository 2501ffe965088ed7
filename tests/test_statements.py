"""``allow_statements``: which statements are sent, and that a message has one."""

from __future__ import annotations

import gc
import inspect
from typing import Any

import psycopg
import pytest
from sqlalchemy import (
    Connection,
    create_engine,
    event,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from servers import Database, Server, requested_version
from sqlalchemy_tenants import DML, AdminSession, ScopeError, TenantSession
from sqlalchemy_tenants.aio import AsyncTenantSession
from sqlalchemy_tenants.aio.managers import PostgresManager as AsyncManager
from sqlalchemy_tenants.drivers import driver_of
from sqlalchemy_tenants.drivers import psycopg as psycopg_module
from sqlalchemy_tenants.managers import PostgresManager
from sqlalchemy_tenants.statements import _forget, first_word
from tenancy import (  # noqa: F401
    Note,
    World,
    driver_fixture,
    isolation_fixture,
    migrated_fixture,
    on_each_driver,
    role_world_fixture,
    world_fixture,
)

READ_BY_BOTH = {
    "SELECT 1": "select",
    "select\t1": "select",
    "VALUES(1)": "values",
    ";; SELECT 1": "select",
    "((SELECT 1))": "select",
    "SELECT/**/1": "select",
    "SELECT--\n1": "select",
    "-- x\n SELECT 1": "select",
    "-- x\rSELECT 1": "select",
    "--\n--\nSELECT 1": "select",
    "/* x */SELECT 1": "select",
    "/* /* x */ */ SELECT 1": "select",
    "/*/ */SELECT 1": "select",
    "/***/SELECT 1": "select",
    "/* -- */ SELECT 1": "select",
    "-- /*\nSELECT 1": "select",
    "\f\r\n SELECT 1": "select",
    ";SHOW role": "show",
    "/* SELECT */ SHOW role": "show",
    "/* /* */ SELECT */ SHOW role": "show",
    "-- SELECT\nSHOW role": "show",
    "-- SELECT\rSHOW role": "show",
    "sHoW role": "show",
    "\vSHOW role": "show",  # an error before 17
    "\vSELECT 1": "select",
}
READ_BY_NOBODY = [
    "",
    " ;",
    "--",
    "-- x",
    "/*",
    "/* /* */ SELECT 1",
    "/*/*/ SELECT 1",
    "\xa0SELECT 1",
    "\u2003SELECT 1",
    "\ufeffSELECT 1",
    "\x1cSELECT 1",
    "SELECTé 1",
    "SELECT_ 1",
    "SELECT$ 1",
    "\u017fELECT 1",
    '"SELECT" 1',
    "$$SELECT$$",
    "'SELECT' 1",
    "{SELECT 1}",
    "\\SELECT 1",
    "1",
]


@pytest.mark.parametrize("statement", READ_BY_BOTH)
def test_the_first_word_is_the_one_that_the_server_reads(
    statement: str, server: Server
) -> None:
    word = READ_BY_BOTH[statement]
    assert first_word(statement) == word
    with server.connect() as connection:
        try:
            cursor = connection.execute(statement.encode())
        except psycopg.errors.SyntaxError:
            assert "\v" in statement
            assert requested_version() < 17
            return
    tag = (cursor.statusmessage or "").split()[0].lower()
    assert tag == ("select" if word == "values" else word)


@pytest.mark.parametrize("statement", READ_BY_NOBODY)
def test_what_the_server_does_not_read_is_refused(
    statement: str, server: Server
) -> None:
    assert first_word(statement) not in DML
    with server.connect() as connection:
        try:
            cursor = connection.execute(statement.encode())
        except psycopg.errors.SyntaxError:
            return
    assert cursor.description is None


# --- sessions ------------------------------------------------------------------------


@pytest.fixture
def seeded(world: World) -> World:
    world.create("acme", "globex")
    world.fill(Note, "acme", "globex")
    return world


def dml(world: World, engine: Any = None, **kw: Any) -> PostgresManager:
    return world.manager(engine, allow_statements=DML, **kw)


def acts_as(connection: Session | Connection) -> str:
    query = (
        "SELECT current_user || coalesce(current_setting('tenancy.tenant', true), '')"
    )
    return str(connection.execute(text(query)).scalar_one())


def bodies(session: Session | Connection) -> set[str]:
    return set(session.scalars(select(Note.body)))


def by_text(connection: Connection, statement: str) -> Any:
    return connection.execute(text(statement.replace(":", "\\:")))


def by_driver(connection: Connection, statement: str) -> Any:
    return connection.exec_driver_sql(statement)


def unchanged(connection: Connection, statement: str) -> Any:
    return connection.exec_driver_sql(
        statement, execution_options={"no_parameters": True}
    )


def many(connection: Connection, statement: str) -> Any:
    return connection.execute(text(statement), [{}, {}])


def streamed(connection: Connection, statement: str) -> Any:
    options = {"yield_per": 5}
    return connection.execute(text(statement), execution_options=options).all()


def with_options(connection: Connection, statement: str) -> Any:
    options = {"autocommit": True, "insertmanyvalues_page_size": 1}
    return connection.execute(text(statement).execution_options(**options))


WAYS = [by_text, by_driver, unchanged, many, streamed, with_options]
REFUSED = {
    "SET ROLE tenants": "SET",
    "reset role": "RESET",
    "/* SELECT */ DISCARD ALL": "DISCARD",
    "DO $$ BEGIN END $$": "DO",
    "COMMIT": "COMMIT",
    "ROLLBACK TO SAVEPOINT a": "ROLLBACK",
    "SAVEPOINT a": "SAVEPOINT",
    "EXPLAIN ANALYZE SELECT 1": "EXPLAIN",
    "COPY notes TO STDOUT": "COPY",
    "TABLE$ notes": "no first word",
    "SELEKT 1": "SELEKT",
    "-- SELECT": "no first word",
}


@on_each_driver
def test_other_statements_are_refused_and_not_sent(seeded: World, world: World) -> None:
    manager = dml(seeded)

    def attack(connection: Connection) -> None:
        before = acts_as(connection)
        for way in WAYS:
            for statement, word in REFUSED.items():
                with pytest.raises(ScopeError, match=word):
                    way(connection, statement)
            # by the server, at the latest
            with connection.begin_nested() as savepoint:
                with pytest.raises(DBAPIError) as error:
                    way(connection, "SELECT 1; SET LOCAL ROLE tenants")
                assert getattr(error.value.orig, "sqlstate", None) == "42601"
                savepoint.rollback()
        # a statement that was sent and failed would have ended the transaction
        assert acts_as(connection) == before
        assert bodies(connection) == {"row of acme"}

    with manager.new_session("acme", create_if_missing=False) as session:
        attack(session.connection())
        for statement in REFUSED:
            with pytest.raises(ScopeError, match="allow_statements"):
                session.execute(text(statement))
        session.commit()  # the next transaction is guarded, too
        with pytest.raises(ScopeError, match=r"allow_statements=DML \| {'set'}"):
            session.execute(text("SET ROLE tenants"))
    for connecting in (manager.connect("acme"), manager.begin("acme")):
        with connecting as connection:
            attack(connection)
    with manager.connect("acme") as connection:
        connection.commit()
        attack(connection)
        connection.invalidate()
        connection.rollback()
        attack(connection)


@pytest.mark.parametrize("isolation", ["shared"])
@pytest.mark.parametrize("early", [False, True], ids=["opened-before", "guarded"])
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@on_each_driver
def test_a_statement_that_is_known_already_is_refused(
    seeded: World, world: World, early: bool
) -> None:
    """The driver and SQLAlchemy's adapter have prepared it for somebody else."""
    engine = world.engine()
    if early:
        dml(world, engine)
    statement = "SET LOCAL tenancy.tenant = 'globex'"
    with engine.connect() as connection:
        for _ in range(7):
            connection.exec_driver_sql(statement)
    with dml(world, engine).new_session("acme") as session:
        with pytest.raises(ScopeError, match="SET"):
            session.connection().exec_driver_sql(statement)
        assert bodies(session) == {"row of acme"}


@pytest.mark.parametrize("driver", ["asyncpg"])
@on_each_driver
def test_a_refused_statement_is_not_even_prepared(
    role_world: World, driver: str
) -> None:
    role_world.create("acme")
    with (
        dml(role_world).new_session("acme") as session,
        pytest.raises(ScopeError),  # not an error of the server
    ):
        session.connection().exec_driver_sql("SET ROLE TO TO")


@on_each_driver
def test_what_a_listener_makes_of_a_statement_is_checked(role_world: World) -> None:
    role_world.create("acme")
    with dml(role_world).new_session("acme") as session:
        connection = session.connection()
        rewrite = lambda *arguments: ("RESET ROLE", arguments[3])  # noqa: E731
        event.listen(connection, "before_cursor_execute", rewrite, retval=True)
        with pytest.raises(ScopeError, match="RESET"):
            connection.exec_driver_sql("SELECT 1")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg-async"])
@on_each_driver
def test_a_placeholder_does_not_end_a_comment(role_world: World, driver: str) -> None:
    """psycopg puts $1 in place of it, and the comment goes on."""
    role_world.create("acme", "globex")
    attack = '/* %(*/ SELECT )s */ SET ROLE "tenant_globex"'
    with dml(role_world).new_session("acme") as session:
        before = acts_as(session)
        with pytest.raises(ScopeError):
            session.connection().exec_driver_sql(attack, {"*/ SELECT ": 1})
        assert acts_as(session) == before


@on_each_driver
def test_an_application_works_as_before(seeded: World, world: World) -> None:
    engine = world.engine()
    with dml(seeded, engine).new_session("acme", create_if_missing=False) as session:
        session.add_all(Note(tenant="acme", body=f"{i}") for i in range(3))
        session.execute(insert(Note), [{"tenant": "acme", "body": "%s; SET"}] * 3)
        session.flush()
        with session.begin_nested():
            session.execute(update(Note).values(body=func.upper(Note.body)))
        with pytest.raises(DBAPIError), session.begin_nested():
            session.execute(text("SELECT 1 / 0"))
        rows = session.scalars(select(Note), execution_options={"yield_per": 2})
        assert {row.body for row in rows} >= {"ROW OF ACME", "%S; SET"}
        note = session.scalars(select(Note).limit(1)).one()
        session.delete(note)
        session.commit()
        assert session.execute(text("/* a */ WITH n AS (TABLE notes) TABLE n")).all()
    # the pool has its connection back as it was
    with engine.connect() as connection:
        connection.exec_driver_sql("SET LOCAL lock_timeout = '1s'")
        if world.driver != "asyncpg":  # which takes one statement in any case
            connection.exec_driver_sql("SELECT 1; SELECT 2")
        connection.rollback()
    with world.manager(engine).new_session("acme", create_if_missing=False) as session:
        session.execute(text("SET LOCAL lock_timeout = '1s'"))


@on_each_driver
def test_the_guard_of_a_session_that_joined_ends_with_it(
    seeded: World, world: World
) -> None:
    """Also where another session joined, and nobody closes the last one."""
    engine = world.engine()
    with engine.connect() as connection:
        connection.begin()
        connection.exec_driver_sql("SAVEPOINT sa_savepoint_1")
        own = "SET LOCAL lock_timeout = '1s'"
        before = acts_as(connection)
        first = world.session("acme", connection, allow_statements=DML)
        second = world.session("acme", connection, allow_statements=DML | {"show"})
        assert bodies(first) == bodies(second) == {"row of acme"}
        for statement in ("RELEASE SAVEPOINT", "ROLLBACK TO SAVEPOINT"):
            for session in (first, second):
                with pytest.raises(ScopeError):
                    # older than the scope
                    session.execute(text(f"{statement} sa_savepoint_1"))
        with pytest.raises(ScopeError):  # one connection, and both guards
            second.execute(text("SHOW role"))
        with pytest.raises(ScopeError):
            connection.exec_driver_sql(own)
        first.commit()
        second.execute(text("SHOW role"))
        with pytest.raises(ScopeError):
            connection.exec_driver_sql(own)
        del second, session
        gc.collect()
        connection.exec_driver_sql(own)
        assert acts_as(connection) == before
        connection.exec_driver_sql("SHOW role")
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT sa_savepoint_1")
        third = world.session("acme", connection, allow_statements=DML)
        assert bodies(third) == {"row of acme"}
        third.commit()
        assert acts_as(connection) == before
        connection.exec_driver_sql(own)
        fourth = world.session("acme", connection, allow_statements=DML)
        assert bodies(fourth) == {"row of acme"}
    # the connection goes back to the pool under the session
    with engine.connect() as connection:
        connection.exec_driver_sql(own)
        if world.driver != "asyncpg":
            connection.exec_driver_sql("SELECT 1; SELECT 2")
    fourth.close()


# --- what cannot be guarded ----------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "psycopg-async"])
@on_each_driver
def test_a_version_of_psycopg_without_the_hook_is_refused(
    role_world: World, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    role_world.create("acme")
    engine = role_world.engine()
    monkeypatch.setattr(driver_of(engine.dialect), "_is_proved", False)
    monkeypatch.delattr(psycopg_module._OneStatement, "_execute_send")
    for _ in range(2):
        with (
            pytest.raises(ScopeError, match="several statements in one message"),
            dml(role_world, engine).new_session("acme", create_if_missing=False),
        ):
            pass  # pragma: no cover


@on_each_driver
def test_words_without_those_of_the_proof(
    role_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    role_world.create("acme")
    engine = role_world.engine()
    monkeypatch.setattr(driver_of(engine.dialect), "_is_proved", False)
    for _ in range(2):
        with role_world.session("acme", engine, allow_statements={"insert"}) as session:
            session.execute(insert(Note), [{"body": "a"}, {"body": "b"}])
            with pytest.raises(ScopeError, match="SELECT"):
                session.scalars(select(Note))


@on_each_driver
def test_engines_with_other_options_share_a_listener(role_world: World) -> None:
    role_world.create("acme")
    engine = role_world.engine()
    kept = []
    for _ in range(5):
        kept.append(engine.execution_options(isolation_level="SERIALIZABLE"))
        with role_world.session("acme", kept[-1], allow_statements=DML) as session:
            session.scalars(select(Note)).all()
    assert list(engine.pool.dispatch.checkin).count(_forget) == 1
    with engine.connect() as connection:
        connection.exec_driver_sql("SET LOCAL work_mem = '1MB'")


def test_psycopg_has_the_hook() -> None:
    for cursor in psycopg_module._PLAIN:
        parameters = inspect.signature(cursor._execute_send).parameters
        assert "force_extended" in parameters


@pytest.mark.parametrize("driver", ["psycopg"])
@on_each_driver
def test_cursors_of_the_applications_own_are_refused(
    role_world: World, driver: str
) -> None:
    role_world.create("acme")
    for name in ("cursor_factory", "server_cursor_factory"):
        class_ = {"cursor_factory": psycopg.ClientCursor}.get(
            name, psycopg.ServerCursor
        )
        engine = role_world.engine()

        @event.listens_for(engine, "connect")
        def connect(
            raw: Any, record: Any, name: str = name, base: Any = class_
        ) -> None:
            setattr(raw, name, type("Own", (base,), {}))

        with (
            pytest.raises(ScopeError, match="cursors of its own, Own"),
            dml(role_world, engine).new_session("acme", create_if_missing=False),
        ):
            pass  # pragma: no cover


class NoDriver:
    """What SQLAlchemy asks of a driver that is not installed."""

    __version__ = "2.9.9"
    paramstyle = "pyformat"
    Error = Exception


def test_other_drivers_are_refused() -> None:
    engine = create_engine("postgresql+pg8000://", module=NoDriver)
    with pytest.raises(ScopeError, match="'pg8000' may send several"):
        PostgresManager.from_engine(engine, allow_statements=DML)
    with pytest.raises(ScopeError, match="'pg8000' may send several"):
        TenantSession(engine, tenant="acme", allow_statements=DML)


@pytest.mark.parametrize("driver", ["psycopg"])
@on_each_driver
def test_a_bind_that_is_asked_for_is_refused(role_world: World, driver: str) -> None:
    """A session without a bind meets its driver with its first transaction."""
    role_world.create("acme")
    engine = role_world.engine()
    engine.dialect.driver = "other"
    session = TenantSession(
        binds={Note: engine}, tenant="acme", schema="public", allow_statements=DML
    )
    for message in ("'other' may send several", "not confined"):
        with pytest.raises(ScopeError, match=message):
            session.scalars(select(Note))
    session.close()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"select", "upsert"}, ValueError, "'upsert'"),
        ({"SELECT"}, ValueError, "'SELECT'"),
        ({""}, ValueError, "''"),
        (frozenset(), ValueError, "empty"),
        ("select", TypeError, "a set of words"),
        (["select"], TypeError, "a set of words"),
        ({1}, TypeError, "a set of words"),
        (True, TypeError, "a set of words"),
    ],
)
def test_words_that_are_none(given: Any, error: type[Exception], message: str) -> None:
    engine = create_engine("postgresql+psycopg://")
    with pytest.raises(error, match=message):
        PostgresManager.from_engine(engine, allow_statements=given)
    with pytest.raises(error, match=message):
        AdminSession(engine, allow_statements=given)
    aengine = create_async_engine("postgresql+asyncpg://")
    with pytest.raises(error, match=message):
        AsyncManager.from_engine(aengine, allow_statements=given)
    with pytest.raises(error, match=message):
        AsyncTenantSession(aengine, tenant="acme", allow_statements=given)
    with pytest.raises(ValueError, match="'allow_statements'"):
        PostgresManager.from_engine(engine, session_options={"allow_statements": given})


class Forgetful(TenantSession):
    def __init__(self, bind: Any, *, allow_statements: Any, **kw: Any) -> None:
        super().__init__(bind, **kw)


def test_a_session_class_that_forgets_the_words_is_refused() -> None:
    manager = PostgresManager.from_engine(
        create_engine("postgresql+psycopg://"),
        session_class=Forgetful,
        allow_statements=DML,
    )
    with (
        pytest.raises(ScopeError, match="Forgetful does not keep allow_statements"),
        manager.new_session("acme"),
    ):
        pass  # pragma: no cover


async def test_the_async_manager(migrated: Database) -> None:
    engine = create_async_engine(migrated.url("app", "asyncpg"))
    admin = create_async_engine(migrated.url("manager", "asyncpg"))
    manager = AsyncManager.from_engine(
        engine, "public", admin_engine=admin, allow_statements=DML
    )
    async with manager.new_session("acme", create_if_missing=True) as session:
        assert (await session.execute(select(1))).scalar_one() == 1
        with pytest.raises(ScopeError, match="RESET"):
            await session.execute(text("RESET ROLE"))
    async with manager.begin("acme") as connection:
        with pytest.raises(ScopeError, match="RESET"):
            await connection.execute(text("RESET ROLE"))
    async with manager.admin_session() as session:  # not of a tenant
        await session.execute(text("SET LOCAL lock_timeout = '1s'"))
    assert len(await manager.list_tenants()) == 1
    await engine.dispose()
    await admin.dispose()
