"""The manager: sessions and connections of tenants, and tenants themselves."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    create_engine,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError, InvalidRequestError, ResourceClosedError
from sqlalchemy.orm import Session

from servers import Database, requested_version
from sqlalchemy_tenants import (
    InvalidTenant,
    ScopeError,
    Tenancy,
    TenantAlreadyExists,
    TenantNotFound,
    with_rls,
)
from sqlalchemy_tenants.managers import PostgresManager
from tenancy import (  # noqa: F401
    Asset,
    Base,
    Count,
    Note,
    World,
    driver_fixture,
    isolation_fixture,
    migrate,
    migrated_fixture,
    on_each_driver,
    raw_state,
    role_world_fixture,
    world_fixture,
)


def bodies(session: Session) -> set[str]:
    return set(session.scalars(select(Note.body)))


@pytest.fixture(name="manager")
def manager_fixture(migrated: Database) -> Iterator[PostgresManager]:
    """Role isolation, with an engine for the application and one for tenants."""
    engines = [create_engine(migrated.app_url), create_engine(migrated.admin_url)]
    yield PostgresManager.from_engine(engines[0], "public", admin_engine=engines[1])
    for engine in engines:
        engine.dispose()


# --- sessions ------------------------------------------------------------------------


@on_each_driver
def test_a_session_creates_its_tenant(world: World) -> None:
    manager = world.manager()
    with manager.new_session("acme") as session:
        assert session.tenant == "acme"
        assert session.in_transaction()
        session.add(Note(body="hello"))
        session.commit()
    with manager.new_tenant_session("acme", create_if_missing=False) as session:
        assert bodies(session) == {"hello"}
    if world.isolation == "role":
        assert manager.list_tenants() == ["acme"]


@pytest.mark.parametrize("driver", ["psycopg"])
@on_each_driver
def test_a_manager_takes_no_function(role_world: World) -> None:
    """Sessions alone do. A manager would ask for the settings of the function, and
    create the tenant that it names."""
    tenant: Any = lambda: "acme"  # noqa: E731
    manager = role_world.manager(settings=lambda tenant: {"application_name": tenant})
    for open_it in (
        lambda: manager.new_session(tenant),
        lambda: manager.connect(tenant),
        lambda: manager.begin(tenant),
        lambda: manager.admin_session(tenant),
    ):
        with pytest.raises(InvalidTenant), open_it():
            raise AssertionError("the block was entered")
    assert manager.list_tenants() == []


@on_each_driver
def test_a_missing_tenant_is_an_error_at_once(role_world: World) -> None:
    engine = role_world.engine()
    manager = role_world.manager(engine)
    for open_it in (
        lambda: manager.new_session("acme", create_if_missing=False),
        lambda: manager.connect("acme"),
        lambda: manager.begin("acme"),
    ):
        with pytest.raises(TenantNotFound, match="create_tenant") as raised, open_it():
            raise AssertionError("the block was entered")
        assert raised.value.tenant == "acme"
        assert isinstance(raised.value.__cause__, DBAPIError)
    assert manager.list_tenants() == []
    assert engine.pool.checkedout() == 0
    assert raw_state(engine)[0] == "app"


def test_another_error_than_a_refusal_is_raised_at_once(
    migrated: Database, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(f"{migrated.app_url}_that_is_not_there")
    manager = PostgresManager.from_engine(engine, "public")
    error = pytest.raises(DBAPIError, match="does not exist")
    with error, manager.new_session("acme"):
        raise AssertionError("the block was entered")


@on_each_driver
def test_a_session_admits_no_login_to_a_tenant_that_exists(role_world: World) -> None:
    """Another login's tenants are closed to this one, until somebody says otherwise."""
    role_world.database.execute(
        "CREATE ROLE tenant_acme IN ROLE tenants", login="manager"
    )
    manager = role_world.manager()
    for _ in range(2):
        with (
            pytest.raises(ScopeError, match="GRANT tenant_acme TO"),
            manager.new_session("acme"),
        ):
            raise AssertionError("the block was entered")
    manager.create_tenants(["acme"])
    with manager.new_session("acme") as session:
        assert bodies(session) == set()


@on_each_driver
def test_a_session_is_opened_once(world: World) -> None:
    opening = world.manager().new_session("acme")
    with opening, pytest.raises(RuntimeError, match="is open"), opening:
        raise AssertionError("the block was entered")
    with opening as session:
        assert bodies(session) == set()


