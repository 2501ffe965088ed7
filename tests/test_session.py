"""Each transaction of a session is confined to its tenant, or refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from typing import Any

import pytest
from sqlalchemy import (
    Connection,
    RootTransaction,
    create_engine,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import (
    DBAPIError,
    InvalidRequestError,
    ProgrammingError,
    SAWarning,
    TimeoutError,
)
from sqlalchemy.orm import (
    Session,
    SessionTransaction,
    sessionmaker,
)
from sqlalchemy.orm.exc import StaleDataError

from servers import Database
from sqlalchemy_tenants import ScopeError, TenantNotFound, TenantSession
from tenancy import (  # noqa: F401
    Base,
    Comment,
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


@pytest.fixture
def seeded(world: World) -> World:
    """Two tenants with two notes each."""
    world.create("acme", "globex")
    world.fill(Note, "acme", "globex", rows=2)
    return world


def bodies(session: Session) -> set[str]:
    return set(session.scalars(select(Note.body)))


ACME, GLOBEX = {"row of acme"}, {"row of globex"}


# --- transactions of one session -----------------------------------------------------


def autobegin(session: Session) -> None:
    pass


def begin(session: Session) -> None:
    with session.begin():
        assert bodies(session) == ACME


def commit(session: Session) -> None:
    assert bodies(session) == ACME
    session.commit()


def rollback(session: Session) -> None:
    assert bodies(session) == ACME
    session.rollback()


def close_and_reuse(session: Session) -> None:
    assert bodies(session) == ACME
    session.close()


def reset(session: Session) -> None:
    assert bodies(session) == ACME
    session.reset()


def invalidate(session: Session) -> None:
    assert bodies(session) == ACME
    session.invalidate()


def savepoint(session: Session) -> None:
    with session.begin_nested():
        assert bodies(session) == ACME


def rollback_to_savepoint(session: Session) -> None:
    savepoint = session.begin_nested()
    session.add(Note(body="gone"))
    session.flush()
    savepoint.rollback()


def savepoint_first(session: Session) -> None:
    session.begin_nested().rollback()


def error_in_a_savepoint(session: Session) -> None:
    with pytest.raises(DBAPIError), session.begin_nested():
        session.execute(text("SELECT 1 / 0"))


def error_in_flush(session: Session) -> None:
    session.add(Note(tenant="globex"))
    with pytest.raises(ProgrammingError):
        session.flush()
    session.rollback()


def error_in_commit(session: Session) -> None:
    session.add(Note(tenant="globex"))
    with pytest.raises(ProgrammingError):
        session.commit()
    session.rollback()


def error_in_a_statement(session: Session) -> None:
    with pytest.raises(DBAPIError):
        session.execute(text("SELECT 1 / 0"))
    session.rollback()


def connection(session: Session) -> None:
    found = session.connection().execute(select(Note.body)).scalars().all()
    assert set(found) == ACME


def isolation_level(session: Session) -> None:
    session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
    level = session.scalar(text("SHOW transaction_isolation"))
    assert level == "serializable"
    session.rollback()


def isolation_level_by_hand(session: Session) -> None:
    # possible while no snapshot is taken
    session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
    assert bodies(session) == ACME


def streaming(session: Session) -> None:
    rows = session.scalars(select(Note.body).execution_options(yield_per=1))
    assert set(rows) == ACME


def abandoned_stream(session: Session) -> None:
    rows = session.scalars(select(Note.body).execution_options(stream_results=True))
    assert next(rows) in ACME
    rows.close()


CASES: list[Callable[[Session], None]] = [
    autobegin,
    begin,
    commit,
    rollback,
    close_and_reuse,
    reset,
    invalidate,
    savepoint,
    rollback_to_savepoint,
    savepoint_first,
    error_in_a_savepoint,
    error_in_flush,
    error_in_commit,
    error_in_a_statement,
    connection,
    isolation_level,
    isolation_level_by_hand,
    streaming,
    abandoned_stream,
]


@on_each_driver
def test_the_scope_is_there_whatever_came_before(
    seeded: World, world: World, subtests: pytest.Subtests
) -> None:
    clean = raw_state(world.engine())
    engine = world.engine()
    for before in CASES:
        with subtests.test(before.__name__):
            with world.session("acme", engine) as session:
                before(session)
                assert bodies(session) == ACME
                session.commit()
                assert bodies(session) == ACME
            # and it is not there any more for who gets the connection next
            assert raw_state(engine) == clean
            assert engine.pool.checkedout() == 0
            with world.session("globex", engine) as session:
                assert bodies(session) == GLOBEX


@on_each_driver
def test_without_a_tenant_the_login_gets_an_error(seeded: World, world: World) -> None:
    engine = world.engine()
    with Session(engine) as session, pytest.raises(ProgrammingError) as raised:
        bodies(session)
    assert getattr(raised.value.orig, "sqlstate", None) == "42501"


@on_each_driver
def test_the_search_path_is_the_schema_and_temporary_tables_come_last(
    seeded: World, world: World
) -> None:
    engine = world.engine()
    with world.session("acme", engine) as session:
        assert session.scalar(text("SHOW search_path")) == "public, pg_temp"
    world.database.execute(
        f'ALTER ROLE {world.login} SET search_path = nowhere, "a,""B""", PUBLIC'
    )
    engine = world.engine()
    for _ in range(2):
        with world.session("acme", engine, schema=None) as session:
            assert session.scalar(text("SHOW search_path")) == (
                'nowhere, "a,""B""", public, pg_temp'
            )
            assert bodies(session) == ACME
    assert raw_state(engine)[2] == 'nowhere, "a,""B""", public'


