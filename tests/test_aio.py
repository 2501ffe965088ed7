"""The async manager and sessions: the same as the sync ones, behind ``await``.

What both have in common is tested on all drivers in the other modules, through the
sync face of async engines; here is the async face.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import Session, sessionmaker

import sqlalchemy_tenants.managers
from servers import Database
from sqlalchemy_tenants import (
    AdminSession,
    InvalidTenant,
    ScopeError,
    TenantAlreadyExists,
    TenantNotFound,
    TenantSession,
)
from sqlalchemy_tenants.aio import (
    AsyncAdminSession,
    AsyncTenantSession,
    DBManager,
    PostgresManager,
)
from tenancy import (  # noqa: F401
    Base,
    Comment,
    Note,
    isolation_fixture,
    migrated_fixture,
)


@pytest.fixture(params=["psycopg", "asyncpg"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def engine(
    migrated: Database,
    driver: str,
    isolation: str,
    make_async_engine: Callable[..., AsyncEngine],
) -> AsyncEngine:
    login = "app" if isolation == "role" else "app_shared"
    return make_async_engine(migrated.url(login, driver), pool_size=1, max_overflow=0)


@pytest.fixture
async def manager(
    migrated: Database,
    driver: str,
    isolation: Any,
    engine: AsyncEngine,
    make_async_engine: Callable[..., AsyncEngine],
) -> PostgresManager:
    admin = make_async_engine(migrated.url("manager", driver))
    kw: Any = {"isolation": isolation, "metadata": Base.metadata}
    return PostgresManager.from_engine(engine, "public", admin_engine=admin, **kw)


async def bodies(session: AsyncSession) -> set[str]:
    return set(await session.scalars(select(Note.body)))


async def test_a_session(manager: PostgresManager, engine: AsyncEngine) -> None:
    for tenant in ("acme", "globex"):
        async with manager.new_session(tenant) as session:
            assert isinstance(session, AsyncTenantSession)
            assert isinstance(session.sync_session, TenantSession)
            assert session.tenant == tenant
            assert session.in_transaction()
            session.add(Note(body=tenant, comments=[Comment()]))
            await session.commit()
            assert await bodies(session) == {tenant}
            await session.rollback()
            note = (await session.scalars(select(Note))).one()
            assert await session.run_sync(lambda _, note=note: len(note.comments)) == 1
            async with session.begin_nested():
                assert await bodies(session) == {tenant}
            stream = await session.stream_scalars(select(Note.body))
            assert [body async for body in stream] == [tenant]
            with pytest.raises(DBAPIError):
                await session.execute(insert(Note).values(tenant="other"))
            await session.rollback()
            assert await bodies(session) == {tenant}
    async with manager.new_tenant_session("acme", create_if_missing=False) as session:
        assert await bodies(session) == {"acme"}
    async with engine.connect() as connection:
        found = await connection.execute(text("SELECT current_user = session_user"))
        assert found.scalar_one()


async def test_connections(manager: PostgresManager) -> None:
    async with manager.new_session("acme"):
        pass
    async with manager.begin("acme") as connection:
        await connection.execute(insert(Note).values(body="kept"))
    async with manager.connect("acme") as connection:
        for _ in range(2):
            found = await connection.scalars(select(Note.body))
            assert found.all() == ["kept"]
            await connection.commit()
        await connection.execute(insert(Note).values(body="lost"))
    with pytest.raises(ZeroDivisionError):
        await fail_within(manager)
    async with manager.connect("acme") as connection:
        assert (await connection.scalars(select(Note.body))).all() == ["kept"]


async def fail_within(manager: PostgresManager) -> None:
    async with manager.begin("acme") as connection:
        await connection.execute(insert(Note).values(body="lost"))
        raise ZeroDivisionError


async def test_an_admin_session(manager: PostgresManager) -> None:
    for tenant in ("acme", "globex"):
        async with manager.new_session(tenant) as session:
            session.add(Note(body=tenant))
            await session.commit()
    async with manager.admin_session() as everything:
        assert isinstance(everything, AsyncAdminSession)
        assert everything.tenant is None
        assert await bodies(everything) == {"acme", "globex"}
    async with manager.admin_session("acme") as narrowed:
        assert narrowed.tenant == "acme"
        assert await bodies(narrowed) == {"acme"}
    with pytest.raises(InvalidTenant):
        async with manager.admin_session(""):
            pass


async def test_tenants(manager: PostgresManager, isolation: str) -> None:
    progress: list[int] = []
    if isolation == "shared":
        await manager.create_tenant("acme")
        assert await manager.create_tenants(["acme"], progress=progress.append) == 0
        await manager.delete_tenant("acme")
        with pytest.raises(ScopeError):
            await manager.list_tenants()
        return
    await manager.create_tenant("acme")
    with pytest.raises(TenantAlreadyExists):
        await manager.create_tenant("acme")
    names = ["acme", "globex", "initech"]
    assert await manager.create_tenants(iter(names), progress=progress.append) == 2
    assert progress == [3]
    assert await manager.list_tenants() == names
    await manager.delete_tenant("globex")
    with pytest.raises(TenantNotFound):
        await manager.delete_tenant("globex")
    for open_it in (manager.connect, manager.begin):
        with pytest.raises(TenantNotFound):
            async with open_it("globex"):
                pass
    with pytest.raises(TenantNotFound):
        async with manager.new_session("globex", create_if_missing=False):
            pass
    assert await manager.list_tenants() == ["acme", "initech"]


async def test_check(manager: PostgresManager) -> None:
    assert await manager.check() == []
    assert await manager.check(strict=True) == []


async def test_a_sessionmaker(
    manager: PostgresManager, engine: AsyncEngine, isolation: str
) -> None:
    async with manager.new_session("acme") as session:
        session.add(Note(body="hello"))
        await session.commit()
    sessions = async_sessionmaker(
        engine, class_=AsyncTenantSession, schema="public", isolation=isolation
    )
    async with sessions(tenant="acme") as session:
        assert await bodies(session) == {"hello"}
    async with sessions(tenant="acme") as session, session.begin():
        assert session.tenant == "acme"
        assert await bodies(session) == {"hello"}
    with pytest.raises(TypeError):
        sessions()


async def test_a_close_of_the_applications_own_is_called(
    manager: PostgresManager, engine: AsyncEngine, isolation: str
) -> None:
    await manager.create_tenants(["acme"])
    closed = []

    class Closing(AsyncTenantSession):
        async def close(self) -> None:
            closed.append(self)
            await super().close()

    class SyncClosing(TenantSession):
        def close(self) -> None:
            closed.append(self)
            super().close()

    kw: Any = {"tenant": "acme", "schema": "public", "isolation": isolation}
    async with Closing(engine, **kw) as session:
        assert await bodies(session) == set()
        await session.commit()
    assert closed == [session]
    async with AsyncTenantSession(
        engine, sync_session_class=SyncClosing, **kw
    ) as session:
        pass
    assert closed[1:] == [session.sync_session]


class Inside(TenantSession):
    """A session of the application's own, which may be inside."""


