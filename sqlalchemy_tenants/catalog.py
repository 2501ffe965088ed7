"""What the database holds: roles, function, policies and privileges as data.

Two queries read it all, for any number of tables. Any login may run them; they lock
nothing that readers or writers wait for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from sqlalchemy import Connection, text

from .policies import (
    Command,
    Policy,
    current_tenant_sql,
    quote_literal,
    role_set,
)
from .tenancy import FUNCTION_NAME, Tenancy

ObjectType: TypeAlias = Literal["TABLE", "SEQUENCE", "SCHEMA"]


class Grant(NamedTuple):
    """A privilege that a role holds, on a whole object or on one column."""

    role: str
    privilege: str
    column: str | None = None


@dataclass
class TableState:
    """A table as the database has it.

    :param rls: whether row-level security is enabled.
    :param force: whether it is forced on the table's owner.
    :param policy_columns: the table's columns that each policy mentions.
    :param grants: what PUBLIC, the group roles and tenants' roles hold.
    :param sequences: grants on the sequences that serial columns own, by column.
    """

    schema: str
    name: str
    owner: str
    rls: bool
    force: bool
    columns: dict[str, str]
    policies: dict[str, Policy]
    policy_columns: dict[str, frozenset[str]]
    grants: frozenset[Grant]
    sequences: dict[str, frozenset[Grant]]


@dataclass
class RoleState:
    """A group role: its attributes, and the group roles that it is a member of."""

    name: str
    superuser: bool
    bypass_rls: bool
    login: bool
    member_of: frozenset[str]


@dataclass
class SchemaState:
    """A schema: what PUBLIC and the group roles hold on it.

    :param grantable: whether the current user can grant ``USAGE`` on it.
    """

    grants: frozenset[Grant]
    grantable: bool


@dataclass
class Catalog:
    """The state of one database, as far as tenancy goes.

    :param function: definition of ``current_tenant()``, as ``pg_get_functiondef``
        prints it, or ``None``.
    :param tenants: logins that may act as a tenant, by its role, without those that
        only administer it; read on demand.
    """

    server_version: int
    function: str | None
    roles: dict[str, RoleState]
    schemas: dict[str, SchemaState]
    tables: dict[tuple[str, str], TableState] = field(default_factory=dict)
    tenants: dict[str, tuple[str, ...]] = field(default_factory=dict)


# The grants of an ACL to the roles that matter, as a JSON array of
# [role, privilege, column].
def _grants(acl: str, column: str = "NULL") -> str:
    return f"""
        SELECT pg_catalog.json_build_array(
            coalesce(r.rolname, 'public'), x.privilege_type, {column})
        FROM pg_catalog.aclexplode({acl}) x
        LEFT JOIN pg_catalog.pg_roles r ON r.oid = x.grantee
        WHERE x.grantee = 0 OR r.rolname = ANY (:group_roles)
        OR pg_catalog.starts_with(r.rolname, :role_prefix)
    """


_SYSTEM_SCHEMAS = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"

_DATABASE = text(
    f"""
    SELECT pg_catalog.json_build_object(
        'server_version', pg_catalog.current_setting('server_version_num')::integer,
        'function', (
            SELECT pg_catalog.pg_get_functiondef(p.oid)
            FROM pg_catalog.pg_proc p
            JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
            WHERE n.nspname = :schema AND p.proname = :function AND p.pronargs = 0
        ),
        'roles', (
            SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
                'name', r.rolname,
                'superuser', r.rolsuper,
                'bypass_rls', r.rolbypassrls,
                'login', r.rolcanlogin,
                'member_of', ARRAY(
                    SELECT g.rolname FROM pg_catalog.pg_auth_members m
                    JOIN pg_catalog.pg_roles g ON g.oid = m.roleid
                    WHERE m.member = r.oid
                )
            ))
            FROM pg_catalog.pg_roles r WHERE r.rolname = ANY (:group_roles)
        ),
        'schemas', (
            SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
                'name', n.nspname,
                'grants', ARRAY({_grants("n.nspacl")}),
                'grantable', pg_catalog.has_schema_privilege(
                    current_user, n.oid, 'USAGE WITH GRANT OPTION')
            ))
            FROM pg_catalog.pg_namespace n WHERE {_SYSTEM_SCHEMAS}
        )
    )::text
    """
)

_TABLES = text(
    f"""
    SELECT pg_catalog.json_build_object(
        'schema', n.nspname,
        'name', c.relname,
        'owner', pg_catalog.pg_get_userbyid(c.relowner),
        'rls', c.relrowsecurity,
        'force', c.relforcerowsecurity,
        'columns', (
            SELECT pg_catalog.json_object_agg(
                a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod))
            FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        ),
        'policies', ARRAY(
            SELECT pg_catalog.json_build_object(
                'name', p.polname,
                'command', p.polcmd,
                'permissive', p.polpermissive,
                'roles', ARRAY(
                    SELECT coalesce(r.rolname, 'public')
                    FROM pg_catalog.unnest(p.polroles) AS polrole (oid)
                    LEFT JOIN pg_catalog.pg_roles r ON r.oid = polrole.oid
                ),
                'columns', ARRAY(
                    SELECT a.attname FROM pg_catalog.pg_depend d
                    JOIN pg_catalog.pg_attribute a
                        ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                    WHERE d.classid = 'pg_catalog.pg_policy'::regclass
                    AND d.objid = p.oid AND d.refobjid = c.oid
                    AND d.refclassid = 'pg_catalog.pg_class'::regclass
                ),
                'using', pg_catalog.pg_get_expr(p.polqual, p.polrelid),
                'with_check', pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid)
            )
            FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid ORDER BY p.polname
        ),
        'grants', ARRAY({_grants("c.relacl")}),
        'column_grants', ARRAY(
            SELECT grants.item FROM pg_catalog.pg_attribute a
            CROSS JOIN LATERAL ({_grants("a.attacl", "a.attname")}) AS grants (item)
            WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL AND NOT a.attisdropped
        ),
        'sequences', ARRAY(
            SELECT pg_catalog.json_build_object(
                'column', a.attname, 'grants', ARRAY({_grants("s.relacl")}))
            FROM pg_catalog.pg_depend d
            JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S'
            JOIN pg_catalog.pg_attribute a
                ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
            WHERE d.classid = 'pg_catalog.pg_class'::regclass
            AND d.refclassid = 'pg_catalog.pg_class'::regclass
            AND d.refobjid = c.oid AND d.deptype = 'a'
        )
    )::text
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND {_SYSTEM_SCHEMAS}
    """
)

_TENANTS = text(
    """
    SELECT tenant.rolname, array_remove(array_agg(DISTINCT login.rolname), NULL)
    FROM pg_catalog.pg_auth_members m
    JOIN pg_catalog.pg_roles tenants ON tenants.oid = m.roleid
    JOIN pg_catalog.pg_roles tenant ON tenant.oid = m.member
    LEFT JOIN pg_catalog.pg_auth_members act
        ON act.roleid = tenant.oid AND NOT act.admin_option
    LEFT JOIN pg_catalog.pg_roles login ON login.oid = act.member
    WHERE tenants.rolname = :tenants_role
    AND pg_catalog.starts_with(tenant.rolname, :role_prefix)
    GROUP BY tenant.rolname
    """
)

_COMMANDS: dict[str, Command] = {
    "*": "ALL",
    "r": "SELECT",
    "a": "INSERT",
    "w": "UPDATE",
    "d": "DELETE",
}


def read_database(connection: Connection, tenancy: Tenancy) -> Catalog:
    """Read roles, schemas and the function; one query."""
    facts = json.loads(
        connection.execute(
            _DATABASE,
            {
                **_roles(tenancy),
                "schema": tenancy.schema,
                "function": FUNCTION_NAME,
            },
        ).scalar_one()
    )
    return Catalog(
        server_version=facts["server_version"],
        function=facts["function"],
        roles={
            role["name"]: RoleState(
                **{**role, "member_of": frozenset(role["member_of"])}
            )
            for role in facts["roles"] or ()
        },
        schemas={
            schema["name"]: SchemaState(
                _as_grants(schema["grants"]), schema["grantable"]
            )
            for schema in facts["schemas"] or ()
        },
    )


def read_tables(connection: Connection, tenancy: Tenancy) -> dict[Any, TableState]:
    """Read all tables but temporary ones, by schema and name; one query."""
    tables = {}
    for row in connection.execute(_TABLES, _roles(tenancy)).scalars():
        facts = json.loads(row)
        tables[facts["schema"], facts["name"]] = TableState(
            schema=facts["schema"],
            name=facts["name"],
            owner=facts["owner"],
            rls=facts["rls"],
            force=facts["force"],
            columns=facts["columns"] or {},
            policies={
                policy["name"]: Policy(
                    policy["name"],
                    using=policy["using"],
                    with_check=policy["with_check"],
                    command=_COMMANDS[policy["command"]],
                    permissive=policy["permissive"],
                    roles=role_set(policy["roles"]),
                )
                for policy in facts["policies"]
            },
            policy_columns={
                policy["name"]: frozenset(policy["columns"])
                for policy in facts["policies"]
            },
            grants=_as_grants([*facts["grants"], *facts["column_grants"]]),
            sequences={
                sequence["column"]: _as_grants(sequence["grants"])
                for sequence in facts["sequences"]
            },
        )
    return tables


def read_tenants(
    connection: Connection, tenancy: Tenancy
) -> dict[str, tuple[str, ...]]:
    """Read the tenants' roles, and the logins that may act as each; one query."""
    rows = connection.execute(
        _TENANTS,
        {"tenants_role": tenancy.tenants_role, "role_prefix": tenancy.role_prefix},
    )
    return {role: tuple(sorted(logins)) for role, logins in rows}