@on_each_driver
def test_a_temporary_table_does_not_shadow_a_real_one(
    seeded: World, world: World
) -> None:
    world.database.execute("GRANT TEMP ON DATABASE test TO tenants")
    engine = world.engine()
    with world.session("acme", engine) as session:
        session.execute(text("CREATE TEMP TABLE notes (LIKE public.notes)"))
        session.commit()
    with world.session("globex", engine) as session:
        assert bodies(session) == GLOBEX


@on_each_driver
def test_temporary_tables_come_last_though_the_logins_path_has_them_first(
    seeded: World, world: World
) -> None:
    world.database.execute(
        f"GRANT TEMP ON DATABASE test TO tenants;"
        f"ALTER ROLE {world.login} SET search_path = pg_temp, public"
    )
    engine = world.engine()
    with world.session("acme", engine, schema=None) as session:
        session.execute(text("CREATE TEMP TABLE notes (LIKE public.notes)"))
        session.commit()
    with world.session("globex", engine, schema=None) as session:
        assert bodies(session) == GLOBEX


@on_each_driver
def test_a_schema_is_one_schema_whatever_its_name(world: World) -> None:
    world.create("acme")
    with world.session("acme", world.engine(), schema='a", public, "B') as session:
        path = session.scalar(text("SHOW search_path"))
    assert path == '"a"", public, ""B", pg_temp'


# --- what is refused -----------------------------------------------------------------


@on_each_driver
def test_autocommit_is_refused_before_any_statement(
    seeded: World, world: World
) -> None:
    autocommit = {"isolation_level": "AUTOCOMMIT"}
    engine = world.engine(**autocommit)
    plain = world.engine()
    sessions = [
        (engine, None),
        (plain.execution_options(**autocommit), None),
        (plain, autocommit),
    ]
    for bind, options in sessions:
        sent = statements(bind)
        with world.session("acme", bind) as session:
            for _ in range(2):
                with pytest.raises(ScopeError, match="AUTOCOMMIT") as raised:
                    session.connection(execution_options=options)
                assert raised.value.tenant == "acme"
                # not even if the error is overlooked
                with pytest.raises(ScopeError, match="roll it back"):
                    session.execute(text("SELECT 1"))
                session.rollback()
        assert "SELECT 1" not in sent
    with pytest.raises(ScopeError, match="AUTOCOMMIT"), engine.connect() as joined:
        world.session("acme", joined).connection()


@on_each_driver
def test_two_phase_is_refused(seeded: World, world: World) -> None:
    with pytest.raises(ScopeError, match="two-phase"):
        TenantSession(tenant="acme", twophase=True)
    engine = world.engine()
    with world.session("acme", engine) as session:
        session.twophase = True
        with pytest.raises(ScopeError, match="two-phase"):
            session.connection()
    for schema in ("public", None):
        with engine.connect() as connection, connection.begin_twophase():
            session = world.session("acme", connection, schema=schema)
            with session, pytest.raises(ScopeError, match="two-phase"):
                session.connection()


