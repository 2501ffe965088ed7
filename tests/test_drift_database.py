"""Drift by hand in the database: found, repaired, and restored by the downgrade."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from projects import Project, downgrade_of, snapshot, upgrade_of
from servers import Database, Server, fresh_database

MODELS = """
@with_rls(policies=[
    Policy("archived", using="NOT archived", permissive=False),
    Policy("own", using="id = 1 OR item = 'x' AND archived", with_check="id > 0"),
    Policy("readers", using="true", command="SELECT", roles="reader"),
    Policy("public", using="id > 0", permissive=False, roles=["app", "public"]),
])
class Order(TenantMixin, Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    archived: Mapped[bool]

@with_rls
class Invoice(TenantMixin, Base):
    __tablename__ = "invoices"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)

@shared_table(privileges=["SELECT", "INSERT"])
class Country(Base):
    __tablename__ = "countries"
    code: Mapped[str] = mapped_column(primary_key=True)

class Secret(Base):
    __tablename__ = "secrets"
    id: Mapped[int] = mapped_column(primary_key=True)
"""

FUNCTION = "tenancy.current_tenant()"
OWN = f"tenant = (SELECT {FUNCTION})"
BODY = "RETURNS text LANGUAGE sql STABLE AS $$ SELECT 'acme' $$"

# name: statements by hand, and what the upgrade has in it (None: see the snapshots)
DRIFT = {
    "policy dropped": ("DROP POLICY tenant_isolation ON orders", "create_policy"),
    "every policy dropped": (
        "DROP POLICY tenant_isolation ON orders; DROP POLICY tenant_floor ON orders;"
        "DROP POLICY tenants_admin ON orders",
        "create_policy",
    ),
    "user's policy dropped": ("DROP POLICY own ON orders", "create_policy"),
    "USING true": (
        "ALTER POLICY tenant_isolation ON orders USING (true)",
        "alter_policy",
    ),
    "floor true": (
        "ALTER POLICY tenant_floor ON orders USING (true) WITH CHECK (true)",
        "alter_policy",
    ),
    "admin policy true": ("ALTER POLICY tenants_admin ON orders USING (true)", "alter"),
    "AND and OR regrouped": (
        "ALTER POLICY own ON orders USING ((id = 1 OR item = 'x') AND archived)",
        "alter_policy",
    ),
    "only WITH CHECK altered": (
        f"ALTER POLICY tenant_isolation ON orders WITH CHECK ({OWN} OR true)",
        "existing_with_check",
    ),
    "user's WITH CHECK altered": (
        "ALTER POLICY own ON orders WITH CHECK (id >= 0)",
        "existing_with_check",
    ),
    "WITH CHECK gone": (
        "DROP POLICY own ON orders; CREATE POLICY own ON orders TO tenants"
        " USING (id = 1 OR item = 'x' AND archived)",
        "drop_policy",
    ),
    "roles of a policy changed": (
        "ALTER POLICY tenant_floor ON orders TO public",
        "existing_roles",
    ),
    "a role of a policy more": (
        "ALTER POLICY readers ON orders TO reader, app",
        "existing_roles",
    ),
    "restrictive made permissive": (
        f"DROP POLICY tenant_floor ON orders; CREATE POLICY tenant_floor ON orders"
        f" TO tenants USING ({OWN}) WITH CHECK ({OWN})",
        "permissive=False",
    ),
    "permissive made restrictive": (
        "DROP POLICY readers ON orders; CREATE POLICY readers ON orders AS RESTRICTIVE"
        " FOR SELECT TO reader USING (true)",
        "drop_policy",
    ),
    "command changed": (
        f"DROP POLICY tenant_floor ON orders; CREATE POLICY tenant_floor ON orders"
        f" AS RESTRICTIVE FOR UPDATE TO tenants USING ({OWN}) WITH CHECK ({OWN})",
        "drop_policy",
    ),
    "policy renamed": (
        "ALTER POLICY tenant_floor ON orders RENAME TO floor",
        "op.drop_policy('floor', 'orders')",
    ),
    "RLS disabled": ("ALTER TABLE orders DISABLE ROW LEVEL SECURITY", "enable_rls"),
    "not forced": ("ALTER TABLE orders NO FORCE ROW LEVEL SECURITY", "enable_rls"),
    "neither": (
        "ALTER TABLE orders DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY",
        "enable_rls",
    ),
    "rogue policy": (
        "CREATE POLICY rogue ON orders USING (true)",
        "op.drop_policy('rogue', 'orders')",
    ),
    "rogue policy of one command": (
        "CREATE POLICY rogue ON orders FOR INSERT TO app WITH CHECK (id > 5)",
        "op.drop_policy('rogue', 'orders')",
    ),
    "rogue policy without expression": (
        "CREATE POLICY rogue ON orders AS RESTRICTIVE TO public",
        "op.drop_policy('rogue', 'orders')",
    ),
    "rogue policy that reads another table": (
        "CREATE POLICY rogue ON orders USING (EXISTS (SELECT FROM secrets))",
        "op.drop_policy('rogue', 'orders')",
    ),
    "function replaced": (f"CREATE OR REPLACE FUNCTION {FUNCTION} {BODY}", "replace"),
    "function SECURITY DEFINER": (
        f"ALTER FUNCTION {FUNCTION} SECURITY DEFINER",
        "replace_tenant_function",
    ),
    "function VOLATILE": (f"ALTER FUNCTION {FUNCTION} VOLATILE", "replace"),
    "function with search_path": (
        f"ALTER FUNCTION {FUNCTION} SET search_path = public, pg_temp",
        "replace",
    ),
    "function COST": (f"ALTER FUNCTION {FUNCTION} COST 5", "replace"),
    "function LEAKPROOF, STRICT": (
        f"ALTER FUNCTION {FUNCTION} LEAKPROOF STRICT PARALLEL UNSAFE",
        "replace",
    ),
    "function owned by a group role": (
        f"GRANT CREATE ON SCHEMA tenancy TO tenants;"
        f"ALTER FUNCTION {FUNCTION} OWNER TO tenants;"
        f"REVOKE CREATE ON SCHEMA tenancy FROM tenants",
        "owner='superuser'",
    ),
    "function not executable": (
        f"REVOKE EXECUTE ON FUNCTION {FUNCTION} FROM PUBLIC",
        "object_type='FUNCTION'",
    ),
    "function and policies dropped": (
        f"ALTER TABLE orders ALTER tenant DROP DEFAULT;"
        f"ALTER TABLE invoices ALTER tenant DROP DEFAULT;"
        f"DROP FUNCTION {FUNCTION} CASCADE",
        "replace_tenant_function",
    ),
    "schema dropped": (
        "ALTER TABLE orders ALTER tenant DROP DEFAULT;"
        "ALTER TABLE invoices ALTER tenant DROP DEFAULT;"
        "DROP SCHEMA tenancy CASCADE",
        "create_tenancy",
    ),
    "privilege revoked": ("REVOKE DELETE ON orders FROM tenants", "['DELETE']"),
    "all privileges revoked": (
        "REVOKE ALL ON orders FROM tenants, tenants_admin",
        "grant_privileges",
    ),
    "sequence's privilege revoked": (
        "REVOKE ALL ON SEQUENCE orders_id_seq FROM tenants",
        "object_type='SEQUENCE'",
    ),
    "extra privilege of a group role": (
        "GRANT TRUNCATE ON orders TO tenants",
        "['TRUNCATE']",
    ),
    "privilege of the shared role": ("GRANT SELECT ON orders TO tenants_shared", None),
    "privileges of PUBLIC": ("GRANT SELECT, UPDATE ON orders TO PUBLIC", "['public']"),
    "column privilege": (
        "GRANT SELECT (item), UPDATE (item, archived) ON orders TO PUBLIC;"
        "GRANT REFERENCES (id) ON orders TO tenants",
        "columns=['item']",
    ),
    "column and table privilege": (
        "GRANT TRUNCATE ON orders TO tenants; GRANT SELECT (id) ON orders TO tenants",
        "columns=['id']",
    ),
    "privilege of a tenant's role": (
        "CREATE ROLE tenant_acme; GRANT ALL ON orders, secrets, countries"
        " TO tenant_acme; GRANT USAGE ON SEQUENCE secrets_id_seq TO tenant_acme",
        "['tenant_acme']",
    ),
    "privilege of a tenant's role on a table without mark": (
        "CREATE ROLE tenant_acme; GRANT SELECT ON secrets TO tenant_acme",
        "['tenant_acme']",
    ),
    "grant option": (
        "GRANT SELECT ON orders TO tenants WITH GRANT OPTION",
        "grant_option_for=True",
    ),
    "extra privilege with grant option": (
        "GRANT TRIGGER, TRUNCATE ON orders TO tenants WITH GRANT OPTION;"
        "GRANT UPDATE (item) ON orders TO tenants WITH GRANT OPTION",
        None,
    ),
    "sequence's and schema's grant option": (
        "GRANT USAGE ON SEQUENCE orders_id_seq TO tenants WITH GRANT OPTION;"
        "GRANT USAGE ON SCHEMA public TO tenants WITH GRANT OPTION;"
        f"GRANT EXECUTE ON FUNCTION {FUNCTION} TO tenants WITH GRANT OPTION",
        "grant_option_for=True",
    ),
    "privilege granted by somebody else": (
        "GRANT TRUNCATE ON orders TO owner_s_friend WITH GRANT OPTION;"
        "SET ROLE owner_s_friend; GRANT TRUNCATE ON orders TO tenants; RESET ROLE;"
        "GRANT owner_s_friend TO owner",
        "granted_by='owner_s_friend'",
    ),
    "sequence of an identity column": (
        "GRANT ALL ON SEQUENCE invoices_id_seq TO tenants",
        "columns=['id']",
    ),
    "shared table's privilege revoked": (
        "REVOKE INSERT ON countries FROM tenants",
        None,
    ),
    "shared table's extra privilege": ("GRANT DELETE ON countries TO tenants", None),
    "shared table with RLS": (
        "ALTER TABLE countries ENABLE ROW LEVEL SECURITY",
        "disable_rls",
    ),
    "privilege on a table without mark": (
        "GRANT SELECT ON secrets TO tenants",
        "revoke_privileges",
    ),
    "default privileges of group roles": (
        "ALTER DEFAULT PRIVILEGES FOR ROLE owner IN SCHEMA public"
        " GRANT SELECT ON TABLES TO tenants;"
        "ALTER DEFAULT PRIVILEGES FOR ROLE owner GRANT INSERT ON TABLES TO tenants",
        "object_type='DEFAULT TABLES'",
    ),
    "USAGE of the schema revoked": (
        "REVOKE USAGE ON SCHEMA public FROM tenants",
        "object_type='SCHEMA'",
    ),
    "USAGE of the function's schema revoked": (
        "REVOKE USAGE ON SCHEMA tenancy FROM tenants, tenants_admin",
        "object_type='SCHEMA'",
    ),
    "CREATE on a schema": (
        "GRANT CREATE ON SCHEMA tenancy, public TO tenants",
        "['CREATE']",
    ),
    "group role missing": (
        "DROP OWNED BY tenants; DROP ROLE tenants",
        "create_group_role",
    ),
    "shared role missing": ("DROP ROLE tenants_shared", "member_of='tenants'"),
    "admin role missing": (
        "DROP OWNED BY tenants_admin; DROP ROLE tenants_admin",
        "admin=True",
    ),
    "shared role no member": (
        "REVOKE tenants FROM tenants_shared GRANTED BY owner",
        "grant_membership",
    ),
    "group roles with LOGIN and CREATEDB": (
        "ALTER ROLE tenants LOGIN; ALTER ROLE tenants_admin LOGIN",
        "login=False",
    ),
    "group role with all rights": (
        "ALTER ROLE tenants SUPERUSER BYPASSRLS CREATEROLE CREATEDB REPLICATION",
        "bypass_rls=False",
    ),
    "owner no admin": (
        "REVOKE tenants_admin FROM owner GRANTED BY owner",
        "grant_membership",
    ),
}


class Rig:
    """A project that is up to date, used again while a test leaves it so."""

    def __init__(self, database: Database, path: Path) -> None:
        database.execute(
            "CREATE ROLE reader; CREATE ROLE owner_s_friend;"
            "GRANT USAGE ON SCHEMA public TO owner_s_friend"
        )
        self.database = database
        self.project = Project(
            path, database, MODELS, options="options['compare_server_default'] = True"
        )
        self.project.migrate()
        assert self.project.is_up_to_date()
        self.clean = snapshot(database)

    def forget(self) -> None:
        """Make the first revision the only one."""
        for path in (self.project.path / "migrations" / "versions").glob("*.py"):
            if not path.name.startswith("r001"):
                path.unlink()
        self.database.execute("UPDATE alembic_version SET version_num = 'r001'")


@pytest.fixture(scope="module")
def rigs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rigs]:
    with ExitStack() as stack:
        yield Rigs(server, tmp_path_factory, stack)


class Rigs:
    def __init__(
        self, server: Server, paths: pytest.TempPathFactory, stack: ExitStack
    ) -> None:
        self.server, self.paths, self.stack = server, paths, stack
        self.current: Rig | None = None

    def clean(self) -> Rig:
        """Return a project and a database without any drift."""
        rig = self.current
        if rig is None or snapshot(rig.database) != rig.clean:
            self.stack.close()
            database = self.stack.enter_context(fresh_database(self.server))
            rig = self.current = Rig(database, self.paths.mktemp("project"))
        return rig


@pytest.mark.parametrize("drift", DRIFT)
def test_drift_is_found_repaired_and_restored(rigs: Rigs, drift: str) -> None:
    statements, expected = DRIFT[drift]
    rig = rigs.clean()
    project, database = rig.project, rig.database
    # as the owner of all where it can be, and as a superuser where it cannot
    needs_superuser = re.search("LEAKPROOF|OWNER TO|BYPASSRLS", statements)
    project.url = database.url("superuser" if needs_superuser else "owner")
    project.write_env("options['compare_server_default'] = True")
    if database.server.version == 15:
        statements = statements.replace(" GRANTED BY owner", "")
    database.execute(statements)
    drifted = snapshot(database)
    assert drifted != rig.clean

    source = project.autogenerate()
    assert (expected or "op.") in upgrade_of(source), source
    project.must("upgrade", "head")
    assert project.is_up_to_date(), source
    repaired = snapshot(database)
    project.must("downgrade", "-1")
    assert snapshot(database) == drifted, downgrade_of(source)
    project.must("upgrade", "head")
    assert snapshot(database) == repaired
    if not REPAIRED_DIFFERENTLY.search(statements):
        assert repaired == rig.clean
    rig.forget()


#: A role is created anew, or by somebody else; or remains, because it is not ours.
REPAIRED_DIFFERENTLY = re.compile(
    "CREATE ROLE|DROP ROLE|FROM PUBLIC|owner_s_friend|OWNER TO"
)
