"""DDL elements: the SQL of roles, functions, policies and privileges, one place each.

Each element is one statement, because asyncpg prepares one statement at a time, and
works with Alembic's ``--sql``, because nothing is asked of the database first: what
depends on its state is decided by the server, in a ``DO`` block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import String
from sqlalchemy.exc import CompileError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from .policies import Policy, quote_name, quote_qualified
from .tenancy import FUNCTION_NAME, Tenancy

#: Comment on group roles and schema that these elements created: only what carries it
#: is dropped again, so that what was there before survives.
OWNED_COMMENT = "created by sqlalchemy-tenants"


class TenancyDDL(ExecutableDDLElement):
    """Base of all elements here; other dialects than PostgreSQL refuse them."""


class CreateGroupRole(TenancyDDL):
    """``CREATE ROLE``, unless the cluster has the role already.

    :param member_of: a role whose privileges it shares.
    """

    def __init__(self, role: str, *, member_of: str | None = None) -> None:
        self.role = role
        self.member_of = member_of


class DropGroupRole(TenancyDDL):
    """``DROP ROLE``, unless it was there before or another database depends on it.

    :param keep_members: leave the role while roles with this prefix are its members:
        the tenants that were created at run time, which would cease to be tenants.
    """

    def __init__(self, role: str, *, keep_members: str | None = None) -> None:
        self.role = role
        self.keep_members = keep_members


class GrantAdminRole(TenancyDDL):
    """Make the role that runs the migrations see all rows.

    Under ``FORCE`` a table's owner who is subject to the policies would backfill 0
    rows, and validate foreign keys over orphans, without an error.
    """

    def __init__(self, role: str) -> None:
        self.role = role


class CreateTenancySchema(TenancyDDL):
    """``CREATE SCHEMA``, unless it exists."""

    def __init__(self, schema: str) -> None:
        self.schema = schema


class DropTenancySchema(TenancyDDL):
    """``DROP SCHEMA``, unless it was there before or holds something else."""

    def __init__(self, schema: str) -> None:
        self.schema = schema


class CreateTenantFunction(TenancyDDL):
    """``CREATE OR REPLACE FUNCTION current_tenant()``."""

    def __init__(self, tenancy: Tenancy) -> None:
        self.tenancy = tenancy


class ReplaceTenantFunction(TenancyDDL):
    """``CREATE OR REPLACE FUNCTION``, spelled out.

    :param definition: as ``pg_get_functiondef`` prints it.
    """

    def __init__(self, definition: str) -> None:
        self.definition = definition


class DropTenantFunction(TenancyDDL):
    """``DROP FUNCTION current_tenant()``; fails while a policy asks it."""

    def __init__(self, schema: str) -> None:
        self.schema = schema


class CreateTenantRole(TenancyDDL):
    """``CREATE ROLE`` of a tenant.

    :param tolerant: accept a role that exists, as a migration must: roles belong to
        the cluster.
    """

    def __init__(self, role: str, *, tenants_role: str, tolerant: bool) -> None:
        self.role = role
        self.tenants_role = tenants_role
        self.tolerant = tolerant


class DropTenantRole(TenancyDDL):
    """``DROP ROLE`` of a tenant.

    :param tolerant: accept that it is gone, and leave it while another database
        depends on it.
    """

    def __init__(self, role: str, *, tolerant: bool) -> None:
        self.role = role
        self.tolerant = tolerant


class GrantTenantRole(TenancyDDL):
    """Let a login act as a tenant without inheriting its privileges.

    PostgreSQL 15 knows no ``WITH INHERIT FALSE``; there a login that inherits is
    refused, because it would fall under the tenants' policies while it acts as itself.

    :param login: ``None`` for the current user, skipped on 15 where it inherits.
    """

    def __init__(self, role: str, login: str | None) -> None:
        self.role = role
        self.login = login


class ChangeMembership(TenancyDDL):
    """``GRANT`` or ``REVOKE`` of a role's membership in a group role."""

    def __init__(self, group: str, member: str, *, grant: bool) -> None:
        self.group = group
        self.member = member
        self.grant = grant


class EnableRLS(TenancyDDL):
    """``ALTER TABLE … ENABLE ROW LEVEL SECURITY``, or ``DISABLE``."""

    def __init__(self, table: str, schema: str | None, *, enable: bool) -> None:
        self.table = table
        self.schema = schema
        self.enable = enable


