"""Every entrance has the same guard: sessions, Core connections, admin sessions, and
several of them on one connection."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import permutations, product
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import SingletonThreadPool, StaticPool

from sqlalchemy_tenants import AdminSession, ScopeError, TenantSession
from sqlalchemy_tenants.opening import confine
from sqlalchemy_tenants.scope import tenant_scope
from sqlalchemy_tenants.tenancy import Tenancy
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

ACME, GLOBEX = {"row of acme"}, {"row of globex"}


@pytest.fixture
def seeded(world: World) -> World:
    """Two tenants, and a login that may be both and the admin, too."""
    world.create("acme", "globex")
    world.fill(Note, "acme", "globex")
    world.database.execute(f"GRANT tenants_admin TO {world.login}")
    return world


def bodies(session: Session | Connection) -> set[str]:
    return set(session.scalars(select(Note.body)))


def state(connection: Connection) -> tuple[str, ...]:
    """What a connection acts as."""
    row = connection.exec_driver_sql(
        "SELECT current_user::text,"
        " coalesce(current_setting('tenancy.tenant', true), ''),"
        " current_setting('search_path')"
    ).one()
    return tuple(row)


# --- one scope at a time -------------------------------------------------------------


def confined(world: World, connection: Connection, tenant: str) -> Any:
    scope = tenant_scope(tenant, world.isolation, Tenancy(), "public")
    confine(connection, scope)
    if not connection.in_transaction():
        connection.begin()
    else:  # only its next transactions
        raise ScopeError("in use by", tenant=tenant)
    return connection


def tenant_session(world: World, connection: Connection, tenant: str) -> Any:
    return world.session(tenant, connection)


def admin_session(world: World, connection: Connection, tenant: str) -> Any:
    return AdminSession(connection, schema="public")


def other_schema(world: World, connection: Connection, tenant: str) -> Any:
    return world.session("acme", connection, schema="tenancy")


def other_isolation(world: World, connection: Connection, tenant: str) -> Any:
    isolation = "shared" if world.isolation == "role" else "role"
    return world.session("acme", connection, isolation=isolation)


def other_tenancy(world: World, connection: Connection, tenant: str) -> Any:
    tenancy = Tenancy.named("other")
    return world.session("acme", connection, tenancy=tenancy)


def joined_session(world: World, connection: Connection, tenant: str) -> Any:
    """A session joins into the connection of another session."""
    return world.session(tenant, connection, join_transaction_mode="create_savepoint")


ENTRANCES = [confined, tenant_session, admin_session]
MORE = [other_schema, other_isolation, other_tenancy, joined_session]


@on_each_driver
def test_a_second_scope_is_refused_while_the_first_is_at_work(
    seeded: World, world: World, subtests: pytest.Subtests
) -> None:
    engine = world.engine()
    for first, second in product(ENTRANCES, [*ENTRANCES, *MORE]):
        if first is second is admin_session:
            continue  # the same scope
        with subtests.test(first=first.__name__, second=second.__name__):
            refuse_second(world, engine, first, second)


def refuse_second(world: World, engine: Any, first: Any, second: Any) -> None:
    with engine.connect() as connection:
        one = first(world, connection, "acme")
        seen = bodies(one)
        before = state(connection)
        for _ in range(2):
            with pytest.raises(ScopeError, match="in use by"):
                bodies(second(world, connection, "globex"))
            assert bodies(one) == seen
            assert state(connection) == before
        if isinstance(one, Session):
            one.close()
    assert raw_state(engine)[0] == world.login
    with world.session("globex", engine) as session:
        assert bodies(session) == GLOBEX


@on_each_driver
def test_the_same_scope_is_welcome(seeded: World, world: World) -> None:
    manager = world.manager()
    with manager.connect("acme") as connection:
        assert bodies(connection) == ACME
        with world.session("acme", connection) as session:
            assert bodies(session) == ACME
            session.commit()
        assert bodies(connection) == ACME
        connection.commit()
        assert bodies(connection) == ACME


@on_each_driver
def test_a_tenant_by_another_type_is_the_same_tenant(
    seeded: World, world: World
) -> None:
    world.create("7")
    with (
        world.engine().connect() as connection,
        world.session("7", connection) as session,
    ):
        assert bodies(session) == set()
        assert bodies(world.session(7, connection)) == set()


@pytest.mark.parametrize("pool", [StaticPool, SingletonThreadPool])
@on_each_driver
def test_two_connections_that_are_one_connection_of_the_driver(
    seeded: World, world: World, pool: type[Any]
) -> None:
    """What one of them commits or rolls back ends the other one's scope."""
    if world.is_async and pool is SingletonThreadPool:
        return  # refused by SQLAlchemy
    engine = world.engine(poolclass=pool)
    manager = world.manager(engine)
    for tenant in ("acme", "globex"):
        with manager.connect("acme"):
            for _ in range(2):
                # closed, because what the garbage collector closes is dropped
                with (
                    pytest.raises(ScopeError, match="share one connection"),
                    world.session(tenant, engine) as session,
                ):
                    bodies(session)
                with (
                    pytest.raises(ScopeError, match="share one connection"),
                    manager.connect(tenant),
                ):
                    raise AssertionError("the block was entered")
    with world.session("globex", engine) as session:
        assert bodies(session) == GLOBEX