def test_another_database_than_postgresql_is_refused() -> None:
    engine = create_engine("sqlite://")
    session = TenantSession(engine, tenant="acme")
    with session, pytest.raises(ScopeError, match="'sqlite'"):
        session.connection()
    engine.dispose()


def test_the_tenant_cannot_be_left_out_or_changed() -> None:
    with pytest.raises(TypeError):
        sessionmaker(class_=TenantSession)()
    with pytest.raises(ValueError, match="isolation"):
        TenantSession(tenant="acme", isolation="none")  # type: ignore[arg-type]
    session = TenantSession(tenant=7)
    assert session.tenant == 7
    for name in ("tenant", "scope"):
        with pytest.raises(AttributeError):
            setattr(session, name, "other")


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK", "RESET ROLE"])
@on_each_driver
def test_leaving_the_transaction_by_hand_ends_in_an_error(
    statement: str, seeded: World, world: World
) -> None:
    engine = world.engine()
    with world.session("acme", engine) as session:
        session.execute(text(statement))
        with pytest.raises(ProgrammingError, match="permission denied"):
            bodies(session)
        session.rollback()
        assert bodies(session) == ACME
    assert raw_state(engine)[0] == world.login


@on_each_driver
def test_committing_its_connection_by_hand_ends_in_an_error(
    seeded: World, world: World
) -> None:
    with world.session("acme", world.engine()) as session:
        connection = session.connection()
        connection.commit()
        for _ in range(2):
            with pytest.raises(ScopeError, match="ended past the session"):
                session.execute(select(Note))
            with pytest.raises(ProgrammingError, match="permission denied"):
                connection.execute(select(Note))
            connection.rollback()
        with pytest.warns(SAWarning, match="deassociated"):
            session.rollback()
        assert bodies(session) == ACME


# --- the tenant that is missing ------------------------------------------------------


@on_each_driver
def test_a_refused_scope_leaves_nothing_that_could_be_used(world: World) -> None:
    if world.isolation == "shared":
        world.database.execute("REVOKE tenants_shared FROM app_shared")
    engine = world.engine()
    with world.session("missing", engine) as session:
        for _ in range(2):
            with pytest.raises(
                TenantNotFound if world.isolation == "role" else ScopeError
            ) as raised:
                session.execute(select(Note))
            assert raised.value.tenant == "missing"
            cause = raised.value.__cause__
            assert isinstance(cause, DBAPIError)
            state = getattr(cause.orig, "sqlstate", None)
            assert state == ("22023" if world.isolation == "role" else "42501")
            assert not cause.connection_invalidated
            # the error was overlooked
            with pytest.raises(ScopeError, match="roll it back"):
                session.execute(text("SELECT 1"))
            session.rollback()
        world.create("missing")
        if world.isolation == "shared":
            world.database.execute("GRANT tenants_shared TO app_shared")
        assert bodies(session) == set()
    assert raw_state(engine)[0] == world.login


# --- objects -------------------------------------------------------------------------


@on_each_driver
def test_attributes_are_refreshed_and_loaded_after_commit(
    seeded: World, world: World
) -> None:
    with world.session("acme", world.engine()) as session:
        note = Note(body="first", comments=[Comment()])
        session.add(note)
        session.commit()
        assert note.body == "first"  # expired by the commit
        session.commit()
        assert [comment.tenant for comment in note.comments] == ["acme"]  # lazy
        session.rollback()
        session.refresh(note)
        assert note.tenant == "acme"


@on_each_driver
def test_rows_get_their_tenant_by_themselves_without_another_query(
    seeded: World, world: World
) -> None:
    engine = world.engine()
    sent = statements(engine)
    with world.session("acme", engine) as session:
        one, many = Note(), [Note() for _ in range(3)]
        session.add(one)
        session.flush()
        session.add_all(many)
        session.flush()
        sent.clear()
        assert {note.tenant for note in [one, *many]} == {"acme"}
        assert sent == []
        session.execute(insert(Note))
        session.execute(insert(Note), [{"body": "a"}, {"body": "b"}])
        session.execute(Note.__table__.insert().values([{"body": "c"}]))
        session.bulk_save_objects([Note(), Note()])
        session.bulk_insert_mappings(Note.__mapper__, [{"body": "d"}, {"body": "e"}])
        returned = session.scalars(
            insert(Note).returning(Note.tenant), [{"body": "f"}, {"body": "g"}]
        )
        assert returned.all() == ["acme", "acme"]
        session.commit()
    found = world.database.rows(
        "SELECT tenant, count(*) FROM notes GROUP BY tenant ORDER BY tenant"
    )
    assert found == [("acme", 2 + 4 + 1 + 2 + 1 + 2 + 2 + 2), ("globex", 2)]