class ForceRLS(TenancyDDL):
    """``ALTER TABLE … FORCE ROW LEVEL SECURITY``, or ``NO FORCE``."""

    def __init__(self, table: str, schema: str | None, *, force: bool) -> None:
        self.table = table
        self.schema = schema
        self.force = force


class CreatePolicy(TenancyDDL):
    """``CREATE POLICY``."""

    def __init__(self, policy: Policy, table: str, schema: str | None) -> None:
        self.policy = policy
        self.table = table
        self.schema = schema


class AlterPolicy(TenancyDDL):
    """``ALTER POLICY``: roles and expressions; ``None`` leaves as it is."""

    def __init__(
        self,
        name: str,
        table: str,
        schema: str | None,
        *,
        using: str | None,
        with_check: str | None,
        roles: Sequence[str] | None,
    ) -> None:
        self.name = name
        self.table = table
        self.schema = schema
        self.using = using
        self.with_check = with_check
        self.roles = roles


class DropPolicy(TenancyDDL):
    """``DROP POLICY``."""

    def __init__(self, name: str, table: str, schema: str | None) -> None:
        self.name = name
        self.table = table
        self.schema = schema


class ChangePrivileges(TenancyDDL):
    """``GRANT`` or ``REVOKE`` on a table, a sequence or a schema.

    :param object_type: ``"TABLE"``, ``"SEQUENCE"`` or ``"SCHEMA"``.
    :param columns: restrict table privileges to columns; for a sequence, the one
        column that owns it, and ``name`` is the table's.
    """

    def __init__(
        self,
        name: str,
        schema: str | None,
        *,
        grant: bool,
        privileges: Sequence[str],
        roles: Sequence[str],
        object_type: str,
        columns: Sequence[str],
    ) -> None:
        self.name = name
        self.schema = schema
        self.grant = grant
        self.privileges = privileges
        self.roles = roles
        self.object_type = object_type
        self.columns = columns


@compiles(TenancyDDL)
def _refuse(element: TenancyDDL, compiler: DDLCompiler, **kw: Any) -> str:
    raise CompileError(
        f"{type(element).__name__} needs PostgreSQL; {compiler.dialect.name} has no "
        f"row-level security"
    )


@compiles(CreateGroupRole, "postgresql")
def _create_group_role(
    element: CreateGroupRole, compiler: DDLCompiler, **kw: Any
) -> str:
    role = _name(compiler, element.role)
    lines = [
        "BEGIN",
        f"  CREATE ROLE {role} NOLOGIN;",
        f"  COMMENT ON ROLE {role} IS {_literal(compiler, OWNED_COMMENT)};",
        "EXCEPTION WHEN duplicate_object OR unique_violation THEN",
        _notice(compiler, f"role {element.role} exists"),
        "END;",
    ]
    if element.member_of is not None:
        # GRANT to a member that is one already only gives a notice
        lines += [f"GRANT {_name(compiler, element.member_of)} TO {role};"]
    return _do(compiler, lines)


@compiles(DropGroupRole, "postgresql")
def _drop_group_role(element: DropGroupRole, compiler: DDLCompiler, **kw: Any) -> str:
    role, literal = _name(compiler, element.role), _literal(compiler, element.role)
    lines = [
        "IF NOT EXISTS (",
        "  SELECT FROM pg_catalog.pg_roles r",
        f"  WHERE r.rolname = {literal}",
        "  AND pg_catalog.shobj_description(r.oid, 'pg_authid') = "
        f"{_literal(compiler, OWNED_COMMENT)}",
        ") THEN",
        _notice(compiler, f"role {element.role} was not created here, left alone"),
        "  RETURN;",
        "END IF;",
    ]
    if element.keep_members is not None:
        lines += [
            "IF EXISTS (",
            "  SELECT FROM pg_catalog.pg_auth_members m",
            "  JOIN pg_catalog.pg_roles r ON r.oid = m.roleid",
            "  JOIN pg_catalog.pg_roles t ON t.oid = m.member",
            f"  WHERE r.rolname = {literal}",
            "  AND pg_catalog.starts_with("
            f"t.rolname, {_literal(compiler, element.keep_members)})",
            ") THEN",
            _notice(compiler, f"role {element.role} has tenants, left alone"),
            "  RETURN;",
            "END IF;",
        ]
    lines += [
        f"DROP ROLE {role};",
        "EXCEPTION WHEN dependent_objects_still_exist THEN",
        _notice(compiler, f"role {element.role} is in use, left alone"),
    ]
    return _do(compiler, lines)