# --- a claim lives no longer than its transaction ------------------------------------


def closed(connection: Connection, session: Session) -> None:
    connection.close()


def invalidated(connection: Connection, session: Session) -> None:
    connection.invalidate()
    connection.close()


def returned_past_it(connection: Connection, session: Session) -> None:
    connection.connection.close()


def rolled_back(connection: Connection, session: Session) -> None:
    transaction = connection.get_transaction()
    assert transaction is not None
    transaction.rollback()
    connection.close()


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    "end",
    [closed, invalidated, returned_past_it, rolled_back],
    ids=lambda end: end.__name__,
)
@on_each_driver
def test_a_session_that_was_not_closed_poisons_no_connection(
    seeded: World, world: World, end: Any, begun: bool
) -> None:
    engine = world.engine()
    clean = raw_state(engine)
    kept = []
    for tenant in ("acme", "globex") * 2:
        connection = engine.connect()
        if begun:
            connection.begin()
        session = world.session(tenant, connection)
        assert bodies(session) == {f"row of {tenant}"}
        kept.append((connection, session))
        end(connection, session)
        assert raw_state(engine) == clean
        with world.session("globex", engine) as other:
            assert bodies(other) == GLOBEX


@on_each_driver
def test_a_session_and_a_connection_that_were_forgotten(
    seeded: World, world: World
) -> None:
    if world.is_async:
        return  # SQLAlchemy gives such a connection up, with a warning
    engine = world.engine()
    for tenant in ("acme", "globex"):
        session = world.session(tenant, engine.connect())
        assert bodies(session) == {f"row of {tenant}"}
        del session
        gc.collect()
    assert raw_state(engine)[0] == world.login


# --- a transaction that was there before ---------------------------------------------

MODES = ["conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"]


def commit(session: Session) -> None:
    session.commit()


def rollback(session: Session) -> None:
    session.rollback()


def close(session: Session) -> None:
    session.close()


def reset(session: Session) -> None:
    session.reset()


def savepoints(session: Session) -> None:
    with session.begin_nested():
        assert bodies(session)
    session.begin_nested().rollback()
    session.commit()


def twice(session: Session) -> None:
    session.commit()
    if session.get_bind().in_transaction():  # type: ignore[union-attr]
        assert bodies(session)
        session.commit()


def exception(session: Session) -> None:
    with pytest.raises(ZeroDivisionError), session:
        raise ZeroDivisionError


def error_of_the_server(session: Session) -> None:
    with pytest.raises(DBAPIError):
        session.execute(text("SELECT 1 / 0"))
    session.close()


def error_in_a_savepoint(session: Session) -> None:
    with pytest.raises(DBAPIError), session.begin_nested():
        session.execute(text("SELECT 1 / 0"))
    session.commit()


ENDS = [
    commit,
    rollback,
    close,
    reset,
    savepoints,
    twice,
    exception,
    error_of_the_server,
    error_in_a_savepoint,
]


def outer_states(world: World) -> Iterator[tuple[str, Callable[[Connection], None]]]:
    yield "begun", lambda connection: None
    yield "used", lambda connection: connection.execute(text("SELECT 1"))
    yield "in a savepoint", lambda connection: connection.begin_nested()

    def another_role(connection: Connection) -> None:
        connection.execute(text("SET LOCAL ROLE tenants_admin"))
        connection.execute(text("SET LOCAL tenancy.tenant = 'initech'"))
        connection.execute(text('SET LOCAL search_path = "A b", public'))

    yield "as another role", another_role