@on_each_driver
def test_bulk_writes_stay_in_their_tenant(seeded: World, world: World) -> None:
    ((foreign,),) = world.database.rows(
        "SELECT min(id) FROM notes WHERE tenant = 'globex'"
    )
    with world.session("acme", world.engine()) as session:
        session.execute(update(Note).values(body="changed"))
        session.commit()
        mappings = [{"id": foreign, "body": "changed"}]
        with pytest.raises(StaleDataError):
            session.bulk_update_mappings(Note.__mapper__, mappings)
        session.rollback()
        assert bodies(session) == {"changed"}
    with world.session("globex", world.engine()) as session:
        assert bodies(session) == GLOBEX


@on_each_driver
def test_an_object_of_another_tenants_session_cannot_be_merged(
    seeded: World, world: World
) -> None:
    with world.session("globex", world.engine()) as session:
        foreign = session.scalars(select(Note)).first()
        assert foreign is not None
        session.expunge(foreign)
    foreign.body = "smuggled"
    with world.session("acme", world.engine()) as session:
        # not found, so it is a new row: of globex, or with a key that is taken
        session.merge(foreign)
        with pytest.raises(DBAPIError):
            session.flush()
        session.rollback()
        # taken for a row that is there
        session.add(foreign)
        foreign.body = "smuggled again"
        with pytest.raises(StaleDataError):
            session.flush()
        session.rollback()
        assert bodies(session) == ACME
    with world.session("globex", world.engine()) as session:
        assert bodies(session) == GLOBEX


# --- connections ---------------------------------------------------------------------


@on_each_driver
def test_a_second_bind_that_is_refused_executes_nothing(
    seeded: World, world: World
) -> None:
    """That the first one was confined says nothing of the second."""
    autocommit = world.engine().execution_options(isolation_level="AUTOCOMMIT")
    binds = {Note: world.engine(), Comment: autocommit}
    with world.session("acme", None, binds=binds) as session:
        assert bodies(session) == ACME
        with pytest.raises(ScopeError, match="AUTOCOMMIT"):
            session.scalars(select(Comment))
        with pytest.raises(ScopeError, match="roll it back"):
            session.execute(text("SELECT 1"), bind_arguments={"mapper": Comment})
        session.rollback()
        assert bodies(session) == ACME


@on_each_driver
def test_a_second_bind_that_is_refused_in_a_later_transaction(
    seeded: World, world: World
) -> None:
    first, second = ({"bind": world.engine()} for _ in range(2))
    with world.session("acme", None) as session:
        for each in (first, second):
            session.connection({**each})
        session.commit()
        session.connection({**first})
        with pytest.raises(ScopeError, match="AUTOCOMMIT"):
            session.connection({**second}, {"isolation_level": "AUTOCOMMIT"})
        with pytest.raises(ScopeError, match="roll it back"):
            session.execute(text("SELECT 1"), bind_arguments=second)


@on_each_driver
def test_each_of_several_binds_is_confined(seeded: World, world: World) -> None:
    notes, comments = world.engine(), world.engine()
    session = world.session("acme", None, binds={Note: notes, Comment: comments})
    with session:
        for _ in range(2):
            assert bodies(session) == ACME
            session.scalars(select(Comment)).all()
            for model in (Note, Comment):
                query = text("SELECT tenancy.current_tenant()")
                assert session.scalar(query, bind_arguments={"mapper": model}) == "acme"
            assert notes.pool.checkedout() == comments.pool.checkedout() == 1
            session.commit()
        other = world.engine()
        query = select(Note.body)
        found = session.scalars(query, bind_arguments={"bind": other})
        assert set(found) == ACME


def routing(kind: str, engine: Any) -> type[TenantSession]:
    """A class of the application's that chooses among engines."""

    class Mixin:
        def get_bind(self, *args: Any, **kw: Any) -> Any:
            return engine

    class First(Mixin, TenantSession):
        pass

    class Instead(TenantSession):
        get_bind = Mixin.get_bind  # type: ignore[assignment]

    class Later(Instead):
        pass

    class Also(TenantSession):
        def get_bind(self, *args: Any, **kw: Any) -> Any:
            return super().get_bind(*args, **kw, bind=engine)

    kinds = {each.__name__: each for each in (First, Instead, Later, Also)}
    return kinds[kind]