@on_each_driver
def test_options_of_sessions(world: World) -> None:
    manager = world.manager(session_options={"expire_on_commit": False})
    with manager.new_session("acme") as session:
        session.add(note := Note(body="hello"))
        session.commit()
        assert not inspect(note).expired
        assert session.tenant == "acme"
    with manager.admin_session() as admin:
        assert admin.expire_on_commit is False


@pytest.mark.parametrize("name", ["tenant", "schema", "scope", "bind"])
def test_options_of_sessions_do_not_change_the_scope(name: str) -> None:
    engine = create_engine("postgresql+psycopg://")
    with pytest.raises(ValueError, match=f"session_options cannot have '{name}'"):
        PostgresManager.from_engine(engine, session_options={name: None})


@on_each_driver
def test_leaving_the_block_by_an_error_rolls_back(world: World) -> None:
    manager = world.manager()
    with suppress(ZeroDivisionError), manager.new_session("acme") as session:
        session.add(Note())
        session.flush()
        raise ZeroDivisionError
    with suppress(ZeroDivisionError), manager.begin("acme") as connection:
        connection.execute(insert(Note))
        raise ZeroDivisionError
    with manager.new_session("acme") as session:
        assert bodies(session) == set()


@on_each_driver
def test_a_tenant_of_another_type(world: World) -> None:
    manager = world.manager()
    for model, mine, theirs in (
        (Count, 7, 8),
        (Asset, uuid.UUID(int=7), uuid.UUID(int=8)),
    ):
        for tenant in (mine, theirs):
            with manager.new_session(tenant) as session:
                assert session.tenant is tenant
                session.add(model(body=str(tenant)))
                session.commit()
        with manager.new_session(mine) as session:
            (found,) = session.scalars(select(model))  # type: ignore[call-overload]
            assert (found.tenant, found.body) == (mine, str(mine))


def test_a_tenant_that_does_not_fit_the_columns_type_sees_an_error(
    manager: PostgresManager,
) -> None:
    error = pytest.raises(DBAPIError, match="invalid input syntax")
    with manager.new_session("acme") as session, error:
        session.scalars(select(Count)).all()


@on_each_driver
def test_a_tenant_deleted_meanwhile(role_world: World) -> None:
    manager = role_world.manager()
    with manager.new_session("acme") as session:
        session.commit()
        manager.delete_tenant("acme")
        with pytest.raises(TenantNotFound, match="create_tenant") as raised:
            bodies(session)
        assert raised.value.tenant == "acme"
        assert isinstance(raised.value.__cause__, DBAPIError)
        session.rollback()
        manager.create_tenant("acme")
        assert bodies(session) == set()


# --- Core ----------------------------------------------------------------------------


@on_each_driver
def test_a_connection_is_confined_in_each_transaction(world: World) -> None:
    world.create("acme", "globex")
    world.fill(Note, "acme", "globex")
    engine = world.engine()
    manager = world.manager(engine)
    query = select(Note.body)
    with manager.connect("acme") as connection:
        assert connection.in_transaction()
        for end in (connection.commit, connection.rollback):
            assert connection.scalars(query).all() == ["row of acme"]
            end()
            with connection.begin():
                assert connection.scalars(query).all() == ["row of acme"]
            with connection.begin(), connection.begin_nested():
                assert connection.scalars(query).all() == ["row of acme"]
        with pytest.raises(ScopeError, match="two-phase"):
            connection.begin_twophase()
        connection.execute(insert(Note))  # is not committed
    with manager.begin("acme") as connection:
        assert connection.scalars(query).all() == ["row of acme"]
        connection.execute(insert(Note).values(body="new"))
    with manager.begin("acme") as connection:
        assert set(connection.scalars(query)) == {"row of acme", "new"}
    assert raw_state(engine)[0] == world.login
    with manager.begin("globex") as connection:
        assert connection.scalars(query).all() == ["row of globex"]


@on_each_driver
def test_a_connection_whose_scope_was_refused_is_closed(role_world: World) -> None:
    """SQLAlchemy would execute the next statement without asking again."""
    manager = role_world.manager()
    manager.create_tenant("acme")
    with manager.connect("acme") as connection:
        connection.commit()
        manager.delete_tenant("acme")
        with pytest.raises(TenantNotFound):
            connection.execute(text("SELECT 1"))
        with pytest.raises(ResourceClosedError):
            connection.execute(text("SELECT 1"))