@compiles(GrantAdminRole, "postgresql")
def _grant_admin_role(element: GrantAdminRole, compiler: DDLCompiler, **kw: Any) -> str:
    # inside a literal: names as PostgreSQL reads them, whatever the paramstyle
    grant = f"GRANT {quote_name(element.role)} TO CURRENT_USER"
    with_inherit = _literal(compiler, f"{grant} WITH INHERIT TRUE")
    return _do(
        compiler,
        [
            # USAGE: it is a superuser or inherits already
            "IF NOT pg_catalog.pg_has_role("
            f"current_user, {_literal(compiler, element.role)}, 'USAGE') THEN",
            "  IF current_setting('server_version_num')::integer >= 160000 THEN",
            f"    EXECUTE {with_inherit};",  # 15 could not parse it
            "  ELSE",
            f"    EXECUTE {_literal(compiler, grant)};",
            "  END IF;",
            "END IF;",
        ],
    )


@compiles(CreateTenancySchema, "postgresql")
def _create_schema(
    element: CreateTenancySchema, compiler: DDLCompiler, **kw: Any
) -> str:
    schema = _name(compiler, element.schema)
    literal = _literal(compiler, element.schema)
    return _do(
        compiler,
        [
            f"IF pg_catalog.to_regnamespace(pg_catalog.quote_ident({literal})) "
            "IS NULL THEN",
            f"  CREATE SCHEMA {schema};",
            f"  COMMENT ON SCHEMA {schema} IS {_literal(compiler, OWNED_COMMENT)};",
            "END IF;",
        ],
    )


@compiles(DropTenancySchema, "postgresql")
def _drop_schema(element: DropTenancySchema, compiler: DDLCompiler, **kw: Any) -> str:
    schema, literal = (
        _name(compiler, element.schema),
        _literal(compiler, element.schema),
    )
    return _do(
        compiler,
        [
            "IF pg_catalog.obj_description(pg_catalog.to_regnamespace("
            f"pg_catalog.quote_ident({literal})), 'pg_namespace') = "
            f"{_literal(compiler, OWNED_COMMENT)} THEN",
            f"  DROP SCHEMA {schema};",
            "END IF;",
            "EXCEPTION WHEN dependent_objects_still_exist THEN",
            _notice(compiler, f"schema {element.schema} is in use, left alone"),
        ],
    )


@compiles(CreateTenantFunction, "postgresql")
def _create_function(
    element: CreateTenantFunction, compiler: DDLCompiler, **kw: Any
) -> str:
    tenancy = element.tenancy
    prefix, setting = (
        _literal(compiler, value) for value in (tenancy.role_prefix, tenancy.setting)
    )
    readers = ", ".join(
        _literal(compiler, role) for role in (tenancy.shared_role, tenancy.admin_role)
    )
    name = _qualified(compiler, tenancy.schema, FUNCTION_NAME)
    start = len(tenancy.role_prefix) + 1
    # RETURN is parsed now, so no search_path changes its meaning later; for a
    # tenant's role the setting is never looked at
    return (
        f"CREATE OR REPLACE FUNCTION {name}()"
        " RETURNS text LANGUAGE sql STABLE PARALLEL SAFE\n"
        "RETURN CASE\n"
        f"  WHEN starts_with(current_user::text, {prefix})"
        f" THEN nullif(substr(current_user::text, {start}), '')\n"
        f"  WHEN current_user::text IN ({readers})"
        f" THEN nullif(current_setting({setting}, true), '')\n"
        "END"
    )


@compiles(ReplaceTenantFunction, "postgresql")
def _replace_function(
    element: ReplaceTenantFunction, compiler: DDLCompiler, **kw: Any
) -> str:
    return _expression(compiler, element.definition)


@compiles(DropTenantFunction, "postgresql")
def _drop_function(
    element: DropTenantFunction, compiler: DDLCompiler, **kw: Any
) -> str:
    return f"DROP FUNCTION {_qualified(compiler, element.schema, FUNCTION_NAME)}()"