ROUTING = pytest.mark.parametrize("kind", ["First", "Instead", "Later", "Also"])


@ROUTING
@on_each_driver
def test_get_bind_of_the_applications_own(
    seeded: World, world: World, kind: str
) -> None:
    engine = world.engine()
    kw: Any = {"isolation": world.isolation, "schema": "public"}
    with routing(kind, engine)(tenant="acme", **kw) as session:
        for _ in range(2):
            with session.begin():
                options = {"isolation_level": "SERIALIZABLE"}
                connection = session.connection(execution_options=options)
                assert connection.get_isolation_level() == "SERIALIZABLE"
                assert bodies(session) == ACME


@ROUTING
@on_each_driver
def test_get_bind_of_the_applications_own_does_not_go_on_unscoped(
    seeded: World, world: World, kind: str
) -> None:
    engine = world.engine(isolation_level="AUTOCOMMIT")
    kw: Any = {"isolation": world.isolation, "schema": "public"}
    for begins in (autobegin, Session.begin):
        with routing(kind, engine)(tenant="acme", **kw) as session:
            begins(session)
            with pytest.raises(ScopeError, match="AUTOCOMMIT"):
                session.execute(text("SELECT 1"))
            with pytest.raises(ScopeError, match="roll it back"):
                session.execute(text("SELECT 1"))


@on_each_driver
def test_a_connection_of_an_engine_that_is_named_does_not_go_on_unscoped(
    seeded: World, world: World
) -> None:
    # a copy each time: SQLAlchemy takes the engine out
    named = {"bind": world.engine(isolation_level="AUTOCOMMIT")}
    with world.session("acme", None) as session:
        with pytest.raises(ScopeError, match="AUTOCOMMIT"):
            session.connection({**named})
        for way in (session.connection, lambda each: session.get_bind(**each)):
            with pytest.raises(ScopeError, match="roll it back"):
                way({**named})
        with pytest.raises(ScopeError, match="roll it back"):
            session.execute(text("SELECT 1"), bind_arguments=named)
        session.rollback()
        named["bind"] = world.engine()
        session.connection({**named})
        session.connection({**named})
        assert set(session.scalars(select(Note.body), bind_arguments=named)) == ACME


#: Older versions tell nobody, and a session that is asked twice connects to see.
TELLS = pytest.mark.skipif(
    not hasattr(SessionTransaction, "connections"),
    reason="SQLAlchemy tells from 2.1.7 on which connections a transaction has",
)


@TELLS
@on_each_driver
def test_asking_for_the_engine_changes_nothing(seeded: World, world: World) -> None:
    engine = world.engine()
    options = {"isolation_level": "SERIALIZABLE"}
    with world.session("acme", engine) as session:
        for _ in range(2):
            with session.begin():
                for _ in range(3):
                    assert session.get_bind() is engine
                assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
                connection = session.connection(execution_options=options)
                assert connection.get_isolation_level() == "SERIALIZABLE"
                assert bodies(session) == ACME


@TELLS
@on_each_driver
def test_listeners_ask_for_the_engine(seeded: World, world: World) -> None:
    names = (
        "after_transaction_create",
        "after_begin",
        "before_flush",
        "before_commit",
        "after_commit",
        "after_rollback",
        "after_soft_rollback",
        "after_transaction_end",
    )
    engine = world.engine()
    for used, name in product((True, False), names):
        with world.session("acme", engine) as session:
            asked = []

            def ask(*_: object, session: Any = session, asked: Any = asked) -> None:
                asked.append(session.get_bind())

            event.listen(session, name, ask)
            for end in (session.commit, session.rollback) * 2:
                session.begin()
                if used:
                    session.add(Note(body="mine"))
                    session.flush()
                end()
            assert set(asked) == {engine} if used else set(asked) <= {engine}


