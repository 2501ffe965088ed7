"""Operations on roles, which belong to the cluster: a downgrade takes back what the
upgrade did, and neither what was there before nor what another database needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError

from alembic_ext import ops
from projects import Project, snapshot
from servers import Database, Server
from sqlalchemy_tenants import Tenancy

GROUPS = "CREATE ROLE tenants; CREATE ROLE tenants_shared; CREATE ROLE tenants_admin;"
TENANT = "CREATE ROLE tenant_acme IN ROLE tenants;"

ORDER = """
@with_rls
class Order(TenantMixin, Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str | None]
"""


class Migrated:
    """A database with Alembic's version table, in which a login migrates."""

    def __init__(self, database: Database, login: str = "owner") -> None:
        self.database = database
        self.login = login
        database.execute(
            "CREATE TABLE IF NOT EXISTS alembic_version (version_num text)", login=login
        )

    def run(self, *operations: ops.TenancyOp) -> None:
        engine = create_engine(self.database.url(self.login))
        try:
            with engine.begin() as connection:
                op = Operations(MigrationContext.configure(connection))
                for each in operations:
                    op.invoke(each)
        finally:
            engine.dispose()

    def undo(self, *operations: ops.TenancyOp) -> None:
        self.run(*(op.reverse() for op in reversed(operations)))  # type: ignore[misc]

    def assert_undone(self, *operations: ops.TenancyOp) -> None:
        """Both directions change what they say, the second exactly back, twice."""
        before = self.state()
        for _ in range(2):
            self.run(*operations)
            after = self.state()
            assert after != before
            self.undo(*operations)
            assert self.state() == before
        self.run(*operations)
        assert self.state() == after

    def assert_nothing_undone(self, *operations: ops.TenancyOp) -> None:
        """The upgrade finds everything as it should be, the downgrade leaves it so."""
        before = self.state()
        self.run(*operations)
        assert self.state() == before
        self.undo(*operations)
        assert self.state() == before

    def state(self) -> list[str]:
        comment = "SELECT obj_description('alembic_version'::regclass, 'pg_class')"
        # a reverse leaves no note behind, but the upgrade may
        notes = [row[0] for row in self.database.rows(comment)]
        roles = [line for line in snapshot(self.database) if line.startswith(KINDS)]
        return roles if any(notes) else [*roles, "no notes"]


KINDS = ("role |", "membership |")


@pytest.fixture
def here(database: Database) -> Migrated:
    database.execute(GROUPS, login="owner")
    return Migrated(database)


@pytest.fixture
def other(database: Database, server: Server) -> Database:
    """Another database of the cluster, that has tenants and depends on the roles."""
    database.execute("CREATE DATABASE other OWNER owner")
    other = Database("other", server)
    other.execute(
        "CREATE TABLE notes (id int); GRANT SELECT ON notes TO tenants, tenants_admin",
        login="owner",
    )
    return other


def member(database: Database, group: str, member: str, how: str = "MEMBER") -> bool:
    query = f"SELECT pg_has_role('{member}', '{group}', '{how}')"
    return database.rows(query) == [(True,)]


# --- another database ----------------------------------------------------------------


def test_downgrade_leaves_another_databases_owner_an_admin(
    database: Database, server: Server, tmp_path: Path
) -> None:
    """Its next backfill would update no row, without an error."""
    database.execute(GROUPS, login="owner")
    database.execute("CREATE DATABASE other OWNER owner")
    other = Database("other", server)
    projects = []
    for each in (database, other):
        path = tmp_path / each.name
        path.mkdir()
        projects.append(Project(path, each, ORDER))
        projects[-1].migrate()
    other.execute("INSERT INTO orders (id, tenant) VALUES (1, 'acme')")
    projects[0].must("downgrade", "base")
    assert projects[1].is_up_to_date()
    other.execute("UPDATE orders SET item = 'filled'", login="owner")
    assert other.rows("SELECT item FROM orders") == [("filled",)]
    # the last one takes it
    projects[0].must("upgrade", "head")
    projects[1].must("downgrade", "base")
    projects[0].must("downgrade", "base")


