"""What the database holds: roles, function, policies and privileges as data.

Two queries read it all, for any number of tables. Any login may run them; they lock
nothing that readers or writers wait for.

Privileges of an object's owner are left out: what an owner holds is not granted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from json import loads
from typing import Any, Literal, NamedTuple, TypeAlias

from sqlalchemy import Connection, text

from .policies import (
    Command,
    Policy,
    current_tenant_sql,
    role_set,
    tenant_function_body,
)
from .tenancy import FUNCTION_NAME, Tenancy

ObjectType: TypeAlias = Literal[
    "TABLE", "SEQUENCE", "SCHEMA", "FUNCTION", "DEFAULT TABLES"
]


class Grant(NamedTuple):
    """A privilege that a role holds, on a whole object or on one column.

    :param grantable: whether it may be granted further (``WITH GRANT OPTION``).
    :param grantor: who granted it, ``None`` for the object's owner.
    """

    role: str
    privilege: str
    column: str | None = None
    grantable: bool = False
    grantor: str | None = None


class Dependency(NamedTuple):
    """A column that a policy mentions, or a whole table (``column=None``)."""

    schema: str
    table: str
    column: str | None


class View(NamedTuple):
    """A view, and a table that it reads."""

    schema: str
    name: str
    table: tuple[str, str]
    materialized: bool


@dataclass
class TableState:
    """A table as the database has it.

    :param owner_is_admin: whether the owner sees all rows; ``None`` without an admin
        role.
    :param rls: whether row-level security is enabled.
    :param force: whether it is forced on the table's owner.
    :param columns: types by column, for a domain those of its base type.
    :param grants: what everyone but the owner holds.
    :param sequences: grants on the sequences that serial columns own, by column.
    :param identities: likewise for identity columns, whose sequences need none.
    """

    schema: str
    name: str
    owner: str
    owner_is_admin: bool | None
    rls: bool
    force: bool
    columns: dict[str, str]
    policies: dict[str, Policy]
    grants: frozenset[Grant]
    sequences: dict[str, frozenset[Grant]]
    identities: dict[str, frozenset[Grant]]


@dataclass
class RoleState:
    """A group role: its attributes, and the roles whose privileges it has.

    :param member_of: roles that it is a member of directly, and inherits from.
    """

    name: str
    superuser: bool
    bypass_rls: bool
    login: bool
    inherit: bool
    create_role: bool
    create_db: bool
    replication: bool
    member_of: frozenset[str]


@dataclass
class SchemaState:
    """A schema: what everyone but its owner holds on it.

    :param grantable: whether the current user can grant ``USAGE`` on it.
    :param table_defaults: default privileges of tables, by the role that creates them.
    """

    grants: frozenset[Grant]
    grantable: bool
    table_defaults: dict[str, frozenset[Grant]] = field(default_factory=dict)


@dataclass
class Catalog:
    """The state of one database, as far as tenancy goes.

    :param current_user: whom the catalog was read as.
    :param function: definition of ``current_tenant()``, as ``pg_get_functiondef``
        prints it, or ``None``.
    :param function_visible: whether the server prints the function without its schema,
        because the search path leads to it.
    :param function_grants: what everyone but its owner holds on it.
    :param table_defaults: default privileges of tables in any schema, by the role that
        creates them.
    :param folding: nondeterministic collations, under which texts that differ may be
        equal.
    :param has_views: whether there are views at all.
    :param tenants: logins that may act as a tenant, by its role, without those that
        only administer it; read on demand.
    """

    server_version: int
    current_user: str
    function: str | None
    function_visible: bool
    function_owner: str | None
    function_grants: frozenset[Grant]
    roles: dict[str, RoleState]
    schemas: dict[str, SchemaState]
    table_defaults: dict[str, frozenset[Grant]]
    folding: frozenset[str]
    has_views: bool
    tables: dict[tuple[str, str], TableState] = field(default_factory=dict)
    tenants: dict[str, tuple[str, ...]] = field(default_factory=dict)


def _role(oid: str) -> str:
    # a function: with each join, or view, the query takes longer to plan
    return (
        f"CASE WHEN {oid} = 0 THEN 'public' ELSE pg_catalog.pg_get_userbyid({oid}) END"
    )


# The grants of an ACL, as a JSON array of
# [role, privilege, column, grantable, grantor].
def _grants(acl: str, owner: str, column: str = "NULL") -> str:
    return f"""
        SELECT pg_catalog.json_build_array(
            {_role("x.grantee")}, x.privilege_type, {column}, x.is_grantable,
            CASE WHEN x.grantor <> {owner}
                THEN pg_catalog.pg_get_userbyid(x.grantor) END)
        FROM pg_catalog.aclexplode({acl}) x
        WHERE x.grantee <> {owner}
    """


def _table_defaults(schema: str) -> str:
    return f"""
        SELECT pg_catalog.json_build_object(
            'role', pg_catalog.pg_get_userbyid(d.defaclrole),
            'grants', ARRAY({_grants("d.defaclacl", "d.defaclrole")}))
        FROM pg_catalog.pg_default_acl d
        WHERE d.defaclnamespace = {schema} AND d.defaclobjtype = 'r'
    """


# What comes with PostgreSQL has lower numbers. Said even where nothing of it is meant:
# most rows of a small database's catalogs are the system's.
_FIRST_OID = 16384

_SYSTEM_SCHEMAS = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"

_OUR_FUNCTION = "n.nspname = :schema AND p.proname = :function AND p.pronargs = 0"
_FUNCTION_ACL = "coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))"

_DATABASE = text(
    f"""
    SELECT pg_catalog.json_build_object(
        'server_version', pg_catalog.current_setting('server_version_num')::integer,
        'current_user', current_user,
        'function', (
            SELECT pg_catalog.json_build_object(
                'definition', pg_catalog.pg_get_functiondef(p.oid),
                'visible', pg_catalog.pg_function_is_visible(p.oid),
                'owner', pg_catalog.pg_get_userbyid(p.proowner),
                'grants', ARRAY({_grants(_FUNCTION_ACL, "p.proowner")})
            )
            FROM pg_catalog.pg_proc p
            JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
            WHERE {_OUR_FUNCTION}
        ),
        'roles', (
            SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
                'name', r.rolname,
                'superuser', r.rolsuper,
                'bypass_rls', r.rolbypassrls,
                'login', r.rolcanlogin,
                'inherit', r.rolinherit,
                'create_role', r.rolcreaterole,
                'create_db', r.rolcreatedb,
                'replication', r.rolreplication,
                'member_of', ARRAY(
                    SELECT pg_catalog.pg_get_userbyid(m.roleid)
                    FROM pg_catalog.pg_auth_members m
                    WHERE m.member = r.oid
                    AND pg_catalog.pg_has_role(r.oid, m.roleid, 'USAGE')
                )
            ))
            FROM pg_catalog.pg_roles r WHERE r.rolname = ANY (:group_roles)
        ),
        'schemas', (
            SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
                'name', n.nspname,
                'grants', ARRAY({_grants("n.nspacl", "n.nspowner")}),
                'grantable', pg_catalog.has_schema_privilege(
                    current_user, n.oid, 'USAGE WITH GRANT OPTION'),
                'table_defaults', ARRAY({_table_defaults("n.oid")})
            ))
            FROM pg_catalog.pg_namespace n WHERE {_SYSTEM_SCHEMAS}
        ),
        'table_defaults', ARRAY({_table_defaults("0")}),
        'folding', ARRAY(
            SELECT l.collname FROM pg_catalog.pg_collation l
            WHERE NOT l.collisdeterministic
        ),
        'has_views', EXISTS (
            SELECT FROM pg_catalog.pg_class
            WHERE oid >= {_FIRST_OID} AND relkind IN ('v', 'm')
        )
    )::text
    """
)

# Of 1,000 tables most have the same ACLs, and policies that differ in the table only.
# What takes time is done once for all that are equal: exploding ACLs, and printing
# expressions (50 µs each). An expression prints the same where its tree is the same and
# the columns have the same names; with a FROM, or a whole row, it names the table, too.
#
# But no subquery for each policy, whatever that would save: it makes the planner expect
# so much work that it has the query compiled (jit), which takes a second.
_COLUMNS = """
    SELECT a.attrelid, pg_catalog.json_object_agg(a.attname,
        CASE WHEN t.typtype = 'd'
            THEN pg_catalog.format_type(t.typbasetype, t.typtypmod)
            ELSE pg_catalog.format_type(a.atttypid, a.atttypmod) END
        ORDER BY a.attnum)::text AS columns
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p')
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    WHERE a.attnum > 0 AND NOT a.attisdropped
    GROUP BY a.attrelid