@compiles(CreateTenantRole, "postgresql")
def _create_tenant_role(
    element: CreateTenantRole, compiler: DDLCompiler, **kw: Any
) -> str:
    role = _name(compiler, element.role)
    group = _name(compiler, element.tenants_role)
    create = f"CREATE ROLE {role} NOLOGIN IN ROLE {group}"
    if not element.tolerant:
        return create
    literal = _literal(compiler, element.role)
    return _do(
        compiler,
        [
            f"{create};",
            "EXCEPTION WHEN duplicate_object OR unique_violation THEN",
            # somebody's account must not become a tenant by its name
            "  IF EXISTS (SELECT FROM pg_catalog.pg_roles"
            f" WHERE rolname = {literal}"
            " AND (rolsuper OR rolbypassrls OR rolcreaterole)) THEN",
            "    RAISE EXCEPTION USING ERRCODE = 'duplicate_object', MESSAGE = "
            + _literal(
                compiler, f"role {element.role} is no tenant: it may bypass policies"
            )
            + ", HINT = 'Rename that role, or choose another role prefix.';",
            "  END IF;",
            f"  GRANT {group} TO {role};",
        ],
    )


@compiles(DropTenantRole, "postgresql")
def _drop_tenant_role(element: DropTenantRole, compiler: DDLCompiler, **kw: Any) -> str:
    role = _name(compiler, element.role)
    if not element.tolerant:
        return f"DROP ROLE {role}"
    return _do(
        compiler,
        [
            f"DROP ROLE IF EXISTS {role};",
            "EXCEPTION WHEN dependent_objects_still_exist THEN",
            _notice(compiler, f"role {element.role} is in use, left alone"),
        ],
    )


@compiles(GrantTenantRole, "postgresql")
def _grant_tenant_role(
    element: GrantTenantRole, compiler: DDLCompiler, **kw: Any
) -> str:
    role = quote_name(element.role)
    if element.login is None:
        grantee = name = "current_user"
        inherits = "NULL;"
    else:
        grantee, name = quote_name(element.login), _literal(compiler, element.login)
        message = f"login {element.login} inherits the privileges of its roles"
        inherits = (
            "RAISE EXCEPTION USING ERRCODE = 'invalid_grant_operation', MESSAGE = "
            + _literal(compiler, message)
            + ", HINT = 'PostgreSQL 15 cannot switch that off for one role: "
            "run ALTER ROLE … NOINHERIT first.';"
        )
    grant = f"GRANT {role} TO {grantee}"
    without_inherit = _literal(compiler, f"{grant} WITH INHERIT FALSE, SET TRUE")
    return _do(
        compiler,
        [
            f"IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = {name})"
            " THEN",
            "  NULL;  -- a superuser acts as any role",
            "ELSIF current_setting('server_version_num')::integer >= 160000 THEN",
            f"  EXECUTE {without_inherit};",  # 15 could not parse it
            f"ELSIF (SELECT rolinherit FROM pg_catalog.pg_roles WHERE rolname = {name})"
            " THEN",
            f"  {inherits}",
            "ELSE",
            f"  EXECUTE {_literal(compiler, grant)};",
            "END IF;",
        ],
    )


@compiles(ChangeMembership, "postgresql")
def _change_membership(
    element: ChangeMembership, compiler: DDLCompiler, **kw: Any
) -> str:
    group, member = _name(compiler, element.group), _name(compiler, element.member)
    return (
        f"GRANT {group} TO {member}"
        if element.grant
        else (f"REVOKE {group} FROM {member}")
    )


@compiles(EnableRLS, "postgresql")
def _enable_rls(element: EnableRLS, compiler: DDLCompiler, **kw: Any) -> str:
    verb = "ENABLE" if element.enable else "DISABLE"
    table = _qualified(compiler, element.schema, element.table)
    return f"ALTER TABLE {table} {verb} ROW LEVEL SECURITY"


@compiles(ForceRLS, "postgresql")
def _force_rls(element: ForceRLS, compiler: DDLCompiler, **kw: Any) -> str:
    verb = "FORCE" if element.force else "NO FORCE"
    table = _qualified(compiler, element.schema, element.table)
    return f"ALTER TABLE {table} {verb} ROW LEVEL SECURITY"


@compiles(CreatePolicy, "postgresql")
def _create_policy(element: CreatePolicy, compiler: DDLCompiler, **kw: Any) -> str:
    policy = element.policy
    text = (
        f"CREATE POLICY {_name(compiler, policy.name)}"
        f" ON {_qualified(compiler, element.schema, element.table)}"
    )
    if not policy.permissive:
        text += " AS RESTRICTIVE"
    text += f" FOR {policy.command}"
    if policy.roles is not None:
        text += f" TO {_grantees(compiler, policy.roles)}"
    return text + _conditions(compiler, policy.using, policy.with_check)


