"""Names that need quoting, other schemas, and kinds of tables."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from projects import Project, assert_migrates, snapshot, upgrade_of
from servers import Database, bin_dir, lacking

LONG = "ä" * 31 + "x"  # 63 bytes
NAMES = [
    "Order",
    "select",
    "user",
    "two words",
    'quo"te',
    "apo'strophe",
    "100%",
    "%(name)s",
    "co:lon",
    "back\\slash",
    "$tenancy$",
    "naïve 表",
    LONG,
]

# a table in a schema, with a tenant column and a policy, all of the same name
TABLES = """
metadata = MetaData(info={{"tenancy": Tenancy({tenancy})}})
for name in {names!r}:
    with_rls(
        Table(
            name, metadata,
            # Alembic cannot read the default of a serial column with an apostrophe
            Column("id", Integer, *[Identity()] * ("'" in name), primary_key=True),
            Column(name, Text, nullable=False, index=False), schema={schema!r},
        ),
        tenant_column=name, index=False,
        policies=[Policy(name, using=column(name) != "it's 100% \\\\ \\"x\\" :y")],
    )
{more}
"""


def psql(database: Database, script: str, login: str = "owner") -> None:
    """Run a script in psql, which stops at the first error."""
    directory = bin_dir(database.server.version)
    candidates = [shutil.which("psql"), directory and str(directory / "psql")]
    program = next((c for c in candidates if c and Path(c).exists()), None)
    if program is None:
        lacking("psql is not installed")
    url = database.url(login).replace("+psycopg", "")
    done = subprocess.run(
        [program, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", url],
        input=script,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + script


@pytest.mark.parametrize("name", NAMES)
def test_names_of_everything(database: Database, tmp_path: Path, name: str) -> None:
    """Online and offline leave the same catalog."""
    rest = name.encode()[:55].decode(errors="ignore")
    names = {
        "role_prefix": rest + "_",
        "tenants_role": "T " + rest,
        "shared_role": "S " + rest,
        "admin_role": "A " + rest,
        "schema": "N " + rest,
    }
    tenancy = ", ".join(f"{key}={value!r}" for key, value in names.items())
    database.execute(
        'CREATE SCHEMA "{}" AUTHORIZATION owner'.format(name.replace('"', '""'))
    )
    models = TABLES.format(names=[name], schema=name, tenancy=tenancy, more="")
    project = Project(
        tmp_path, database, models, options="options['include_schemas'] = True"
    )
    before = snapshot(database)
    project.migrate()
    assert project.is_up_to_date()
    after = snapshot(database)
    # another policy and privilege by hand, and then all of it offline
    quoted = name.replace('"', '""')
    role = (rest + "_x").replace('"', '""')
    database.execute(
        f'ALTER POLICY "{quoted}" ON "{quoted}"."{quoted}" USING (true);'
        f'CREATE ROLE "{role}"; GRANT ALL ON "{quoted}"."{quoted}" TO "{role}";'
    )
    drifted = snapshot(database)
    project.migrate()
    assert project.is_up_to_date()
    psql(database, project.must("downgrade", "--sql", "r002:r001"))
    assert snapshot(database) == drifted
    psql(database, project.must("upgrade", "--sql", "r001:r002"))
    assert project.is_up_to_date()
    # the second revision needs the role that is dropped here
    database.execute(
        f"DROP ROLE \"{role}\"; UPDATE alembic_version SET version_num = 'r001'"
    )
    assert snapshot(database) == after
    psql(database, project.must("downgrade", "--sql", "r001:base"))
    assert snapshot(database) == before
    database.execute("DROP TABLE alembic_version")  # which offline scripts create
    psql(database, project.must("upgrade", "--sql", "base:r001"))
    assert snapshot(database) == after


SAME_NAME = """
class Marked({mixin}Base):
    __tablename__ = "orders"
    __table_args__ = {{"schema": {marked!r}}}
    id: Mapped[int] = mapped_column(primary_key=True)
{mark}
class Unmarked(Base):
    __tablename__ = "orders"
    __table_args__ = {{"schema": {unmarked!r}}}
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
"""


@pytest.mark.parametrize(("marked", "unmarked"), [("shop", None), (None, "shop")])
def test_same_table_name_in_two_schemas(
    database: Database, tmp_path: Path, marked: str | None, unmarked: str | None
) -> None:
    database.execute("CREATE SCHEMA shop AUTHORIZATION owner")
    without = SAME_NAME.format(
        marked=marked,
        unmarked=unmarked,
        mixin="",
        mark="    tenant: Mapped[str] = mapped_column(Text, index=True)\n",
    )
    project = Project(
        tmp_path, database, without, options="options['include_schemas'] = True"
    )
    project.migrate()
    source = assert_migrates(
        project, without.replace("class Marked", "@with_rls\nclass Marked")
    )
    assert "'orders', schema='shop'" in source or marked is None
    flags = database.rows(
        "SELECT n.nspname, relrowsecurity, relforcerowsecurity FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = relnamespace WHERE relname = 'orders'"
    )
    assert {schema for schema, *on in flags if all(on)} == {marked or "public"}
    assert {schema for schema, *on in flags if not any(on)} == {unmarked or "public"}
    assert_migrates(project, without)


KINDS = """
with_rls(Table(
    "events", Base.metadata, Column("id", Integer, primary_key=True),
    Column("tenant", Text, primary_key=True), Column("day", Date, primary_key=True),
    postgresql_partition_by="RANGE (day)",
))
with_rls(Table(
    "serials", Base.metadata, Column("id", {id}, primary_key=True),
    Column("tenant", Text, nullable=False),
))
with_rls(Table(
    "identities", Base.metadata, Column("id", {id}, Identity(), primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("lower", Text, Computed("lower(tenant)", persisted=True)),
), policies=[Policy("p", using="lower <> 'x'")])
with_rls(Table(
    "uuids", Base.metadata, Column("id", Uuid, primary_key=True,
        server_default=text("gen_random_uuid()")),
    Column("tenant", Uuid, nullable=False),
))
"""


@pytest.mark.parametrize("id_type", ["SmallInteger", "Integer", "BigInteger"])
def test_kinds_of_tables(database: Database, tmp_path: Path, id_type: str) -> None:
    models = KINDS.format(id=id_type)
    # a partition is a table for Alembic, which has to be told not to drop it
    skip = (
        "options['include_name'] = lambda name, type_, parents: "
        "not (type_ == 'table' and name.endswith('_child'))"
    )
    project = Project(tmp_path, database, models, options=skip)
    source = assert_migrates(project, models)
    assert source.count("object_type='SEQUENCE'") == 2  # one each way
    database.execute(
        "CREATE TABLE events_child PARTITION OF events"
        " FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');"
        "CREATE TABLE serials_child () INHERITS (serials)"
    )
    assert project.is_up_to_date()
    database.execute("DROP TABLE events_child, serials_child")
    assert_migrates(project, models.partition('with_rls(Table(\n    "serials')[0])


def test_batch_mode_leaves_ours_outside(database: Database, tmp_path: Path) -> None:
    models = """
class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column({type}{index})
"""
    batch = "options['render_as_batch'] = True"
    plain = models.format(type="String(10)", index="")
    project = Project(tmp_path, database, plain, options=batch)
    project.migrate()
    marked = models.format(type="Integer", index=", index=True")
    project.write_models(plain.replace("class", "@with_rls\nclass"))
    source = upgrade_of(project.migrate())
    assert "batch_op.create_index" in source
    assert "    op.enable_rls" in source
    assert "        op." not in source.replace("batch_alter_table", "")
    assert project.is_up_to_date()
    plain = plain.replace("class", "@with_rls\nclass")
    assert_migrates(project, plain.replace("String(10)", "String(20)"))
    assert marked


def test_search_path_that_leads_to_the_function(
    database: Database, tmp_path: Path
) -> None:
    """The server then prints the function's name without its schema."""
    project = Project(
        tmp_path,
        database,
        """
@with_rls
class Order(TenantMixin, Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
""",
    )
    project.migrate()
    database.execute("ALTER ROLE owner SET search_path = public, tenancy")
    assert project.is_up_to_date()
    database.execute(
        "CREATE FUNCTION public.current_tenant() RETURNS text RETURN 'acme';"
        "ALTER POLICY tenant_floor ON orders"
        " USING (tenant = (SELECT public.current_tenant()))"
    )
    source = project.migrate()
    assert upgrade_of(source).count("op.") == 1
    assert "op.alter_policy" in source
    assert project.is_up_to_date()


def test_policies_whose_trees_are_the_same(database: Database, tmp_path: Path) -> None:
    """PostgreSQL keeps columns by their numbers: only the names tell them apart."""
    table = """
with_rls(Table("t_{0}", Base.metadata, Column("id", Uuid, primary_key=True),
    Column("tenant", Text, nullable=False), Column("{0}", Integer),
), policies=[Policy("p", using="{0} = 1")])
"""
    models = table.format("x") + table.format("y")
    project = Project(tmp_path, database, models)
    assert_migrates(project, models)
    # the same tree as before, on another column
    other = models.replace("y = 1", "z = 1").replace(
        'Column("y", Integer)', 'Column("z", Integer), Column("y", Integer)'
    )
    assert_migrates(project, other)