"""
_NO_COLUMNS = "SELECT NULL::oid AS attrelid, NULL AS columns"

_TABLES = f"""
    WITH acls AS MATERIALIZED (
        SELECT d.acl, d.owner, pg_catalog.array_to_json(
            ARRAY({_grants("d.acl", "d.owner")}))::text AS grants
        FROM (
            SELECT DISTINCT relacl, relowner FROM pg_catalog.pg_class
            WHERE oid >= {_FIRST_OID} AND relkind IN ('r', 'p', 'S')
            AND relacl IS NOT NULL
        ) AS d (acl, owner)
    ), mentioned AS MATERIALIZED (
        SELECT d.objid, pg_catalog.array_agg(a.attname ORDER BY a.attnum) AS names
        FROM (
            -- USING and WITH CHECK each have a line
            SELECT DISTINCT objid, refobjid, refobjsubid FROM pg_catalog.pg_depend
            WHERE classid = 'pg_catalog.pg_policy'::regclass
            AND refclassid = 'pg_catalog.pg_class'::regclass AND refobjsubid > 0
        ) AS d
        JOIN pg_catalog.pg_policy p ON p.oid = d.objid AND p.polrelid = d.refobjid
        JOIN pg_catalog.pg_attribute a
            ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        GROUP BY d.objid
    ), kinds AS MATERIALIZED (
        SELECT pg_catalog.array_agg(p.oid) AS policies
        FROM pg_catalog.pg_policy p
        LEFT JOIN mentioned m ON m.objid = p.oid
        GROUP BY pg_catalog.hashtextextended(p.polqual::text, 0),
            pg_catalog.hashtextextended(p.polwithcheck::text, 0), m.names,
            p.polroles
    ), expressions AS MATERIALIZED (
        SELECT kinds.policies, ARRAY(
                SELECT {_role("each.oid")} FROM pg_catalog.unnest(p.polroles)
                    AS each (oid)) AS roles,
            pg_catalog.concat(p.polqual, p.polwithcheck)
                ~ '.rtable [(]|.varattno 0 ' AS names_table,
            pg_catalog.pg_get_expr(p.polqual, p.polrelid) AS using,
            pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) AS with_check
        FROM kinds JOIN pg_catalog.pg_policy p ON p.oid = kinds.policies[1]
    ), policies AS MATERIALIZED (
        SELECT d.polrelid,
            pg_catalog.json_agg(d.item ORDER BY d.polname)::text AS items
        FROM (
            SELECT p.polrelid, p.polname, pg_catalog.json_build_array(
                p.polname, p.polcmd, p.polpermissive, e.roles,
                CASE WHEN e.names_table
                    THEN pg_catalog.pg_get_expr(p.polqual, p.polrelid)
                    ELSE e.using END,
                CASE WHEN e.names_table
                    THEN pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid)
                    ELSE e.with_check END) AS item
            FROM expressions e
            CROSS JOIN LATERAL pg_catalog.unnest(e.policies) AS each (oid)
            JOIN pg_catalog.pg_policy p ON p.oid = each.oid
            OFFSET 0  -- or the trees are sorted along
        ) AS d
        GROUP BY d.polrelid
    ), column_grants AS MATERIALIZED (
        SELECT c.oid, pg_catalog.json_agg(grants.item)::text AS items
        FROM pg_catalog.pg_attribute a
        JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
        CROSS JOIN LATERAL ({_grants("a.attacl", "c.relowner", "a.attname")})
            AS grants (item)
        WHERE a.attrelid >= {_FIRST_OID}
        AND a.attacl IS NOT NULL AND NOT a.attisdropped
        GROUP BY c.oid
    ), sequences AS MATERIALIZED (
        SELECT d.refobjid, pg_catalog.json_agg(pg_catalog.json_build_array(
            a.attname, d.deptype = 'i', acls.grants))::text AS items
        FROM pg_catalog.pg_depend d
        JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S'
        JOIN pg_catalog.pg_attribute a
            ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        LEFT JOIN acls ON acls.acl = s.relacl AND acls.owner = s.relowner
        WHERE d.classid = 'pg_catalog.pg_class'::regclass
        AND d.refclassid = 'pg_catalog.pg_class'::regclass
        AND d.refobjid >= {_FIRST_OID} AND d.deptype IN ('a', 'i')
        GROUP BY d.refobjid
    )
    SELECT n.nspname, c.relname, pg_catalog.pg_get_userbyid(c.relowner),
        -- on 15 a role inherits from all roles or none; later, each membership says
        pg_catalog.pg_has_role(c.relowner,
            (SELECT pg_catalog.to_regrole(pg_catalog.quote_ident(:admin_role))),
            CASE WHEN pg_catalog.current_setting('server_version_num')::integer
                >= 160000 THEN 'USAGE' ELSE 'MEMBER' END),
        c.relrowsecurity, c.relforcerowsecurity, col.columns,
        coalesce(policies.items, '[]'), coalesce(acls.grants, '[]'),
        coalesce(column_grants.items, '[]'), coalesce(sequences.items, '[]')
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN ({{columns}}) AS col ON col.attrelid = c.oid
    LEFT JOIN policies ON policies.polrelid = c.oid
    LEFT JOIN acls ON acls.acl = c.relacl AND acls.owner = c.relowner
    LEFT JOIN column_grants ON column_grants.oid = c.oid
    LEFT JOIN sequences ON sequences.refobjid = c.oid
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND {_SYSTEM_SCHEMAS}
"""
_TABLES_WITH_COLUMNS = text(_TABLES.format(columns=_COLUMNS))
_TABLES_WITHOUT_COLUMNS = text(_TABLES.format(columns=_NO_COLUMNS))

_DEPENDENCIES = text(
    """
    SELECT pn.nspname, pc.relname, p.polname, tn.nspname, tc.relname, a.attname
    FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_policy p ON p.oid = d.objid
    JOIN pg_catalog.pg_class pc ON pc.oid = p.polrelid
    JOIN pg_catalog.pg_namespace pn ON pn.oid = pc.relnamespace
    JOIN pg_catalog.pg_class tc ON tc.oid = d.refobjid
    JOIN pg_catalog.pg_namespace tn ON tn.oid = tc.relnamespace
    LEFT JOIN pg_catalog.pg_attribute a ON d.refobjsubid <> 0
        AND a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE d.classid = 'pg_catalog.pg_policy'::regclass
    AND d.refclassid = 'pg_catalog.pg_class'::regclass
    """
)

_DEFAULTS = text(
    f"""
    SELECT tn.nspname, c.relname, a.attname
    FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_proc p ON p.oid = d.refobjid
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    JOIN pg_catalog.pg_attrdef ad ON ad.oid = d.objid
    JOIN pg_catalog.pg_class c ON c.oid = ad.adrelid
    JOIN pg_catalog.pg_namespace tn ON tn.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute a
        ON a.attrelid = ad.adrelid AND a.attnum = ad.adnum
    WHERE d.classid = 'pg_catalog.pg_attrdef'::regclass
    AND d.refclassid = 'pg_catalog.pg_proc'::regclass
    AND {_OUR_FUNCTION}
    """
)

_TYPES = text(
    f"""
    SELECT n.nspname, c.relname, col.columns
    FROM ({_COLUMNS}) AS col
    JOIN pg_catalog.pg_class c ON c.oid = col.attrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE {_SYSTEM_SCHEMAS}
    """
)

_FOLDING = text(
    """
    SELECT n.nspname, c.relname, a.attname, l.collname
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p')
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
    WHERE NOT l.collisdeterministic AND NOT a.attisdropped
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

