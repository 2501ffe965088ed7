"""What the login and the tenants can reach, past the policies, and who reads nothing.

A role's own attributes do not tell. A member or an administrator of another role can
act as that role, and the owner of an object can change the object.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from sqlalchemy import (
    ARRAY,
    Boolean,
    Connection,
    Text,
    TextClause,
    bindparam,
    text,
)

from ..policies import quote_name
from ..tenancy import FUNCTIONS, Tenancy
from .catalog import _FIRST_OID, _FUNCTION_ACL, _USER_SCHEMAS, holders

#: Predefined roles that lead past the policies, or to others' data, and what they do.
PREDEFINED = {
    "pg_execute_server_program": "run programs on the server",
    "pg_read_server_files": "read the server's files",
    "pg_write_server_files": "write the server's files",
    "pg_read_all_data": "read every table that has no row-level security",
    "pg_write_all_data": "write every table that has no row-level security",
    "pg_read_all_stats": "read the statements of other sessions",
    "pg_monitor": "read the statements of other sessions",
    "pg_signal_backend": "end other sessions",
    "pg_maintain": "lock and rewrite every table",
    "pg_create_subscription": "write tables as the owner of a subscription",
}

#: Whose reach is asked for: the login's, or that of tenants.
Start: TypeAlias = Literal["login", "tenants"]


class Reached(NamedTuple):
    """A role that another one may act as.

    :param start: who reaches it.
    :param by: the role that it is reached from, itself included.
    """

    start: Start
    by: str
    role: str
    superuser: bool
    bypass_rls: bool
    create_role: bool
    replication: bool


@dataclass
class Reach:
    """What the login and the tenants can reach.

    :param login: facts about the login itself, and about the database.
    :param roles: the roles that are reached and are worth a look: all but tenants'
        roles that the login reaches, and the group role that tenants are members of.
    :param owned: functions and views, one of each kind, schema and owner.
    :param around: what lies around the tables: partitions, heirs, indexes.
    :param open: relations without row-level security, with the roles that hold
        privileges on them.
    :param definers: functions and rules that run with the rights of their owner.
    :param distributed: tables that Citus distributes; its list of them where that
        cannot be read.
    :param without_set_config: owners of tables who may not execute ``set_config()``.
    :param presets: parameters of the context that come with a login or the database:
        the parameter, and the statement that takes it back.
    """

    login: Any
    roles: list[Reached]
    owned: list[Any]
    around: list[Any]
    open: list[Any]
    definers: list[Any]
    distributed: set[tuple[str, str]]
    without_set_config: list[str]
    presets: list[Any]

    def of(self, start: Start) -> set[str]:
        """Return the names of the roles that are reached."""
        return {each.role for each in self.roles if each.start == start}


# Memberships that give nothing at all are left out. Before 16 there were none.
_EDGES = "TRUE"
_EDGES_16 = "m.admin_option OR m.inherit_option OR m.set_option"

_ROLES = """
    WITH RECURSIVE edges AS (
        SELECT m.roleid, m.member FROM pg_catalog.pg_auth_members m WHERE {edges}
        -- the database's owner has this role without a membership
        UNION ALL SELECT 'pg_database_owner'::regrole::oid, datdba
        FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()
    ), start AS (
        SELECT 'login' AS start, oid FROM pg_catalog.pg_roles
        WHERE rolname = session_user
        UNION ALL SELECT 'tenants', oid FROM pg_catalog.pg_roles
        WHERE rolname IN (:tenants_role, :shared_role)
        OR pg_catalog.starts_with(rolname, :role_prefix)
    ), reach AS (
        SELECT start, oid AS by, oid AS role FROM start
        UNION SELECT reach.start, reach.by, edges.roleid
        FROM reach JOIN edges ON edges.member = reach.role
    )
    SELECT reach.start, by.rolname, r.rolname, r.rolsuper, r.rolbypassrls,
        r.rolcreaterole, r.rolreplication
    FROM reach
    JOIN pg_catalog.pg_roles r ON r.oid = reach.role
    JOIN pg_catalog.pg_roles by ON by.oid = reach.by
    WHERE CASE
        WHEN r.rolsuper OR r.rolbypassrls OR r.rolcreaterole OR r.rolreplication
        THEN TRUE
        WHEN reach.start = 'tenants' THEN reach.by <> reach.role
            AND r.rolname <> :tenants_role
        ELSE NOT pg_catalog.starts_with(r.rolname, :role_prefix) END
