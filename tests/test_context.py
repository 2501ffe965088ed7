"""Context and settings: what an application adds to each transaction of a session."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Boolean,
    Connection,
    Date,
    Engine,
    Integer,
    MetaData,
    Text,
    Uuid,
    cast,
    create_engine,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from projects import Project, assert_migrates, downgrade_of, snapshot
from servers import Database
from sqlalchemy_tenants import (
    AdminSession,
    ScopeError,
    Tenancy,
    TenantSession,
    context_value,
)
from sqlalchemy_tenants.aio.managers import PostgresManager as AsyncPostgresManager
from sqlalchemy_tenants.database.expected import Expected
from sqlalchemy_tenants.managers import PostgresManager
from tenancy import (  # noqa: F401
    Base,
    Note,
    World,
    driver_fixture,
    grant_logins,
    isolation_fixture,
    migrated_fixture,
    on_each_driver,
    world_fixture,
)

CONTEXT = {"user_id": 7, "user": "Zoë", "is_staff": True, "request": uuid.UUID(int=1)}
SETTINGS = {"Statement_Timeout": "5s", "application_name": "it's \\ me"}

USER = context_value("user_id", Integer)
SEEN = (
    USER,
    context_value("user"),
    context_value("is_staff", Boolean),
    context_value("request", Uuid),
)

#: What a transaction has: the context, and two settings.
State = tuple[Any, ...]
FULL: State = (7, "Zoë", True, uuid.UUID(int=1), "5s", "it's \\ me")
NOTHING: State = (None, None, None, None, "0", "")


def seen(session: Session | Connection) -> State:
    found = list(session.execute(select(*SEEN)).one())
    for name in ("statement_timeout", "application_name"):
        found.append(session.execute(text(f"SHOW {name}")).scalar_one())
    return tuple(found)


def left(engine: Engine) -> State:
    """What a connection of the pool is left with."""
    with engine.connect() as connection:
        row = connection.exec_driver_sql(
            "SELECT "
            + ", ".join(
                f"coalesce(current_setting('tenancy.{name}', true), '')"
                for name in CONTEXT
            )
            + ", current_setting('statement_timeout')"
        )
        return tuple(row.one())


CLEAN = ("", "", "", "", "0")


@pytest.fixture
def seeded(world: World) -> World:
    world.create("acme", "globex")
    world.fill(Note, "acme", "globex")
    world.database.execute(
        "ALTER ROLE app SET application_name = '';"
        "ALTER ROLE app_shared SET application_name = '';"
        "ALTER ROLE manager SET application_name = ''"
    )
    return world


# --- in each transaction, and gone afterwards ----------------------------------------


@on_each_driver
def test_values_come_with_each_transaction_and_go_with_it(
    seeded: World, world: World
) -> None:
    engine, admin = world.engine(), world.engine("manager")
    manager = world.manager(engine, admin_engine=admin)
    kw: Any = {"context": CONTEXT, "settings": SETTINGS}
    openings: list[tuple[Engine, Callable[..., Any], Any]] = [
        (engine, manager.new_session, "acme"),
        (engine, manager.new_tenant_session, "acme"),
        (engine, manager.connect, "acme"),
        (admin, manager.admin_session, None),
        (admin, manager.admin_session, "acme"),
    ]
    for used, opening, tenant in openings:
        with opening(tenant, **kw) as session:
            for end in (session.commit, session.rollback, session.commit):
                assert seen(session) == FULL
                with session.begin_nested() as savepoint:
                    session.execute(text("SET LOCAL tenancy.user_id = '8'"))
                    savepoint.rollback()
                assert seen(session) == FULL
                end()
            if isinstance(session, Session):
                assert session.context == CONTEXT
        assert left(used) == CLEAN
        for other in (tenant, "globex"):
            with opening(other) as session:
                assert seen(session) == NOTHING
                if isinstance(session, Session):
                    assert session.context == {}
    with manager.begin("acme", **kw) as connection:
        assert seen(connection) == FULL
    assert left(engine) == CLEAN


@on_each_driver
def test_settings_of_the_manager(seeded: World, world: World) -> None:
    engine, admin = world.engine(), world.engine("manager")

    def settings(tenant: Any) -> Mapping[str, str]:
        return {"application_name": f"shop {tenant}", "lock_timeout": "3s"}

    def shown(session: Any) -> tuple[str, ...]:
        names = ("application_name", "lock_timeout")
        return tuple(
            session.execute(text(f"SHOW {name}")).scalar_one() for name in names
        )

    manager = world.manager(engine, admin_engine=admin, settings=settings)
    for tenant in ("acme", "globex"):
        expected = (f"shop {tenant}", "3s")
        with manager.new_session(tenant) as session:
            assert shown(session) == expected
            session.commit()
            assert shown(session) == expected
        with manager.begin(tenant) as connection:
            assert shown(connection) == expected
        with manager.admin_session(tenant) as session:
            assert shown(session) == expected
        with manager.new_session(tenant, settings={"LOCK_timeout": 20}) as session:
            assert shown(session) == (expected[0], "20ms")
    with manager.admin_session() as session:
        assert shown(session) == ("shop None", "3s")
    fixed = world.manager(engine, admin_engine=admin, settings={"lock_timeout": "4s"})
    with fixed.new_session("acme", settings=settings) as session:
        assert shown(session) == ("shop acme", "3s")
    with fixed.new_session("acme") as session:
        assert shown(session) == ("", "4s")


@on_each_driver
def test_a_function_for_tenant_and_settings(seeded: World, world: World) -> None:
    tenant = "acme"
    broken = False
    asked = []

    def settings(tenant: Any) -> Mapping[str, str]:
        asked.append(tenant)
        if broken:
            raise LookupError("no settings")
        # another answer each time is no other tenant
        return {"application_name": f"{tenant} {len(asked)}"}

    with world.session(
        lambda: tenant, world.engine(), settings=settings, context={"user_id": 7}
    ) as session:
        for tenant in ("acme", "globex", "globex"):
            name = session.scalar(text("SHOW application_name"))
            assert name == f"{tenant} {len(asked)}"
            (note,) = session.scalars(select(Note)).all()
            assert (note.tenant, session.scalar(select(USER))) == (tenant, 7)
            key = note.id
            session.commit()
        assert asked == ["acme", "globex", "globex"]
        # an object of the tenant before must not outlive a failure
        broken = True
        with pytest.raises(LookupError, match="no settings"):
            session.scalars(select(Note)).all()
        session.rollback()
        broken, tenant = False, "acme"
        assert note not in session
        assert session.get(Note, key) is None


# --- several sessions on one connection ----------------------------------------------


@on_each_driver
def test_sessions_of_different_contexts_share_no_transaction(
    seeded: World, world: World
) -> None:
    with world.engine().connect() as connection:
        connection.begin()
        session = world.session("acme", connection, context={"user_id": 7})
        assert session.scalar(select(USER)) == 7
        others: list[dict[str, Any]] = [
            {},
            {"context": {"user_id": 8}},
            {"context": {"user_id": None}},
            {"context": {"user_id": 7}, "settings": {"lock_timeout": "1s"}},
        ]
        for kw in others:
            with (
                world.session("acme", connection, **kw) as other,
                pytest.raises(ScopeError, match="another context or other settings"),
            ):
                other.scalar(select(USER))
        with world.session("acme", connection, context={"user_id": "7"}) as same:
            assert same.scalar(select(USER)) == 7
        assert session.scalar(select(USER)) == 7
        session.close()


@on_each_driver
def test_a_transaction_of_the_application_gets_its_values_back(
    seeded: World, world: World
) -> None:
    def own(connection: Connection) -> tuple[str, ...]:
        return tuple(
            connection.exec_driver_sql(
                "SELECT coalesce(current_setting('tenancy.user_id', true), ''),"
                " current_setting('lock_timeout'), current_user::text"
            ).one()
        )

    kw: Any = {"context": {"user_id": 7}, "settings": {"lock_timeout": "5s"}}
    with world.engine().connect() as connection:
        for before in ("it's \\ 9", ""):
            connection.begin()
            if before:
                connection.exec_driver_sql("SET LOCAL lock_timeout = '9s'")
                literal = before.replace("'", "''").replace("\\", "\\\\")
                connection.exec_driver_sql(f"SET LOCAL tenancy.user_id = E'{literal}'")
            unchanged = (before, "9s" if before else "0", world.login)
            for _ in range(2):
                session = world.session("acme", connection, **kw)
                assert session.scalar(select(USER)) == 7
                assert session.scalar(text("SHOW lock_timeout")) == "5s"
                session.commit()
                assert own(connection) == unchanged
            savepoint = connection.begin_nested()
            session = world.session("acme", connection, **kw)
            assert session.scalar(select(USER)) == 7
            session.commit()
            savepoint.rollback()
            assert own(connection) == unchanged
            connection.rollback()


# --- what is wrong with a setting, and not with the tenant ---------------------------


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"work_mem": "acme"}, "22023"),
        ({"datestyle": "nonsense"}, "22023"),
        ({"work_mem": "tenant_new"}, "22023"),
        ({"log_statement": "none"}, "42501"),
        ({"no_such_parameter": "1"}, "42704"),
    ],
)
@on_each_driver
def test_an_error_about_a_setting_says_so(
    seeded: World, world: World, settings: Any, code: str
) -> None:
    manager = world.manager()
    with pytest.raises(DBAPIError, match=next(iter(settings))) as raised:
        manager.new_session("new", settings=settings).__enter__()
    assert getattr(raised.value.orig, "sqlstate", None) == code
    if world.isolation == "role":
        assert "new" not in manager.list_tenants()
        # a tenant that is missing is created, with settings or without
        with manager.new_session("new", settings={"work_mem": "1MB"}):
            pass
        assert "new" in manager.list_tenants()


def test_a_login_may_be_granted_a_parameter(migrated: Database) -> None:
    """Settings come before the role, whose SQL could raise a limit of its own."""
    parameter = "PARAMETER temp_file_limit"
    world = World(migrated, "psycopg", "role")
    world.create("acme")

    def test() -> None:
        manager = world.manager(settings={"temp_file_limit": "1GB"})
        with manager.new_session("acme") as session:
            assert session.scalar(text("SHOW temp_file_limit")) == "1GB"
            with pytest.raises(DBAPIError, match="permission denied"):
                session.execute(text("SET LOCAL temp_file_limit = '2GB'"))

    migrated.execute(f"GRANT SET ON {parameter} TO app")
    try:
        world.run(test)
    finally:
        migrated.execute(f"REVOKE SET ON {parameter} FROM app")


# --- texts arrive as they are --------------------------------------------------------

TEXTS = [
    "'",
    "\\",
    "\\'",
    "''; SELECT 1 --",
    "%s %(x)s :x $1",
    "a\nb",
    "ünï\u2028",
    " ",
]


@pytest.mark.parametrize("conforming", ["on", "off"])
@on_each_driver
def test_a_text_arrives_exactly(seeded: World, world: World, conforming: str) -> None:
    login = world.login
    world.database.execute(
        f"ALTER ROLE {login} SET standard_conforming_strings = {conforming};"
        f"ALTER ROLE {login} SET escape_string_warning = off"
    )
    names = [f"text_{number}" for number in range(len(TEXTS))]
    context = dict(zip(names, TEXTS, strict=True))
    query = select(*map(context_value, names))
    engine = world.engine()
    with world.session("acme", engine, context=context) as session:
        assert session.scalar(text("SHOW standard_conforming_strings")) == conforming
        assert list(session.execute(query).one()) == TEXTS
    with engine.connect() as connection, connection.begin():
        connection.exec_driver_sql("SET LOCAL tenancy.text_0 = 'x'")
        session = world.session("acme", connection, context=context)
        assert list(session.execute(query).one()) == TEXTS


@on_each_driver
def test_none_hides_what_a_login_comes_with(seeded: World, world: World) -> None:
    world.database.execute(f"ALTER ROLE {world.login} SET tenancy.user_id = '1'")
    engine = world.engine()
    with world.session("acme", engine) as session:
        assert session.scalar(select(USER)) == 1  # check() says so
    with world.session("acme", engine, context={"user_id": None}) as session:
        assert session.scalar(select(USER)) is None


@on_each_driver
def test_what_sql_of_a_tenant_can_do_to_the_context(
    seeded: World, world: World
) -> None:
    """As docs/security.md says: it is a setting."""
    engine = world.engine()
    with world.session("acme", engine, context={"user_id": 7}) as session:
        session.execute(text("SET LOCAL tenancy.user_id = '8'"))
        assert session.scalar(select(USER)) == 8
        assert set(session.scalars(select(Note.tenant))) == {"acme"}
        session.commit()
        assert session.scalar(select(USER)) == 7
        session.execute(text("SET tenancy.user_id = '9'"))
        session.commit()
    given: list[tuple[Any, int | None]] = [
        ({}, 9),
        ({"user_id": None}, None),
        ({"user_id": 7}, 7),
    ]
    for context, found in given:
        with world.session("globex", engine, context=context) as session:
            assert session.scalar(select(USER)) == found


# --- what is refused -----------------------------------------------------------------


class Color(str, enum.Enum):  # noqa: UP042
    red = "RED"


def open_everywhere(**kw: Any) -> None:
    """Hand values to all that takes them; each refuses before it connects."""
    engine = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    manager = PostgresManager.from_engine(engine)
    openings: list[Callable[[], Any]] = [
        lambda: TenantSession(engine, tenant="acme", **kw),
        lambda: AdminSession(engine, **kw),
        lambda: manager.new_session("acme", **kw).__enter__(),
        lambda: manager.connect("acme", **kw).__enter__(),
        lambda: manager.begin("acme", **kw).__enter__(),
        lambda: manager.admin_session(**kw).__enter__(),
    ]
    if "settings" in kw:
        openings.append(lambda: PostgresManager.from_engine(engine, **kw))
    errors = []
    for opening in openings:
        with pytest.raises((TypeError, ValueError)) as raised:
            opening()
        errors.append(raised.value)
    assert len({repr(error) for error in errors}) == 1
    raise errors[0]


@pytest.mark.parametrize(
    ("context", "error", "message"),
    [
        ("user_id", TypeError, "context is a mapping"),
        ([("user_id", 7)], TypeError, "context is a mapping"),
        ({7: 7}, TypeError, "names of the context are str"),
        ({"User": 7}, ValueError, "lower-case letters"),
        ({"user-id": 7}, ValueError, "lower-case letters"),
        ({"a.b": 7}, ValueError, "lower-case letters"),
        ({"": 7}, ValueError, "lower-case letters"),
        ({"user ": 7}, ValueError, "lower-case letters"),
        ({"user\n": 7}, ValueError, "lower-case letters"),
        ({"é": 7}, ValueError, "lower-case letters"),
        ({"x" * 64: 7}, ValueError, "at most 63"),
        ({"tenant": "globex"}, ValueError, "tenancy.tenant carries the tenant"),
        ({"user_id": 1.5}, TypeError, "not float"),
        ({"user_id": b"7"}, TypeError, "not bytes"),
        ({"user_id": [7]}, TypeError, "not list"),
        ({"user_id": lambda: 7}, TypeError, "not function"),
        ({"user_id": ""}, ValueError, "pass None"),
        ({"user_id": "a\0b"}, ValueError, "NUL"),
        ({"user_id": "\ud800"}, ValueError, "UTF-8"),
    ],
)
def test_a_context_that_is_refused(context: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        open_everywhere(context=context)


SCOPES = ["role", "session_authorization", "search_path", "row_security"]
READING = ["standard_conforming_strings", "client_encoding", "backslash_quote"]
OTHERS = [
    "session_replication_role",
    "event_triggers",
    "is_superuser",
    "transaction_isolation",
    "default_transaction_read_only",
    "session_preload_libraries",
    "local_preload_libraries",
    "tenancy.tenant",
    "tenancy.user_id",
    "tenancy.a.b",
]
SPELLINGS: list[Callable[[str], str]] = [str.lower, str.upper, str.title]


@pytest.mark.parametrize("spell", SPELLINGS)
@pytest.mark.parametrize("name", [*SCOPES, *READING, *OTHERS])
def test_a_parameter_that_is_refused(name: str, spell: Callable[[str], str]) -> None:
    with pytest.raises(ValueError, match=r"settings cannot have .*: \w+"):
        open_everywhere(settings={spell(name): "x"})


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ("role", TypeError, "settings is a mapping"),
        ({7: 7}, TypeError, "names of settings are str"),
        *(
            ({name: "x"}, ValueError, "not the name of a parameter")
            for name in (
                '"role"', " role", "role ", "role\n", "", "a b", "TIME ZONE", "é",
                "LOCAL role", "role = x; --", "a.", ".a", "x" * 64, "SESSION.a-b",
            )
        ),
        ({"work_mem": None}, TypeError, "not NoneType"),
        ({"work_mem": b"1"}, TypeError, "not bytes"),
        ({"application_name": "a\0"}, ValueError, "NUL"),
        ({"application_name": "\ud800"}, ValueError, "UTF-8"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(settings: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        open_everywhere(settings=settings)


def test_settings_of_a_function_are_refused_likewise() -> None:
    async def later(tenant: Any) -> dict[str, str]:
        return {}

    engine = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    for answer, error in (({"Role": "x"}, ValueError), (None, TypeError)):
        manager = PostgresManager.from_engine(engine, settings=lambda _, a=answer: a)
        with pytest.raises(error):
            manager.new_session("acme")
        with pytest.raises(error):
            TenantSession(engine, tenant="acme", settings=lambda _, a=answer: a)
    with pytest.raises(TypeError, match="coroutine"):
        TenantSession(engine, tenant="acme", settings=later)


def test_a_prefix_of_its_own() -> None:
    tenancy = Tenancy(setting="app.x.tenant")
    session = TenantSession(
        tenant="acme",
        tenancy=tenancy,
        context={"user": Color.red},
        settings={"tenancy.user": "y", "x": 1.5, "y": False, "z": -3},
    )
    assert session.scope.values == (
        ("app.x.user", "RED"), ("tenancy.user", "y"), ("x", "1.5"), ("y", "off"),
        ("z", "-3"),
    )  # fmt: skip
    for name in ("APP.x.tenant", "app.x.Other"):
        with pytest.raises(ValueError, match="settings cannot have"):
            TenantSession(tenant="acme", tenancy=tenancy, settings={name: "x"})
    with pytest.raises(TypeError):
        session.context["user"] = "other"  # type: ignore[index]


def test_values_are_no_options_of_all_sessions() -> None:
    engine = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    for name in ("context", "settings"):
        with pytest.raises(ValueError, match=f"session_options cannot have '{name}'"):
            PostgresManager.from_engine(engine, session_options={name: {}})


async def test_async_sessions(migrated: Database, make_async_engine: Any) -> None:
    engine = make_async_engine(migrated.url("app", "asyncpg"))
    admin = make_async_engine(migrated.url("manager", "asyncpg"))
    manager = AsyncPostgresManager.from_engine(
        engine, "public", admin_engine=admin, settings={"lock_timeout": "3s"}
    )
    kw: Any = {"context": CONTEXT, "settings": SETTINGS}
    openings: list[Any] = [
        manager.new_session("acme", **kw),
        manager.new_tenant_session("acme", **kw),
        manager.admin_session(**kw),
        manager.connect("acme", **kw),
        manager.begin("acme", **kw),
    ]
    for opening in openings:
        async with opening as session:
            assert await session.run_sync(seen) == FULL
            result = await session.execute(text("SHOW lock_timeout"))
            assert result.scalar_one() == "3s"
            if hasattr(session, "context"):
                assert session.context == CONTEXT
    async with manager.new_session("acme") as session:
        assert await session.scalar(select(USER)) is None
        assert session.context == {}


# --- the expression ------------------------------------------------------------------


def test_types_of_the_expression() -> None:
    assert str(context_value("a")) == "tenancy.context_value('a'::text)"
    assert str(context_value("a", Uuid)).endswith("::text))::uuid")
    assert str(select(context_value("a", Uuid))).endswith("::text))::uuid)")
    with pytest.raises(TypeError, match=r"cast\(context_value\('day'\), \.\.\.\)"):
        context_value("day", Date)
    assert "AS DATE" in str(cast(context_value("day"), Date))
    for name in ("tenant", "User", "a'b"):
        with pytest.raises(ValueError, match="context"):
            context_value(name)
    named = Tenancy.named("shop")
    assert "shop_tenancy.context_value" in str(context_value("a", Text, tenancy=named))


MODELS = """
from sqlalchemy import Boolean, func
from sqlalchemy_tenants import Tenancy, context_value