_VIEWS = text(
    f"""
    SELECT DISTINCT n.nspname, c.relname, vn.nspname, v.relname, v.relkind = 'm'
    FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_rewrite w ON w.oid = d.objid
    JOIN pg_catalog.pg_class v ON v.oid = w.ev_class AND v.relkind IN ('v', 'm')
    JOIN pg_catalog.pg_namespace vn ON vn.oid = v.relnamespace
    JOIN pg_catalog.pg_class c ON c.oid = d.refobjid AND c.relkind IN ('r', 'p')
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE d.classid = 'pg_catalog.pg_rewrite'::regclass
    AND d.refclassid = 'pg_catalog.pg_class'::regclass
    AND {_SYSTEM_SCHEMAS}
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_options_to_table(v.reloptions) o
        WHERE o.option_name = 'security_invoker' AND o.option_value::boolean
    )
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
    facts = loads(
        connection.execute(
            _DATABASE,
            {
                "group_roles": list(tenancy.group_roles),
                "schema": tenancy.schema,
                "function": FUNCTION_NAME,
            },
        ).scalar_one()
    )
    function = facts["function"] or {}
    return Catalog(
        server_version=facts["server_version"],
        current_user=facts["current_user"],
        function=function.get("definition"),
        function_visible=function.get("visible", False),
        function_owner=function.get("owner"),
        function_grants=_as_grants(function.get("grants", [])),
        roles={
            role["name"]: RoleState(
                **{**role, "member_of": frozenset(role["member_of"])}
            )
            for role in facts["roles"] or ()
        },
        schemas={
            schema["name"]: SchemaState(
                _as_grants(schema["grants"]),
                schema["grantable"],
                _as_table_defaults(schema["table_defaults"]),
            )
            for schema in facts["schemas"] or ()
        },
        table_defaults=_as_table_defaults(facts["table_defaults"]),
        folding=frozenset(facts["folding"]),
        has_views=facts["has_views"],
    )


def read_tables(
    connection: Connection, tenancy: Tenancy, *, columns: bool = True
) -> dict[tuple[str, str], TableState]:
    """Read all tables but temporary ones, by schema and name; one query.

    Tables with equal policies, or equal grants, share the objects.

    :param columns: read columns and their types, too.
    """
    statement = _TABLES_WITH_COLUMNS if columns else _TABLES_WITHOUT_COLUMNS
    rows = connection.execute(statement, {"admin_role": tenancy.admin_role})
    as_grants = cache(lambda *items: _as_grants([x for i in items for x in loads(i)]))
    as_policies = cache(_as_policies)
    as_columns = cache(loads)
    as_sequences = cache(_as_sequences)
    tables = {}
    for (
        schema, name, owner, is_admin, rls, force, column_types, policies, grants,
        column_grants, sequences,
    ) in rows:  # fmt: skip
        tables[schema, name] = TableState(
            schema=schema,
            name=name,
            owner=owner,
            owner_is_admin=is_admin,
            rls=rls,
            force=force,
            columns=as_columns(column_types or "{}"),
            policies=as_policies(policies),
            grants=as_grants(grants, column_grants),
            sequences=as_sequences(sequences, False),
            identities=as_sequences(sequences, True),
        )
    return tables


def _as_policies(items: str) -> dict[str, Policy]:
    return {
        name: Policy(
            name,
            using=using,
            with_check=with_check,
            command=_COMMANDS[command],
            permissive=permissive,
            roles=role_set(roles),
        )
        for name, command, permissive, roles, using, with_check in loads(items)
    }


def _as_sequences(items: str, identity: bool) -> dict[str, frozenset[Grant]]:
    return {
        column: _as_grants(loads(grants or "[]"))
        for column, is_identity, grants in loads(items)
        if is_identity is identity
    }


def read_dependencies(
    connection: Connection,
) -> dict[tuple[str, str, str], frozenset[Dependency]]:
    """Read what each policy mentions, by schema, table and policy; one query."""
    found: dict[tuple[str, str, str], set[Dependency]] = {}
    for *policy, schema, table, column in connection.execute(_DEPENDENCIES):
        key = (policy[0], policy[1], policy[2])
        found.setdefault(key, set()).add(Dependency(schema, table, column))
    return {key: frozenset(items) for key, items in found.items()}


def read_defaults(connection: Connection, tenancy: Tenancy) -> frozenset[Dependency]:
    """Read the columns whose default calls the function; one query."""
    rows = connection.execute(
        _DEFAULTS, {"schema": tenancy.schema, "function": FUNCTION_NAME}
    )
    return frozenset(Dependency(*row) for row in rows)


def read_columns(connection: Connection) -> dict[tuple[str, str], dict[str, str]]:
    """Read columns and their types, by schema and table; one query."""
    rows = connection.execute(_TYPES)
    return {(schema, table): loads(columns) for schema, table, columns in rows}


def read_folding_columns(connection: Connection) -> dict[tuple[str, str, str], str]:
    """Read columns that have a nondeterministic collation, also by their domain, and
    its name, by schema, table and column; one query."""
    rows = connection.execute(_FOLDING)
    return {(schema, table, column): name for schema, table, column, name in rows}


def read_tenants(
    connection: Connection, tenancy: Tenancy
) -> dict[str, tuple[str, ...]]:
    """Read the tenants' roles, and the logins that may act as each; one query."""
    rows = connection.execute(
        _TENANTS,
        {"tenants_role": tenancy.tenants_role, "role_prefix": tenancy.role_prefix},
    )
    return {role: tuple(sorted(logins)) for role, logins in rows}


def read_views(connection: Connection) -> list[View]:
    """Read the views that read a table with the rights of their owner; one query."""
    return [
        View(schema, name, (table_schema, table), materialized)
        for table_schema, table, schema, name, materialized in connection.execute(
            _VIEWS
        )
    ]


def function_definition(tenancy: Tenancy) -> str:
    """Return what ``pg_get_functiondef`` prints for our function, 15 to 18 alike."""
    body = tenant_function_body(tenancy)
    tag = "$function"
    while tag in body:
        tag += "x"
    return (
        f"CREATE OR REPLACE FUNCTION {current_tenant_sql(tenancy)}\n"
        " RETURNS text\n"
        " LANGUAGE plpgsql\n"
        " STABLE PARALLEL SAFE\n"
        f"AS {tag}${body}{tag}$\n"
    )


def _as_grants(items: list[list[Any]]) -> frozenset[Grant]:
    return frozenset(Grant(*item) for item in items)


def _as_table_defaults(items: list[dict[str, Any]]) -> dict[str, frozenset[Grant]]:
    return {item["role"]: _as_grants(item["grants"]) for item in items}