@on_each_driver
@pytest.mark.parametrize("first", ["connection", "engine"])
def test_a_connection_is_the_same_by_its_engine(
    seeded: World, world: World, first: str
) -> None:
    """By either SQLAlchemy finds the connection of a transaction that was refused."""
    engine = world.engine(isolation_level="AUTOCOMMIT", pool_size=2)
    with engine.connect() as connection:
        binds = [{"bind": connection}, {"bind": connection.engine}]
        if first == "engine":
            binds.reverse()
        with world.session("acme", None) as session:
            with pytest.raises(ScopeError, match="AUTOCOMMIT"):
                session.execute(text("SELECT 1"), bind_arguments=binds[0])
            for each in binds:
                # or SQLAlchemy refuses two connections of one engine
                with pytest.raises((ScopeError, InvalidRequestError)):
                    session.execute(text("SELECT 1"), bind_arguments=each)


@on_each_driver
def test_a_savepoint_of_a_transaction_that_was_refused(
    seeded: World, world: World
) -> None:
    """No listener of the application's is called in it."""
    engine = world.engine(isolation_level="AUTOCOMMIT")
    heard = []
    with world.session("acme", engine) as session:
        event.listen(session, "after_begin", lambda *arguments: heard.append(arguments))
        session.begin_nested()
        for _ in range(2):
            with pytest.raises((ScopeError, DBAPIError)):
                session.execute(text("SELECT 1"))
    assert heard == []


@on_each_driver
def test_a_transaction_that_another_session_ended(seeded: World, world: World) -> None:
    with world.engine().connect() as connection:
        first, second = (world.session("acme", connection) for _ in range(2))
        other = world.session("globex", connection)
        assert bodies(first) == bodies(second) == ACME
        second.rollback()
        for _ in range(2):
            with pytest.raises(ScopeError, match="ended past the session"):
                bodies(first)
            with suppress(ScopeError):
                assert bodies(other) == GLOBEX
        with pytest.warns(SAWarning, match="deassociated"):
            first.rollback()
        other.rollback()
        assert bodies(first) == ACME


@on_each_driver
def test_that_an_earlier_transaction_was_confined_says_nothing(
    seeded: World, world: World
) -> None:
    """Both are in the same one of the connection's."""
    mode: Any = {"join_transaction_mode": "rollback_only"}
    with world.engine().connect() as connection, connection.begin():
        session = world.session("acme", connection, **mode)
        other = world.session("globex", connection, **mode)
        assert bodies(session) == ACME
        session.commit()
        assert bodies(other) == GLOBEX
        for message in ("in use by a session", "roll it back"):
            with pytest.raises(ScopeError, match=message):
                bodies(session)
        assert bodies(other) == GLOBEX


@on_each_driver
def test_a_savepoint_that_was_rolled_back_below_a_session(
    seeded: World, world: World
) -> None:
    with world.engine().connect() as connection, connection.begin():
        savepoint = connection.begin_nested()
        mode: Any = {"join_transaction_mode": "rollback_only"}
        with world.session("acme", connection, **mode) as session:
            assert bodies(session) == ACME
            savepoint.rollback()
            with pytest.raises(ScopeError, match="ended past the session"):
                bodies(session)


@on_each_driver
def test_a_session_that_found_no_connection_finds_one_later(
    seeded: World, world: World
) -> None:
    """Without rolling back what has not begun."""
    engine = world.engine(pool_size=1, max_overflow=0, pool_timeout=0.01)
    with world.session("acme", engine) as session, session.begin():
        with engine.connect():
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    bodies(session)
        assert bodies(session) == ACME


@on_each_driver
def test_a_listener_of_the_application_runs_in_the_scope(
    seeded: World, world: World
) -> None:
    heard = []
    kw = {"isolation": world.isolation, "schema": "public"}
    session = sessionmaker(world.engine(), class_=TenantSession, **kw)(tenant="acme")

    def listener(session: Session, transaction: Any, connection: Any) -> None:
        query = text("SELECT tenancy.current_tenant()")
        heard.append(connection.execute(query).scalar())

    event.listen(Session, "after_begin", listener)
    try:
        with session:
            assert bodies(session) == ACME
    finally:
        event.remove(Session, "after_begin", listener)
    assert heard == ["acme"]


JOIN_MODES = [
    "conditional_savepoint",
    "rollback_only",
    "control_fully",
    "create_savepoint",
]


@on_each_driver
def test_a_session_joined_into_a_transaction_is_confined(
    seeded: World, world: World, subtests: pytest.Subtests
) -> None:
    clean = raw_state(world.engine())
    engine = world.engine()
    for mode, outer in product(JOIN_MODES, ["begun", "used", "savepoint"]):
        with subtests.test(mode=mode, outer=outer):
            with engine.connect() as connection, connection.begin() as transaction:
                if outer != "begun":
                    connection.execute(text("SELECT 1"))
                if outer == "savepoint":
                    connection.begin_nested()
                use_joined(world, connection, transaction, mode)
                if transaction.is_active:
                    transaction.rollback()
            assert raw_state(engine) == clean


