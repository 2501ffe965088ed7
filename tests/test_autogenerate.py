"""Autogenerate: nothing to do, Alembic's own switches, and who may run it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Column as C
from sqlalchemy import Engine, MetaData, Table, event, text
from sqlalchemy import Integer as I
from sqlalchemy import Text as T
from sqlalchemy.exc import IntegrityError

from projects import Project, assert_migrates, snapshot, upgrade_of
from servers import Database, Server
from sqlalchemy_tenants import with_rls

ORDER = """
@with_rls
class Order(TenantMixin, Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
"""
PLAIN = """
class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text, index=True)
"""
LOGGER = "alembic.autogenerate.tenants"

EXPRESSIONS = """
a = 1 AND (b = 2 OR c = 3) AND NOT (flag OR a IN (1, 2))
a IN (1, 2, 3) OR s IN ('x', 'y') OR v IN ('x', 'y')
a = ANY (arr) AND s = ANY (ARRAY['x', 'y']) AND a <> ALL (ARRAY[1, 2])
a NOT IN (4, 5)
a BETWEEN 1 AND 5 AND d BETWEEN '2020-01-01' AND '2021-01-01'
s LIKE 'a%' AND v NOT LIKE '%b' OR s ILIKE '_c%'
CASE WHEN flag THEN a > 1 WHEN b = 2 THEN false ELSE true END
CASE a WHEN 1 THEN 'x' WHEN 2 THEN 'y' END = s
COALESCE(s, 'none') <> 'none' AND NULLIF(a, 0) IS NOT NULL
v = 'x'::varchar AND s = CAST('y' AS text) AND big = 5::bigint
a > -1 AND num = -1.50 AND a - -2 > 0
d > '2020-01-01'::date AND ts < now() - interval '1 day'
ts >= '2020-01-01 00:00:00+00'::timestamptz
j ->> 'k' = 'x' AND j @> '{"a": 1}'::jsonb AND j ? 'b' AND j -> 'a' IS NOT NULL
EXISTS (SELECT 1 FROM members m WHERE m.id = things.a AND m.name = current_user)
a IN (SELECT id FROM members WHERE name = 'x')
a = (SELECT max(m.id) FROM members AS m)
s IS DISTINCT FROM v AND a IS NOT DISTINCT FROM b
s || '-' || v = 'a-b'
pg_catalog.lower(s) = 'x' AND public.is_open(a) AND length(s) > 3
current_setting('app.region', true) = s
"Mixed Case" = 'x' AND "select" IS NULL
flag IS TRUE AND NOT flag IS UNKNOWN
u = '6e8bc430-9c3a-11d9-9669-0800200c9a66'
a::text = s AND CAST(a AS bigint) = big
EXTRACT(year FROM d) = 2020 AND date_trunc('day', ts) = ts
(a, b) = (1, 2) OR a + b * 2 = (a + b) * 2
""".strip().splitlines()

THINGS = """
table = Table(
    "things", Base.metadata, Column("id", Integer, primary_key=True),
    Column("tenant", {type}, nullable=False, index=True),
    Column("a", Integer), Column("b", Integer), Column("c", Integer),
    Column("big", BigInteger), Column("num", Numeric(10, 2)), Column("flag", Boolean),
    Column("s", Text), Column("v", String(20)), Column("d", Date),
    Column("ts", DateTime(timezone=True)), Column("j", sa.dialects.postgresql.JSONB),
    Column("arr", ARRAY(Integer)), Column("u", Uuid), Column("Mixed Case", Text),
    Column("select", Text),
)
Table("members", Base.metadata, Column("id", Integer, primary_key=True),
      Column("name", Text))
