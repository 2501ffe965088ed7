"""A session whose tenant a function says: for registries, which keep a session while
the tenant of the request, or of the thread, is another one each time."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from servers import Database
from sqlalchemy_tenants import (
    AdminSession,
    InvalidTenant,
    ScopeError,
    TenantNotFound,
    TenantSession,
)
from sqlalchemy_tenants.aio import AsyncTenantSession
from tenancy import (  # noqa: F401
    Comment,
    Note,
    World,
    driver_fixture,
    isolation_fixture,
    migrated_fixture,
    on_each_driver,
    raw_state,
    statements,
    world_fixture,
)

ACME, GLOBEX = {"row of acme"}, {"row of globex"}


class Current:
    """Who the tenant is, for a function that a session asks."""

    def __init__(self, tenant: Any = "acme") -> None:
        self.tenant = tenant
        self.asked = 0

    def __call__(self) -> Any:
        self.asked += 1
        if isinstance(self.tenant, BaseException):
            raise self.tenant
        return self.tenant


@pytest.fixture
def seeded(world: World) -> World:
    world.create("acme", "globex")
    world.fill(Note, "acme", "globex")
    return world


def bodies(session: Any) -> set[str]:
    return set(session.scalars(select(Note.body)))


def open_session(world: World, current: Any, engine: Any = None, **kw: Any) -> Any:
    return world.session(current, engine or world.engine(), **kw)


@on_each_driver
def test_each_transaction_asks(seeded: World, world: World) -> None:
    current = Current()
    engine = world.engine()
    with open_session(world, current, engine, tenant_criteria=True) as session:
        for _ in range(2):
            for tenant, seen in (("acme", ACME), ("globex", GLOBEX)):
                for end in (session.commit, session.rollback, session.close):
                    current.tenant = tenant
                    assert session.tenant == tenant
                    assert bodies(session) == seen
                    session.add(Note(body="new"))
                    session.flush()
                    session.execute(delete(Note).where(Note.body == "new"))
                    assert session.tenant == tenant
                    end()
    assert raw_state(engine)[0] == world.login


WAYS: list[Callable[[Any], object]] = [
    lambda session: session.execute(select(Note)),
    lambda session: session.execute(text("SELECT 1")),
    lambda session: session.connection(),
    lambda session: session.get(Note, 1),
    lambda session: session.get_one(Note, 1),
    lambda session: session.query(Note).get(1),
    lambda session: session.merge(Note(id=1)),
    lambda session: session.flush(),
    lambda session: session.commit(),
    lambda session: list(session),
    lambda session: session.bulk_insert_mappings(Note, [{}]),
]


@pytest.mark.parametrize("way", range(len(WAYS)))
@pytest.mark.filterwarnings("ignore:The Query.get")
@on_each_driver
def test_another_answer_within_a_transaction_is_refused(
    seeded: World, world: World, way: int
) -> None:
    current = Current()
    engine = world.engine()
    with open_session(world, current, engine) as session:
        note = session.scalars(select(Note)).one()
        session.add(Note(body="pending"))
        current.tenant = "globex"
        with pytest.raises(ScopeError, match=r"acme.*globex") as raised:
            WAYS[way](session)
        assert raised.value.tenant == "globex"
        with pytest.raises((ScopeError, SQLAlchemyError)):
            WAYS[way](session)
        assert session.tenant == "acme"
        session.rollback()
        assert bodies(session) == GLOBEX
        assert note not in session
    assert raw_state(engine)[0] == world.login


@on_each_driver
def test_what_is_pending_is_not_written_for_another_tenant(
    seeded: World, world: World
) -> None:
    current = Current()
    with open_session(world, current) as session:
        session.add(Note(body="of acme"))  # no statement yet
        current.tenant = "globex"
        with pytest.raises(ScopeError):
            session.flush()
        current.tenant = "acme"
        session.commit()
    found = world.database.rows("SELECT tenant FROM notes WHERE body = 'of acme'")
    assert found == [("acme",)]


@pytest.mark.parametrize("expire", [True, False])
@pytest.mark.filterwarnings("ignore:The Query.get")
@on_each_driver
def test_objects_are_not_served_to_the_next_tenant(
    seeded: World, world: World, expire: bool
) -> None:
    lookups: list[Callable[[Any, int], object]] = [
        lambda session, id: session.get(Note, id),
        lambda session, id: session.query(Note).get(id),
        lambda session, id: next(iter(session), None),
        lambda session, id: session.identity_map.get(Session.identity_key(Note, id)),
        lambda session, id: session.merge(Note(id=id)).body or None,
    ]
    current = Current()
    with open_session(world, current, expire_on_commit=expire) as session:
        for lookup in lookups:
            for ends in (session.commit, session.rollback):
                current.tenant = "acme"
                note = session.scalars(select(Note)).one()
                id = note.id
                ends()
                current.tenant = "globex"
                assert lookup(session, id) is None
                assert note not in session
                session.rollback()
                # nor to one who has no tenant
                current.tenant = "acme"
                note = session.scalars(select(Note)).one()
                ends()
                current.tenant = LookupError("no tenant")
                assert note not in session
        # of one tenant they stay
        current.tenant = "acme"
        note = session.scalars(select(Note)).one()
        session.commit()
        assert session.get(Note, note.id) is note


@on_each_driver
def test_a_change_of_an_object_is_not_written_for_the_next_tenant(
    seeded: World, world: World
) -> None:
    current = Current()
    with open_session(world, current, expire_on_commit=False) as session:
        note = session.scalars(select(Note)).one()
        session.commit()
        current.tenant = "globex"
        note.body = "changed"
        session.commit()
        session.add(note)
        note.body = "changed again"
        with pytest.raises(SQLAlchemyError):
            session.flush()
        session.rollback()
    assert world.database.rows("SELECT body FROM notes ORDER BY id") == [
        ("row of acme",),
        ("row of globex",),
    ]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (None, InvalidTenant),
        ("", InvalidTenant),
        (3.5, InvalidTenant),
        (["acme"], InvalidTenant),
        (LookupError("no request"), LookupError),
    ],
    ids=["none", "empty", "float", "list", "error"],
)
@on_each_driver
def test_without_a_tenant_nothing_is_executed(
    seeded: World, world: World, answer: Any, error: type[Exception]
) -> None:
    current = Current()
    engine = world.engine()
    with open_session(world, current, engine) as session:
        bodies(session)
        session.commit()
        sent = statements(engine)
        current.tenant = answer
        for use in (
            lambda: session.execute(text("SELECT 1")),
            lambda: session.add(Note()),
            lambda: session.get(Note, 1),
            session.connection,
            session.begin,
        ):
            with pytest.raises(error):
                use()
            with pytest.raises(ScopeError, match="rollback"):
                session.execute(text("SELECT 1"))
            session.rollback()
        with pytest.raises(error):
            _ = session.tenant
        assert sent == []
        current.tenant = "acme"
        assert bodies(session) == ACME
        current.tenant = answer
        with pytest.raises(error):
            session.execute(text("SELECT 1"))
        # closing is always possible
        session.close()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_what_has_to_be_awaited_is_refused() -> None:
    async def current() -> str:
        return "acme"

    for each in (current, functools.partial(current)):
        with pytest.raises(TypeError, match="awaited"):
            TenantSession(tenant=each)  # type: ignore[arg-type]
    session = TenantSession(tenant=lambda: current())  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="awaited"):
        session.begin()
    with pytest.raises(InvalidTenant):
        AdminSession(tenant=lambda: "acme")  # type: ignore[arg-type]


@on_each_driver
def test_a_missing_tenant(seeded: World, world: World) -> None:
    if world.isolation == "shared":
        return
    current = Current("missing")
    with open_session(world, current) as session:
        with pytest.raises(TenantNotFound):
            bodies(session)
        session.rollback()
        current.tenant = "acme"
        assert bodies(session) == ACME


@on_each_driver
def test_a_function_and_a_connection_that_is_in_use(
    seeded: World, world: World
) -> None:
    current = Current()
    with world.engine().connect() as connection, connection.begin():
        before = connection.scalar(text("SELECT current_user"))
        with open_session(
            world, current, connection, join_transaction_mode="create_savepoint"
        ) as session:
            for tenant, seen in (("acme", ACME), ("globex", GLOBEX)):
                current.tenant = tenant
                assert bodies(session) == seen
                session.commit()
                assert connection.scalar(text("SELECT current_user")) == before


def test_a_registry_of_threads(migrated: Database, make_engine: Any) -> None:
    """Nobody calls remove(), and each request is of another tenant."""
    current: ContextVar[str] = ContextVar("current")
    migrated.execute(
        "CREATE ROLE tenant_acme IN ROLE tenants ROLE app;"
        "CREATE ROLE tenant_globex IN ROLE tenants ROLE app;"
        "INSERT INTO notes (tenant, body) VALUES ('acme', 'acme'), ('globex', 'globex')"
    )
    engine = make_engine(migrated.app_url)
    sessions = scoped_session(
        sessionmaker(
            engine,
            class_=TenantSession,
            tenant=current.get,
            schema="public",
            expire_on_commit=False,
        )
    )

    def request(number: int) -> None:
        tenant = ("acme", "globex")[number % 3 % 2]
        current.set(tenant)
        notes = sessions.scalars(select(Note)).all()
        assert {note.body for note in notes} == {tenant}
        for id in (1, 2):
            found = sessions.get(Note, id)
            assert found is None or found.tenant == tenant
        if number % 2:
            sessions.commit()
        else:
            sessions.rollback()

    with ThreadPoolExecutor(3) as executor:
        list(executor.map(request, range(120)))

        def open_transaction(number: int) -> None:
            tenant = ("acme", "globex")[number % 2]
            current.set(tenant)
            try:
                notes = sessions.scalars(select(Note)).all()
            except ScopeError:  # that of the request before is still open
                sessions.remove()
            else:
                assert {note.body for note in notes} == {tenant}

        list(executor.map(open_transaction, range(60)))
        list(executor.map(lambda _: sessions.remove(), range(30)))
    engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_registry_of_tasks(
    migrated: Database, make_async_engine: Callable[..., AsyncEngine], driver: str
) -> None:
    current: ContextVar[str] = ContextVar("current")
    migrated.execute(
        "CREATE ROLE tenant_acme IN ROLE tenants ROLE app;"
        "CREATE ROLE tenant_globex IN ROLE tenants ROLE app;"
        "INSERT INTO notes (tenant, body) VALUES ('acme', 'acme'), ('globex', 'globex')"
    )
    engine = make_async_engine(migrated.url("app", driver))
    sessions = async_scoped_session(
        async_sessionmaker(
            engine, class_=AsyncTenantSession, tenant=current.get, schema="public"
        ),
        scopefunc=asyncio.current_task,
    )

    async def request(tenant: str) -> None:
        current.set(tenant)
        for _ in range(2):
            assert set(await sessions.scalars(select(Note.body))) == {tenant}
            await sessions.execute(insert(Note).values(body=tenant))
            await sessions.rollback()
        assert sessions().tenant == tenant
        await sessions.remove()

    await asyncio.gather(*[request(each) for each in ("acme", "globex") * 5])
    async with AsyncTenantSession(
        engine, tenant=current.get, schema="public", expire_on_commit=False
    ) as session:
        with pytest.raises(LookupError):
            await session.scalars(select(Note))
        await session.rollback()
        current.set("acme")
        note = (await session.scalars(select(Note))).one()
        id = note.id
        current.set("globex")
        with pytest.raises(ScopeError):
            await session.get(Note, id)
        await session.rollback()
        assert await session.get(Note, id) is None
        with pytest.raises(DBAPIError):
            await session.execute(insert(Comment))