OPERATIONS: dict[str, tuple[str, ops.TenancyOp]] = {
    "grant_membership": ("", ops.GrantMembershipOp("tenants_admin", "app")),
    "revoke_membership": (
        "CREATE ROLE more; GRANT tenants_admin TO more",
        ops.RevokeMembershipOp("tenants_admin", "more"),
    ),
    "create_group_role": ("", ops.CreateGroupRoleOp("tenants_admin", admin=True)),
    "create_group_role, member": (
        "CREATE ROLE more",
        ops.CreateGroupRoleOp("more", member_of="tenants"),
    ),
    "create_group_role, member of ours": (
        f"COMMENT ON ROLE tenants IS '{ops.OWNED_COMMENT}'; CREATE ROLE more",
        ops.CreateGroupRoleOp("more", member_of="tenants"),
    ),
    "create_group_role, missing": (
        "",
        ops.CreateGroupRoleOp("more", member_of="tenants"),
    ),
    "alter_group_role": (
        "ALTER ROLE tenants CREATEROLE LOGIN",
        ops.AlterGroupRoleOp("tenants", create_role=False, login=False),
    ),
    "alter_group_role, tenant": (
        TENANT + "ALTER ROLE tenant_acme LOGIN",
        ops.AlterGroupRoleOp("tenant_acme", login=False),
    ),
    "create_tenant_role": ("", ops.CreateTenantRoleOp("acme", logins=("app",))),
    "create_tenant_role, exists": (
        TENANT,
        ops.CreateTenantRoleOp("acme", logins=("app",)),
    ),
    "create_tenant_role, no member": (
        "CREATE ROLE tenant_acme",
        ops.CreateTenantRoleOp("acme", logins=("app",)),
    ),
    "grant_tenant_role": (TENANT, ops.GrantTenantRoleOp("acme", ("app",))),
    "revoke_tenant_role": (
        TENANT + "GRANT tenant_acme TO app",
        ops.RevokeTenantRoleOp("acme", ("app",)),
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_is_undone_that_another_database_needs(
    here: Migrated, other: Database, name: str
) -> None:
    before, op = OPERATIONS[name]
    if before:
        here.database.execute(before, login=grantor_of(before))
    here.run(op)
    after = here.state()
    here.undo(op)
    assert here.state() == after


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_downgrade_undoes_what_the_upgrade_did(here: Migrated, name: str) -> None:
    before, op = OPERATIONS[name]
    if before:
        here.database.execute(before, login=grantor_of(before))
    here.assert_undone(op)


def grantor_of(statements: str) -> str:
    return "superuser" if "CREATEROLE" in statements else "owner"


# --- there before --------------------------------------------------------------------

BEFORE: dict[str, tuple[str, tuple[ops.TenancyOp, ...]]] = {
    "memberships": (
        "CREATE ROLE more; GRANT tenants_admin TO more;GRANT tenants TO tenants_shared",
        (
            ops.GrantMembershipOp("tenants_admin", "more"),
            ops.GrantMembershipOp("tenants", "tenants_shared"),
        ),
    ),
    "no membership": ("", (ops.RevokeMembershipOp("tenants_admin", "app"),)),
    "group role": (
        "GRANT tenants TO tenants_shared",
        (ops.CreateGroupRoleOp("tenants_shared", member_of="tenants"),),
    ),
    "attributes": (
        "",
        (ops.AlterGroupRoleOp("tenants", login=False, bypass_rls=False),),
    ),
    "tenant": (
        TENANT + "GRANT tenant_acme TO app {options}",
        (
            ops.CreateTenantRoleOp("acme", logins=("app",)),
            ops.GrantTenantRoleOp("acme", ("app",)),
        ),
    ),
    "no login": (TENANT, (ops.RevokeTenantRoleOp("acme", ("app", "gone")),)),
    "no tenant": ("", (ops.RevokeTenantRoleOp("acme", ("app",)),)),
}


@pytest.mark.parametrize("name", BEFORE)
def test_what_was_there_before_stays(here: Migrated, name: str) -> None:
    before, operations = BEFORE[name]
    is_15 = here.database.server.version < 16
    options = "" if is_15 else "WITH INHERIT FALSE, SET TRUE"
    if before:
        here.database.execute(before.format(options=options), login="owner")
    here.assert_nothing_undone(*operations)


def test_a_login_of_an_existing_tenant_stays_and_another_one_goes(
    here: Migrated,
) -> None:
    grant = "GRANT tenant_acme TO app"
    if here.database.server.version >= 16:
        grant += " WITH INHERIT FALSE, SET TRUE"
    here.database.execute(TENANT + grant, login="owner")
    here.database.execute("CREATE ROLE more LOGIN NOINHERIT")
    op = ops.CreateTenantRoleOp("acme", logins=("app", "more"))
    here.assert_undone(op)
    here.undo(op)
    assert member(here.database, "tenant_acme", "app")
    assert not member(here.database, "tenant_acme", "more")


def test_a_tenant_that_is_created_again_at_run_time_stays(here: Migrated) -> None:
    op = ops.CreateTenantRoleOp("acme", logins=("app",))
    here.run(op)
    here.database.execute("DROP ROLE tenant_acme;" + TENANT, login="owner")
    here.undo(op)
    assert member(here.database, "tenants", "tenant_acme")


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_tenant_is_dropped_if_a_migration_says_so(
    here: Migrated, is_ours: bool
) -> None:
    """And comes back as what it was, somebody's own or created by a migration."""
    create = ops.CreateTenantRoleOp("acme", logins=("app",))
    if is_ours:
        here.run(create)
    else:
        options = "WITH INHERIT FALSE, SET TRUE"
        if here.database.server.version < 16:
            options = ""
        grant = f"GRANT tenant_acme TO app {options}"
        here.database.execute(TENANT + grant, login="owner")
    here.assert_undone(ops.DropTenantRoleOp("acme", logins=("app",)))
    assert here.database.rows("SELECT to_regrole('tenant_acme')") == [(None,)]


def test_a_tenant_that_was_gone_does_not_come_back(here: Migrated) -> None:
    here.assert_nothing_undone(ops.DropTenantRoleOp("acme", logins=("app",)))


def test_notes_of_somebody_elses_version_table(here: Migrated) -> None:
    """Nothing can be noted, so nothing is taken back."""
    here.database.execute("ALTER TABLE alembic_version OWNER TO superuser")
    op = ops.GrantMembershipOp("tenants_admin", "app")
    here.run(op)
    assert member(here.database, "tenants_admin", "app")
    here.undo(op)
    assert member(here.database, "tenants_admin", "app")


def test_a_schema_and_its_function_are_dropped_and_others_stay(
    here: Migrated,
) -> None:
    here.database.execute("CREATE SCHEMA tenancy", login="owner")
    before = snapshot(here.database)
    op = ops.CreateTenancyOp(Tenancy())
    for _ in range(2):
        here.run(op)
        assert snapshot(here.database) != before
        here.undo(op)
        assert snapshot(here.database) == before


# --- grantors and options ------------------------------------------------------------


@pytest.fixture
def friend(here: Migrated) -> Migrated:
    """A role that grants memberships, and whom the owner may act for."""
    here.database.execute(
        "CREATE ROLE friend; GRANT tenants_admin TO friend WITH ADMIN OPTION;"
        f"{TENANT} GRANT tenant_acme TO friend WITH ADMIN OPTION;"
        "GRANT friend TO owner; SET ROLE friend;"
        "GRANT tenants_admin, tenant_acme TO app, tenants_shared"
    )
    return here


def test_membership_is_revoked_whoever_granted_it(friend: Migrated) -> None:
    """From PostgreSQL 16 on, REVOKE by another grantor only warns."""
    friend.database.execute("GRANT tenants_admin, tenant_acme TO app", login="owner")
    friend.run(
        ops.RevokeMembershipOp("tenants_admin", "app"),
        ops.RevokeTenantRoleOp("acme", ("app",)),
    )
    assert not member(friend.database, "tenants_admin", "app")
    assert not member(friend.database, "tenant_acme", "app")


def test_membership_of_a_grantor_out_of_reach_is_an_error(friend: Migrated) -> None:
    if friend.database.server.version < 16:
        pytest.skip("PostgreSQL 15 revokes it")
    friend.database.execute("REVOKE friend FROM owner")
    for op in (
        ops.RevokeMembershipOp("tenants_admin", "app"),
        ops.RevokeTenantRoleOp("acme", ("app",)),
    ):
        with pytest.raises(DBAPIError, match="permission denied to revoke"):
            friend.run(op)


@pytest.mark.parametrize("admin", [True, False])
@pytest.mark.parametrize(("inherit", "set_role"), [(True, False), (False, True)])
def test_options_and_grantor_are_restored(
    friend: Migrated, inherit: bool, set_role: bool, admin: bool
) -> None:
    options, grantor, login = "", None, "owner"
    if friend.database.server.version >= 16:
        options = f" WITH INHERIT {inherit}, SET {set_role}, ADMIN {admin}"
        grantor, login = "friend", "superuser"
    elif admin:
        options = " WITH ADMIN OPTION"
    friend.database.execute(
        f"CREATE ROLE tenant_globex; {'SET ROLE friend;' if grantor else ''}"
        f"GRANT tenant_acme TO tenant_globex {options}",
        login=login,
    )
    op = ops.RevokeMembershipOp(
        "tenant_acme",
        "tenant_globex",
        inherit_option=inherit,
        set_option=set_role,
        admin_option=admin,
        granted_by=grantor,
    )
    friend.assert_undone(op)
    assert not member(friend.database, "tenant_acme", "tenant_globex")


def test_what_two_grantors_granted_is_restored(friend: Migrated) -> None:
    if friend.database.server.version < 16:
        pytest.skip("PostgreSQL 15 has one grantor of a membership")
    friend.database.execute("GRANT tenant_acme TO app", login="owner")
    friend.assert_undone(
        *(
            ops.RevokeMembershipOp(
                "tenant_acme", "app", inherit_option=False, granted_by=grantor
            )
            for grantor in ("owner", "friend")
        )
    )
    assert not member(friend.database, "tenant_acme", "app")


def test_a_member_that_did_not_inherit_does_not_again(here: Migrated) -> None:
    if here.database.server.version < 16:
        pytest.skip("PostgreSQL 15 has no INHERIT of a membership")
    here.database.execute(
        "GRANT tenants_admin TO app WITH INHERIT FALSE", login="owner"
    )
    here.assert_undone(ops.GrantMembershipOp("tenants_admin", "app"))
    assert member(here.database, "tenants_admin", "app", "USAGE")


# --- policies ------------------------------------------------------------------------


def test_the_comment_of_a_policy_comes_back(
    database: Database, make_engine: Callable[..., Engine]
) -> None:
    from sqlalchemy_tenants import Policy

    database.execute(
        "CREATE TABLE t (id integer); CREATE POLICY p ON t USING (id > 0);"
        "COMMENT ON POLICY p ON t IS 'it''s 50%'",
        login="owner",
    )
    here = Migrated(database)
    op = ops.DropPolicyOp(Policy("p", using="id > 0"), "t", comment="it's 50%")
    before = snapshot(database)
    here.run(op)
    assert snapshot(database) != before
    here.undo(op)
    assert snapshot(database) == before