with_rls(table, policies=[
    Policy("p%d" % i, using=e) for i, e in enumerate({expressions!r})
])
"""


@pytest.mark.parametrize(
    "type_",
    ["Text", "String", "String(30)", "SmallInteger", "Integer", "BigInteger", "Uuid"],
)
def test_nothing_is_left_to_do_after_the_first_revision(
    database: Database, tmp_path: Path, type_: str, caplog: pytest.LogCaptureFixture
) -> None:
    database.execute(
        "CREATE FUNCTION public.is_open(integer) RETURNS boolean RETURN true"
    )
    expressions = EXPRESSIONS if type_ == "Text" else EXPRESSIONS[:2]
    models = THINGS.format(type=type_, expressions=expressions)
    project = Project(tmp_path, database, models)
    project.migrate()
    caplog.clear()
    with caplog.at_level(logging.WARNING, LOGGER):
        source = project.autogenerate()
    assert "op." not in source
    assert "pass" in source
    assert [r.message for r in caplog.records if r.name == LOGGER] == []


# --- projects without tenants --------------------------------------------------------


def bodies(project: Project) -> list[str]:
    """Autogenerate a creation and then a removal; return both revisions' bodies."""
    first = project.migrate()
    project.write_models(PLAIN.replace("Text, index=True", "String(5)"))
    return [first, project.autogenerate()]


@pytest.mark.parametrize("dialect", ["postgresql", "sqlite"])
def test_project_without_marks_gets_the_migrations_it_got_before(
    database: Database, tmp_path: Path, dialect: str
) -> None:
    # in a database that has tenancy from another project
    (tmp_path / "other").mkdir()
    other = Project(
        tmp_path / "other",
        database,
        ORDER.replace("orders", "others"),
        options="options['version_table'] = 'alembic_version_other'",
    )
    other.migrate()
    found = []
    for index, plugins in enumerate([None, "~alembic.autogenerate.tenants"]):
        path = tmp_path / str(index)
        path.mkdir()
        ours = (
            "options['include_name'] = lambda name, type_, parents: "
            "type_ != 'table' or name == 'orders'\n"
        )
        if plugins:
            ours += f"options['autogenerate_plugins'] = ['alembic.*', {plugins!r}]\n"
        project = Project(path, database, PLAIN, options=ours)
        if dialect == "sqlite":
            project.url = f"sqlite:///{path}/db"
            project.write_env(ours)
        found.append(bodies(project))
        project.must("downgrade", "base")
        if dialect == "postgresql":
            database.execute("DROP TABLE alembic_version")
    assert found[0] == found[1]
    assert other.is_up_to_date()


def test_plugin_can_be_switched_off(database: Database, tmp_path: Path) -> None:
    plugins = "['alembic.autogenerate.*', '~alembic.autogenerate.tenants']"
    project = Project(
        tmp_path,
        database,
        ORDER,
        options=f"options['autogenerate_plugins'] = {plugins}",
    )
    assert "rls" not in project.autogenerate()


def test_marks_do_nothing_on_sqlite(database: Database, tmp_path: Path) -> None:
    project = Project(tmp_path, database, ORDER)
    project.url = f"sqlite:///{tmp_path}/db"
    project.write_env()
    assert "tenancy.current_tenant" in (source := project.autogenerate())
    assert "rls" not in source
    assert "create_tenancy" not in source


# --- several collections of models ---------------------------------------------------

COLLECTIONS = """
first, second = MetaData(), MetaData({second})
with_rls(Table("a", first, Column("id", Integer, primary_key=True),
    Column("tenant", Text, nullable=False)))
with_rls(Table("b", second, Column("id", Integer, primary_key=True),
    Column("tenant", Text, nullable=False)))
metadata = [first, second, MetaData()]
"""
OTHER_NAMES = """info={"tenancy": Tenancy(role_prefix="org_", tenants_role="orgs",
    shared_role="orgs_shared", admin_role="orgs_admin", schema="org")}"""


@pytest.mark.parametrize(
    ("second", "count"),
    [
        ("", 1),
        ("info={'tenancy': Tenancy(force=False)}", 1),
        ("info={'tenancy': Tenancy(tenants=['x'])}", 1),
        (OTHER_NAMES, 2),
    ],
)
def test_several_collections(
    database: Database, tmp_path: Path, second: str, count: int
) -> None:
    models = COLLECTIONS.format(second=second)
    project = Project(tmp_path, database, models)
    before = snapshot(database)
    source = assert_migrates(project, models)
    assert upgrade_of(source).count("op.create_tenancy(") == count
    assert ("op.enable_rls('b', force=False)" in source) is ("force" in second)
    # a mark less, the other collection stays
    assert_migrates(project, models.replace('with_rls(Table("b"', '(Table("b"'))
    assert_migrates(project, models)
    # a table that goes over to the other collection
    moved = models.replace('"b", second', '"b", first')
    if "tenants_role" in second or "force" in second:
        assert_migrates(project, moved)
    project.must("downgrade", "base")
    assert snapshot(database) == before