class ByAttribute(AsyncTenantSession):
    sync_session_class = Session


class AdminInside(AsyncTenantSession):
    sync_session_class = AdminSession


class PastOurs(AsyncTenantSession):
    def __init__(self, *args: Any, **kw: Any) -> None:
        AsyncSession.__init__(self, *args, sync_session_class=Session, **kw)


class NoCall(AsyncTenantSession):
    def __init__(self, *args: Any, **kw: Any) -> None:
        pass


async def test_a_session_without_a_tenant_inside_is_refused(
    engine: AsyncEngine,
) -> None:
    """Advanced Alchemy passes ``sync_session_class=Session`` always."""
    given: Any = {"sync_session_class": Session}
    made: Any = {"sync_session_class": lambda **kw: Session(**kw)}
    maker: Any = {"sync_session_class": sessionmaker()}
    tenant: Any = {"sync_session_class": TenantSession, "tenant": "acme"}
    ways: list[Callable[[], Any]] = [
        lambda: AsyncTenantSession(engine, **given),
        lambda: AsyncTenantSession(engine, tenant="acme", **given),
        lambda: AsyncTenantSession(engine, **made),
        lambda: AsyncTenantSession(engine, tenant="acme", **maker),
        lambda: AsyncAdminSession(engine, **given),
        lambda: AsyncAdminSession(engine, **tenant),
        lambda: ByAttribute(engine),
        lambda: ByAttribute(engine, tenant="acme"),
        lambda: AdminInside(engine),
        lambda: PastOurs(engine),
        async_sessionmaker(engine, class_=AsyncTenantSession, **given),
        async_scoped_session(
            async_sessionmaker(engine, class_=AsyncTenantSession, **given), lambda: 1
        ),
    ]
    for way in ways:
        with pytest.raises(ScopeError, match="pass sync_session_class=") as raised:
            way()
        assert "Advanced Alchemy" in str(raised.value)
    with pytest.raises(AttributeError):
        await NoCall(engine).execute(text("SELECT 1"))
    session = AsyncTenantSession(engine, tenant="acme", sync_session_class=Inside)
    with pytest.raises(ScopeError, match="sync_session_class"):
        session.sync_session = Session()
    assert type(session.sync_session) is Inside
    await session.close()


