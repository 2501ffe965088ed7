"""Operations: as source, reversed, in a file, and applied directly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.operations.ops import UpgradeOps
from sqlalchemy import Engine, text
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError

from alembic_ext import ops
from alembic_ext.ops import (
    AlterGroupRoleOp,
    AlterPolicyOp,
    AlterTableOwnerOp,
    CreateGroupRoleOp,
    CreatePolicyOp,
    CreateTenancyOp,
    CreateTenantRoleOp,
    DisableRLSOp,
    EnableRLSOp,
    GrantMembershipOp,
    GrantPrivilegesOp,
    GrantTenantRoleOp,
    ReplaceTenantFunctionOp,
    RevokeMembershipOp,
    RevokePrivilegesOp,
    RevokeTenantRoleOp,
    TenancyOp,
)
from projects import snapshot
from servers import Database
from sqlalchemy_tenants import Policy, Tenancy
from sqlalchemy_tenants.database.expected import Expected

LONG = " AND ".join(
    ["(tenant = (SELECT tenancy.current_tenant()) OR \"Q\" = 'x''y' OR item IN ('a'))"]
    * 3
)
DEFINITION = (
    Expected(Tenancy()).functions["current_tenant"].replace("STABLE", "VOLATILE")
)
FUNCTION = Expected(Tenancy()).functions["current_tenant"]

# in an order in which they can be executed, and reversed
OPERATIONS: list[TenancyOp] = [
    CreateTenancyOp(Tenancy()),
    CreateTenancyOp(
        Tenancy(
            role_prefix="t'%_",
            tenants_role="The Tenants",
            shared_role='s"h',
            admin_role="ad%(m)s",
            schema="My schema",
            setting="app.tenant",
        )
    ),
    CreateGroupRoleOp("more", member_of="tenants"),
    CreateGroupRoleOp("admins", admin=True),
    AlterGroupRoleOp("more", login=True, create_db=True, inherit=False),
    GrantMembershipOp("more", "app"),
    GrantMembershipOp("admins", "app", inherit_option=False, admin_option=True),
    RevokeMembershipOp("admins", "app", inherit_option=False, admin_option=True),
    ReplaceTenantFunctionOp("tenancy", DEFINITION, existing=FUNCTION),
    CreateTenantRoleOp("a'c\"me %", logins=("app",)),
    CreateTenantRoleOp("x", role_prefix="t_", tenants_role="The Tenants"),
    GrantTenantRoleOp("a'c\"me %", ("app_shared",)),
    RevokeTenantRoleOp("a'c\"me %", ("app", "app_shared", "gone")),
    EnableRLSOp("t"),
    EnableRLSOp("Table", schema="Sch%ema", force=False, existing=(True, True)),
    DisableRLSOp("t"),
    DisableRLSOp("t", force=True, existing=(False, False)),
    CreatePolicyOp(Policy("p", using="true"), "t"),
    CreatePolicyOp(
        Policy(
            "P o%l'i\"cy",
            using="item = '100%' AND item <> ':x'",
            with_check="id > 0",
            command="UPDATE",
            permissive=False,
            roles=["tenants", "PUBLIC"],
        ),
        "Table",
        schema="Sch%ema",
    ),
    CreatePolicyOp(Policy("long", using=LONG), "t"),
    CreatePolicyOp(Policy("c", using="id > 5 -- %few"), "t", comment="it's 50%\\n"),
    AlterTableOwnerOp("Table", "owner", schema="Sch%ema", existing_owner="superuser"),
    AlterPolicyOp("p", "t", roles=["tenants"], existing_roles=["public"]),
    AlterPolicyOp(
        "P o%l'i\"cy",
        "Table",
        schema="Sch%ema",
        using="id > 1",
        existing_using="item = '100%' AND item <> ':x'",
        with_check="id = 1",
        existing_with_check="id > 0",
    ),
    GrantPrivilegesOp("t", ["select", "INSERT"], ["tenants", "public"]),
    GrantPrivilegesOp("t", ["UPDATE"], ["app"], columns=["id", 'we"ird %']),
    GrantPrivilegesOp("t", "SELECT", "app", grant_option=True),
    RevokePrivilegesOp("t", "SELECT", "app", grant_option=True, before=True),
    RevokePrivilegesOp("t", "SELECT", "app"),
    GrantPrivilegesOp("t", ["TRUNCATE"], ["app"], granted_by="owner"),
    GrantPrivilegesOp("Table", ["USAGE"], ["app"], schema="Sch%ema",
                      object_type="SEQUENCE", columns=["id"]),
    GrantPrivilegesOp("Table_id_seq", ["SELECT"], ["app"], schema="Sch%ema",
                      object_type="SEQUENCE"),
    GrantPrivilegesOp("Sch%ema", ["USAGE", "CREATE"], ["app"], object_type="SCHEMA"),
    GrantPrivilegesOp(None, ["CREATE"], ["app"], object_type="SCHEMA"),
    GrantPrivilegesOp("current_tenant", ["EXECUTE"], ["app"], schema="tenancy",
                      object_type="FUNCTION"),
    GrantPrivilegesOp('"To%tal"(integer,"Sch%ema"."Table")', ["EXECUTE"], ["app"],
                      schema="Sch%ema", object_type="FUNCTION"),
    GrantPrivilegesOp("p(text)", "EXECUTE", "app", schema="Sch%ema",
                      object_type="FUNCTION"),
    GrantPrivilegesOp(None, ["SELECT"], ["app"], object_type="DEFAULT TABLES"),
    GrantPrivilegesOp("Sch%ema", "USAGE", "app", object_type="DEFAULT SEQUENCES"),
    RevokePrivilegesOp(None, "EXECUTE", "public", object_type="DEFAULT FUNCTIONS"),
    GrantPrivilegesOp("Sch%ema", "USAGE", "app", object_type="DEFAULT TYPES"),
    GrantPrivilegesOp(None, "CREATE", "app", object_type="DEFAULT SCHEMAS"),
    GrantPrivilegesOp("Sch%ema", ["SELECT", "DELETE"], ["app"],
                      object_type="DEFAULT TABLES", granted_by="owner"),
    GrantPrivilegesOp("t", ["SELECT"], [f"role_{i:02}" for i in range(20)]),
]  # fmt: skip

TABLES = """
CREATE TABLE t (id integer, tenant text, item text, "Q" text, "we""ird %" text);
CREATE SCHEMA "Sch%ema";
CREATE TABLE "Sch%ema"."Table" (id serial, item text);
CREATE FUNCTION "Sch%ema"."To%tal"(integer, "Sch%ema"."Table") RETURNS integer
LANGUAGE sql AS 'SELECT $1';
CREATE PROCEDURE "Sch%ema".p(text) LANGUAGE sql AS 'SELECT 1';
ALTER TABLE "Sch%ema"."Table" ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
"""


def source(operations: list[TenancyOp]) -> str:
    return render_python_code(UpgradeOps(operations))


class Recorder(Operations):
    """``op``, as a migration's source sees it, which keeps what it is given."""

    def __init__(self) -> None:
        super().__init__(MigrationContext.configure(dialect_name="postgresql"))
        self.operations: list[TenancyOp] = []

    def invoke(self, operation: Any) -> Any:
        self.operations.append(operation)