@pytest.mark.parametrize("mode", MODES)
@on_each_driver
def test_a_connection_is_afterwards_what_it_was_before(
    seeded: World, world: World, subtests: pytest.Subtests, mode: Any
) -> None:
    engine = world.engine()
    clean = raw_state(engine)
    sessions: list[tuple[str, Callable[..., Session]]] = [
        ("tenant", lambda c, **kw: world.session("globex", c, **kw)),
        ("admin", lambda c, **kw: AdminSession(c, schema="public", **kw)),
    ]
    for end in ENDS:
        for outer, prepare in outer_states(world):
            for kind, open_session in sessions:
                with (
                    subtests.test(end=end.__name__, outer=outer, kind=kind),
                    engine.connect() as connection,
                ):
                    root = connection.begin()
                    prepare(connection)
                    before = state(connection)
                    session = open_session(connection, join_transaction_mode=mode)
                    assert bodies(session) >= GLOBEX
                    end(session)
                    after_session(connection, root, before, clean)
                assert raw_state(engine) == clean


def after_session(
    connection: Connection, root: Any, before: tuple[str, ...], clean: Any
) -> None:
    if not root.is_active:
        assert state(connection) == clean
        return
    savepoint = connection.get_nested_transaction()
    try:
        assert state(connection) == before
    except DBAPIError:  # aborted, and a rollback ends it
        if savepoint is not None:
            savepoint.rollback()
            assert state(connection) == before
        else:
            root.rollback()
            assert state(connection) == clean


@on_each_driver
def test_a_recipe_for_tests_that_roll_back(seeded: World, world: World) -> None:
    engine = world.engine()
    with engine.connect() as connection:
        transaction = connection.begin()
        sessions = sessionmaker(
            connection,
            class_=TenantSession,
            join_transaction_mode="create_savepoint",
            schema="public",
            isolation=world.isolation,
        )
        before = state(connection)
        kept = []  # nothing depends on what Python forgets
        for _ in range(2):
            for tenant in ("acme", "globex"):
                with sessions(tenant=tenant) as session:
                    session.add(Note(body="new"))
                    kept.append(session.get_transaction())
                    session.commit()
                    assert state(connection) == before
                    assert bodies(session) == {f"row of {tenant}", "new"}
                assert state(connection) == before
        with AdminSession(
            connection, schema="public", join_transaction_mode="create_savepoint"
        ) as admin:
            assert len(admin.scalars(select(Note)).all()) == 6
        assert state(connection) == before
        transaction.rollback()
    with world.session("acme", engine) as session:
        assert bodies(session) == ACME


@pytest.mark.parametrize("order", list(permutations(range(2))))
@on_each_driver
def test_the_last_of_several_sessions_sets_back(
    seeded: World, world: World, order: tuple[int, ...]
) -> None:
    with world.engine().connect() as connection, connection.begin():
        before = state(connection)
        sessions = [world.session("acme", connection) for _ in range(2)]
        for session in sessions:
            assert bodies(session) == ACME
        first, last = (sessions[index] for index in order)
        first.close()
        assert bodies(last) == ACME
        last.close()
        assert state(connection) == before


@on_each_driver
def test_a_savepoint_of_the_application_that_brings_the_scope_back(
    seeded: World, world: World
) -> None:
    with world.engine().connect() as connection, connection.begin():
        before = state(connection)
        session = world.session("acme", connection)
        assert bodies(session) == ACME
        savepoint = connection.begin_nested()
        session.close()
        assert state(connection) == before
        with world.session("globex", connection) as other:
            assert bodies(other) == GLOBEX
        assert state(connection) == before
        savepoint.rollback()
        assert state(connection) == before


@on_each_driver
def test_a_savepoint_that_was_rolled_back_far_below_a_session(
    seeded: World, world: World
) -> None:
    with world.engine().connect() as connection, connection.begin():
        before = state(connection)
        outer = connection.begin_nested()
        connection.begin_nested()
        mode: Any = {"join_transaction_mode": "rollback_only"}
        with world.session("acme", connection, **mode) as session:
            assert bodies(session) == ACME
            with pytest.warns(match="deassociated"):
                outer.rollback()
            for _ in range(2):
                with pytest.raises(ScopeError, match="ended past the session"):
                    bodies(session)
            assert state(connection) == before
            with world.session("globex", connection, **mode) as other:
                assert bodies(other) == GLOBEX
        assert state(connection) == before


@on_each_driver
def test_an_error_of_the_server_then_a_savepoint_inside(
    seeded: World, world: World
) -> None:
    """The transaction is aborted when the session ends, so that nothing can be set
    back before it was rolled back to a savepoint in which the scope is there."""
    with world.engine().connect() as connection, connection.begin():
        before = state(connection)
        session = world.session("acme", connection)
        assert bodies(session) == ACME
        savepoint = connection.begin_nested()
        with pytest.raises(DBAPIError):
            session.execute(text("SELECT 1 / 0"))
        session.close()
        savepoint.rollback()
        assert state(connection) == before


