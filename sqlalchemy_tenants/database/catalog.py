"""What the database holds: roles, function, policies and privileges as data.

Two queries read it all, for any number of tables. Any login may run them; they lock
nothing that readers or writers wait for.

Privileges of an object's owner are left out: what an owner holds is not granted.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from json import loads
from typing import Any, Literal, NamedTuple, TypeAlias

from sqlalchemy import ARRAY, Boolean, Connection, Text, bindparam, text

from ..policies import Command, Policy, role_set
from ..scope import suspended_sql
from ..tenancy import FUNCTION_NAME, Tenancy

ObjectType: TypeAlias = Literal[
    "TABLE",
    "SEQUENCE",
    "SCHEMA",
    "FUNCTION",
    "DEFAULT TABLES",
    "DEFAULT SEQUENCES",
    "DEFAULT FUNCTIONS",
    "DEFAULT TYPES",
    "DEFAULT SCHEMAS",
]

#: Default privileges, by the role that creates the objects and their kind.
Defaults: TypeAlias = dict[tuple[str, ObjectType], "frozenset[Grant]"]


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
    """A view that reads a table with the rights of the view's owner.

    :param table: schema and name of the table, which it may read through other views.
    :param holders: who holds privileges on the view, its owner aside.
    :param owner_reads: whether the view's owner is exempt from the policies of other
        owners' tables: a superuser, or with ``BYPASSRLS``, or with the admin role.
    """

    schema: str
    name: str
    table: tuple[str, str]
    materialized: bool
    holders: list[str]
    owner_reads: bool


class Membership(NamedTuple):
    """A role that is a member of another one.

    :param inherit: whether it has the privileges of ``group`` by itself.
    :param set: whether it may ``SET ROLE`` to ``group``.
    """

    group: str
    member: str
    grantor: str
    admin: bool
    inherit: bool
    set: bool


@dataclass
class TableState:
    """A table as the database has it.

    :param owner_is_admin: whether the owner sees all rows; ``None`` without an admin
        role.
    :param is_administered: whether the current user has the owner's rights.
    :param rls: whether row-level security is enabled.
    :param force: whether it is forced on the table's owner.
    :param columns: types by column, for a domain those of its base type.
    :param grants: what everyone but the owner holds.
    :param sequences: grants on the sequences that serial columns own, by column.
    :param identities: likewise for identity columns, whose sequences need none.
    :param policies_text: what the policies were read from: where it is equal, so are
        the policies.
    :param grants_text: likewise for grants, sequences and identities.
    """

    schema: str
    name: str
    owner: str
    owner_is_admin: bool | None
    is_administered: bool
    rls: bool
    force: bool
    columns: dict[str, str]
    policies: dict[str, Policy]
    grants: frozenset[Grant]
    sequences: dict[str, frozenset[Grant]]
    identities: dict[str, frozenset[Grant]]
    policies_text: str
    grants_text: tuple[str, ...]


@dataclass
class RoleState:
    """A role: its attributes, and the roles whose privileges it has.

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
    :param defaults: default privileges of what is created in it.
    """

    owner: str
    grants: frozenset[Grant]
    grantable: bool
    defaults: Defaults = field(default_factory=dict)


@dataclass
class Catalog:
    """The state of one database, as far as tenancy goes.

    :param current_user: whom the catalog was read as.
    :param function: definition of ``current_tenant()``, as ``pg_get_functiondef``
        prints it, or ``None``.
    :param function_visible: whether the server prints the function without its schema,
        because the search path leads to it.
    :param function_owner_is_admin: whether its owner sees all rows.
    :param function_administered: whether the current user has its owner's rights.
    :param function_grants: what everyone but its owner holds on it.
    :param memberships: of group roles, and of tenants' roles beside that in the group
        role of all tenants.
    :param defaults: default privileges of what is created in any schema.
    :param folding: nondeterministic collations, under which texts that differ may be
        equal.
    :param folded: columns that have one, also by their domain, by table: its name.
    :param has_views: whether there are views at all.
    :param tenants: the tenants' roles; read on demand.
    """

    server_version: int
    current_user: str
    function: str | None
    function_visible: bool
    function_owner: str | None
    function_owner_is_admin: bool
    function_administered: bool
    function_grants: frozenset[Grant]
    roles: dict[str, RoleState]
    memberships: tuple[Membership, ...]
    schemas: dict[str, SchemaState]
    defaults: Defaults
    folding: frozenset[str]
    folded: dict[tuple[str, str], dict[str, str]]
    has_views: bool
    tables: dict[tuple[str, str], TableState] = field(default_factory=dict)
    tenants: dict[str, TenantState] = field(default_factory=dict)


@dataclass
class TenantState:
    """The role of a tenant.

    :param logins: who may act as it, without those that only administer it.
    """

    role: RoleState
    logins: tuple[str, ...]
    suspended: bool


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


_DEFAULTS_OF: dict[str, ObjectType] = {
    "r": "DEFAULT TABLES",
    "S": "DEFAULT SEQUENCES",
    "f": "DEFAULT FUNCTIONS",
    "T": "DEFAULT TYPES",
    "n": "DEFAULT SCHEMAS",
}


def _defaults(schema: str) -> str:
    return f"""
        SELECT pg_catalog.json_build_object(
            'role', pg_catalog.pg_get_userbyid(d.defaclrole),
            'type', d.defaclobjtype,
            'grants', ARRAY({_grants("d.defaclacl", "d.defaclrole")}))
        FROM pg_catalog.pg_default_acl d
        WHERE d.defaclnamespace = {schema}
    """


# Whether policies of the admin role apply to a role: it has to have the privileges by
# itself. On 15 a role inherits from all roles or none; later, each membership says.
def _is_admin(role: str) -> str:
    return f"""pg_catalog.pg_has_role({role},
        (SELECT pg_catalog.to_regrole(pg_catalog.quote_ident(:admin_role))), 'USAGE')"""


# A role as a JSON object, for RoleState.
def _role_state(role: str) -> str:
    return f"""pg_catalog.json_build_object(
        'name', {role}.rolname,
        'superuser', {role}.rolsuper,
        'bypass_rls', {role}.rolbypassrls,
        'login', {role}.rolcanlogin,
        'inherit', {role}.rolinherit,
        'create_role', {role}.rolcreaterole,
        'create_db', {role}.rolcreatedb,
        'replication', {role}.rolreplication,
        'member_of', ARRAY(
            SELECT pg_catalog.pg_get_userbyid(m.roleid)
            FROM pg_catalog.pg_auth_members m
            WHERE m.member = {role}.oid
            AND pg_catalog.pg_has_role({role}.oid, m.roleid, 'USAGE')
        )
    )"""


# System objects have OIDs below 16384. Filter on that everywhere: in a small database
# most catalog rows are the system's.
_FIRST_OID = 16384

_USER_SCHEMAS = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"

#: Whether a view ``v`` reads with the rights of its owner.
_READS_AS_OWNER = """NOT EXISTS (
    SELECT FROM pg_catalog.pg_options_to_table(v.reloptions) o
    WHERE o.option_name = 'security_invoker' AND o.option_value::boolean)"""


def holders(relation: str) -> str:
    """Return the array of who holds privileges on the rows of a relation, or on one of
    its columns, the owner aside."""
    return f"""ARRAY(
        SELECT DISTINCT {_role("x.grantee")}
        FROM (
            SELECT {relation}.relacl UNION ALL
            SELECT a.attacl FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = {relation}.oid AND a.attacl IS NOT NULL
        ) AS acls (acl)
        CROSS JOIN LATERAL pg_catalog.aclexplode(acls.acl) x
        WHERE x.grantee <> {relation}.relowner AND x.privilege_type IN (
            'SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE'))"""


_OUR_FUNCTION = "n.nspname = :schema AND p.proname = :function AND p.pronargs = 0"
_FUNCTION_ACL = "coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))"

# Before 16 a membership had no options of its own.
_NO_OPTIONS = "'inherit', true, 'set', true"
_OPTIONS = "'inherit', m.inherit_option, 'set', m.set_option"

_DATABASE = f"""
    SELECT pg_catalog.json_build_object(
        'server_version', pg_catalog.current_setting('server_version_num')::integer,
        'current_user', current_user,
        'function', (
            SELECT pg_catalog.json_build_object(
                'definition', pg_catalog.pg_get_functiondef(p.oid),
                'visible', pg_catalog.pg_function_is_visible(p.oid),
                'owner', pg_catalog.pg_get_userbyid(p.proowner),
                'owner_is_admin', {_is_admin("p.proowner")},
                'administered', pg_catalog.pg_has_role(p.proowner, 'USAGE'),
                'grants', ARRAY({_grants(_FUNCTION_ACL, "p.proowner")})
            )
            FROM pg_catalog.pg_proc p
            JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
            WHERE {_OUR_FUNCTION}
        ),
        'roles', (
            SELECT pg_catalog.json_agg({_role_state("r")})
            FROM pg_catalog.pg_roles r WHERE r.rolname = ANY (:group_roles)
        ),
        'memberships', ARRAY(
            SELECT pg_catalog.json_build_object(
                'group', pg_catalog.pg_get_userbyid(m.roleid),
                'member', member.rolname,
                'grantor', pg_catalog.pg_get_userbyid(m.grantor),
                'admin', m.admin_option, {{options}})
            FROM pg_catalog.pg_auth_members m
            JOIN pg_catalog.pg_roles member ON member.oid = m.member
            WHERE member.rolname = ANY (:group_roles)
            OR (pg_catalog.starts_with(member.rolname, :role_prefix)
                AND m.roleid IS DISTINCT FROM (SELECT oid FROM pg_catalog.pg_roles
                    WHERE rolname = :tenants_role))
        ),
        'schemas', (
            SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
                'name', n.nspname,
                'owner', pg_catalog.pg_get_userbyid(n.nspowner),
                'grants', ARRAY({_grants("n.nspacl", "n.nspowner")}),
                'grantable', pg_catalog.has_schema_privilege(
                    n.oid, 'USAGE WITH GRANT OPTION'),
                'defaults', ARRAY({_defaults("n.oid")})
            ))
            FROM pg_catalog.pg_namespace n WHERE {_USER_SCHEMAS}
        ),
        'defaults', ARRAY({_defaults("0")}),
        'folding', ARRAY(
            SELECT l.collname FROM pg_catalog.pg_collation l
            WHERE NOT l.collisdeterministic
        ),
        -- the first condition is evaluated once: columns are many
        'folded', ARRAY(
            SELECT pg_catalog.json_build_array(
                n.nspname, c.relname, a.attname, l.collname)
            FROM pg_catalog.pg_attribute a
            JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
            WHERE EXISTS (
                SELECT FROM pg_catalog.pg_collation WHERE NOT collisdeterministic)
            AND NOT l.collisdeterministic AND c.relkind IN ('r', 'p')
            AND NOT a.attisdropped
        ),
        'has_views', EXISTS (
            SELECT FROM pg_catalog.pg_class
            WHERE oid >= {_FIRST_OID} AND relkind IN ('v', 'm')
        )
    )::text
    """

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
        {_is_admin("c.relowner")},
        pg_catalog.pg_has_role(c.relowner, 'USAGE'),
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
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND {_USER_SCHEMAS}
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
    WHERE {_USER_SCHEMAS}
    """
)