def same(a: TenancyOp, b: TenancyOp) -> bool:
    return type(a) is type(b) and a.arguments() == b.arguments()


BOTH_WAYS = [*OPERATIONS, *(op.reverse() for op in OPERATIONS)]


def test_every_operation_is_tested() -> None:
    def leaves(cls: type[Any]) -> set[type[Any]]:
        found = {leaf for each in cls.__subclasses__() for leaf in leaves(each)}
        return found or {cls}

    assert {type(op) for op in BOTH_WAYS} == leaves(TenancyOp)
    for cls in leaves(TenancyOp):
        assert hasattr(Operations, cls.directive)


@pytest.mark.parametrize("op", BOTH_WAYS, ids=lambda op: op.directive)
def test_source_makes_an_equal_operation(op: TenancyOp) -> None:
    recorder = Recorder()
    exec(f"if True:\n    {source([op])}", {"op": recorder})
    (made,) = recorder.operations
    assert same(made, op)


@pytest.mark.parametrize("op", BOTH_WAYS, ids=lambda op: op.directive)
def test_reverse_of_the_reverse_is_the_operation(op: TenancyOp) -> None:
    reverse = op.reverse()
    assert isinstance(reverse, TenancyOp)
    assert not same(reverse, op)
    again = reverse.reverse()
    assert isinstance(again, TenancyOp)
    assert same(again, op)
    assert same(again.reverse(), reverse)


@pytest.mark.parametrize("op", BOTH_WAYS, ids=lambda op: op.directive)
def test_difference_can_be_printed(op: TenancyOp) -> None:
    assert repr(op.to_diff_tuple()).startswith(f"('{op.directive}'")


@pytest.mark.parametrize("style", ["preserve", "single"])
def test_source_is_formatted_as_ruff_would(tmp_path: Path, style: str) -> None:
    body = source(BOTH_WAYS)
    path = tmp_path / "migration.py"
    path.write_text(f"def upgrade() -> None:\n    {body}\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ruff", "format", "--isolated", "--diff"),
            *("--config", f"format.quote-style = '{style}'", path),
        ],
        capture_output=True,
        text=True,
    )
    assert done.stdout == ""
    assert "1 file already formatted" in done.stderr
    assert len(max(body.splitlines(), key=len)) <= 88