@on_each_driver
def test_a_connection_in_autocommit_is_refused(world: World) -> None:
    world.create("acme")
    manager = world.manager(world.engine(isolation_level="AUTOCOMMIT"))
    with pytest.raises(ScopeError, match="AUTOCOMMIT"), manager.connect("acme"):
        pass
    manager = world.manager()
    with manager.connect("acme") as connection:
        with pytest.raises(InvalidRequestError):
            connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.commit()
        connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(ScopeError, match="AUTOCOMMIT"):
            connection.execute(text("SELECT 1"))
        with pytest.raises(ResourceClosedError):
            connection.execute(text("SELECT 1"))


# --- across tenants ------------------------------------------------------------------


@on_each_driver
def test_an_admin_session_sees_all_tenants_or_one(world: World) -> None:
    world.create("acme", "globex")
    world.fill(Note, "acme", "globex")
    engine = world.engine("manager")
    manager = world.manager(admin_engine=engine)
    with manager.admin_session() as session:
        assert session.tenant is None
        for _ in range(2):
            assert bodies(session) == {"row of acme", "row of globex"}
            session.commit()
        session.add(Note(tenant="initech", body="new"))
        session.commit()
        # nobody to whom such a row could belong
        session.add(Note())
        with pytest.raises(DBAPIError):
            session.flush()
    with manager.admin_session("acme") as session:
        assert session.tenant == "acme"
        for _ in range(2):
            assert bodies(session) == {"row of acme"}
            session.rollback()
        # without RETURNING, which would be an error of its own
        for statement in (
            "INSERT INTO notes (tenant, body) VALUES ('globex', '')",
            "UPDATE notes SET tenant = 'globex'",
        ):
            with pytest.raises(DBAPIError, match="row-level security"):
                session.execute(text(statement))
            session.rollback()
    role, tenant, _ = raw_state(engine)
    assert (role, tenant) == ("manager", "")


@on_each_driver
def test_an_admin_session_ignores_a_tenant_that_the_login_comes_with(
    world: World,
) -> None:
    world.create("acme", "globex")
    world.fill(Note, "acme", "globex")
    world.database.execute("ALTER ROLE manager SET tenancy.tenant = 'acme'")
    with world.manager().admin_session() as session:
        assert bodies(session) == {"row of acme", "row of globex"}


def test_an_admin_session_is_never_opened_by_an_empty_tenant(
    manager: PostgresManager,
) -> None:
    for tenant in ("", False, 0.0):
        with pytest.raises(InvalidTenant), manager.admin_session(tenant):  # type: ignore[arg-type]
            pass


@on_each_driver
def test_the_applications_login_has_no_admin_session(world: World) -> None:
    engine = world.engine()
    manager = world.manager(engine, admin_engine=engine)
    with pytest.raises(ScopeError, match="tenants_admin"), manager.admin_session():
        pass


# --- tenants -------------------------------------------------------------------------


@on_each_driver
def test_tenants_are_created_listed_and_deleted(role_world: World) -> None:
    manager = role_world.manager()
    for tenant in ("globex", 7, uuid.UUID(int=7), "acme"):
        manager.create_tenant(tenant)
    assert manager.list_tenants() == [
        "00000000-0000-0000-0000-000000000007",
        "7",
        "acme",
        "globex",
    ]
    for again in ("acme", "7", 7):
        with pytest.raises(TenantAlreadyExists) as raised:
            manager.create_tenant(again)
        assert raised.value.tenant == again
    with manager.new_session("acme") as session:
        session.add(Note(body="stays"))
        session.commit()
    manager.delete_tenant("acme")
    with pytest.raises(TenantNotFound):
        manager.delete_tenant("acme")
    assert role_world.database.rows("SELECT body FROM notes") == [("stays",)]
    assert "acme" not in manager.list_tenants()
    manager.create_tenant("acme")
    with manager.new_session("acme") as session:
        assert bodies(session) == {"stays"}


def test_nobody_logs_in_as_a_tenant(
    manager: PostgresManager, migrated: Database
) -> None:
    manager.create_tenant("acme")
    manager.create_tenants(["globex", "initech"])
    roles = migrated.rows(
        "SELECT rolcanlogin, count(*) FROM pg_roles WHERE rolname ~ '^tenant_'"
        " GROUP BY rolcanlogin"
    )
    assert roles == [(False, 3)]


