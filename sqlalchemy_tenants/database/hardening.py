"""Hardening: what ``allow_statements`` needs of the database, as data.

Within a statement that begins with SELECT, functions can do what other statements do.
:func:`hardening_sql` takes them away, and :func:`check_hardening` finds what is left.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, text

from ..policies import quote_literal, quote_name
from ..roles import do_block
from ..tenancy import Tenancy
from .catalog import _FIRST_OID, _USER_SCHEMAS
from .findings import Finding, error, warning

#: Does what SET does, within a query.
SET_CONFIG = "pg_catalog.set_config(text, text, boolean)"

#: Execute a query that they are given, but no other statement: of all functions of
#: pg_catalog they can only carry ``set_config()``. Nothing depends on their being taken
#: away, so that no finding is about them.
EXECUTE_QUERY = (
    "pg_catalog.cursor_to_xml(refcursor, integer, boolean, boolean, text)",
    "pg_catalog.cursor_to_xmlschema(refcursor, boolean, boolean, text)",
    "pg_catalog.query_to_xml(text, boolean, boolean, text)",
    "pg_catalog.query_to_xml_and_xmlschema(text, boolean, boolean, text)",
    "pg_catalog.query_to_xmlschema(text, boolean, boolean, text)",
    "pg_catalog.ts_rewrite(tsquery, text)",
    "pg_catalog.ts_stat(text)",
    "pg_catalog.ts_stat(text, text)",
)

#: Libraries of extensions that execute a text that they are given, each with a pattern
#: of those functions that execute any statement: on a connection of their own, or, as
#: ``xpath_table()``, which pastes its arguments together, in the session.
LIBRARIES = {
    "dblink": "dblink(_connect(_u)?|_exec|_open|_send_query)?",
    "pg_background": "pg_background_(launch|submit)(_v2)?",
    "pg_cron": "schedule(_in_database)?|alter_job",
    "pgxml": "xpath_table",  # of the extension xml2
    "tablefunc": "",  # they query, as those above
}

# A function keeps its library, whoever created it, and by whatever name.
_LIBRARY = "pg_catalog.substring(p.probin, '([^/.]+)(?:[.][^/]*)?$')"

_IS_UNTRUSTED = "NOT l.lanpltrusted AND l.lanname NOT IN ('internal', 'c')"


def hardening_sql(database: str, owners: Sequence[str]) -> list[str]:
    """Return the statements that a superuser executes, in the database.

    :param database: its name.
    :param owners: who owns the tables, and migrates and dumps them.
    """
    return [
        *_set_config_sql(owners),
        *_temporary_sql(database, owners),
        _functions_sql(owners),
    ]


def _set_config_sql(owners: Sequence[str]) -> list[str]:
    return _give_to(f"EXECUTE ON FUNCTION {SET_CONFIG}", owners)


def _temporary_sql(database: str, owners: Sequence[str]) -> list[str]:
    # autogenerate compares conditions by temporary views
    return _give_to(f"TEMPORARY ON DATABASE {quote_name(database)}", owners)


def _functions_sql(owners: Sequence[str]) -> str:
    """Take functions that execute text from everybody but ``owners``."""
    *queries, last = map(quote_literal, EXECUTE_QUERY)
    libraries = ", ".join(map(quote_literal, LIBRARIES))
    lines = [
        "FOR f IN SELECT p.oid FROM pg_catalog.pg_proc p",
        "  JOIN pg_catalog.pg_language l ON l.oid = p.prolang",
        "  WHERE p.oid = ANY (ARRAY[",
        *(f"    {each}," for each in queries),
        f"    {last}",
        "  ]::pg_catalog.regprocedure[]::pg_catalog.oid[])",
        f"  OR {_LIBRARY}",
        f"    IN ({libraries})",
        f"  OR {_IS_UNTRUSTED}",
        "LOOP",
        "  EXECUTE pg_catalog.format('REVOKE EXECUTE ON ROUTINE %s FROM PUBLIC', f);",
    ]
    for owner in map(quote_literal, owners):
        lines += [
            "  EXECUTE pg_catalog.format(",
            f"    'GRANT EXECUTE ON ROUTINE %s TO %I', f, {owner});",
        ]
    return do_block([*lines, "END LOOP;"], ["f pg_catalog.regprocedure;"])


def _give_to(privilege: str, owners: Sequence[str]) -> list[str]:
    """Take a privilege from everybody, and give it to ``owners``."""
    return [
        f"REVOKE {privilege} FROM PUBLIC",
        *(f"GRANT {privilege} TO {quote_name(owner)}" for owner in owners),
    ]


# Tenants' own roles have no privileges but those of the group, unless granted by hand.
_OURS = """
    r.rolname IN (:tenants_role, :shared_role)
    OR (pg_catalog.starts_with(r.rolname, :role_prefix) AND r.oid IN (
        SELECT x.grantee FROM pg_catalog.aclexplode({acl}) x))