def test_applied_directly_and_by_script_and_back(
    database: Database, make_engine: Callable[..., Engine]
) -> None:
    """The server takes each of them, and each reverse takes it back."""
    database.execute(TABLES)
    database.execute("".join(f"CREATE ROLE role_{i:02};" for i in range(20)))
    database.execute("ALTER TABLE t OWNER TO owner")
    engine = make_engine(database.superuser_url)
    states = [snapshot(database)]
    for op in OPERATIONS:
        with engine.begin() as connection:
            Operations(MigrationContext.configure(connection)).invoke(op)
        states.append(snapshot(database))
    for op, state in zip(reversed(OPERATIONS), states[-2::-1], strict=True):
        if isinstance(op, RevokePrivilegesOp):
            state = None  # what was there before is said by the operation alone
        with engine.begin() as connection:
            Operations(MigrationContext.configure(connection)).invoke(op.reverse())
        assert state is None or snapshot(database) == state, op.directive

    # the same offline: one script
    for operations, expected in (
        (OPERATIONS, states[-1]),
        ([op.reverse() for op in reversed(OPERATIONS)], states[0]),
    ):
        script = StringIO()
        context = MigrationContext.configure(
            dialect_name="postgresql",
            dialect_opts={"paramstyle": "named"},
            opts={"as_sql": True, "output_buffer": script},
        )
        for op in operations:
            Operations(context).invoke(op)
        with engine.connect() as connection:
            raw = connection.connection.cursor()
            raw.execute(script.getvalue())
            connection.connection.commit()
        assert snapshot(database) == expected


@pytest.mark.parametrize("op", OPERATIONS, ids=lambda op: op.directive)
def test_other_databases_refuse(op: TenancyOp) -> None:
    context = MigrationContext.configure(
        dialect=sqlite.dialect(),
        opts={"as_sql": True, "output_buffer": StringIO()},
    )
    with pytest.raises(Exception, match="needs PostgreSQL; sqlite has no row-level"):
        Operations(context).invoke(op)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("t", ["SELEKT"], ["app"]), "privilege 'SELEKT' is none of"),
        (("t", [], ["app"]), "name privileges and roles"),
        (("t", ["SELECT"], []), "name privileges and roles"),
        ((None, ["SELECT"], ["app"]), "name the TABLE"),
    ],
)
def test_privileges_that_are_none(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.GrantPrivilegesOp(*arguments)
    with pytest.raises(ValueError, match="is none of TABLE"):
        ops.GrantPrivilegesOp("t", "SELECT", "app", object_type="VIEW")  # type: ignore[arg-type]


@pytest.mark.parametrize("right", ["SUPERUSER", "BYPASSRLS", "CREATEROLE"])
def test_an_account_with_rights_does_not_become_a_tenant(
    database: Database, make_engine: Callable[..., Engine], right: str
) -> None:
    database.execute(f"CREATE ROLE tenants; CREATE ROLE tenant_acme {right}")
    with make_engine(database.superuser_url).connect() as connection:
        op = Operations(MigrationContext.configure(connection))
        with pytest.raises(DBAPIError, match="role tenant_acme is no tenant"):
            op.create_tenant_role("acme")


def test_a_tenant_of_a_migration_is_not_inherited_from(
    database: Database, make_engine: Callable[..., Engine]
) -> None:
    database.execute("CREATE ROLE tenants; CREATE ROLE inheriting LOGIN INHERIT")
    with make_engine(database.superuser_url).begin() as connection:
        op = Operations(MigrationContext.configure(connection))
        if database.server.version < 16:
            with pytest.raises(DBAPIError, match="inheriting inherits the privileges"):
                op.create_tenant_role("acme", logins=["inheriting"])
            return
        op.create_tenant_role("acme", logins=["inheriting"])
        roles = ("MEMBER", "USAGE")
        query = text("SELECT pg_has_role('inheriting', 'tenant_acme', :how)")
        has = [connection.scalar(query, {"how": how}) for how in roles]
    assert has == [True, False]


def test_expression_of_sqlalchemy_in_a_migration(
    database: Database, make_engine: Callable[..., Engine]
) -> None:
    from sqlalchemy import column

    database.execute("CREATE TABLE t (id integer, item text)", login="owner")
    with make_engine(database.owner_url).begin() as connection:
        op = Operations(MigrationContext.configure(connection))
        op.create_policy("p", "t", using=column("item").in_(["50%", "it's"]))
        printed = connection.scalar(
            text("SELECT pg_get_expr(polqual, polrelid) FROM pg_policy")
        )
    assert printed == "(item = ANY (ARRAY['50%'::text, 'it''s'::text]))"