@compiles(AlterPolicy, "postgresql")
def _alter_policy(element: AlterPolicy, compiler: DDLCompiler, **kw: Any) -> str:
    text = (
        f"ALTER POLICY {_name(compiler, element.name)}"
        f" ON {_qualified(compiler, element.schema, element.table)}"
    )
    if element.roles is not None:
        text += f" TO {_grantees(compiler, element.roles)}"
    return text + _conditions(compiler, element.using, element.with_check)


@compiles(DropPolicy, "postgresql")
def _drop_policy(element: DropPolicy, compiler: DDLCompiler, **kw: Any) -> str:
    return (
        f"DROP POLICY {_name(compiler, element.name)}"
        f" ON {_qualified(compiler, element.schema, element.table)}"
    )


@compiles(ChangePrivileges, "postgresql")
def _change_privileges(
    element: ChangePrivileges, compiler: DDLCompiler, **kw: Any
) -> str:
    verb, preposition = ("GRANT", "TO") if element.grant else ("REVOKE", "FROM")
    privileges = ", ".join(element.privileges)
    roles = _grantees(compiler, element.roles)
    if element.object_type == "SEQUENCE" and element.columns:
        # the server knows the name of a serial column's sequence: it may have cut it.
        # Inside literals: names as PostgreSQL reads them, whatever the paramstyle
        table = _literal(compiler, quote_qualified(element.schema, element.name))
        column = _literal(compiler, element.columns[0])
        grantees = ", ".join(map(_grantee, element.roles))
        return _do(
            compiler,
            [
                f"EXECUTE '{verb} {privileges} ON SEQUENCE '"
                f" || pg_catalog.pg_get_serial_sequence({table}, {column})"
                f" || {_literal(compiler, f' {preposition} {grantees}')};"
            ],
        )
    if element.columns:
        columns = ", ".join(_name(compiler, column) for column in element.columns)
        privileges = ", ".join(f"{p} ({columns})" for p in element.privileges)
    target = (
        _name(compiler, element.name)
        if element.object_type == "SCHEMA"
        else _qualified(compiler, element.schema, element.name)
    )
    return (
        f"{verb} {privileges} ON {element.object_type} {target} {preposition} {roles}"
    )


def _name(compiler: DDLCompiler, name: str) -> str:
    return compiler.preparer.quote(name)


def _qualified(compiler: DDLCompiler, schema: str | None, name: str) -> str:
    if schema is None:
        return _name(compiler, name)
    return f"{compiler.preparer.quote_schema(schema)}.{_name(compiler, name)}"


def _literal(compiler: DDLCompiler, value: str) -> str:
    return compiler.sql_compiler.render_literal_value(value, String())


def _grantee(role: str) -> str:
    # PUBLIC is a keyword here, and no role can have that name
    return "PUBLIC" if role == "public" else quote_name(role)


def _grantees(compiler: DDLCompiler, roles: Iterable[str]) -> str:
    return _expression(compiler, ", ".join(map(_grantee, roles)))


def _conditions(
    compiler: DDLCompiler, using: str | None, with_check: str | None
) -> str:
    text = ""
    if using is not None:
        text += f" USING ({_expression(compiler, using)})"
    if with_check is not None:
        text += f" WITH CHECK ({_expression(compiler, with_check)})"
    return text


def _expression(compiler: DDLCompiler, expression: str) -> str:
    # doubles percent signs where the driver's paramstyle needs it
    text: str = compiler.sql_compiler.post_process_text(  # type: ignore[no-untyped-call]
        expression
    )
    return text


def _notice(compiler: DDLCompiler, message: str) -> str:
    # MESSAGE instead of a format, whose percent sign the paramstyle might double
    return f"  RAISE NOTICE USING MESSAGE = {_literal(compiler, message)};"


def _do(compiler: DDLCompiler, lines: Sequence[str]) -> str:
    """Return a ``DO`` block with ``lines`` in its body."""
    body = "\n".join(f"  {line}" for line in lines)
    tag = "$tenancy$"
    while tag in body:
        tag = tag[:-1] + "_$"
    return f"DO {tag}\nBEGIN\n{body}\nEND {tag}"