@on_each_driver
def test_a_session_that_was_forgotten_within_a_transaction(
    seeded: World, world: World
) -> None:
    with world.engine().connect() as connection, connection.begin():
        before = state(connection)
        session = world.session("acme", connection)
        assert bodies(session) == ACME
        del session
        gc.collect()
        assert state(connection) == before
        with world.session("globex", connection) as other:
            assert bodies(other) == GLOBEX
        assert state(connection) == before


@on_each_driver
def test_what_cannot_be_set_back_gives_the_connection_up(
    seeded: World, world: World
) -> None:
    engine = world.engine()
    with engine.connect() as connection:
        connection.begin()
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        session = world.session("acme", connection)
        assert bodies(session) == ACME
        world.database.execute(f"SELECT pg_terminate_backend({pid})")
        with pytest.raises((ScopeError, DBAPIError)):
            session.close()
        assert connection.invalidated
    assert raw_state(engine)[0] == world.login


@on_each_driver
def test_each_of_several_connections_is_set_back(seeded: World, world: World) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(world.engine().connect()) for _ in range(2)]
        for connection in connections:
            stack.enter_context(connection.begin())
        before = [state(connection) for connection in connections]
        with world.session("acme", None) as session:
            for connection in connections:
                bind = {"bind": connection}
                found = session.scalars(select(Note.body), bind_arguments=bind)
                assert set(found) == ACME
        assert [state(connection) for connection in connections] == before


@on_each_driver
def test_a_transaction_that_cannot_be_joined_is_refused_before_any_statement(
    seeded: World, world: World
) -> None:
    engine = world.engine(isolation_level="AUTOCOMMIT")
    sent = statements(engine)
    with engine.connect() as connection, connection.begin():
        session = world.session("acme", connection)
        with pytest.raises(ScopeError, match="AUTOCOMMIT"):
            session.execute(text("SELECT 1"))
    assert sent == []
    engine = create_engine("sqlite://")
    with engine.connect() as connection, connection.begin():
        session = world.session("acme", connection)
        with pytest.raises(ScopeError, match="'sqlite'"):
            session.execute(text("SELECT 1"))
    engine.dispose()


# --- classes -------------------------------------------------------------------------


@on_each_driver
def test_a_get_bind_that_was_set_afterwards(seeded: World, world: World) -> None:
    engine = world.engine()

    class Own(TenantSession):
        pass

    class Later(Own):
        pass

    class Silent:
        def __init_subclass__(cls, **kw: Any) -> None:
            pass

    class Unguarded(Silent, TenantSession):
        def get_bind(self, *args: Any, **kw: Any) -> Any:
            return engine

    Later.get_bind = lambda self, *args, **kw: engine  # type: ignore[method-assign]
    sent: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
    for each in (Later, Unguarded):
        session = each(tenant="acme", isolation=world.isolation, schema="public")
        with session, pytest.raises(ScopeError, match="get_bind"):
            session.execute(text("SELECT 1"))
    assert sent == []


@on_each_driver
def test_a_class_that_does_not_call_our_constructor(
    seeded: World, world: World
) -> None:
    engine = world.engine()

    class Own(TenantSession):
        def __init__(self, *args: Any, **kw: Any) -> None:
            Session.__init__(self, *args, **kw)

    sent: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
    with Own(engine) as session, pytest.raises(ScopeError, match=r"super\(\)"):
        session.execute(text("SELECT 1"))
    assert sent == []


@contextmanager
def listening(target: Any, name: str, listener: Any) -> Iterator[None]:
    event.listen(target, name, listener)
    yield
    event.remove(target, name, listener)


@on_each_driver
def test_other_sessions_of_the_process_are_left_alone(
    seeded: World, world: World
) -> None:
    """Errors get notes in confined transactions only, and others no statements."""
    engine = world.engine("owner")
    with world.session("acme", world.engine()) as session:
        bodies(session)
    with Session(engine) as plain:
        sent: list[str] = []
        with listening(
            engine, "before_cursor_execute", lambda *args: sent.append(args[2])
        ):
            with pytest.raises(DBAPIError) as raised:
                plain.execute(insert(Note).values(tenant=None))
            plain.rollback()
    assert getattr(raised.value, "__notes__", []) == []
    assert len(sent) == 1