async def test_a_plain_async_session_around_a_tenants_session(
    manager: PostgresManager, engine: AsyncEngine, isolation: Any
) -> None:
    async with manager.new_session("acme") as session:
        session.add(Note(body="hello"))
        await session.commit()
    async with AsyncSession(
        engine,
        sync_session_class=Inside,
        tenant="acme",
        isolation=isolation,
        schema="public",
    ) as plain:
        assert await bodies(plain) == {"hello"}


async def test_a_session_on_a_connection_of_another_tenant(
    manager: PostgresManager, isolation: Any
) -> None:
    for tenant in ("acme", "globex"):
        async with manager.new_session(tenant) as session:
            session.add(Note(body=tenant))
            await session.commit()
    kw: Any = {"isolation": isolation, "schema": "public"}
    async with manager.connect("acme") as connection:
        inside = connection.sync_connection
        for other in (
            AsyncTenantSession(connection, tenant="globex", **kw),
            AsyncAdminSession(connection, schema="public"),
            AsyncSession(
                connection, sync_session_class=TenantSession, tenant="globex", **kw
            ),
        ):
            with pytest.raises(ScopeError, match="in use by"):
                await bodies(other)
        with pytest.raises(ScopeError, match="in use by"):
            await other.run_sync(
                lambda _: TenantSession(inside, tenant="globex", **kw).connection()
            )
        found = await connection.scalars(select(Note.body))
        assert found.all() == ["acme"]


async def test_a_connection_is_afterwards_what_it_was_before(
    manager: PostgresManager, engine: AsyncEngine, isolation: Any
) -> None:
    async with manager.new_session("acme") as session:
        session.add(Note(body="acme"))
        await session.commit()
    kw: Any = {"isolation": isolation, "schema": "public"}
    state = text("SELECT current_user::text, current_setting('search_path')")
    for mode in ("rollback_only", "create_savepoint"):
        async with engine.connect() as connection, connection.begin():
            before = (await connection.execute(state)).one()
            for end in ("commit", "rollback", "close"):
                if mode == "rollback_only" and end == "rollback":
                    continue  # takes the transaction along
                async with AsyncTenantSession(
                    connection, tenant="acme", join_transaction_mode=mode, **kw
                ) as session:
                    assert await bodies(session) == {"acme"}
                    await getattr(session, end)()
                assert (await connection.execute(state)).one() == before


def test_both_managers_offer_the_same() -> None:
    sync = sqlalchemy_tenants.managers
    for ours, theirs in (
        (DBManager, sync.DBManager),
        (PostgresManager, sync.PostgresManager),
    ):
        for name in vars(sync.DBManager):
            if not name.startswith("_"):
                found = inspect.signature(getattr(ours, name)).parameters
                assert found == inspect.signature(getattr(theirs, name)).parameters
    assert sorted(inspect.signature(PostgresManager.from_engine).parameters) == sorted(
        inspect.signature(sync.PostgresManager.from_engine).parameters
    )