def use_joined(
    world: World, connection: Connection, transaction: RootTransaction, mode: Any
) -> None:
    for tenant, seen in (("acme", ACME), ("globex", GLOBEX)):
        if not transaction.is_active:
            break  # control_fully took it along
        session = world.session(tenant, connection, join_transaction_mode=mode)
        with session:
            assert bodies(session) == seen
            session.commit()
            if connection.in_transaction():
                assert bodies(session) == seen
                session.rollback()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg-async"])
@on_each_driver
def test_a_session_joined_into_a_transaction_does_not_begin_it_again(
    seeded: World, world: World
) -> None:
    notices: list[Any] = []
    with world.engine().connect() as connection:
        raw: Any = connection.connection.driver_connection
        raw.add_notice_handler(notices.append)
        connection.execute(text("SELECT 1"))
        with world.session("acme", connection) as session:
            assert bodies(session) == ACME
    assert notices == []


@on_each_driver
def test_two_sessions_on_one_connection_cannot_have_two_tenants(
    seeded: World, world: World
) -> None:
    with world.engine().connect() as connection, connection.begin():
        first = world.session("acme", connection)
        second = world.session("globex", connection)
        same = world.session("acme", connection)
        assert bodies(first) == ACME
        for _ in range(2):
            with pytest.raises(ScopeError, match="session of tenant 'acme'"):
                bodies(second)
            with pytest.raises(ScopeError, match="roll it back"):
                bodies(second)
            assert bodies(first) == ACME
            assert bodies(same) == ACME
            second.close()
            # closing it has ended the outer transaction, as SQLAlchemy does
            if not connection.in_transaction():
                connection.begin()
            first.close()
            same.close()
            first = world.session("acme", connection)
            assert bodies(first) == ACME
        first.close()


@on_each_driver
def test_each_of_several_sessions_on_one_connection_has_its_claim(
    seeded: World, world: World
) -> None:
    with world.engine().connect() as connection, connection.begin():
        first, second = (world.session("acme", connection) for _ in range(2))
        assert bodies(first) == bodies(second) == ACME
        second.commit()
        with pytest.raises(ScopeError, match="in use by a session of tenant 'acme'"):
            bodies(world.session("globex", connection))
        assert bodies(first) == ACME


@on_each_driver
def test_a_claim_ends_with_its_transaction(seeded: World, world: World) -> None:
    with world.engine().connect() as connection:
        sessions = [world.session(name, connection) for name in ("acme", "globex")]
        for _ in range(2):
            for session, seen in zip(sessions, (ACME, GLOBEX), strict=True):
                assert bodies(session) == seen
                session.commit()
                connection.rollback()


@on_each_driver
def test_a_session_after_a_commit_that_was_sent_by_hand(
    seeded: World, world: World
) -> None:
    """asyncpg and SQLAlchemy disagree then, and SET LOCAL would have no effect."""
    engine = world.engine()
    with engine.connect() as connection:
        connection.execute(text("COMMIT"))
        with world.session("acme", connection) as session:
            if world.driver == "asyncpg":
                with pytest.raises(ScopeError, match="sent as a statement"):
                    bodies(session)
                with pytest.raises(ScopeError, match="roll it back"):
                    bodies(session)
            else:
                assert bodies(session) == ACME
    assert raw_state(engine)[0] == world.login
    with world.session("globex", engine) as session:
        assert bodies(session) == GLOBEX


def test_a_listener_that_was_there_first_runs_in_the_scope(migrated: Database) -> None:
    migrated.execute("CREATE ROLE tenant_acme NOLOGIN IN ROLE tenants ROLE app")
    program = """
from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import Session

@event.listens_for(Session, "after_begin", propagate=True)
def listener(session, transaction, connection):
    print(connection.scalar(text("SELECT tenancy.current_tenant()")))

import sys
from sqlalchemy_tenants import TenantSession

engine = create_engine(sys.argv[1])
with TenantSession(engine, tenant="acme") as session:
    session.connection()
engine.dispose()
"""
    command = [sys.executable, "-c", program, migrated.app_url]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("acme\n", "")