def test_configurations_that_share_a_name_are_refused(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    second = 'info={"tenancy": Tenancy(setting="org.tenant")}'
    project = Project(tmp_path, database, COLLECTIONS.format(second=second))
    assert project.run("check").status != 0
    assert "use role 'tenants'" in caplog.text


# --- switches ------------------------------------------------------------------------


def test_include_object_and_include_name_are_asked(
    database: Database, tmp_path: Path
) -> None:
    models = """
@with_rls(policies=[
    Policy("left_out", using="id > 1"), Policy("p", using="true"),
    Policy("dba_too", using="id > 2"),
])
class Order(TenantMixin, Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)

@with_rls
class Legacy(TenantMixin, Base):
    __tablename__ = "legacy"
    id: Mapped[int] = mapped_column(primary_key=True)
"""
    options = """
seen = set()

def include_object(object, name, type_, reflected, compare_to):
    assert object.info is not None
    if type_ == "policy":
        assert object.table.name == "orders" and object.name == name
        assert compare_to is None or compare_to.name == name
        return name != "left_out"
    return (type_, name) != ("table", "legacy")

def include_name(name, type_, parent_names):
    if type_ == "policy":
        assert parent_names["schema_qualified_table_name"] == "orders"
        return not name.startswith("dba_")
    return True

options.update(include_object=include_object, include_name=include_name)
"""
    project = Project(tmp_path, database, models, options=options)
    source = project.migrate()
    assert "left_out" not in source
    assert "legacy" not in source
    database.execute(
        "CREATE POLICY dba_policy ON orders USING (true);"
        "CREATE POLICY left_out ON orders USING (false)"
    )
    assert project.is_up_to_date()
    database.execute("CREATE POLICY rogue ON orders USING (true)")
    assert upgrade_of(project.migrate()).count("op.") == 1
    # the policies that are left out keep row-level security on the table
    project.write_models(
        models.replace("@with_rls(policies", "(lambda **kw: lambda c: c)(policies")
    )
    source = upgrade_of(project.autogenerate())
    assert "op.drop_policy('tenant_floor', 'orders')" in source
    assert "disable_rls" not in source
    assert "dba_policy" not in source


@pytest.mark.parametrize("per_migration", [False, True])
def test_naming_convention_version_table_and_branches(
    database: Database, tmp_path: Path, per_migration: bool
) -> None:
    database.execute("CREATE SCHEMA versions AUTHORIZATION owner")
    convention = """
class Base(DeclarativeBase):
    metadata = MetaData(naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s_x", "pk": "pk_%(table_name)s",
    })
"""
    project = Project(
        tmp_path,
        database,
        convention + ORDER,
        options=f"""
options["version_table_schema"] = "versions"
options["include_schemas"] = True
options["transaction_per_migration"] = {per_migration}
""",
    )
    before = snapshot(database)
    assert "ix_orders_tenant_x" in project.migrate()
    more = ORDER.replace("Order", "Invoice").replace("orders", "invoices")
    project.must("revision", "--rev-id", "left", "-m", "x", "--head", "r001")
    project.must("revision", "--rev-id", "right", "-m", "x", "--head=r001", "--splice")
    project.must("upgrade", "heads")
    project.write_models(convention + ORDER + more)
    source = project.autogenerate("--head", "left@head")
    project.must("upgrade", "heads")
    assert "create_tenancy" not in source
    assert project.is_up_to_date()
    project.must("merge", "heads", "-m", "x", "--rev-id", "merged")
    project.must("upgrade", "head")
    after = snapshot(database)
    project.must("downgrade", "base")
    assert snapshot(database) == before
    project.must("upgrade", "head")
    assert snapshot(database) == after


@pytest.mark.parametrize("directives", ["Base.metadata", "[Base.metadata]"])
def test_directives_of_an_old_env_do_nothing_twice(
    database: Database, tmp_path: Path, directives: str
) -> None:
    plain = Project(tmp_path, database, ORDER).autogenerate()
    (tmp_path / "with").mkdir()
    models = (
        ORDER
        + f"""
OPTIONS = dict(
    process_revision_directives=get_process_revision_directives({directives})
)
"""
    )
    project = Project(tmp_path / "with", database, models)
    assert project.migrate() == plain
    assert project.is_up_to_date()


def test_an_environment_that_leaves_the_plugin_out_is_warned(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = (
        ORDER
        + """
OPTIONS = dict(
    process_revision_directives=get_process_revision_directives(Base.metadata)
)
"""
    )
    project = Project(tmp_path, database, models)
    warning = "row-level security was not compared"
    for plugins, warned in (
        (["alembic.autogenerate.*"], False),
        (["alembic.autogenerate.*", "~alembic.autogenerate.tenants"], False),
        (["alembic.autogenerate.schemas", "alembic.autogenerate.tables"], True),
    ):
        project.write_env(f"options['autogenerate_plugins'] = {plugins!r}")
        caplog.clear()
        project.run("check")
        assert (warning in caplog.text) is warned


# --- who may check, and when ---------------------------------------------------------


def test_check_with_no_more_than_the_catalog(
    database: Database, tmp_path: Path
) -> None:
    """Read-only, as a login without privileges, while the tables are being read."""
    project = Project(tmp_path, database, ORDER)
    project.migrate()
    database.execute(
        "CREATE ROLE reader LOGIN; GRANT SELECT ON alembic_version TO reader;"
        "ALTER ROLE reader SET default_transaction_read_only = on;"
        "ALTER ROLE reader SET lock_timeout = '100ms'"
    )
    project.url = database.url("reader")
    project.write_env()
    assert project.is_up_to_date()
    database.execute("ALTER POLICY tenant_floor ON orders USING (true)")
    assert project.run("check").status != 0


WATCH_LOCKS = """
from sqlalchemy import Engine, event

@event.listens_for(Engine, "after_cursor_execute")
def watch(connection, *args):
    locks = connection.connection.dbapi_connection.execute(
        "SELECT mode FROM pg_locks WHERE pid = pg_backend_pid()"
        " AND relation = 'public.orders'::regclass"
    )
    with open({path!r}, "a") as file:
        file.writelines(mode + chr(10) for mode, in locks)
"""


def test_check_neither_waits_nor_makes_readers_wait(
    database: Database, tmp_path: Path
) -> None:
    policy = "Policy('p', using='id = 1 OR id = 2')"
    models = ORDER.replace("@with_rls", f"@with_rls(policies=[{policy}])")
    project = Project(tmp_path, database, models)
    project.migrate()
    # for the trees it is another one, so that the server is asked, too
    database.execute("ALTER POLICY p ON orders USING (id = ANY ('{1,2}'))")
    database.execute("ALTER ROLE owner SET lock_timeout = '100ms'")
    path = tmp_path / "locks"
    path.touch()
    project.write_env(WATCH_LOCKS.format(path=str(path)))
    with database.server.connect(database.name) as writer:
        writer.autocommit = False
        # the strongest lock that readers tolerate
        writer.execute("LOCK TABLE orders IN EXCLUSIVE MODE")
        result = project.spawn("check")
        assert "alter_policy" in result.output
    assert set(path.read_text().split()) <= {"AccessShareLock"}


def test_check_on_a_standby_relies_on_the_trees(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the server cannot be asked, a log line tells what could not be decided."""
    policy = "Policy('p', using=\"item = 'x'\")"
    models = ORDER.replace("@with_rls", f"@with_rls(policies=[{policy}])")
    models += "    item: Mapped[str]\n"
    project = Project(tmp_path, database, models)
    project.migrate()
    database.execute("ALTER ROLE owner SET default_transaction_read_only = on")
    assert project.is_up_to_date()
    database.execute("ALTER POLICY p ON orders USING (item = 'y')")
    with caplog.at_level(logging.WARNING, LOGGER):
        assert project.run("check").status != 0
    (message,) = [r.getMessage() for r in caplog.records if r.name == LOGGER]
    assert "'p'" in message
    assert "'orders'" in message
    assert "'x'" in message
    assert "'y'" in message


# --- cost ----------------------------------------------------------------------------


def marked_tables(count: int) -> MetaData:
    metadata = MetaData()
    for index in range(count):
        table = Table(
            f"t{index:04}",
            metadata,
            C("id", I, primary_key=True),
            C("tenant", T, nullable=False),
        )
        with_rls(table)
    return metadata


def statements_of(engine: Engine, metadata: MetaData, plugins: list[str]) -> int:
    count = 0

    def executed(*args: object) -> None:
        nonlocal count
        count += 1

    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"autogenerate_plugins": plugins}
        )
        event.listen(connection, "before_cursor_execute", executed)
        script = produce_migrations(context, metadata)
        assert script.upgrade_ops is not None
        assert script.upgrade_ops.is_empty()
    return count


def test_statements_do_not_grow_with_the_tables(
    database: Database, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(database.owner_url)
    metadata = marked_tables(60)
    everything = ["alembic.autogenerate.*"]
    plain = [*everything, "~alembic.autogenerate.tenants"]
    with engine.begin() as connection:
        context = MigrationContext.configure(connection)
        script = produce_migrations(context, metadata)
        operations = Operations(context)
        assert script.upgrade_ops is not None

        def invoke(container: object) -> None:
            for op in container.ops:  # type: ignore[attr-defined]
                if hasattr(op, "ops"):
                    invoke(op)
                else:
                    operations.invoke(op)

        invoke(script.upgrade_ops)
    count = statements_of(engine, metadata, plain)
    assert statements_of(engine, metadata, everything) - count == 2
    with engine.begin() as connection:
        connection.execute(text("CREATE VIEW tables AS TABLE pg_catalog.pg_class"))
    assert statements_of(engine, metadata, everything) - count == 3


# --- advice --------------------------------------------------------------------------

ADVICE = """
@with_rls(index=False)
class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str | None] = mapped_column(Text)
    number: Mapped[int] = mapped_column(unique=True)

@with_rls
class Line(Base):
    __tablename__ = "lines"
    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))