def test_a_role_that_is_no_tenant_is_left_alone(
    manager: PostgresManager, migrated: Database
) -> None:
    migrated.execute("CREATE ROLE tenant_acme LOGIN SUPERUSER")
    for create in (
        lambda: manager.create_tenant("acme"),
        lambda: manager.create_tenants(["globex", "acme"]),
    ):
        with pytest.raises(ScopeError, match="not a member of 'tenants'") as raised:
            create()
        assert raised.value.tenant == "acme"
    with pytest.raises(TenantNotFound):
        manager.delete_tenant("acme")
    assert manager.list_tenants() == []
    members = "SELECT FROM pg_auth_members WHERE roleid = 'tenant_acme'::regrole"
    assert migrated.rows(members) == []


def test_a_role_that_is_no_tenant_is_granted_to_nobody(
    migrated: Database, make_engine: Callable[..., Engine]
) -> None:
    """As a superuser the manager could, and PostgreSQL 15 lets CREATEROLE, too."""
    migrated.execute("CREATE ROLE tenant_acme LOGIN CREATEDB")
    for login in ("superuser", "manager"):
        manager = PostgresManager.from_engine(
            make_engine(migrated.app_url),
            "public",
            admin_engine=make_engine(migrated.url(login)),
        )
        error = pytest.raises(ScopeError, match="may not act as")
        with error as raised, manager.new_session("acme"):
            raise AssertionError("the block was entered")
        assert raised.value.tenant == "acme"
        members = "SELECT FROM pg_auth_members WHERE roleid = 'tenant_acme'::regrole"
        assert migrated.rows(members) == []


def test_a_tenant_that_owns_something_is_not_deleted(
    manager: PostgresManager, migrated: Database
) -> None:
    manager.create_tenant("acme")
    migrated.execute("CREATE TABLE own (); ALTER TABLE own OWNER TO tenant_acme")
    with pytest.raises(ScopeError, match="reassign or revoke"):
        manager.delete_tenant("acme")
    assert manager.list_tenants() == ["acme"]