TENANCY = {tenancy}
Base.metadata.info["tenancy"] = TENANCY
OPTIONS = {{"compare_server_default": True}}

def value(name, type_=None):
    return context_value(name, type_, tenancy=TENANCY)

@with_rls(policies=[
    Policy("own", permissive=False, using=sa.or_(
        value("is_staff", Boolean), sa.column("created_by") == value("user_id", Integer)
    )),
    Policy("staff", using=value("is_staff", Boolean), command="DELETE"),
])
class Order(TenantMixin, Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    created_by: Mapped[int | None] = mapped_column(
        server_default=value("user_id", Integer))
    request = mapped_column(sa.Uuid, server_default=value("request", sa.Uuid))
    note: Mapped[str | None] = mapped_column(sa.Text, server_default=value("user"))
    named: Mapped[str | None] = mapped_column(
        sa.Text, server_default=func.coalesce(value("user"), sa.text("'none'::text")))
"""


@pytest.mark.parametrize(
    "tenancy",
    [
        "Tenancy()",
        "Tenancy.named('shop')",
        "Tenancy(schema='My schema', setting='a.b.c')",
    ],
)
def test_policies_and_defaults(
    database: Database, tmp_path: Path, make_engine: Any, tenancy: str
) -> None:
    project = Project(tmp_path, database, "")
    source = assert_migrates(project, MODELS.format(tenancy=tenancy))
    assert source.count("(SELECT") > source.count("server_default")
    names: Tenancy = eval(tenancy)
    engine = make_engine(database.url("superuser"))
    manager = PostgresManager.from_engine(engine, "public", tenancy=names)
    insert = text("INSERT INTO orders DEFAULT VALUES")
    query = text("SELECT created_by, request::text, note, named FROM orders")
    given: Any = {"user_id": 7, "request": uuid.UUID(int=1), "user": "x"}
    row = (7, str(uuid.UUID(int=1)), "x", "x")
    with manager.new_session("acme", context=given) as session:
        session.execute(insert)
        assert [tuple(each) for each in session.execute(query)] == [row]
        session.commit()
    with manager.new_session("acme", context={"user_id": 8}) as session:
        assert session.execute(query).all() == []
        session.execute(insert)
        assert [tuple(x) for x in session.execute(query)] == [(8, None, None, "none")]
        session.commit()
    with manager.new_session("acme") as session:
        assert session.execute(query).all() == []
        with pytest.raises(DBAPIError, match="policy"):
            session.execute(insert)
    with manager.new_session("acme", context={"is_staff": True}) as session:
        assert len(session.execute(query).all()) == 2
    with manager.new_session("globex", context={"is_staff": True}) as session:
        assert session.execute(query).all() == []


PLAIN = """
@with_rls
class Order(TenantMixin, Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
"""
OURS = "tenancy.context_value(text)"

DRIFT = {
    "missing": f"DROP FUNCTION {OURS}",
    "altered": f"ALTER FUNCTION {OURS} VOLATILE",
    "definer": f"ALTER FUNCTION {OURS} SECURITY DEFINER",
    "replaced": "CREATE OR REPLACE FUNCTION tenancy.context_value(name text)"
    " RETURNS text LANGUAGE sql STABLE AS $$ SELECT 'x' $$",
    "owned": "GRANT CREATE ON SCHEMA tenancy TO tenants;"
    f"ALTER FUNCTION {OURS} OWNER TO tenants;"
    "REVOKE CREATE ON SCHEMA tenancy FROM tenants",
    "not executable": f"REVOKE EXECUTE ON FUNCTION {OURS} FROM PUBLIC",
    "granted to a tenant": "CREATE ROLE tenant_acme IN ROLE tenants;"
    f" GRANT EXECUTE ON FUNCTION {OURS} TO tenant_acme",
}


@pytest.mark.parametrize("drift", DRIFT)
def test_drift_is_repaired(database: Database, tmp_path: Path, drift: str) -> None:
    login = "superuser" if drift == "owned" else "owner"
    project = Project(tmp_path, database, PLAIN, login=login)
    project.migrate()
    good = snapshot(database)
    database.execute(DRIFT[drift])
    before = snapshot(database)
    source = project.migrate()
    assert "context_value" in source
    assert project.is_up_to_date()
    if drift in ("altered", "definer", "replaced", "missing"):
        assert snapshot(database) == good
    project.must("downgrade", "-1")
    assert snapshot(database) == before
    # what the first version created, another one drops
    if drift == "missing":
        assert f"'{OURS}" not in downgrade_of(source)
        project.must("downgrade", "base")
        assert not database.rows("SELECT 1 FROM pg_namespace WHERE nspname = 'tenancy'")
        project.must("upgrade", "heads")
        assert snapshot(database) == good


def test_a_database_where_public_may_execute_nothing(
    database: Database, tmp_path: Path
) -> None:
    project = Project(tmp_path, database, PLAIN)
    project.migrate()
    database.execute(
        f"DROP FUNCTION {OURS}; ALTER DEFAULT PRIVILEGES FOR ROLE owner"
        " REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC"
    )
    project.migrate()
    assert project.is_up_to_date()
    for role in ("tenants", "tenants_admin"):
        query = f"SELECT has_function_privilege('{role}', '{OURS}', 'EXECUTE')"
        assert database.rows(query) == [(True,)]


def test_it_runs_with_the_rights_of_its_caller_and_qualifies_all() -> None:
    definition = Expected(Tenancy()).functions["context_value"]
    assert "current_setting('tenancy.' OPERATOR(pg_catalog.||) $1, true)" in definition
    assert "SECURITY DEFINER" not in definition


def test_namesakes_are_not_called(migrated: Database, make_engine: Any) -> None:
    """Functions and operators of the same name, first on the caller's path."""
    migrated.execute(
        "CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;"
        "CREATE FUNCTION evil.current_setting(text, boolean) RETURNS text"
        " LANGUAGE sql AS $$ SELECT 'evil' $$;"
        "CREATE FUNCTION evil.differ(text, text) RETURNS boolean"
        " LANGUAGE sql AS 'SELECT false';"
        "CREATE OPERATOR evil.<> (FUNCTION = evil.differ,"
        " LEFTARG = text, RIGHTARG = text);"
        "CREATE FUNCTION evil.joined(text, text) RETURNS text"
        " LANGUAGE sql AS $$ SELECT 'tenancy.other' $$;"
        "CREATE OPERATOR evil.|| (FUNCTION = evil.joined,"
        " LEFTARG = text, RIGHTARG = text);"
        "CREATE ROLE tenant_acme IN ROLE tenants; GRANT tenant_acme TO app"
    )
    engine = make_engine(migrated.url("app"))
    context = {"user_id": 7, "other": 8}
    with TenantSession(engine, tenant="acme", context=context) as session:
        session.execute(text("SET LOCAL search_path = evil, pg_catalog"))
        assert session.scalar(select(USER)) == 7


# --- what check() says ---------------------------------------------------------------

FAULTS = {
    f"DROP FUNCTION {OURS}": ("function-missing", "warning"),
    f"ALTER FUNCTION {OURS} SECURITY DEFINER": ("function-altered", "error"),
    f"ALTER FUNCTION {OURS} OWNER TO app": ("login-owns-function", "error"),
    f"ALTER FUNCTION {OURS} OWNER TO tenants": ("role-owns-function", "error"),
    **{
        f"ALTER {who} SET tenancy.user_id = 7": ("context-preset", "warning")
        for who in (
            "ROLE app",
            "ROLE manager",
            "DATABASE {0}",
            "ROLE app IN DATABASE {0}",
        )
    },
}


@pytest.mark.parametrize("metadata", [Base.metadata, None], ids=["models", "catalog"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(
    migrated: Database, make_engine: Any, fault: str, metadata: MetaData | None
) -> None:
    def findings() -> set[tuple[str, str]]:
        engine = make_engine(migrated.url("app"))
        manager = PostgresManager.from_engine(engine, "public", metadata=metadata)
        found.extend(manager.check())
        return {(each.code, each.severity) for each in found}

    found: list[Any] = []
    # the tenant's own setting is set in each transaction, whatever the login says
    migrated.execute("ALTER ROLE app SET tenancy.tenant = 'x'")
    migrated.execute("ALTER ROLE app SET tenancyx.user_id = 'x'")
    assert findings() == set()
    fault = fault.format(migrated.name)
    migrated.execute(fault)
    assert FAULTS[fault.replace(migrated.name, "{0}")] in findings()
    if "SET" in fault:
        migrated.execute(found[0].remedy)
        found.clear()
        assert findings() == set()


# --- documentation -------------------------------------------------------------------


def test_the_page(database: Database, tmp_path: Path, make_engine: Any) -> None:
    page = (Path(__file__).parent.parent / "docs" / "sessions.md").read_text()
    section = page.partition("## Context and settings\n")[2].partition("\n## ")[0]
    models, application = (
        block.partition("```")[0] for block in section.split("```python\n")[1:]
    )
    Project(tmp_path, database, models).migrate()
    grant_logins(database)
    names: dict[str, Any] = {}

    def run(source: str) -> None:
        exec(compile(source, "page", "exec", dont_inherit=True), names)

    run((tmp_path / "models.py").read_text())
    names |= {
        "engine": make_engine(database.url("app")),
        "admin_engine": make_engine(database.url("manager")),
        "PostgresManager": PostgresManager,
    }
    run(application)
    assert names["mine"] == [7]
