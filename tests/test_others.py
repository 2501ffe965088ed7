"""Another tool in the same env.py: whatever it does to what keeps tenants apart is
refused, by its SQL, at whichever point of the run it comes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from projects import Project, upgrade_of
from servers import Database

ORDER = """
@with_rls
class Order(TenantMixin, Base):
    __tablename__ = "orders"
    __table_args__ = (UniqueConstraint("tenant", "id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
"""

# A tool with operations of its own, which it adds at one of four points.
TOOL = """
from alembic.autogenerate import comparators, renderers
from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import ExecuteSQLOp

class ToolOp({base}):
    def __init__(self, sql):
        self.sql = sql
    def to_diff_tuple(self):
        return ("tool", self.sql)
    def reverse(self):
        return self

ToolOp.__module__ = "some_tool.operations"
STATEMENTS = {statements!r}

@renderers.dispatch_for(ToolOp)
def render(context, op):
    return f"op.execute({{op.sql!r}})"

if {implemented}:
    @Operations.implementation_for(ToolOp)
    def invoke(operations, op):
        operations.execute(op.sql)

def added():
    return [{made} for each in STATEMENTS]

dispatcher = comparators.branch()
"""
PLACES = {
    "schema": "@comparators.dispatch_for('schema')\n"
    "def compare(context, upgrade_ops, schemas):\n"
    "    upgrade_ops.ops.extend(added())\n",
    "table": "@comparators.dispatch_for('table')\n"
    "def compare(context, modify_table_ops, *rest):\n"
    "    if rest[1] == 'orders':\n"
    "        modify_table_ops.ops.extend(added())\n",
    "hook": "def hook(context, revision, directives):\n"
    "    directives[0].upgrade_ops.ops.extend(added())\n"
    "OPTIONS = {'process_revision_directives': hook}\n",
}


@pytest.fixture
def project(database: Database, tmp_path: Path) -> Project:
    project = Project(tmp_path, database, ORDER)
    project.migrate()
    return project


def tool(
    *statements: str,
    base: str = "MigrateOperation",
    implemented: bool = True,
    made: str = "ToolOp(each)",
    place: str = "hook",
) -> str:
    source = TOOL.format(
        statements=statements, base=base, implemented=implemented, made=made
    )
    return ORDER + source + PLACES[place]


TOUCHING = [
    "DROP POLICY tenant_floor ON orders",
    'DROP POLICY IF EXISTS "tenant_floor" on "public"."orders";',
    "CREATE POLICY p ON ONLY public.orders USING (true)",
    "ALTER POLICY tenant_isolation ON orders USING (true)",
    "ALTER TABLE orders DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE IF EXISTS ONLY public.orders NO FORCE ROW LEVEL SECURITY;;",
    "ALTER TABLE orders\n  -- quick\n  OWNER TO app",
    'REVOKE INSERT ON "public"."orders" FROM "tenants"',
    "GRANT TRUNCATE ON TABLE orders TO tenants",
    "GRANT SELECT ON a, orders TO PUBLIC",
    "GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC",
    "REVOKE GRANT OPTION FOR SELECT ON orders FROM tenants_admin",
    "REVOKE USAGE ON SEQUENCE orders_id_seq FROM tenants",
    "REVOKE USAGE ON SCHEMA tenancy FROM tenants",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO PUBLIC",
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO tenants",
    'DROP ROLE "tenants_shared"',
    "ALTER ROLE tenant_acme BYPASSRLS",
    "GRANT tenants_admin TO app",
    "GRANT dba TO tenants",
    "DROP OWNED BY app",
    "REASSIGN OWNED BY owner TO app",
    "DROP FUNCTION tenancy.current_tenant()",
    "DROP FUNCTION tenancy.context_value(text)",
    'CREATE OR REPLACE FUNCTION "tenancy"."current_tenant"() RETURNS text'
    " LANGUAGE sql RETURN 'acme'",
    "ALTER FUNCTION tenancy.current_tenant() OWNER TO app",
    "DROP SCHEMA IF EXISTS tenancy CASCADE",
    "SELECT 1; DROP POLICY tenant_floor ON orders",
    "/* quick */ DROP POLICY tenant_floor ON orders",
    "DROP POLICY tenant_floor ON -- quick\n orders",
    "CREATE FUNCTION tenancy.current_tenant() RETURNS text LANGUAGE sql RETURN 'x'",
    "DROP ROUTINE IF EXISTS tenancy.current_tenant",
    "ALTER SCHEMA tenancy OWNER TO app",
    "DROP SCHEMA crm, tenancy CASCADE",
    "GRANT SELECT (id) ON orders, a TO PUBLIC",
    "REVOKE tenants FROM tenants_shared",
    "ALTER USER tenant_acme LOGIN",
    "DROP GROUP tenants",
    "ALTER GROUP tenants ADD USER app",
    "CREATE ROLE tenant_globex SUPERUSER",
    "REVOKE ADMIN OPTION FOR tenants FROM app",
    "DO $$ BEGIN IF true THEN DROP POLICY tenant_floor ON orders; END IF; END $$",
    "SELECT 1; DO $$ BEGIN DROP POLICY tenant_floor ON orders; END $$",
    "DO $$ BEGIN EXECUTE 'REVOKE SELECT ON orders FROM tenants'; END $$",
    "DROP FUNCTION IF EXISTS other(), tenancy.current_tenant()",
    "GRANT CREATE ON SCHEMA tenancy TO PUBLIC",
    "GRANT ALL ON SCHEMA a, public TO PUBLIC",
]


@pytest.mark.parametrize("statement", TOUCHING)
def test_what_touches_ours_is_refused(
    project: Project, statement: str, caplog: pytest.LogCaptureFixture
) -> None:
    project.write_models(tool(statement))
    assert project.run("check").status != 0
    assert "some_tool changes what keeps tenants apart" in caplog.text
    assert project.run("revision", "--autogenerate").status != 0
    assert len(list((project.path / "migrations" / "versions").glob("*.py"))) == 1


@pytest.mark.parametrize(
    "kind",
    [
        {"place": "schema"},
        {"place": "table"},
        {"base": "object"},
        {"implemented": False},
        {"made": "ExecuteSQLOp(each)"},
    ],
    ids=str,
)
def test_wherever_and_however_it_comes(project: Project, kind: dict[str, str]) -> None:
    project.write_models(tool(TOUCHING[0], **kind))  # type: ignore[arg-type]
    # a process of its own, because Alembic keeps what is registered
    result = project.spawn("check")
    assert result.status != 0
    assert "changes what keeps tenants apart" in result.output
    assert "drop policy tenant_floor on orders" in result.output


DIRECTLY = """
import runpy, sys
from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

metadata = runpy.run_path("models.py")["Base"].metadata
with create_engine(sys.argv[1]).connect() as connection:
    produce_migrations(MigrationContext.configure(connection), metadata)
"""


@pytest.mark.parametrize("place", ["schema", "table"])
def test_without_env_py_too(project: Project, place: str) -> None:
    """Who compares by Alembic's functions has no hook."""
    project.write_models(tool(TOUCHING[0], place=place))
    result = subprocess.run(
        [sys.executable, "-c", DIRECTLY, project.url],
        cwd=project.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert "some_tool changes what keeps tenants apart" in result.stdout


HARMLESS = [
    "CREATE POLICY p ON elsewhere USING (true)",
    "ALTER TABLE orders ADD COLUMN x int",
    "ALTER TABLE elsewhere ENABLE ROW LEVEL SECURITY",
    "GRANT SELECT ON orders TO reporting",
    "GRANT SELECT ON elsewhere TO PUBLIC",
    "GRANT SELECT ON tenants TO reporting",
    "CREATE ROLE reporting",
    "CREATE FUNCTION public.current_tenant() RETURNS text LANGUAGE sql RETURN 'x'",
    "CREATE VIEW v AS SELECT 1",
    "INSERT INTO log VALUES ('drop policy p on orders')",
    "ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC",
    "REVOKE ALL ON orders FROM PUBLIC",
    "GRANT USAGE ON SCHEMA public TO PUBLIC",
]


@pytest.mark.parametrize("place", PLACES)
def test_the_rest_is_the_other_tools_own(project: Project, place: str) -> None:
    project.write_models(tool(*HARMLESS, place=place))
    result = project.spawn("revision", "--autogenerate", "--rev-id", "r002")
    assert result.status == 0, result.output
    source = (project.path / "migrations" / "versions" / "r002_.py").read_text()
    for statement in HARMLESS:
        # once: the hook of env.py runs once
        assert upgrade_of(source).count(repr(statement)) == 1, source


def test_a_project_without_tenants_may_do_what_it_likes(
    database: Database, tmp_path: Path
) -> None:
    plain = ORDER.replace("@with_rls", "").replace("TenantMixin, Base", "Base")
    plain = plain.replace('UniqueConstraint("tenant", "id"),', "")
    project = Project(tmp_path, database, plain)
    project.migrate()
    project.write_models(plain + tool(*TOUCHING).removeprefix(ORDER))
    assert "DROP SCHEMA IF EXISTS tenancy" in project.autogenerate()


TAKEN = """
from alembic.operations import MigrateOperation, Operations

@Operations.register_operation("enable_rls")
class Another(MigrateOperation):
    @classmethod
    def enable_rls(cls, operations, table):
        pass
"""


def test_an_operation_of_our_name_by_another_package(project: Project) -> None:
    project.write_models(ORDER + TAKEN)
    result = project.spawn("check")
    assert result.status != 0
    assert "op.enable_rls" in result.output
