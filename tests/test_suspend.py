"""Suspending tenants: who may act as one before, meanwhile, and after."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from sqlalchemy import (
    Connection,
    Engine,
    MetaData,
    create_engine,
    func,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from servers import Database, requested_version
from sqlalchemy_tenants import (
    ScopeError,
    Tenancy,
    TenantAlreadyExists,
    TenantNotFound,
    TenantSuspended,
)
from sqlalchemy_tenants.aio import managers as aio
from sqlalchemy_tenants.managers import PostgresManager
from sqlalchemy_tenants.roles import grant_tenant_sql
from sqlalchemy_tenants.scope import SUSPENDED
from tenancy import (  # noqa: F401
    Base,
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

IS_16 = requested_version() >= 16

MEMBERSHIPS = """
    SELECT member::regrole::text, grantor::regrole::text, admin_option,
        to_jsonb(m) ->> 'inherit_option', to_jsonb(m) ->> 'set_option'
    FROM pg_auth_members m WHERE roleid = 'tenant_acme'::regrole ORDER BY 1, 2
"""


def memberships(database: Database) -> list[tuple[Any, ...]]:
    return database.rows(MEMBERSHIPS)


def comment(database: Database) -> str | None:
    rows = database.rows(
        "SELECT shobj_description('tenant_acme'::regrole, 'pg_authid')"
    )
    found: str | None = rows[0][0]
    return found


def count(session: Session | Connection) -> int | None:
    return session.scalar(select(func.count()).select_from(Note))


@pytest.fixture(name="manager")
def manager_fixture(
    migrated: Database, make_engine: Callable[..., Engine]
) -> PostgresManager:
    app, admin = make_engine(migrated.app_url), make_engine(migrated.admin_url)
    manager = PostgresManager.from_engine(app, "public", admin_engine=admin)
    manager.create_tenants(["acme", "globex"])
    return manager


# --- at the door ----------------------------------------------------------------------


@on_each_driver
def test_the_open_transaction_ends_and_the_next_is_refused(role_world: World) -> None:
    engine = role_world.engine(pool_size=2)
    manager = role_world.manager(engine)
    manager.create_tenant("acme")
    with manager.new_session("acme") as session, manager.connect("acme") as connection:
        manager.suspend_tenant("acme")
        session.add(Note(body="still written"))
        session.commit()
        assert count(connection) == 1
        connection.commit()
        for again in (lambda: count(session), lambda: count(connection)):
            with pytest.raises(TenantSuspended, match="resume_tenant") as raised:
                again()
            assert raised.value.tenant == "acme"
        # also what holds the connection executes nothing until it has rolled back
        with pytest.raises(ScopeError):
            count(session)
        session.rollback()
        manager.resume_tenant("acme")
        assert count(session) == 1
    assert raw_state(engine)[0] == "app"
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@on_each_driver
def test_every_entrance_refuses(role_world: World) -> None:
    engine = role_world.engine()
    manager = role_world.manager(engine)
    manager.create_tenants(["acme", "globex"])
    manager.suspend_tenant("acme")

    entrances: list[Callable[[], Any]] = [
        lambda: manager.new_session("acme"),
        lambda: manager.new_session("acme", create_if_missing=True),
        lambda: manager.connect("acme"),
        lambda: manager.begin("acme"),
        lambda: role_world.session("acme", engine),
    ]
    for enter in entrances:
        with pytest.raises(TenantSuspended), enter() as session:
            session.execute(text("SELECT 1"))
    # by the same connection of the pool, which has one
    with manager.new_session("globex") as session:
        assert count(session) == 0
    with manager.admin_session("acme") as session:
        assert count(session) == 0


@on_each_driver
def test_the_connection_executes_nothing_after_it_asked(role_world: World) -> None:
    """It asks below SQLAlchemy whether the tenant is suspended, as the login."""
    engine = role_world.engine()
    manager = role_world.manager(engine)
    manager.create_tenant("acme")
    manager.suspend_tenant("acme")
    sent = statements(engine)
    with role_world.session("acme", engine) as session:
        with pytest.raises(TenantSuspended):
            session.connection()
        # a listener, for one, has the Connection
        (connection,) = _connections(session)
        with pytest.raises(Exception, match=r"aborted|rolled back"):
            connection.execute(text("SELECT 'as the login'"))
    assert all("ROLE" in each or "as the login" in each for each in sent)


def _connections(session: Session) -> set[Connection]:
    transaction = session.get_transaction()
    assert transaction is not None
    return set(transaction.connections)


@on_each_driver
def test_within_a_transaction_of_the_application(role_world: World) -> None:
    engine = role_world.engine()
    manager = role_world.manager(engine)
    manager.create_tenants(["acme", "globex"])
    manager.suspend_tenant("acme")
    with engine.connect() as connection, connection.begin():
        connection.execute(text("SET LOCAL application_name = 'mine'"))
        for tenant in ("acme", "globex"):
            session = role_world.session(
                tenant, connection, join_transaction_mode="create_savepoint"
            )
            if tenant == "acme":
                with pytest.raises(TenantSuspended):
                    session.connection()
            else:
                assert count(session) == 0
            session.close()
        # nothing of the transaction was rolled back but the savepoint
        shown = connection.scalar(text("SELECT current_setting('application_name')"))
        assert shown == "mine"


def test_another_refusal_is_no_suspension(
    migrated: Database, manager: PostgresManager
) -> None:
    migrated.execute("CREATE ROLE tenant_x IN ROLE tenants", login="manager")
    with pytest.raises(ScopeError, match="may not act as") as raised:
        manager.new_session("x").__enter__()
    assert not isinstance(raised.value, TenantSuspended)
    with pytest.raises(TenantNotFound):
        manager.new_session("y", create_if_missing=False).__enter__()


def test_it_cannot_be_caught_as_a_missing_tenant() -> None:
    assert issubclass(TenantSuspended, ScopeError)
    assert not issubclass(TenantSuspended, TenantNotFound)


# --- what opens it, and what does not -------------------------------------------------


def test_creating_opens_nothing(migrated: Database, manager: PostgresManager) -> None:
    manager.suspend_tenant("acme")
    with pytest.raises(TenantAlreadyExists):
        manager.create_tenant("acme")
    assert manager.create_tenants(["acme", "globex", "new"]) == 1
    assert manager.create_tenants(["acme"]) == 0
    migrated.execute(grant_tenant_sql("tenant_acme", "app"), login="manager")
    with pytest.raises(TenantSuspended):
        manager.new_session("acme").__enter__()
    with manager.new_session("new"):
        pass
    assert manager.list_tenants() == ["acme", "globex", "new"]
    assert manager.list_tenants(suspended=True) == ["acme"]
    assert manager.list_tenants(suspended=False) == ["globex", "new"]


def test_a_suspended_tenant_can_be_deleted(manager: PostgresManager) -> None:
    manager.suspend_tenant("acme")
    manager.delete_tenant("acme")
    assert manager.list_tenants() == ["globex"]
    manager.create_tenant("acme")
    with manager.new_session("acme"):
        pass


def test_twice_is_as_once(migrated: Database, manager: PostgresManager) -> None:
    before = memberships(migrated)
    manager.resume_tenant("acme")
    assert memberships(migrated) == before
    manager.suspend_tenant("acme")
    manager.suspend_tenant("acme")
    # also where somebody granted it meanwhile
    migrated.execute("GRANT tenant_acme TO app_shared", login="manager")
    manager.suspend_tenant("acme")
    assert {row[0] for row in memberships(migrated)} <= {"manager"}
    manager.resume_tenant("acme")
    manager.resume_tenant("acme")
    rows = memberships(migrated)
    assert [row for row in rows if row[0] != "app_shared"] == before
    assert len(rows) == len(before) + 1


def test_a_tenant_that_is_not_there(
    migrated: Database, manager: PostgresManager
) -> None:
    migrated.execute("CREATE ROLE tenant_other")
    for call in (manager.suspend_tenant, manager.resume_tenant):
        with pytest.raises(TenantNotFound):
            call("nobody")
        with pytest.raises(ScopeError, match="not a member"):
            call("other")


def test_shared_isolation_says_what_to_do(
    migrated: Database, make_engine: Callable[..., Engine]
) -> None:
    manager = PostgresManager.from_engine(
        make_engine(migrated.shared_url), "public", isolation="shared"
    )
    for call in (manager.suspend_tenant, manager.resume_tenant):
        with pytest.raises(ScopeError, match="refuse the tenant where the application"):
            call("acme")


# --- memberships ----------------------------------------------------------------------


def test_all_memberships_come_back_as_they_were(
    migrated: Database, manager: PostgresManager
) -> None:
    """Also of logins that the manager does not know, and of roles between."""
    migrated.execute(
        'CREATE ROLE "a login" LOGIN; CREATE ROLE team NOLOGIN;'
        "CREATE ROLE member LOGIN NOINHERIT IN ROLE team"
    )
    if IS_16:
        migrated.execute(
            "GRANT tenant_acme TO team WITH INHERIT FALSE, SET TRUE;"
            'GRANT tenant_acme TO "a login" WITH INHERIT TRUE, SET FALSE;'
            "GRANT tenant_acme TO manager WITH INHERIT FALSE, SET TRUE",
            login="manager",
        )
        # a second grantor of the same login
        migrated.execute("GRANT tenant_acme TO app WITH INHERIT FALSE, SET TRUE")
    else:
        migrated.execute(
            'GRANT tenant_acme TO team; GRANT tenant_acme TO "a login"'
            " WITH ADMIN OPTION",
            login="manager",
        )
    migrated.execute("COMMENT ON ROLE tenant_acme IS 'ours: 100%'", login="manager")
    before = memberships(migrated)
    if IS_16:
        # the manager may not take back what the superuser has granted
        with pytest.raises(ScopeError, match="privileges of the roles that granted"):
            manager.suspend_tenant("acme")
        assert memberships(migrated) == before
        assert comment(migrated) == "ours: 100%"
    superuser = create_engine(migrated.superuser_url)
    root = PostgresManager.from_engine(
        manager._engine, "public", admin_engine=superuser
    )
    try:
        root.suspend_tenant("acme")
        assert all(row[2:] == (True, "false", "false") for row in memberships(migrated))
        for login in ("app", "a login", "member"):
            with pytest.raises(Exception, match="permission denied"):
                migrated.execute("SET ROLE tenant_acme", login=login)
        root.resume_tenant("acme")
    finally:
        superuser.dispose()
    after = memberships(migrated)
    if IS_16:
        assert after == before
    else:  # which keeps one grantor, and asks nobody
        assert [(row[0], row[2]) for row in after] == [
            (row[0], row[2]) for row in before
        ]
    assert comment(migrated) == "ours: 100%"


@pytest.mark.skipif(not IS_16, reason="options of memberships came with 16")
def test_who_administers_a_tenant_cannot_act_as_it(
    migrated: Database, manager: PostgresManager
) -> None:
    migrated.execute(
        "GRANT tenant_acme TO app WITH ADMIN TRUE, INHERIT TRUE", login="manager"
    )
    before = memberships(migrated)
    manager.suspend_tenant("acme")
    with pytest.raises(TenantSuspended):
        manager.new_session("acme").__enter__()
    manager.resume_tenant("acme")
    assert memberships(migrated) == before


@pytest.mark.skipif(not IS_16, reason="GRANT locks no role on 15")
def test_create_tenants_waits_for_who_suspends(
    migrated: Database, manager: PostgresManager
) -> None:
    migrated.execute("REVOKE tenant_acme FROM app", login="manager")
    waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with (
        ThreadPoolExecutor() as pool,
        migrated.server.connect(migrated.name, "manager") as other,
    ):
        other.execute("BEGIN")
        other.execute(f"COMMENT ON ROLE tenant_acme IS '{SUSPENDED}[]'")
        creating = pool.submit(manager.create_tenants, ["acme"])
        while not migrated.rows(waits) and not creating.done():
            pass
        other.execute("COMMIT")
        with pytest.raises(TenantSuspended, match="while it was to be created"):
            creating.result()
    assert not [row for row in memberships(migrated) if row[0] == "app"]


def test_a_login_or_a_grantor_that_is_gone(
    migrated: Database, manager: PostgresManager, caplog: pytest.LogCaptureFixture
) -> None:
    options = " WITH INHERIT FALSE, SET TRUE" if IS_16 else ""
    migrated.execute("CREATE ROLE former LOGIN NOINHERIT")
    migrated.execute(f"GRANT tenant_acme TO former{options}", login="manager")
    manager.suspend_tenant("acme")
    migrated.execute("DROP ROLE former")
    text_ = (comment(migrated) or "").replace('"manager"', '"nobody"')
    migrated.execute(f"COMMENT ON ROLE tenant_acme IS '{text_}'", login="manager")
    manager.resume_tenant("acme")
    assert "former could act as tenant_acme, and is gone" in caplog.text
    with manager.new_session("acme"):
        pass


def test_a_superuser_is_not_suspended(
    migrated: Database, make_engine: Callable[..., Engine]
) -> None:
    manager = PostgresManager.from_engine(make_engine(migrated.superuser_url), "public")
    manager.create_tenant("acme")
    with pytest.raises(ScopeError, match="is a superuser"):
        manager.suspend_tenant("acme")
    assert manager.list_tenants(suspended=True) == []


def test_a_record_that_cannot_be_read(
    migrated: Database, manager: PostgresManager
) -> None:
    manager.suspend_tenant("acme")
    record = (comment(migrated) or "").partition(SUSPENDED)[2]
    assert ("app", "manager") in {tuple(each[:2]) for each in json.loads(record)}
    broken = f"'{SUSPENDED}[[1]]'"
    migrated.execute(f"COMMENT ON ROLE tenant_acme IS {broken}", login="manager")
    with pytest.raises(ScopeError, match="COMMENT ON ROLE tenant_acme IS NULL"):
        manager.resume_tenant("acme")
    with pytest.raises(TenantSuspended):
        manager.new_session("acme").__enter__()


def test_a_tenant_cannot_write_the_record(
    migrated: Database, manager: PostgresManager
) -> None:
    with manager.begin("acme") as connection:
        for role in ("tenant_acme", "tenant_globex"):
            with (
                pytest.raises(Exception, match=r"permission|must have"),
                connection.begin_nested(),
            ):
                connection.execute(text(f"COMMENT ON ROLE {role} IS 'x'"))


# --- migrations -----------------------------------------------------------------------


def test_autogenerate_leaves_a_suspended_tenant(
    migrated: Database, manager: PostgresManager
) -> None:
    metadata = MetaData(info={"tenancy": Tenancy(tenants=["acme"], logins=["app"])})
    engine = create_engine(migrated.owner_url)

    def logins() -> list[str]:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection)
            script = produce_migrations(context, metadata)
        assert script.upgrade_ops is not None
        return [
            type(each).__name__
            for each in script.upgrade_ops.ops
            if getattr(each, "tenant", None) == "acme"
        ]

    assert logins() == []
    migrated.execute("REVOKE tenant_acme FROM app", login="manager")
    assert logins() == ["GrantTenantRoleOp"]
    manager.create_tenants(["acme"])
    manager.suspend_tenant("acme")
    assert logins() == []
    engine.dispose()


# --- async ----------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_the_async_manager(
    migrated: Database, driver: str, make_async_engine: Callable[..., AsyncEngine]
) -> None:
    manager = aio.PostgresManager.from_engine(
        make_async_engine(migrated.url("app", driver)),
        "public",
        admin_engine=make_async_engine(migrated.url("manager", driver)),
    )
    await manager.create_tenant("acme")
    async with manager.new_session("acme") as session:
        await manager.suspend_tenant("acme")
        await session.commit()
        with pytest.raises(TenantSuspended):
            await session.scalar(select(Note))
    for enter in (manager.new_session, manager.connect, manager.begin):
        with pytest.raises(TenantSuspended):
            await enter("acme").__aenter__()
    assert await manager.list_tenants(suspended=True) == ["acme"]
    await manager.resume_tenant("acme")
    async with manager.connect("acme") as connection:
        assert await connection.scalar(select(func.count()).select_from(Note)) == 0
