"""What the database holds: roles, functions, policies and privileges as data.

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

from ..policies import Command, Policy, role_set
from ..scope import suspended_sql
from ..tenancy import FUNCTION_NAME, FUNCTIONS, Tenancy

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
    policies: dict[str, Policy]
    grants: frozenset[Grant]
    sequences: dict[str, frozenset[Grant]]
    identities: dict[str, frozenset[Grant]]
    policies_text: str
    grants_text: tuple[str, ...]


class SequenceState(NamedTuple):
    """A sequence that belongs to no column, but that models may name, as in
    ``Column(Sequence("order_seq"))``.

    :param is_administered: whether the current user has its owner's rights.
    """

    owner: str
    is_administered: bool
    grants: frozenset[Grant]


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
    :param functions: our functions by name, those that exist.
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
    functions: dict[str, FunctionState]
    roles: dict[str, RoleState]
    memberships: tuple[Membership, ...]
    schemas: dict[str, SchemaState]
    defaults: Defaults
    folding: frozenset[str]
    folded: dict[tuple[str, str], dict[str, str]]
    has_views: bool
    tables: dict[tuple[str, str], TableState] = field(default_factory=dict)
    tenants: dict[str, TenantState] = field(default_factory=dict)

    @property
    def function_visible(self) -> bool:
        """Whether the server prints ``current_tenant()`` without its schema."""
        function = self.functions.get(FUNCTION_NAME)
        return function is not None and function.visible


@dataclass
class FunctionState:
    """One of our functions.

    :param definition: as ``pg_get_functiondef`` prints it.
    :param visible: whether the server prints the function without its schema, because
        the search path leads to it.
    :param owner_is_admin: whether its owner sees all rows.
    :param administered: whether the current user has its owner's rights.
    :param grants: what everyone but its owner holds on it.
    """

    definition: str
    visible: bool
    owner: str
    owner_is_admin: bool
    administered: bool
    grants: frozenset[Grant]


@dataclass
class TenantState:
    """The role of a tenant.

    :param logins: who may act as it, without those that only administer it.
    """

    role: RoleState
    logins: tuple[str, ...]
    suspended: bool


# Before asyncpg asks the server about a type that it does not know, it calls
# set_config(), which the login of a hardened database may not execute. It knows arrays
# of text and of oid, so all arrays that are sent or read here are of these two.


def _role(oid: str) -> str:
    # a function, because each join or view makes planning slower
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


def holders(relation: str) -> str:
    """Return the array of who holds privileges on the rows of a relation, or on one of
    its columns, the owner aside."""
    return f"""ARRAY(
        SELECT DISTINCT ({_role("x.grantee")})::text
        FROM (
            SELECT {relation}.relacl UNION ALL
            SELECT a.attacl FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = {relation}.oid AND a.attacl IS NOT NULL
        ) AS acls (acl)
        CROSS JOIN LATERAL pg_catalog.aclexplode(acls.acl) x
        WHERE x.grantee <> {relation}.relowner AND x.privilege_type IN (
            'SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE'))"""


# By the numbers of types: a name would be looked up in a schema that the login may not
# use.
_OUR_FUNCTION = "n.nspname = :schema AND ({})".format(
    " OR ".join(
        f"p.proname = '{name}' AND p.proargtypes = '{'25' if argument else ''}'"
        for name, argument in FUNCTIONS.items()
    )
)
_FUNCTION_ACL = "coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))"

# Before 16 a membership had no options of its own.
_NO_OPTIONS = "'inherit', true, 'set', true"
_OPTIONS = "'inherit', m.inherit_option, 'set', m.set_option"

_DATABASE = f"""
    SELECT pg_catalog.json_build_object(
        'server_version', pg_catalog.current_setting('server_version_num')::integer,
        'current_user', current_user,
        'functions', ARRAY(
            SELECT pg_catalog.json_build_object(
                'name', p.proname,
                'definition', pg_catalog.pg_get_functiondef(p.oid),
                'visible', pg_catalog.pg_function_is_visible(p.oid),
                'owner', pg_catalog.pg_get_userbyid(p.proowner),
                'owner_is_admin', coalesce({_is_admin("p.proowner")}, false),
                'administered', pg_catalog.pg_has_role(p.proowner, 'USAGE'),
                'grants', ARRAY({_grants(_FUNCTION_ACL, "p.proowner")})
            )
            FROM pg_catalog.pg_proc p
            JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
            WHERE {_OUR_FUNCTION}
        ),
        'roles', (
            SELECT pg_catalog.json_agg({_role_state("r")})
            FROM pg_catalog.pg_roles r
            WHERE r.rolname = ANY (CAST(:group_roles AS text[]))
        ),
        'memberships', ARRAY(
            SELECT pg_catalog.json_build_object(
                'group', pg_catalog.pg_get_userbyid(m.roleid),
                'member', member.rolname,
                'grantor', pg_catalog.pg_get_userbyid(m.grantor),
                'admin', m.admin_option, {{options}})
            FROM pg_catalog.pg_auth_members m
            JOIN pg_catalog.pg_roles member ON member.oid = m.member
            WHERE member.rolname = ANY (CAST(:group_roles AS text[]))
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
_TABLES = text(
    f"""
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
        c.relrowsecurity, c.relforcerowsecurity,
        coalesce(policies.items, '[]'), coalesce(acls.grants, '[]'),
        coalesce(column_grants.items, '[]'), coalesce(sequences.items, '[]')
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN policies ON policies.polrelid = c.oid
    LEFT JOIN acls ON acls.acl = c.relacl AND acls.owner = c.relowner
    LEFT JOIN column_grants ON column_grants.oid = c.oid
    LEFT JOIN sequences ON sequences.refobjid = c.oid
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND {_USER_SCHEMAS}
    """
)

_SEQUENCES = text(
    f"""
    SELECT n.nspname, c.relname, pg_catalog.pg_get_userbyid(c.relowner),
        pg_catalog.pg_has_role(c.relowner, 'USAGE'), pg_catalog.array_to_json(
            ARRAY({_grants("c.relacl", "c.relowner")}))::text
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND {_USER_SCHEMAS}
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend d
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
        AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i'))
    """
)

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

_COLUMNS = text(
    f"""
    SELECT n.nspname, c.relname, pg_catalog.json_object_agg(a.attname,
        CASE WHEN t.typtype = 'd'
            THEN pg_catalog.format_type(t.typbasetype, t.typtypmod)
            ELSE pg_catalog.format_type(a.atttypid, a.atttypmod) END
        ORDER BY a.attnum)::text
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p')
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    WHERE a.attnum > 0 AND NOT a.attisdropped AND {_USER_SCHEMAS}
    GROUP BY n.nspname, c.relname
    """
)

_TENANTS = text(
    f"""
    SELECT {_role_state("tenant")}::text, ARRAY(
        SELECT DISTINCT login.rolname::text
        FROM pg_catalog.pg_auth_members act
        JOIN pg_catalog.pg_roles login ON login.oid = act.member
        -- the creator of a role has ADMIN alone; before 16 ADMIN gave everything
        WHERE act.roleid = tenant.oid AND (NOT act.admin_option OR coalesce(
            (pg_catalog.to_jsonb(act) ->> 'set_option')::boolean, true))
        ORDER BY login.rolname::text), {suspended_sql("tenant.rolname")}
    FROM pg_catalog.pg_auth_members m
    JOIN pg_catalog.pg_roles tenants ON tenants.oid = m.roleid
    JOIN pg_catalog.pg_roles tenant ON tenant.oid = m.member
    WHERE tenants.rolname = :tenants_role
    AND pg_catalog.starts_with(tenant.rolname, :role_prefix)
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
    """Read roles, schemas and our functions; one query."""
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
            },
        ).scalar_one()
    )
    folded: dict[tuple[str, str], dict[str, str]] = {}
    for schema, table, column, collation in facts["folded"]:
        folded.setdefault((schema, table), {})[column] = collation
    return Catalog(
        server_version=facts["server_version"],
        current_user=facts["current_user"],
        functions={item["name"]: _as_function(item) for item in facts["functions"]},
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
    connection: Connection, tenancy: Tenancy
) -> dict[tuple[str, str], TableState]:
    """Read all tables but temporary ones, by schema and name; one query."""
    rows = connection.execute(_TABLES, {"admin_role": tenancy.admin_role})
    as_grants = cache(lambda *items: _as_grants([x for i in items for x in loads(i)]))
    as_policies = cache(_as_policies)
    as_sequences = cache(_as_sequences)
    tables = {}
    for (
        schema, name, owner, is_admin, administered, rls, force,
        policies, grants, column_grants, sequences,
    ) in rows:  # fmt: skip
        tables[schema, name] = TableState(
            schema=schema,
            name=name,
            owner=owner,
            owner_is_admin=is_admin,
            is_administered=administered,
            rls=rls,
            force=force,
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


def read_sequences(connection: Connection) -> dict[tuple[str, str], SequenceState]:
    """Read the sequences that belong to no column, by schema and name; one query."""
    return {
        (schema, name): SequenceState(owner, administered, _as_grants(loads(grants)))
        for schema, name, owner, administered, grants in connection.execute(_SEQUENCES)
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
    """Read the columns whose default calls one of our functions; one query."""
    rows = connection.execute(_DEFAULTS, {"schema": tenancy.schema})
    return frozenset(Dependency(*row) for row in rows)


def read_columns(connection: Connection) -> dict[tuple[str, str], dict[str, str]]:
    """Read columns and their types, for a domain its base type, by schema and table;
    one query."""
    rows = connection.execute(_COLUMNS)
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


def _as_role(facts: dict[str, Any]) -> RoleState:
    return RoleState(**{**facts, "member_of": frozenset(facts["member_of"])})


def _as_function(facts: dict[str, Any]) -> FunctionState:
    return FunctionState(
        **{key: value for key, value in facts.items() if key not in ("name", "grants")},
        grants=_as_grants(facts["grants"]),
    )


def _as_grants(items: list[list[Any]]) -> frozenset[Grant]:
    return frozenset(Grant(*item) for item in items)


def _as_defaults(items: list[dict[str, Any]]) -> Defaults:
    return {
        (item["role"], _DEFAULTS_OF[item["type"]]): _as_grants(item["grants"])
        for item in items
        if item["type"] in _DEFAULTS_OF
    }
