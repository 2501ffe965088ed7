"""Errors name the login and the configuration at hand, and the next step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from servers import Database
from sqlalchemy_tenants import (
    AdminSession,
    ScopeError,
    TenantAlreadyExists,
    TenantNotFound,
    TenantSession,
)
from sqlalchemy_tenants.aio import AsyncTenantSession
from sqlalchemy_tenants.aio.managers import PostgresManager as AsyncPostgresManager
from sqlalchemy_tenants.managers import PostgresManager
from tenancy import (  # noqa: F401
    Base,
    Note,
    World,
    driver_fixture,
    isolation_fixture,
    migrated_fixture,
    on_each_driver,
    role_world_fixture,
    world_fixture,
)

# --- a login that may not ------------------------------------------------------------


@on_each_driver
def test_nobody_is_advised_to_make_the_applications_login_an_admin(
    world: World,
) -> None:
    engine = world.engine()
    for open_session in (
        world.manager(engine, admin_engine=None).admin_session,
        lambda: AdminSession(engine, schema="public"),
    ):
        with pytest.raises(ScopeError) as raised, open_session() as session:
            session.connection()
        message = str(raised.value)
        assert f"login {world.login!r}" in message
        assert "admin_engine=" in message
        assert "GRANT" not in message


@on_each_driver
def test_shared_isolation_needs_a_login_of_its_own(world: World) -> None:
    """What is advised is not what ``check()`` reports."""
    login = "app" if world.isolation == "role" else "app_shared"
    world.database.execute("REVOKE tenants_shared FROM app_shared")
    world.database.execute("CREATE ROLE tenant_acme IN ROLE tenants ROLE app")
    manager = world.manager(isolation="shared", metadata=Base.metadata)
    with pytest.raises(ScopeError) as raised, manager.new_session("acme"):
        raise AssertionError("the block was entered")
    message = str(raised.value)
    assert f"login {login!r}" in message
    assert "the_login" not in message
    assert "GRANT tenants_shared TO app_shared WITH" in message
    assert "TO app " not in message
    world.database.execute("GRANT tenants_shared TO app_shared")
    other = world.manager(
        world.engine("app_shared"), isolation="shared", metadata=Base.metadata
    )
    with other.new_session("acme") as session:
        session.connection()


@on_each_driver
def test_a_login_is_named_though_its_address_does_not_name_it(
    role_world: World,
) -> None:
    """With a service file, a creator, or PGUSER the address has no login."""
    role_world.database.execute("CREATE ROLE tenant_acme IN ROLE tenants")
    engine = role_world.engine()
    engine.url = engine.url.set(username=None)
    for open_session in (
        lambda: role_world.session("acme", engine),
        lambda: role_world.manager(engine).connect("acme"),
    ):
        with pytest.raises(ScopeError) as raised, open_session() as session:
            session.connection()
        assert "GRANT tenant_acme TO app WITH" in str(raised.value)


# --- tenants that come and go --------------------------------------------------------


@on_each_driver
def test_a_tenant_that_is_deleted_between_two_transactions(role_world: World) -> None:
    engine = role_world.engine()
    manager = role_world.manager(engine)
    for open_it in (
        lambda: manager.new_session("acme"),
        lambda: role_world.session("acme", engine),
        lambda: manager.connect("acme"),
    ):
        manager.create_tenant("acme")
        with open_it() as opened:
            opened.execute(text("SELECT 1"))
            opened.commit()
            manager.delete_tenant("acme")
            with pytest.raises(TenantNotFound, match="create_tenant") as raised:
                opened.execute(text("SELECT 1"))
            assert raised.value.tenant == "acme"


@pytest.mark.parametrize("moment", ["pg_roles", "CREATE ROLE"])
@on_each_driver
def test_a_tenant_that_is_deleted_while_it_is_created(
    role_world: World, moment: str
) -> None:
    """The role is there when it is looked for, and gone a moment later."""
    admin = role_world.engine("manager")
    manager = role_world.manager(admin_engine=admin)
    for create in (
        lambda: manager.create_tenant("acme"),
        lambda: manager.create_tenants(["acme"]),
    ):
        manager.create_tenants(["acme"])
        pending = [True]

        def delete(*args: Any, pending: list[bool] = pending) -> None:
            if pending and moment in args[2]:
                pending.clear()
                role_world.database.execute("DROP ROLE tenant_acme")

        # before: the statement of which PostgreSQL says that the role is there fails
        for name in ("after_cursor_execute", "handle_error"):
            listener = delete if name != "handle_error" else _on_error(delete)
            event.listen(admin, name, listener)
        with suppress(TenantNotFound, TenantAlreadyExists):  # nothing else
            create()
        for name in ("after_cursor_execute", "handle_error"):
            event.remove(admin, name, listener if name == "handle_error" else delete)
        manager.create_tenants(["acme"])
        assert manager.list_tenants() == ["acme"]


def _on_error(delete: Callable[..., None]) -> Callable[[Any], None]:
    def listener(context: Any) -> None:
        delete(None, None, context.statement or "")

    return listener


@on_each_driver
def test_a_manager_says_once_whether_sessions_create_tenants(
    role_world: World,
) -> None:
    manager = role_world.manager(create_if_missing=False)
    for kw in ({}, {"create_if_missing": None}, {"create_if_missing": False}):
        with (
            pytest.raises(TenantNotFound),
            manager.new_session("acme", **kw),  # type: ignore[arg-type]
        ):
            raise AssertionError("the block was entered")
    assert manager.list_tenants() == []
    with manager.new_session("acme", create_if_missing=True):
        pass
    assert manager.list_tenants() == ["acme"]
    manager.delete_tenant("acme")
    with pytest.raises(TenantNotFound), manager.new_tenant_session("acme"):
        raise AssertionError("the block was entered")
    with pytest.raises(TypeError, match="create_if_missing"):
        role_world.manager(create_if_missing="no")


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_an_async_manager_says_it_once_too(
    migrated: Database, make_async_engine: Callable[..., AsyncEngine], driver: str
) -> None:
    manager = AsyncPostgresManager.from_engine(
        make_async_engine(migrated.url("app", driver)),
        "public",
        admin_engine=make_async_engine(migrated.url("manager", driver)),
        create_if_missing=False,
    )
    with pytest.raises(TenantNotFound):
        async with manager.new_session("acme"):
            raise AssertionError("the block was entered")
    async with manager.new_session("acme", create_if_missing=True):
        assert await manager.list_tenants() == ["acme"]


# --- ways to use it wrongly ----------------------------------------------------------

_URL = "postgresql+psycopg://"


def _blocks(manager: Any) -> list[Any]:
    return [
        manager.new_session("acme"),
        manager.new_tenant_session("acme"),
        manager.admin_session(),
        manager.connect("acme"),
        manager.begin("acme"),
    ]


async def test_a_block_that_is_not_entered(make_engine: Callable[..., Engine]) -> None:
    for block in _blocks(PostgresManager.from_engine(make_engine(_URL))):
        with pytest.raises(AttributeError, match=r"with manager.new_session\("):
            block.execute(text("SELECT 1"))
        assert not hasattr(block, "__no_such_name__")
        with pytest.raises(TypeError, match="not async"):
            async with block:
                raise AssertionError("the block was entered")


async def test_an_async_block_that_is_not_entered(
    make_async_engine: Callable[..., AsyncEngine],
) -> None:
    for block in _blocks(AsyncPostgresManager.from_engine(make_async_engine(_URL))):
        with pytest.raises(AttributeError, match=r"async with manager.new_session\("):
            block.execute(text("SELECT 1"))
        with pytest.raises(TypeError, match="async with"):
            await block
        with pytest.raises(TypeError, match="async with"), block:
            raise AssertionError("the block was entered")


def test_arguments_of_earlier_versions(make_engine: Callable[..., Engine]) -> None:
    engine: Any = make_engine(_URL)
    for manager in (PostgresManager, AsyncPostgresManager):
        with pytest.raises(TypeError, match="'schema_name'; it is called 'schema' now"):
            manager.from_engine(engine, schema_name="public")
        with pytest.raises(TypeError, match=r"argument 'shcema'$"):
            manager.from_engine(engine, shcema="public")


# --- classes of sessions -------------------------------------------------------------


class OwnSession(TenantSession):
    pass


class OwnAsyncSession(AsyncTenantSession):
    sync_session_class = OwnSession


@on_each_driver
def test_a_session_class_of_the_applications_own(world: World) -> None:
    manager = world.manager(session_class=OwnSession)
    with manager.new_session("acme") as session:
        assert type(session) is OwnSession
        assert session.tenant == "acme"
    with pytest.raises(TypeError, match="session_class is a subclass of TenantSession"):
        world.manager(session_class=Session)


async def test_an_async_session_class_of_the_applications_own(
    migrated: Database, make_async_engine: Callable[..., AsyncEngine]
) -> None:
    engine = make_async_engine(migrated.url("app", "asyncpg"))
    admin = make_async_engine(migrated.url("manager", "asyncpg"))
    manager = AsyncPostgresManager.from_engine(
        engine, "public", admin_engine=admin, session_class=OwnAsyncSession
    )
    async with manager.new_session("acme") as session:
        assert type(session) is OwnAsyncSession
        assert type(session.sync_session) is OwnSession
    other: Any = OwnSession
    with pytest.raises(TypeError, match="subclass of AsyncTenantSession"):
        AsyncPostgresManager.from_engine(engine, session_class=other)


# --- a row without its tenant --------------------------------------------------------


def _notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


@on_each_driver
def test_a_row_of_another_tenant_or_of_none(world: World) -> None:
    manager = world.manager()
    statements: list[Any] = [
        insert(Note).values(tenant=None),
        insert(Note).values(tenant="globex"),
        update(Note).values(tenant="globex"),
        text("INSERT INTO notes (tenant, body) VALUES ('globex', '')"),
    ]
    with manager.new_session("acme") as session:
        session.execute(insert(Note))
        session.commit()
    for statement in statements:
        for open_it in (manager.new_session, manager.connect, manager.begin):
            with (
                pytest.raises(DBAPIError, match="row-level security") as raised,
                open_it("acme") as opened,
            ):
                opened.execute(statement)
            assert _notes(raised.value).count("tenant=session.tenant") == 1
    with manager.new_session("acme") as session:
        session.add(Note(tenant="globex"))
        with pytest.raises(DBAPIError) as raised:
            session.flush()
        assert _notes(raised.value).count("'acme'") == 1


@on_each_driver
def test_a_row_that_an_admin_writes_for_nobody(world: World) -> None:
    with world.manager().admin_session() as session:
        session.add(Note())
        with pytest.raises(DBAPIError) as raised:
            session.flush()
        assert "admin_session(tenant)" in _notes(raised.value)
        session.rollback()
        for statement in ("SELECT 1 / 0", "TABLE pg_authid", "TABLE nowhere"):
            with pytest.raises(DBAPIError) as raised:
                session.execute(text(statement))
            assert _notes(raised.value) == ""
            session.rollback()
