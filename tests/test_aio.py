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
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

import sqlalchemy_tenants.managers
from servers import Database
from sqlalchemy_tenants import (
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