_TENANTS = text(
    f"""
    SELECT {_role_state("tenant")}::text, ARRAY(
        SELECT DISTINCT login.rolname
        FROM pg_catalog.pg_auth_members act
        JOIN pg_catalog.pg_roles login ON login.oid = act.member
        -- whoever creates a role only administers it; before 16 nothing less than all
        WHERE act.roleid = tenant.oid AND (NOT act.admin_option OR coalesce(
            (pg_catalog.to_jsonb(act) ->> 'set_option')::boolean, true))
        ORDER BY login.rolname), {suspended_sql("tenant.rolname")}
    FROM pg_catalog.pg_auth_members m
    JOIN pg_catalog.pg_roles tenants ON tenants.oid = m.roleid
    JOIN pg_catalog.pg_roles tenant ON tenant.oid = m.member
    WHERE tenants.rolname = :tenants_role
    AND pg_catalog.starts_with(tenant.rolname, :role_prefix)
    """
)

_VIEWS = text(
    f"""
    WITH RECURSIVE direct AS (
        SELECT DISTINCT w.ev_class AS view, d.refobjid AS source
        FROM pg_catalog.pg_depend d
        JOIN pg_catalog.pg_rewrite w ON w.oid = d.objid AND w.ev_class <> d.refobjid
        WHERE d.classid = 'pg_catalog.pg_rewrite'::regclass
        AND d.refclassid = 'pg_catalog.pg_class'::regclass
    ), reads AS (
        SELECT view, source FROM direct
        UNION SELECT reads.view, direct.source
        FROM reads JOIN direct ON direct.view = reads.source
    )
    SELECT vn.nspname, v.relname, n.nspname, c.relname, v.relkind = 'm',
        {holders("v")},
        owner.rolsuper OR owner.rolbypassrls
        OR coalesce(pg_catalog.pg_has_role(owner.oid, admin.oid, 'USAGE'), false)
    FROM reads
    JOIN pg_catalog.pg_class v ON v.oid = reads.view AND v.relkind IN ('v', 'm')
    JOIN pg_catalog.pg_namespace vn ON vn.oid = v.relnamespace
    JOIN pg_catalog.pg_class c ON c.oid = reads.source AND c.relkind IN ('r', 'p')
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_roles owner ON owner.oid = v.relowner
    LEFT JOIN pg_catalog.pg_roles admin ON admin.rolname = :admin_role
    WHERE {_USER_SCHEMAS} AND {_READS_AS_OWNER}
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
    version = connection.dialect.server_version_info or ()
    statement = _DATABASE.format(options=_OPTIONS if version >= (16,) else _NO_OPTIONS)
    facts = loads(
        connection.execute(
            text(statement),
            {
                "group_roles": list(tenancy.group_roles),
                "role_prefix": tenancy.role_prefix,
                "tenants_role": tenancy.tenants_role,
                "admin_role": tenancy.admin_role,
                "schema": tenancy.schema,
                "function": FUNCTION_NAME,
            },
        ).scalar_one()
    )
    function = facts["function"] or {}
    folded: dict[tuple[str, str], dict[str, str]] = {}
    for schema, table, column, collation in facts["folded"]:
        folded.setdefault((schema, table), {})[column] = collation
    return Catalog(
        server_version=facts["server_version"],
        current_user=facts["current_user"],
        function=function.get("definition"),
        function_visible=function.get("visible", False),
        function_owner=function.get("owner"),
        function_owner_is_admin=function.get("owner_is_admin") is True,
        function_administered=function.get("administered", False),
        function_grants=_as_grants(function.get("grants", [])),
        roles={role["name"]: _as_role(role) for role in facts["roles"] or ()},
        memberships=tuple(Membership(**item) for item in facts["memberships"]),
        schemas={
            schema["name"]: SchemaState(
                schema["owner"],
                _as_grants(schema["grants"]),
                schema["grantable"],
                _as_defaults(schema["defaults"]),
            )
            for schema in facts["schemas"] or ()
        },
        defaults=_as_defaults(facts["defaults"]),
        folding=frozenset(facts["folding"]),
        folded=folded,
        has_views=facts["has_views"],
    )


def read_tables(
    connection: Connection, tenancy: Tenancy, *, columns: bool = True
) -> dict[tuple[str, str], TableState]:
    """Read all tables but temporary ones, by schema and name; one query.

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
        schema, name, owner, is_admin, administered, rls, force, column_types, policies,
        grants, column_grants, sequences,
    ) in rows:  # fmt: skip
        tables[schema, name] = TableState(
            schema=schema,
            name=name,
            owner=owner,
            owner_is_admin=is_admin,
            is_administered=administered,
            rls=rls,
            force=force,
            columns=as_columns(column_types or "{}"),
            policies=as_policies(policies),
            grants=as_grants(grants, column_grants),
            sequences=as_sequences(sequences, False),
            identities=as_sequences(sequences, True),
            policies_text=policies,
            grants_text=(grants, column_grants, sequences),
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


def read_tenants(connection: Connection, tenancy: Tenancy) -> dict[str, TenantState]:
    """Read the tenants' roles, and the logins that may act as each; one query."""
    rows = connection.execute(
        _TENANTS,
        {"tenants_role": tenancy.tenants_role, "role_prefix": tenancy.role_prefix},
    )
    tenants = (
        TenantState(_as_role(loads(role)), tuple(logins), suspended)
        for role, logins, suspended in rows
    )
    return {tenant.role.name: tenant for tenant in tenants}


def read_views(connection: Connection, tenancy: Tenancy) -> list[View]:
    """Read the views that read a table with the rights of their owner, directly or
    through other views; one query."""
    rows = connection.execute(_VIEWS, {"admin_role": tenancy.admin_role})
    return [
        View(schema, name, (table_schema, table), *rest)
        for schema, name, table_schema, table, *rest in rows
    ]


def _as_role(facts: dict[str, Any]) -> RoleState:
    return RoleState(**{**facts, "member_of": frozenset(facts["member_of"])})


def _as_grants(items: list[list[Any]]) -> frozenset[Grant]:
    return frozenset(Grant(*item) for item in items)


def _as_defaults(items: list[dict[str, Any]]) -> Defaults:
    return {
        (item["role"], _DEFAULTS_OF[item["type"]]): _as_grants(item["grants"])
        for item in items
        if item["type"] in _DEFAULTS_OF
    }


_READERS = text(
    """
    SELECT r.rolname, r.rolsuper OR r.rolbypassrls, ARRAY(
        SELECT g.rolname FROM pg_catalog.pg_roles g
        WHERE g.rolname = ANY (:admitted)
        AND pg_catalog.pg_has_role(r.oid, g.oid, 'USAGE'))
    FROM pg_catalog.pg_roles r
    WHERE r.rolname = ANY (:roles)
    OR (:dumps AND r.rolcanlogin AND pg_catalog.pg_has_role(
        r.oid, 'pg_read_all_data', 'USAGE'))
    """
).bindparams(
    bindparam("roles", type_=ARRAY(Text)),
    bindparam("admitted", type_=ARRAY(Text)),
    bindparam("dumps", type_=Boolean),
)


def read_readers(
    connection: Connection,
    roles: Collection[str],
    admitted: Collection[str],
    *,
    dumps: bool = False,
) -> dict[str, frozenset[str] | None]:
    """Read which of the admitted roles other roles have the privileges of; one query.

    :param dumps: ask about logins that may read all tables, too.
    :return: by role; ``None`` for roles to which no policy applies.
    """
    rows = connection.execute(
        _READERS, {"roles": list(roles), "admitted": list(admitted), "dumps": dumps}
    )
    return {role: None if exempt else frozenset(has) for role, exempt, has in rows}
