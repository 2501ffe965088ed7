"""A manager on one connection, whose transaction a test rolls back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, func, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from servers import Database, requested_version
from sqlalchemy_tenants import (
    ScopeError,
    TenantAlreadyExists,
    TenantNotFound,
    TenantSuspended,
)
from sqlalchemy_tenants.aio import managers as aio
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
    world_fixture,
)


def bodies(session: Session | Connection) -> set[str]:
    return set(session.scalars(select(Note.body)))


def allow_everything(database: Database, login: str) -> None:
    """Let one login do what those of both engines do, as in development."""
    database.execute(f"ALTER ROLE {login} CREATEROLE")
    for line in (
        "GRANT tenants TO {} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE",
        "GRANT tenants_admin TO {} WITH INHERIT FALSE, SET TRUE",
    ):
        line = line.format(login)
        if requested_version() < 16:
            if "ADMIN TRUE" in line:
                continue
            line = line.partition(" WITH")[0]
        database.execute(line)


def left(world: World) -> tuple[int, int]:
    """How many notes and tenants there are, whoever looks."""
    (notes,) = world.database.rows("SELECT count(*) FROM notes")
    (roles,) = world.database.rows(
        "SELECT count(*) FROM pg_roles WHERE starts_with(rolname, 'tenant_')"
    )
    return notes[0], roles[0]


@on_each_driver
def test_all_of_it_is_rolled_back(world: World) -> None:
    allow_everything(world.database, world.login)
    engine = world.engine()
    manager = PostgresManager.from_engine(engine, "public", isolation=world.isolation)
    before = raw_state(engine)
    with engine.connect() as connection, connection.begin() as outer:
        bound = manager.bound_to(connection)
        bound.create_tenants(["acme", "globex"])
        if world.isolation == "role":
            assert bound.list_tenants() == ["acme", "globex"]
            with pytest.raises(TenantAlreadyExists):
                bound.create_tenant("acme")
        for tenant in ("acme", "globex"):  # one after the other
            with bound.new_session(tenant) as session:
                session.add(Note(body=tenant))
                session.commit()
                session.add(Note(body="gone"))
                session.flush()
                session.rollback()
                assert bodies(session) == {tenant}
            with bound.begin(tenant) as core:
                core.execute(insert(Note).values(body="core"))
            with bound.connect(tenant) as core:
                assert bodies(core) == {tenant, "core"}
                core.execute(insert(Note).values(body="not committed"))
        with bound.new_session("missing") as session:  # creates it
            assert bodies(session) == set()
        with bound.admin_session() as session:
            assert len(session.scalars(select(Note)).all()) == 4
        with bound.admin_session("acme") as session:
            assert bodies(session) == {"acme", "core"}
        if world.isolation == "role":
            bound.delete_tenant("globex")
            with pytest.raises(TenantNotFound):
                bound.new_session("globex", create_if_missing=False).__enter__()
        # and the connection is what it was before
        assert connection.scalar(text("SELECT current_user")) == world.login
        assert outer.is_active
        outer.rollback()
    assert left(world) == (0, 0)
    assert raw_state(engine) == before


@on_each_driver
def test_an_error_in_a_block_ends_the_block_only(role_world: World) -> None:
    engine = role_world.engine()
    role_world.create("acme")
    manager = role_world.manager(engine)
    with engine.connect() as connection, connection.begin() as outer:
        bound = manager.bound_to(connection)
        for _ in range(2):
            error = pytest.raises(DBAPIError, match="row-level security")
            with error as raised, bound.begin("acme") as core:
                core.execute(insert(Note).values(tenant="globex"))
            assert "confined to tenant 'acme'" in str(raised.value.__notes__)
            with pytest.raises(TenantNotFound):
                bound.connect("nobody").__enter__()
            with bound.begin("acme") as core:
                core.execute(insert(Note).values(body="fine"))
        with bound.new_session("acme") as session:
            assert bodies(session) == {"fine"}
        outer.rollback()


@on_each_driver
def test_suspending_on_it(role_world: World) -> None:
    allow_everything(role_world.database, "app")
    engine = role_world.engine()
    manager = PostgresManager.from_engine(engine, "public")
    with engine.connect() as connection, connection.begin() as outer:
        bound = manager.bound_to(connection)
        bound.create_tenants(["acme", "globex"])
        bound.suspend_tenant("acme")
        for _ in range(2):
            with pytest.raises(TenantSuspended):
                bound.new_session("acme").__enter__()
        with bound.new_session("globex"):
            pass
        bound.resume_tenant("acme")
        with bound.new_session("acme"):
            pass
        outer.rollback()


@on_each_driver
def test_nothing_is_committed(role_world: World) -> None:
    """Whoever would commit gets an error, and the transaction is rolled back."""
    engine = role_world.engine()
    role_world.create("acme")
    manager = role_world.manager(engine)

    def by_connection(bound: PostgresManager) -> None:
        with bound.begin("acme") as core:
            core.execute(insert(Note))
            core.commit()

    def by_session(bound: PostgresManager) -> None:
        with bound.new_session("acme") as session:
            session.add(Note())
            session.flush()
            session.connection().commit()

    for commit in (by_connection, by_session):
        with engine.connect() as connection:
            outer = connection.begin()
            with pytest.raises(ScopeError, match="commit to a savepoint"):
                commit(manager.bound_to(connection))
            outer.rollback()
            assert left(role_world) == (0, 1)
            # the connection is free again, also for what its owner commits
            with connection.begin():
                connection.execute(text("SELECT 1"))
    assert raw_state(engine)[0] == "app"


@on_each_driver
def test_without_a_transaction_it_refuses(role_world: World) -> None:
    engine = role_world.engine()
    role_world.create("acme")
    manager = role_world.manager(engine)
    with engine.connect() as connection:
        bound = manager.bound_to(connection)
        refused: list[Callable[[], Any]] = [
            lambda: bound.new_session("acme"),
            lambda: bound.admin_session(),
            lambda: bound.connect("acme"),
            lambda: bound.begin("acme"),
        ]
        for enter in refused:
            with pytest.raises(ScopeError, match="begin one first"):
                enter().__enter__()
        for call in (bound.create_tenant, bound.suspend_tenant):
            with pytest.raises(ScopeError, match="begin one first"):
                call("acme")
        # also later: the session would commit what it does from now on
        outer = connection.begin()
        with bound.new_session("acme") as session:
            session.commit()
            outer.rollback()
            session.add(Note())
            with pytest.raises(ScopeError, match="begin one first"):
                session.flush()
            session.rollback()
    assert left(role_world) == (0, 1)


@on_each_driver
def test_one_scope_at_a_time(role_world: World) -> None:
    engine = role_world.engine()
    role_world.create("acme", "globex")
    manager = role_world.manager(engine)
    with engine.connect() as connection, connection.begin():
        bound = manager.bound_to(connection)
        with bound.new_session("acme") as session:
            for enter in (bound.new_session, bound.begin, bound.admin_session):
                with pytest.raises(ScopeError, match="in use by a session of tenant"):
                    enter("globex").__enter__()
            for call in (bound.create_tenant, bound.delete_tenant):
                with pytest.raises(ScopeError, match="in use by a session of tenant"):
                    call("globex")
            assert bodies(session) == set()


def test_a_superuser_is_confined(
    migrated: Database, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(migrated.superuser_url)
    manager = PostgresManager.from_engine(engine, "public")
    with engine.connect() as connection, connection.begin():
        connection.execute(insert(Note).values(tenant="globex", body="of globex"))
        bound = manager.bound_to(connection)
        with bound.new_session("acme") as session:
            assert bodies(session) == set()
        assert bodies(connection) == {"of globex"}


def test_a_subclass_stays_one(
    migrated: Database, make_engine: Callable[..., Engine]
) -> None:
    class Own(PostgresManager):
        own = 1

    engine = make_engine(migrated.app_url)
    manager = Own.from_engine(engine, "public", session_options={"autoflush": False})
    with engine.connect() as connection:
        bound = manager.bound_to(connection)
        assert isinstance(bound, Own)
        assert type(bound.bound_to(connection)) is type(bound)
        assert bound.tenant_kw("acme", None, None)["autoflush"] is False
        assert (
            manager.tenant_kw("acme", None, None).get("join_transaction_mode") is None
        )


def test_only_to_a_connection(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine("postgresql+psycopg://nobody@localhost/nowhere")
    manager = PostgresManager.from_engine(engine)
    for other in (engine, None, "x"):
        with pytest.raises(TypeError, match="takes a Connection"):
            manager.bound_to(other)  # type: ignore[arg-type]
    sqlite = make_engine("sqlite://")
    with sqlite.connect() as connection, pytest.raises(ScopeError, match="PostgreSQL"):
        manager.bound_to(connection)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_the_async_manager(
    migrated: Database, driver: str, make_async_engine: Callable[..., AsyncEngine]
) -> None:
    allow_everything(migrated, "app")
    engine = make_async_engine(migrated.url("app", driver))
    manager = aio.PostgresManager.from_engine(engine, "public")
    async with engine.connect() as connection, connection.begin() as outer:
        bound = manager.bound_to(connection)
        await bound.create_tenant("acme")
        async with bound.new_session("acme") as session:
            session.add(Note(body="orm"))
            await session.commit()
        async with bound.new_session("globex") as session:  # creates it
            assert (await session.scalars(select(Note))).all() == []
        async with bound.begin("acme") as core:
            await core.execute(insert(Note).values(body="core"))
        async with bound.connect("acme") as core:
            assert core is connection
            counted = select(func.count()).select_from(Note)
            assert await core.scalar(counted) == 2
        async with bound.admin_session() as admin:
            assert await admin.scalar(counted) == 2
        assert await bound.list_tenants() == ["acme", "globex"]
        with pytest.raises(ScopeError, match="commit to a savepoint"):
            async with bound.connect("acme") as core:
                await core.commit()
        await outer.rollback()
    assert await manager.list_tenants() == []
    async with engine.connect() as connection:
        with pytest.raises(TypeError, match="open AsyncConnection"):
            manager.bound_to(connection.sync_connection)  # type: ignore[arg-type]