@with_rls
class Fine(TenantMixin, Base):
    __tablename__ = "fine"
    __table_args__ = (UniqueConstraint("tenant", "id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
"""


def test_advice_is_logged_once_a_table_and_can_be_silenced(
    database: Database,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = Project(tmp_path, database, ADVICE)
    project.migrate()
    database.execute(
        "CREATE VIEW bad AS SELECT * FROM lines;"
        "CREATE VIEW good WITH (security_invoker) AS SELECT * FROM lines;"
        "CREATE MATERIALIZED VIEW worse AS SELECT * FROM fine"
    )

    def advice() -> dict[str, list[str]]:
        caplog.clear()
        assert project.is_up_to_date()
        found: dict[str, list[str]] = {}
        for record in caplog.records:
            assert record.levelno == logging.WARNING
            kind = record.name.removeprefix(LOGGER + ".")
            tables = re.findall("orders|lines|fine", record.getMessage())
            found.setdefault(kind, []).append(tables[0])
        return found

    expected = {
        "index-missing": ["orders"],
        "tenant-nullable": ["orders"],
        "key-without-tenant": ["orders"],
        "foreign-key-without-tenant": ["orders"],
        "view-bypasses-rls": ["fine", "lines"],
    }
    assert {kind: sorted(tables) for kind, tables in advice().items()} == expected
    for kind in list(expected):
        monkeypatch.setattr(logging.getLogger(f"{LOGGER}.{kind}"), "disabled", True)
        del expected[kind]
        assert set(advice()) == set(expected)


def test_advice_is_given_where_there_are_materialized_views_only(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project = Project(tmp_path, database, ADVICE)
    project.migrate()
    database.execute("CREATE MATERIALIZED VIEW bad AS SELECT * FROM fine")
    caplog.clear()
    assert project.is_up_to_date()
    assert f"{LOGGER}.view-bypasses-rls" in {each.name for each in caplog.records}


# --- data in migrations, under FORCE -------------------------------------------------


def test_foreign_keys_and_backfills_see_all_rows(
    database: Database, tmp_path: Path
) -> None:
    models = """
@with_rls
class Customer(TenantMixin, Base):
    __tablename__ = "customers"
    __table_args__ = (UniqueConstraint("tenant", "id"),)
    id: Mapped[int] = mapped_column(primary_key=True)

@with_rls
class Order(TenantMixin, Base):
    __tablename__ = "orders"
    __table_args__ = ({0})
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int]
    note: Mapped[str | None]
"""
    key = (
        'ForeignKeyConstraint(["tenant", "customer_id"],'
        ' ["customers.tenant", "customers.id"], name="to_customers"),'
    )
    project = Project(tmp_path, database, models.format(""))
    project.migrate()
    for customer in (1, 2):
        database.execute(
            "INSERT INTO orders (tenant, customer_id) VALUES ('t' || %s, %s)",
            (customer, customer),
        )
    project.write_models(models.format(key))
    project.autogenerate()
    with pytest.raises(IntegrityError, match="to_customers"):
        project.run("upgrade", "head")
    database.execute("INSERT INTO customers (tenant, id) SELECT tenant, id FROM orders")
    project.must("upgrade", "head")

    project.must("revision", "--rev-id", "backfill", "-m", "x")
    (path,) = (tmp_path / "migrations" / "versions").glob("backfill*")
    path.write_text(
        path.read_text().replace("pass", "op.execute(\"UPDATE orders SET note = 'x'\")")
    )
    project.must("upgrade", "head")
    assert database.rows("SELECT count(*) FROM orders WHERE note = 'x'") == [(2,)]


# --- roles belong to the cluster -----------------------------------------------------


def test_roles_made_by_hand_survive(database: Database, tmp_path: Path) -> None:
    database.execute(
        "CREATE ROLE tenants; CREATE ROLE tenants_shared; CREATE ROLE tenants_admin;"
        "CREATE SCHEMA tenancy",
        login="owner",
    )
    project = Project(tmp_path, database, "")
    assert_migrates(project, ORDER)
    before_login = snapshot(database)
    project.must("downgrade", "base")
    database.execute("ALTER ROLE tenants LOGIN", login="owner")
    project.must("upgrade", "head")
    assert project.run("check").status != 0
    project.migrate()
    assert project.is_up_to_date()
    assert snapshot(database) == before_login


def test_roles_of_another_database_survive(
    database: Database, server: Server, tmp_path: Path
) -> None:
    database.execute("CREATE DATABASE other OWNER owner")
    other = Database("other", server)
    projects = []
    for each in (database, other):
        path = tmp_path / each.name
        path.mkdir()
        projects.append(Project(path, each, ORDER))
        projects[-1].migrate()
    projects[0].must("downgrade", "base")
    assert projects[1].is_up_to_date()
    projects[1].must("downgrade", "base")
    assert not database.rows("SELECT rolname FROM pg_roles WHERE rolname ~ '^tenant'")


def test_tenants_created_meanwhile_stay_tenants(
    database: Database, tmp_path: Path
) -> None:
    project = Project(tmp_path, database, ORDER)
    project.migrate()
    before = snapshot(database)
    database.execute("CREATE ROLE tenant_acme IN ROLE tenants", login="owner")
    project.must("downgrade", "base")
    project.must("upgrade", "head")
    assert project.is_up_to_date()
    assert database.rows("SELECT pg_has_role('tenant_acme', 'tenants', 'MEMBER')") == [
        (True,)
    ]
    database.execute("DROP ROLE tenant_acme", login="owner")
    assert snapshot(database) == before


def test_function_that_public_may_not_execute(
    database: Database, tmp_path: Path
) -> None:
    database.execute(
        "ALTER DEFAULT PRIVILEGES FOR ROLE owner"
        " REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;"
        "ALTER DEFAULT PRIVILEGES FOR ROLE owner GRANT SELECT ON TABLES TO PUBLIC"
    )
    project = Project(tmp_path, database, "")
    assert_migrates(project, ORDER)
    assert database.rows(
        "SELECT has_function_privilege("
        "'tenants', 'tenancy.current_tenant()', 'EXECUTE')"
    ) == [(True,)]