"""

_LOGIN = text(
    """
    SELECT r.rolname, r.rolsuper, d.datname, pg_catalog.pg_get_userbyid(d.datdba)
            AS database_owner,
        coalesce(pg_catalog.pg_has_role(r.oid, tenants.oid, 'USAGE'), false)
            AS inherits,
        EXISTS (
            SELECT FROM pg_catalog.pg_roles tenant
            WHERE pg_catalog.starts_with(tenant.rolname, :role_prefix)
            AND pg_catalog.pg_has_role(r.oid, tenant.oid, 'MEMBER')
        ) AS acts_as_tenants
    FROM pg_catalog.pg_roles r
    JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
    LEFT JOIN pg_catalog.pg_roles tenants ON tenants.rolname = :tenants_role
    WHERE r.rolname = session_user
    """
)

# Others than ours, which have their own place.
_OWNED = text(
    f"""
    SELECT 'function', n.nspname, min(p.proname),
        pg_catalog.pg_get_userbyid(p.proowner)
    FROM pg_catalog.pg_proc p
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE p.oid >= {_FIRST_OID} AND {_USER_SCHEMAS}
    AND NOT (n.nspname = :schema AND p.proname = ANY (CAST(:functions AS text[])))
    GROUP BY n.nspname, p.proowner
    UNION ALL
    SELECT 'view', n.nspname, min(c.relname),
        pg_catalog.pg_get_userbyid(c.relowner)
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid >= {_FIRST_OID} AND {_USER_SCHEMAS} AND c.relkind IN ('v', 'm')
    GROUP BY n.nspname, c.relowner
    """
)

_AROUND = text(
    f"""
    WITH RECURSIVE heirs AS (
        SELECT inhrelid AS heir, inhparent AS parent FROM pg_catalog.pg_inherits
        UNION SELECT i.inhrelid, heirs.parent
        FROM heirs JOIN pg_catalog.pg_inherits i ON i.inhparent = heirs.heir
    ), around (kind, source, attname, object) AS (
        SELECT 'index', i.indrelid, a.attname, NULL::oid
        FROM pg_catalog.pg_index i
        JOIN pg_catalog.pg_attribute a
            ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indpred IS NULL AND i.indisvalid
        UNION ALL
        SELECT 'heir', heirs.parent, NULL, h.oid
        FROM heirs JOIN pg_catalog.pg_class h ON h.oid = heirs.heir
        WHERE h.relkind IN ('r', 'p', 'f')
    )
    SELECT around.kind, n.nspname, c.relname, around.attname,
        objects.nspname AS object_schema, o.relname AS object_name,
        {holders("o")} AS holders, pg_catalog.pg_get_userbyid(o.relowner) AS owner
    FROM around
    JOIN pg_catalog.pg_class c ON c.oid = around.source
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_catalog.pg_class o ON o.oid = around.object
    LEFT JOIN pg_catalog.pg_namespace objects ON objects.oid = o.relnamespace
    """
)

# Tables of extensions are the extensions' business: PostGIS lets all read some.
_OPEN = text(
    f"""
    SELECT n.nspname, c.relname, c.relkind,
        {holders("c")} AS holders, pg_catalog.pg_get_userbyid(c.relowner) AS owner
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'
    AND NOT c.relrowsecurity AND c.oid >= {_FIRST_OID} AND {_USER_SCHEMAS}
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend d
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
        AND d.deptype = 'e')
    """
)

# Functions, functions of triggers, and rules: what runs with the rights of somebody
# else. One row each, with who this is, and of functions who may call them.
_DEFINERS = text(
    f"""
    SELECT d.kind, d.name, d.nspname, d.relname, d.callers, o.rolname AS owner,
        o.rolsuper OR o.rolbypassrls AS is_exempt,
        ARRAY(
            SELECT r.rolname::text FROM pg_catalog.pg_roles r
            WHERE r.rolname = ANY (CAST(:readers AS text[]))
            AND pg_catalog.pg_has_role(o.oid, r.oid, 'USAGE')
        ) AS acts_as
    FROM (
        SELECT 'function' AS kind, p.oid::pg_catalog.regprocedure::text AS name,
            p.proowner AS owner, n.nspname, NULL::name AS relname, ARRAY(
                SELECT CASE WHEN x.grantee = 0 THEN 'public'
                    ELSE pg_catalog.pg_get_userbyid(x.grantee)::text END
                FROM pg_catalog.aclexplode({_FUNCTION_ACL}) x
                WHERE x.grantee <> p.proowner
            ) AS callers
        FROM pg_catalog.pg_proc p
        JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
        WHERE p.prosecdef
        AND p.prorettype NOT IN (
            'pg_catalog.trigger'::regtype, 'pg_catalog.event_trigger'::regtype)
        UNION ALL
        SELECT 'trigger', t.tgname, p.proowner, n.nspname, c.relname, NULL
        FROM pg_catalog.pg_trigger t
        JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
        JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE p.prosecdef AND NOT t.tgisinternal
        UNION ALL
        SELECT 'rule', w.rulename, c.relowner, n.nspname, c.relname, NULL
        FROM pg_catalog.pg_rewrite w
        JOIN pg_catalog.pg_class c ON c.oid = w.ev_class AND c.relkind IN ('r', 'p')
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE {_USER_SCHEMAS}
    ) AS d
    JOIN pg_catalog.pg_roles o ON o.oid = d.owner
    """
)

_WITHOUT_SET_CONFIG = text(
    """
    SELECT rolname FROM pg_catalog.pg_roles
    WHERE rolname = ANY (CAST(:owners AS text[]))
    AND NOT pg_catalog.has_function_privilege(
        oid, 'pg_catalog.set_config(text, text, boolean)', 'EXECUTE')
    """
)

_PRESETS = text(
    """
    SELECT pg_catalog.split_part(s.item, '=', 1), pg_catalog.concat_ws(' ', 'ALTER',
        CASE WHEN d.setrole = 0 THEN '' ELSE 'ROLE ' || pg_catalog.quote_ident(
            pg_catalog.pg_get_userbyid(d.setrole)) END
        || CASE WHEN d.setdatabase = 0 THEN ''
            WHEN d.setrole = 0 THEN 'DATABASE ' ELSE ' IN DATABASE ' END
        || CASE WHEN d.setdatabase = 0 THEN ''
            ELSE pg_catalog.quote_ident(pg_catalog.current_database()) END)
    FROM pg_catalog.pg_db_role_setting d
    CROSS JOIN LATERAL pg_catalog.unnest(d.setconfig) AS s (item)
    WHERE d.setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database
        WHERE datname = pg_catalog.current_database()))
    AND pg_catalog.starts_with(pg_catalog.lower(s.item), :prefix)
    AND NOT pg_catalog.starts_with(pg_catalog.lower(s.item), :tenant)
    """
)

_HAS_CITUS = text(
    """
    SELECT n.nspname, pg_catalog.has_schema_privilege(n.oid, 'USAGE')
        AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = 'pg_dist_partition' AND c.relkind = 'r'
    """
)
_DISTRIBUTED = """
    SELECT n.nspname, c.relname FROM {schema}.pg_dist_partition d
    JOIN pg_catalog.pg_class c ON c.oid = d.logicalrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