def test_bulk_creation_skips_those_that_exist_and_reports(
    manager: PostgresManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqlalchemy_tenants.administration._BATCH", 4)
    manager.create_tenant("t3")
    progress: list[int] = []
    names = (f"t{number}" for number in range(10))
    assert manager.create_tenants(names, progress=progress.append) == 9
    assert progress == [4, 8, 10]
    assert manager.create_tenants(["t1", "t1", "new", "new"]) == 1
    assert len(manager.list_tenants()) == 11
    assert manager.create_tenants([]) == 0
    with pytest.raises(InvalidTenant):
        manager.create_tenants(["fine", ""])
    assert "fine" not in manager.list_tenants()
    for tenant in ("t3", "t9", "new"):
        with manager.new_session(tenant, create_if_missing=False) as session:
            assert bodies(session) == set()


@on_each_driver
def test_shared_isolation_keeps_no_tenants_and_says_so(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    manager = world.manager()
    if world.isolation == "role":
        return
    with caplog.at_level(logging.INFO, "sqlalchemy_tenants"):
        manager.create_tenant("acme")
        manager.delete_tenant("acme")
        assert manager.create_tenants(["acme"]) == 0
    assert caplog.text.count("the application's own table") == 3
    with pytest.raises(ScopeError, match="table of tenants in the application"):
        manager.list_tenants()
    for call in (manager.create_tenant, manager.delete_tenant):
        with pytest.raises(InvalidTenant):
            call("")
    assert world.database.rows("SELECT FROM pg_roles WHERE rolname ~ '^tenant_'") == []


def test_a_login_that_may_not_create_tenants_is_told_what_to_do(
    migrated: Database,
) -> None:
    engine = create_engine(migrated.app_url)
    manager = PostgresManager.from_engine(engine, "public")
    for create in (
        manager.create_tenant,
        lambda tenant: manager.create_tenants([tenant]),
    ):
        with pytest.raises(ScopeError, match=r"admin_engine=.*CREATEROLE"):
            create("acme")
    engine.dispose()


def test_before_the_migrations_the_error_says_so(database: Database) -> None:
    engines = [create_engine(database.app_url), create_engine(database.owner_url)]
    for kw in ({}, {"isolation": "shared"}):
        manager = PostgresManager.from_engine(
            engines[0], "public", admin_engine=engines[1], **kw
        )
        for open_it in (lambda m: m.new_session("acme"), lambda m: m.admin_session()):
            error = pytest.raises(ScopeError, match="alembic upgrade head")
            with error, open_it(manager):
                pass
    manager = PostgresManager.from_engine(engines[0], admin_engine=engines[1])
    with pytest.raises(ScopeError, match="alembic upgrade head"):
        manager.create_tenants(["acme"])
    for engine in engines:
        engine.dispose()


def test_wrong_arguments() -> None:
    sqlite = create_engine("sqlite://")
    with pytest.raises(ScopeError, match="'sqlite'"):
        PostgresManager.from_engine(sqlite)
    engine = create_engine("postgresql+psycopg://")
    with pytest.raises(ScopeError, match="'sqlite'"):
        PostgresManager.from_engine(engine, admin_engine=sqlite)
    with pytest.raises(ValueError, match="isolation"):
        PostgresManager.from_engine(engine, isolation="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="schema"):
        PostgresManager.from_engine(engine, schema="")
    sqlite.dispose()


def test_errors_can_be_pickled(manager: PostgresManager) -> None:
    manager.create_tenant("acme")
    with pytest.raises(TenantAlreadyExists) as raised:
        manager.create_tenant("acme")
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (str(copy), copy.tenant) == (str(raised.value), "acme")


# --- at the same time ----------------------------------------------------------------


def race(url: str, admin_url: str, barrier: Any, results: Any) -> None:
    """What each of the processes does."""
    engines = [create_engine(url), create_engine(admin_url)]
    manager = PostgresManager.from_engine(engines[0], "public", admin_engine=engines[1])

    def create_tenant(tenant: str) -> object:
        return manager.create_tenant(tenant)

    def create_tenants(tenant: str) -> object:
        return manager.create_tenants(f"{tenant}-{number}" for number in range(5))

    def new_session(tenant: str) -> object:
        with manager.new_session(tenant) as session:
            session.add(Note())
            session.commit()
        return None

    for use in (create_tenant, create_tenants, new_session):
        for number in range(ROUNDS):
            barrier.wait(60)
            try:
                result = use(f"{use.__name__}-{number}")
            except Exception as error:
                result = type(error).__name__
            results.put((use.__name__, result))
    for engine in engines:
        engine.dispose()


PROCESSES, ROUNDS = 3, 8


def test_several_processes_create_the_same_tenants(migrated: Database) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(PROCESSES), context.Queue()
    arguments = (migrated.app_url, migrated.admin_url, barrier, results)
    processes = [context.Process(target=race, args=arguments) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    found: dict[str, list[Any]] = {}
    for _ in range(3 * PROCESSES * ROUNDS):
        name, result = results.get(timeout=60)
        found.setdefault(name, []).append(result)
    for process in processes:
        process.join()
    assert found["create_tenant"].count(None) == ROUNDS
    others = ROUNDS * (PROCESSES - 1)
    assert found["create_tenant"].count("TenantAlreadyExists") == others
    assert sum(found["create_tenants"]) == 5 * ROUNDS
    assert found["new_session"] == [None] * PROCESSES * ROUNDS
    ((count,),) = migrated.rows("SELECT count(*) FROM notes")
    assert count == PROCESSES * ROUNDS


def test_a_tenant_that_is_being_deleted_cannot_be_deleted_again(
    manager: PostgresManager, migrated: Database
) -> None:
    manager.create_tenant("acme")
    with (
        migrated.server.connect(migrated.name) as superuser,
        migrated.server.connect(migrated.name, "manager") as other,
        ThreadPoolExecutor(1) as executor,
    ):
        other.autocommit = False
        other.execute("DROP ROLE tenant_acme")
        future = executor.submit(manager.delete_tenant, "acme")
        waiting = "SELECT FROM pg_locks WHERE NOT granted"
        while not superuser.execute(waiting).rowcount:
            assert not future.done()
        other.commit()
        with pytest.raises(TenantNotFound, match="nothing to delete"):
            future.result()
    assert manager.list_tenants() == []


def test_the_login_is_being_admitted_by_somebody_else(
    manager: PostgresManager, migrated: Database
) -> None:
    migrated.execute(
        "CREATE ROLE tenant_a IN ROLE tenants; CREATE ROLE tenant_b IN ROLE tenants",
        login="manager",
    )
    with (
        migrated.server.connect(migrated.name) as superuser,
        migrated.server.connect(migrated.name, "manager") as other,
        ThreadPoolExecutor(1) as executor,
    ):
        other.autocommit = False
        options = "WITH INHERIT FALSE" if requested_version() > 15 else ""
        other.execute(f"GRANT tenant_b TO app {options}")
        future = executor.submit(manager.create_tenants, ["a", "b"])
        waiting = "SELECT FROM pg_locks WHERE NOT granted"
        while not superuser.execute(waiting).rowcount:
            assert not future.done()
        other.commit()
        assert future.result() == 0
    for tenant in ("a", "b"):
        with manager.new_session(tenant, create_if_missing=False) as session:
            assert bodies(session) == set()


# --- other setups --------------------------------------------------------------------


@pytest.fixture(name="alone")
def alone_fixture(database: Database) -> Iterator[Callable[..., PostgresManager]]:
    """A manager of a login that does everything, migrations included."""
    engines: list[Engine] = []

    def manager(login: str, **kw: Any) -> PostgresManager:
        migrate(database, login=login)
        engines.append(create_engine(database.url(login)))
        return PostgresManager.from_engine(engines[-1], "public", **kw)

    yield manager
    for engine in engines:
        engine.dispose()


def test_one_login_for_everything(
    alone: Callable[..., PostgresManager], database: Database
) -> None:
    manager = alone("owner", metadata=Base.metadata)
    if requested_version() < 16:
        with pytest.raises(DBAPIError, match="owner inherits the privileges"):
            manager.create_tenant("acme")
        database.execute("ALTER ROLE owner NOINHERIT")
    use(manager)
    manager.create_tenants(["initech", "umbrella"])
    findings = {finding.code for finding in manager.check()}
    assert "login-owns-tables" in findings
    # although it is no NOINHERIT login from PostgreSQL 16 on
    assert "login-inherits-tenants" not in findings


def test_a_superuser_for_everything(alone: Callable[..., PostgresManager]) -> None:
    manager = alone("superuser", metadata=Base.metadata)
    use(manager)
    assert {finding.code for finding in manager.check()} >= {"login-superuser"}
    with pytest.raises(ScopeError, match="superuser"):
        manager.check(strict=True)


def test_a_superuser_with_shared_isolation(
    alone: Callable[..., PostgresManager],
) -> None:
    use(alone("superuser", isolation="shared"))


def use(manager: PostgresManager) -> None:
    for tenant in ("acme", "globex"):
        with manager.new_session(tenant) as session:
            session.add(Note(body=tenant))
            session.commit()
            assert bodies(session) == {tenant}
    with manager.admin_session() as session:
        assert bodies(session) == {"acme", "globex"}
    with manager.begin("acme") as connection:
        assert connection.scalars(select(Note.body)).all() == ["acme"]


def test_other_names(database: Database) -> None:
    tenancy = Tenancy(
        role_prefix="t:",
        tenants_role="all tenants",
        shared_role="any tenant",
        admin_role='the "admin"',
        schema="Tenancy",
        setting="my.tenant",
    )
    metadata = tenancy.bind(MetaData())
    table = with_rls(
        Table("orders", metadata, Column("tenant", Integer, nullable=False))
    )
    migrate(database, metadata, login="superuser")
    engine = create_engine(database.superuser_url)
    for kw in ({}, {"isolation": "shared"}):
        manager = PostgresManager.from_engine(engine, metadata=metadata, **kw)
        for tenant in (1, 2):
            with manager.new_session(tenant) as session:
                session.execute(insert(table).values(tenant=tenant))
                session.commit()
    with manager.admin_session() as session:
        assert len(session.execute(select(table)).all()) == 4
    engine.dispose()


# --- many ----------------------------------------------------------------------------


def test_3000_tenants(migrated: Database) -> None:
    # as a superuser: for any other role, PostgreSQL 16 and later take longer for each
    # role that it has created already, and for these the test would take a minute
    engines = [create_engine(migrated.app_url), create_engine(migrated.superuser_url)]
    manager = PostgresManager.from_engine(engines[0], "public", admin_engine=engines[1])
    assert manager.create_tenants(f"t{number}" for number in range(3000)) == 3000
    assert len(manager.list_tenants()) == 3000
    with manager.new_session("t2999", create_if_missing=False) as session:
        assert bodies(session) == set()
    migrated.execute(
        "CREATE TABLE later (id integer, tenant text);"
        "ALTER TABLE later ADD COLUMN body text;"
        "ALTER TABLE notes ADD COLUMN more text;"
        "GRANT SELECT ON later TO tenants",
        login="owner",
    )
    manager.create_tenant("one more")
    for engine in engines:
        engine.dispose()