"""

_FUNCTIONS = text(
    f"""
    SELECT p.kind, p.oid::pg_catalog.regprocedure::text
    FROM (
        SELECT p.oid, p.pronamespace, p.proacl, CASE
            WHEN p.oid = '{SET_CONFIG}'::pg_catalog.regprocedure THEN 'set-config'
            WHEN p.proname ~ ('^(' || (
                CAST(:libraries AS pg_catalog.jsonb) ->> {_LIBRARY}) || ')$')
                THEN 'any'
            WHEN {_IS_UNTRUSTED} THEN 'untrusted'
            WHEN l.lanname NOT IN ('internal', 'c', 'sql') AND {_USER_SCHEMAS}
                AND p.prosrc ~* '\\m(execute|spi_\\w+)\\M'
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_catalog.pg_proc'::regclass
                    AND d.objid = p.oid AND d.deptype = 'e') THEN 'built'
            END AS kind
        FROM pg_catalog.pg_proc p
        JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
        JOIN pg_catalog.pg_language l ON l.oid = p.prolang
        WHERE (p.oid >= {_FIRST_OID}
            OR p.oid = '{SET_CONFIG}'::pg_catalog.regprocedure)
        -- triggers cannot be called
        AND p.prorettype NOT IN (
            'pg_catalog.trigger'::regtype, 'pg_catalog.event_trigger'::regtype)
    ) AS p
    WHERE p.kind IS NOT NULL AND EXISTS (
        SELECT FROM pg_catalog.pg_roles r
        WHERE ({_OURS.format(acl="p.proacl")})
        AND pg_catalog.has_function_privilege(r.oid, p.oid, 'EXECUTE')
        AND pg_catalog.has_schema_privilege(r.oid, p.pronamespace, 'USAGE'))
    ORDER BY 2
    """
)

_TEMPORARY = text(
    f"""
    SELECT d.datname FROM pg_catalog.pg_database d
    WHERE d.datname = pg_catalog.current_database() AND EXISTS (
        SELECT FROM pg_catalog.pg_roles r
        WHERE ({_OURS.format(acl="d.datacl")})
        AND pg_catalog.has_database_privilege(r.oid, d.oid, 'TEMPORARY'))
    """
)

_HARDENED = "sqlalchemy-tenants setup --hardened prints it"


def check_hardening(
    connection: Connection, tenancy: Tenancy, owners: Sequence[str]
) -> Iterator[Finding]:
    """Yield what lets a tenant past ``allow_statements``.

    :param owners: who owns tables of tenants.
    """
    names = {
        "role_prefix": tenancy.role_prefix,
        "tenants_role": tenancy.tenants_role,
        "shared_role": tenancy.shared_role,
    }
    functions = connection.execute(
        _FUNCTIONS, {**names, "libraries": json.dumps(LIBRARIES)}
    )
    for kind, name in functions.all():
        yield _finding(kind, name, owners)
    for database in connection.execute(_TEMPORARY, names).scalars().all():
        remedy = "; ".join(_temporary_sql(database, owners))
        yield warning(
            "temporary-open",
            database,
            "tenants may create temporary tables, by SELECT INTO, which stay on a "
            "pooled connection",
            f"as a superuser or the database's owner: {remedy} ({_HARDENED})",
        )


def _finding(kind: str, function: str, owners: Sequence[str]) -> Finding:
    """Return what is wrong with a function that tenants may execute.

    :param kind: as of ``_FUNCTIONS``.
    """
    revoke = f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC"
    if kind == "set-config":
        remedy = "; ".join(_set_config_sql(owners))
        return error(
            "set-config-open",
            function,
            "tenants may execute set_config(), which does within a SELECT what "
            "allow_statements refuses",
            f"as a superuser: {remedy} ({_HARDENED})",
        )
    if kind == "any":
        return error(
            "executes-text",
            function,
            "tenants may execute a function that executes any statement that it is "
            "given",
            f"as a superuser: {revoke} ({_HARDENED})",
        )
    why = (
        "is written in an untrusted language"
        if kind == "untrusted"
        else "executes statements that it builds"
    )
    return warning(
        "executes-text",
        function,
        f"tenants may execute a function that {why}: if it executes text that it is "
        f"given, allow_statements does not hold",
        f"see that it does not, or {revoke}",
    )