"""


def read_reach(
    connection: Connection, tenancy: Tenancy, readers: set[str], owners: set[str]
) -> Reach:
    """Read what the login and the tenants can reach; a few queries.

    :param readers: roles that hold privileges on tables of tenants, or own one.
    :param owners: owners of tables of tenants.
    """
    version = connection.dialect.server_version_info or ()
    facts = {
        "role_prefix": tenancy.role_prefix,
        "tenants_role": tenancy.tenants_role,
        "shared_role": tenancy.shared_role,
        "schema": tenancy.schema,
        "functions": list(FUNCTIONS),
        "prefix": tenancy.setting.rpartition(".")[0] + ".",
        "tenant": tenancy.setting + "=",
        "readers": list(readers),
        "owners": list(owners),
    }

    def rows(statement: TextClause) -> list[Any]:
        # those that a statement does not name are ignored
        return list(connection.execute(statement, facts).all())

    edges = _EDGES_16 if version >= (16,) else _EDGES
    distributed: set[tuple[str, str]] = set()
    for schema, is_readable in rows(_HAS_CITUS):
        if is_readable:
            tables = rows(text(_DISTRIBUTED.format(schema=quote_name(schema))))
            distributed |= {(row[0], row[1]) for row in tables}
        else:
            distributed.add((schema, "pg_dist_partition"))
    return Reach(
        login=rows(_LOGIN)[0],
        roles=[Reached(*row) for row in rows(text(_ROLES.format(edges=edges)))],
        owned=rows(_OWNED),
        around=rows(_AROUND),
        open=rows(_OPEN),
        definers=rows(_DEFINERS),
        distributed=distributed,
        without_set_config=[row[0] for row in rows(_WITHOUT_SET_CONFIG)],
        presets=rows(_PRESETS),
    )


# --- who reads ------------------------------------------------------------------------


_READERS = text(
    """
    SELECT r.rolname, r.rolsuper OR r.rolbypassrls, ARRAY(
        SELECT g.rolname::text FROM pg_catalog.pg_roles g
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