def function_definition(tenancy: Tenancy) -> str:
    """Return what ``pg_get_functiondef`` prints for our function, 15 to 18 alike."""
    prefix = quote_literal(tenancy.role_prefix)
    readers = ", ".join(
        f"{quote_literal(role)}::text"
        for role in (tenancy.shared_role, tenancy.admin_role)
    )
    return (
        f"CREATE OR REPLACE FUNCTION {current_tenant_sql(tenancy)}\n"
        " RETURNS text\n"
        " LANGUAGE sql\n"
        " STABLE PARALLEL SAFE\n"
        f"RETURN CASE WHEN starts_with((CURRENT_USER)::text, {prefix}::text)"
        " THEN NULLIF(substr((CURRENT_USER)::text,"
        f" {len(tenancy.role_prefix) + 1}), ''::text)"
        f" WHEN ((CURRENT_USER)::text = ANY (ARRAY[{readers}]))"
        f" THEN NULLIF(current_setting({quote_literal(tenancy.setting)}::text, true),"
        " ''::text) ELSE NULL::text END\n"
    )


def _roles(tenancy: Tenancy) -> dict[str, Any]:
    return {
        "group_roles": list(tenancy.group_roles),
        "role_prefix": tenancy.role_prefix,
    }


def _as_grants(items: list[list[Any]]) -> frozenset[Grant]:
    return frozenset(Grant(*item) for item in items)
