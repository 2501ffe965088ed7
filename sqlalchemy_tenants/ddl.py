"""DDL elements: the SQL of roles, functions, policies and privileges, one place each.

Each element is one statement, because asyncpg prepares one statement at a time, and
works with Alembic's ``--sql``, because nothing is asked of the database first: what
depends on its state is decided by the server, in a ``DO`` block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import String
from sqlalchemy.exc import CompileError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from .policies import (
    Policy,
    quote_dollar,
    quote_grantee,
    quote_name,
    quote_qualified,
    tenant_function_body,
)
from .tenancy import FUNCTION_NAME, Tenancy

#: Comment on group roles and schema that these elements created: only what carries it
#: is dropped again, so that what was there before survives.
OWNED_COMMENT = "created by sqlalchemy-tenants"


class TenancyDDL(ExecutableDDLElement):
    """Base of all elements here; other dialects than PostgreSQL refuse them."""


class CreateGroupRole(TenancyDDL):
    """``CREATE ROLE``, unless the cluster has the role already."""

    def __init__(self, role: str) -> None:
        self.role = role


class DropGroupRole(TenancyDDL):
    """``DROP ROLE``, unless it was there before or another database depends on it.

    :param keep_members: leave the role while roles with this prefix are its members:
        the tenants that were created at run time, which would cease to be tenants.
    :param needed_by: leave the role while any database depends on this role. Nothing
        in a database depends on the role that sessions of isolation "shared" act as.
    """

    def __init__(
        self,
        role: str,
        *,
        keep_members: str | None = None,
        needed_by: str | None = None,
    ) -> None:
        self.role = role
        self.keep_members = keep_members
        self.needed_by = needed_by


class AlterGroupRole(TenancyDDL):
    """``ALTER ROLE``, as in ``NOBYPASSRLS NOLOGIN``.

    :param attributes: by the names that :class:`.catalog.RoleState` has for them.
    """

    def __init__(self, role: str, attributes: Mapping[str, bool]) -> None:
        self.role = role
        self.attributes = attributes


class GrantGroupRole(TenancyDDL):
    """``GRANT`` of a group role to a member that inherits its privileges, unless it
    does already.

    The admin role is granted to the role that runs the migrations: under ``FORCE`` a
    table's owner who is subject to the policies would backfill 0 rows, and validate
    foreign keys over orphans, without an error.

    :param member: ``None`` for the current user.
    :param schema: schema of our function, whose comment then keeps that this was
        granted, where the group role was there before.
    """

    def __init__(
        self, group: str, member: str | None = None, *, schema: str | None = None
    ) -> None:
        self.group = group
        self.member = member
        self.schema = schema


class RevokeGroupRole(TenancyDDL):
    """``REVOKE`` of a group role.

    :param member: ``None`` for the current user.
    :param schema: revoke only if :class:`GrantGroupRole` noted its grant there.
    """

    def __init__(
        self, group: str, member: str | None = None, *, schema: str | None = None
    ) -> None:
        self.group = group
        self.member = member
        self.schema = schema


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


class GrantExecute(TenancyDDL):
    """``GRANT EXECUTE`` on our function, where PUBLIC may not execute it."""

    def __init__(self, schema: str, roles: Sequence[str]) -> None:
        self.schema = schema
        self.roles = roles


class AlterFunctionOwner(TenancyDDL):
    """``ALTER FUNCTION current_tenant() OWNER TO``."""

    def __init__(self, schema: str, owner: str) -> None:
        self.schema = schema
        self.owner = owner


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
    """``GRANT`` or ``REVOKE`` on a table, a sequence, a schema or a function, and
    ``ALTER DEFAULT PRIVILEGES`` for tables.

    :param object_type: ``"TABLE"``, ``"SEQUENCE"``, ``"SCHEMA"``, ``"FUNCTION"`` or
        ``"DEFAULT TABLES"``, where ``name`` is a schema or ``None``.
    :param columns: restrict table privileges to columns; for a sequence, the one
        column that owns it, and ``name`` is the table's.
    :param grant_option: ``WITH GRANT OPTION``, or ``GRANT OPTION FOR``.
    :param granted_by: act as this role, because a privilege is revoked by whom granted
        it; for default privileges, the role that creates the tables.
    """

    def __init__(
        self,
        name: str | None,
        schema: str | None = None,
        *,
        grant: bool,
        privileges: Sequence[str],
        roles: Sequence[str],
        object_type: str = "TABLE",
        columns: Sequence[str] = (),
        grant_option: bool = False,
        granted_by: str | None = None,
    ) -> None:
        self.name = name
        self.schema = schema
        self.grant = grant
        self.privileges = privileges
        self.roles = roles
        self.object_type = object_type
        self.columns = columns
        self.grant_option = grant_option
        self.granted_by = granted_by


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
    if element.needed_by is not None:
        lines += [
            "IF EXISTS (",
            "  SELECT FROM pg_catalog.pg_shdepend d",
            "  JOIN pg_catalog.pg_roles r ON r.oid = d.refobjid",
            "  WHERE d.refclassid = 'pg_catalog.pg_authid'::regclass",
            f"  AND r.rolname = {_literal(compiler, element.needed_by)}",
            ") THEN",
            _notice(compiler, f"role {element.role} is in use, left alone"),
            "  RETURN;",
            "END IF;",
        ]
    lines += [
        f"DROP ROLE {role};",
        *_unless_dropped(compiler, element.role),
    ]
    return _do(compiler, lines)


_ATTRIBUTES = {
    "superuser": "SUPERUSER",
    "bypass_rls": "BYPASSRLS",
    "login": "LOGIN",
    "inherit": "INHERIT",
    "create_role": "CREATEROLE",
    "create_db": "CREATEDB",
    "replication": "REPLICATION",
}


@compiles(AlterGroupRole, "postgresql")
def _alter_group_role(element: AlterGroupRole, compiler: DDLCompiler, **kw: Any) -> str:
    attributes = " ".join(
        ("" if value else "NO") + _ATTRIBUTES[name]
        for name, value in element.attributes.items()
    )
    alter = f"ALTER ROLE {_name(compiler, element.role)} {attributes};"
    # XX000, "tuple concurrently updated": another database's migration did it meanwhile
    return _do(compiler, [alter, "EXCEPTION WHEN internal_error THEN", f"  {alter}"])


@compiles(GrantGroupRole, "postgresql")
def _grant_group_role(element: GrantGroupRole, compiler: DDLCompiler, **kw: Any) -> str:
    group = _literal(compiler, element.group)
    member = _member(compiler, element.member)
    # inside a literal: names as PostgreSQL reads them, whatever the paramstyle
    grant = f"GRANT {quote_name(element.group)} TO {_grantee_of(element.member)}"
    note: list[str] = []
    if element.schema is not None:
        owned = _literal(compiler, OWNED_COMMENT)
        note = [
            "  IF pg_catalog.shobj_description("
            f"(SELECT oid FROM pg_catalog.pg_roles WHERE rolname = {group}),"
            f" 'pg_authid') IS DISTINCT FROM {owned} THEN",
            f"    EXECUTE {_literal(compiler, _comment_on(element.schema))}",
            "      || pg_catalog.quote_literal("
            f"coalesce({_noted(compiler, element.schema)}, '')"
            f" || {_note(compiler, element.group, member)});",
            "  END IF;",
        ]
    with_inherit = _literal(compiler, f"{grant} WITH INHERIT TRUE")
    return _do(
        compiler,
        [
            # a superuser, or a member that inherits
            f"IF NOT pg_catalog.pg_has_role({member}, {group}, 'USAGE') THEN",
            "  IF current_setting('server_version_num')::integer >= 160000 THEN",
            f"    EXECUTE {with_inherit};",  # 15 could not parse it
            "  ELSE",
            f"    EXECUTE {_literal(compiler, grant)};",
            "  END IF;",
            *note,
            "END IF;",
            *_unless_granted(compiler, group, member),
        ],
    )


@compiles(RevokeGroupRole, "postgresql")
def _revoke_group_role(
    element: RevokeGroupRole, compiler: DDLCompiler, **kw: Any
) -> str:
    revoke = (
        f"REVOKE {_name(compiler, element.group)} FROM "
        + ("CURRENT_USER" if element.member is None else "")
        + (_name(compiler, element.member) if element.member is not None else "")
    )
    if element.schema is None:
        return revoke
    note = _note(compiler, element.group, _member(compiler, element.member))
    noted = _noted(compiler, element.schema)
    return _do(
        compiler,
        [f"IF pg_catalog.strpos({noted}, {note}) > 0 THEN", f"  {revoke};", "END IF;"],
    )


def _member(compiler: DDLCompiler, member: str | None) -> str:
    return "current_user" if member is None else _literal(compiler, member)


def _grantee_of(member: str | None) -> str:
    return "CURRENT_USER" if member is None else quote_name(member)


def _note(compiler: DDLCompiler, group: str, member: str) -> str:
    return f"{_literal(compiler, f'granted {group} to ')} || {member} || '. '"


def _noted(compiler: DDLCompiler, schema: str) -> str:
    function = _literal(compiler, quote_qualified(schema, FUNCTION_NAME) + "()")
    return f"pg_catalog.obj_description({function}::pg_catalog.regprocedure, 'pg_proc')"


def _comment_on(schema: str) -> str:
    return f"COMMENT ON FUNCTION {quote_qualified(schema, FUNCTION_NAME)}() IS "


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
    name = _qualified(compiler, tenancy.schema, FUNCTION_NAME)
    body = quote_dollar(tenant_function_body(tenancy))
    return (
        f"CREATE OR REPLACE FUNCTION {name}()"
        " RETURNS text LANGUAGE plpgsql STABLE PARALLEL SAFE"
        f" AS {_expression(compiler, body)}"
    )


@compiles(ReplaceTenantFunction, "postgresql")
def _replace_function(
    element: ReplaceTenantFunction, compiler: DDLCompiler, **kw: Any
) -> str:
    return _expression(compiler, element.definition)


@compiles(GrantExecute, "postgresql")
def _grant_execute(element: GrantExecute, compiler: DDLCompiler, **kw: Any) -> str:
    function = f"{_qualified(compiler, element.schema, FUNCTION_NAME)}()"
    signature = _literal(
        compiler, quote_qualified(element.schema, FUNCTION_NAME) + "()"
    )
    lines = []
    for role in element.roles:
        literal = _literal(compiler, role)
        lines += [
            "IF NOT pg_catalog.has_function_privilege("
            f"{literal}, {signature}, 'EXECUTE') THEN",
            f"  GRANT EXECUTE ON FUNCTION {function} TO {_name(compiler, role)};",
            "END IF;",
        ]
    return _do(compiler, lines)


@compiles(AlterFunctionOwner, "postgresql")
def _alter_owner(element: AlterFunctionOwner, compiler: DDLCompiler, **kw: Any) -> str:
    function = f"{_qualified(compiler, element.schema, FUNCTION_NAME)}()"
    return f"ALTER FUNCTION {function} OWNER TO {_name(compiler, element.owner)}"


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
            "  BEGIN",
            f"    GRANT {group} TO {role};",
            *_unless_granted(
                compiler, _literal(compiler, element.tenants_role), literal
            ),
            "  END;",
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
            *_unless_dropped(compiler, element.role),
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
            *_unless_granted(compiler, _literal(compiler, element.role), name),
        ],
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
    suffix = ""
    if element.grant_option:
        if element.grant:
            suffix = " WITH GRANT OPTION"
        else:
            verb += " GRANT OPTION FOR"
    privileges = ", ".join(element.privileges)
    roles = _grantees(compiler, element.roles) + suffix
    if element.object_type == "DEFAULT TABLES":
        statement = "ALTER DEFAULT PRIVILEGES"
        if element.granted_by is not None:
            statement += f" FOR ROLE {_name(compiler, element.granted_by)}"
        if element.name is not None:
            statement += f" IN SCHEMA {_name(compiler, element.name)}"
        return f"{statement} {verb} {privileges} ON TABLES {preposition} {roles}"
    assert element.name is not None
    if element.object_type == "SEQUENCE" and element.columns:
        # the server knows the name of a serial column's sequence: it may have cut it.
        # Inside literals: names as PostgreSQL reads them, whatever the paramstyle
        table = _literal(compiler, quote_qualified(element.schema, element.name))
        column = _literal(compiler, element.columns[0])
        grantees = ", ".join(map(quote_grantee, element.roles)) + suffix
        return _acting_as(
            compiler,
            element.granted_by,
            f"EXECUTE '{verb} {privileges} ON SEQUENCE '"
            f" || pg_catalog.pg_get_serial_sequence({table}, {column})"
            f" || {_literal(compiler, f' {preposition} {grantees}')};",
        )
    if element.columns:
        columns = ", ".join(_name(compiler, column) for column in element.columns)
        privileges = ", ".join(f"{p} ({columns})" for p in element.privileges)
    if element.object_type == "SCHEMA":
        target = _name(compiler, element.name)
    else:
        target = _qualified(compiler, element.schema, element.name)
    if element.object_type == "FUNCTION":
        target += "()"
    statement = (
        f"{verb} {privileges} ON {element.object_type} {target} {preposition} {roles}"
    )
    if element.granted_by is None:
        return statement
    return _acting_as(compiler, element.granted_by, f"{statement};")


def _acting_as(compiler: DDLCompiler, role: str | None, line: str) -> str:
    """Return a block that runs ``line`` as another role, if one is given."""
    if role is None:
        return _do(compiler, [line])
    return _do(
        compiler,
        [
            f"PERFORM pg_catalog.set_config('role', {_literal(compiler, role)}, true);",
            line,
            "PERFORM pg_catalog.set_config('role', acting_as, true);",
        ],
        declare="acting_as text := pg_catalog.current_setting('role');",
    )


def _name(compiler: DDLCompiler, name: str) -> str:
    return compiler.preparer.quote(name)


def _qualified(compiler: DDLCompiler, schema: str | None, name: str) -> str:
    if schema is None:
        return _name(compiler, name)
    return f"{compiler.preparer.quote_schema(schema)}.{_name(compiler, name)}"


def _literal(compiler: DDLCompiler, value: str) -> str:
    return compiler.sql_compiler.render_literal_value(value, String())


def _grantees(compiler: DDLCompiler, roles: Iterable[str]) -> str:
    return _expression(compiler, ", ".join(map(quote_grantee, roles)))


def _conditions(
    compiler: DDLCompiler, using: str | None, with_check: str | None
) -> str:
    text = ""
    if using is not None:
        text += f" USING ({_condition(compiler, using)})"
    if with_check is not None:
        text += f" WITH CHECK ({_condition(compiler, with_check)})"
    return text


def _condition(compiler: DDLCompiler, condition: str) -> str:
    # a comment at its end must not hide the parenthesis
    return _expression(compiler, condition + "\n" * ("--" in condition))


def _expression(compiler: DDLCompiler, expression: str) -> str:
    # doubles percent signs where the driver's paramstyle needs it
    text: str = compiler.sql_compiler.post_process_text(  # type: ignore[no-untyped-call]
        expression
    )
    return text


def _notice(compiler: DDLCompiler, message: str) -> str:
    # MESSAGE instead of a format, whose percent sign the paramstyle might double
    return f"  RAISE NOTICE USING MESSAGE = {_literal(compiler, message)};"


def _unless_granted(compiler: DDLCompiler, role: str, member: str) -> list[str]:
    """Return the end of a block that grants a role, which PostgreSQL 15 refuses where
    another transaction does so at the same time; later versions wait.

    :param role: its name, as an expression of SQL.
    :param member: likewise.
    """
    return [
        "EXCEPTION WHEN unique_violation THEN",
        f"  IF NOT pg_catalog.pg_has_role({member}, {role}, 'MEMBER') THEN",
        "    RAISE;",
        "  END IF;",
    ]


def _unless_dropped(compiler: DDLCompiler, role: str) -> list[str]:
    """Return the end of a block that drops a role, which others may use or drop."""
    return [
        "EXCEPTION WHEN dependent_objects_still_exist THEN",
        _notice(compiler, f"role {role} is in use, left alone"),
        # XX000, "tuple concurrently deleted" or "could not find tuple"
        "WHEN internal_error THEN",
        "  IF EXISTS (SELECT FROM pg_catalog.pg_roles"
        f" WHERE rolname = {_literal(compiler, role)}) THEN",
        "    RAISE;",
        "  END IF;",
    ]


def _do(compiler: DDLCompiler, lines: Sequence[str], *, declare: str = "") -> str:
    """Return a ``DO`` block with ``lines`` in its body."""
    body = "\n".join(f"  {line}" for line in lines)
    head = f"DECLARE\n  {declare}\n" if declare else ""
    return "DO " + quote_dollar(f"\n{head}BEGIN\n{body}\nEND ")
