"""Checks: what makes the isolation of tenants void, found in the catalog.

Five queries for any number of tables, and any login may run them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection, MetaData, text

from . import catalog
from .catalog import Catalog, TableState
from .declare import Mark, TenantTable, casts_of, marks
from .exceptions import ScopeError
from .identity import CASTS, is_canonical
from .policies import (
    ADMIN_POLICY,
    FLOOR_POLICY,
    ISOLATION_POLICY,
    TENANT_PRIVILEGES,
    printed,
    quote_grantee,
    quote_name,
    quote_qualified,
)
from .tenancy import Isolation, Tenancy

Severity: TypeAlias = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """Something that makes the isolation void, or may.

    :param code: stable identifier of the kind of finding, as in ``"rls-disabled"``.
    :param object: what it is about, as the database names it.
    :param severity: ``"error"``: rows of another tenant can be seen or changed, or
        nothing works. ``"warning"``: worth a look.
    :param message: what was found.
    :param remedy: what to do.
    """

    code: str
    object: str
    severity: Severity
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.object}: {self.message} ({self.remedy})"


_LOGIN = text(
    """
    SELECT r.rolname, r.rolsuper, r.rolbypassrls,
        CASE WHEN tenants.oid IS NULL THEN false
            ELSE pg_catalog.pg_has_role(r.oid, tenants.oid, 'USAGE') END AS inherits,
        CASE WHEN admin.oid IS NULL THEN false
            ELSE pg_catalog.pg_has_role(r.oid, admin.oid, 'MEMBER') END AS is_admin,
        EXISTS (
            SELECT FROM pg_catalog.pg_auth_members m
            JOIN pg_catalog.pg_auth_members act ON act.roleid = m.member
            JOIN pg_catalog.pg_roles tenant ON tenant.oid = m.member
            WHERE m.roleid = tenants.oid AND act.member = r.oid
            AND pg_catalog.starts_with(tenant.rolname, :role_prefix)
        ) AS acts_as_tenants,
        ARRAY(
            SELECT o.rolname FROM pg_catalog.pg_roles o
            WHERE pg_catalog.pg_has_role(r.oid, o.oid, 'MEMBER')
            AND o.oid IN (
                SELECT c.relowner FROM pg_catalog.pg_class c
                WHERE c.relkind IN ('r', 'p')
            )
        ) AS owners
    FROM pg_catalog.pg_roles r
    LEFT JOIN pg_catalog.pg_roles tenants ON tenants.rolname = :tenants_role
    LEFT JOIN pg_catalog.pg_roles admin ON admin.rolname = :admin_role
    WHERE r.rolname = session_user
    """
)

# What lies around the tables: indexes that begin with a plain column; views that read a
# table with the rights of the view's owner, directly or through other views; partitions
# and heirs. One row each, and whether tenants may use it.
_AROUND = text(
    """
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
    ), heirs AS (
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
        SELECT CASE v.relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END,
            reads.source, NULL, v.oid
        FROM reads JOIN pg_catalog.pg_class v ON v.oid = reads.view
        WHERE v.relkind IN ('v', 'm') AND NOT coalesce(v.reloptions && ARRAY[
            'security_invoker=true', 'security_invoker=on', 'security_invoker=1',
            'security_invoker=yes'], false)
        UNION ALL
        SELECT 'heir', heirs.parent, NULL, h.oid
        FROM heirs JOIN pg_catalog.pg_class h ON h.oid = heirs.heir
        WHERE h.relkind IN ('r', 'p', 'f')
    )
    SELECT around.kind, n.nspname, c.relname, around.attname,
        objects.nspname AS object_schema, o.relname AS object_name,
        coalesce(pg_catalog.has_any_column_privilege(
            tenants.oid, o.oid, 'SELECT, INSERT, UPDATE')
        OR pg_catalog.has_table_privilege(
            tenants.oid, o.oid, 'DELETE, TRUNCATE'), false) AS open_to_tenants
    FROM around
    JOIN pg_catalog.pg_class c ON c.oid = around.source
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_catalog.pg_class o ON o.oid = around.object
    LEFT JOIN pg_catalog.pg_namespace objects ON objects.oid = o.relnamespace
    LEFT JOIN pg_catalog.pg_roles tenants ON tenants.rolname = :tenants_role
    """
)

# Who else sees all rows on behalf of tenants: their own roles, if policies do not apply
# to them, and functions that run with the rights of somebody to whom none apply.
# A trigger's function cannot be called. And tenants' roles, where their form is judged.
_BYPASSES = text(
    """
    SELECT 'role' AS kind, r.rolname AS name, NULL AS owner
    FROM pg_catalog.pg_roles r
    WHERE pg_catalog.starts_with(r.rolname, :role_prefix)
    AND (r.rolsuper OR r.rolbypassrls)
    UNION ALL
    SELECT 'function', p.oid::pg_catalog.regprocedure::text, o.rolname
    FROM pg_catalog.pg_proc p
    JOIN pg_catalog.pg_roles o ON o.oid = p.proowner
    JOIN pg_catalog.pg_roles tenants ON tenants.rolname = :tenants_role
    LEFT JOIN pg_catalog.pg_roles admin ON admin.rolname = :admin_role
    WHERE p.prosecdef
    AND p.prorettype NOT IN (
        'pg_catalog.trigger'::regtype, 'pg_catalog.event_trigger'::regtype)
    AND (o.rolsuper OR o.rolbypassrls
        OR coalesce(pg_catalog.pg_has_role(o.oid, admin.oid, 'USAGE'), false))
    AND pg_catalog.has_function_privilege(tenants.oid, p.oid, 'EXECUTE')
    AND pg_catalog.has_schema_privilege(tenants.oid, p.pronamespace, 'USAGE')
    UNION ALL
    SELECT 'tenant', member.rolname, NULL
    FROM pg_catalog.pg_auth_members m
    JOIN pg_catalog.pg_roles tenants ON tenants.oid = m.roleid
    JOIN pg_catalog.pg_roles member ON member.oid = m.member
    WHERE :judges_tenants AND tenants.rolname = :tenants_role
    AND pg_catalog.starts_with(member.rolname, :role_prefix)
    """
)


def run_checks(
    connection: Connection,
    tenancy: Tenancy,
    metadata: MetaData | None,
    isolation: Isolation,
    schema: str | None,
) -> list[Finding]:
    """Return what is wrong, errors first.

    :param metadata: the models; without them, the tables that have tenant policies in
        the database are checked, and one that lost all of them goes unnoticed.
    :param schema: where sessions find the tables of models that name no schema;
        ``None`` for the first of the login's search path.
    """
    database = catalog.read_database(connection, tenancy)
    database.tables = catalog.read_tables(connection, tenancy)
    default_schema = schema or connection.dialect.default_schema_name or "public"
    marked = _marked(metadata, tenancy, database, default_schema)
    names = {
        "role_prefix": tenancy.role_prefix,
        "tenants_role": tenancy.tenants_role,
        "admin_role": tenancy.admin_role,
    }
    login = connection.execute(_LOGIN, names).one()
    around = connection.execute(_AROUND, names).all()
    # any text is a tenant's where a column holds text only
    casts = frozenset() if metadata is None else casts_of(metadata) - {""}
    judges_tenants = {"judges_tenants": bool(casts)}
    bypasses = connection.execute(_BYPASSES, {**names, **judges_tenants}).all()
    findings = [
        *_check_login(login, database, marked, tenancy, isolation),
        *_check_database(database, tenancy, schema),
        *_check_tables(database, marked, tenancy),
        *_check_columns(connection, database, marked),
        *_check_tenants(bypasses, tenancy, metadata),
        *_check_unmarked(database, marked, tenancy),
        *_check_privileges(database, marked, tenancy),
        *_check_around(around, database, marked),
        *_check_bypasses(bypasses),
    ]
    return sorted(findings, key=lambda finding: (finding.severity, finding.object))


def require_no_errors(findings: Iterable[Finding]) -> None:
    """Raise if a finding is an error.

    :raises ScopeError: with all findings in the message.
    """
    findings = list(findings)
    if any(finding.severity == "error" for finding in findings):
        raise ScopeError(
            "the isolation of tenants is void:\n" + "\n".join(map(str, findings))
        )


_Marked: TypeAlias = dict[tuple[str, str], Mark | None]


def _marked(
    metadata: MetaData | None,
    tenancy: Tenancy,
    database: Catalog,
    default_schema: str,
) -> _Marked:
    """Return the tables to check, with the mark where there are models."""
    if metadata is not None:
        return {
            (table.schema or default_schema, table.name): mark
            for table, mark in marks(metadata)
        }
    ours = {ISOLATION_POLICY, FLOOR_POLICY, ADMIN_POLICY}
    return {
        key: None
        for key, table in database.tables.items()
        if ours & set(table.policies)
    }


def _check_login(
    login: Any,
    database: Catalog,
    marked: _Marked,
    tenancy: Tenancy,
    isolation: Isolation,
) -> Iterator[Finding]:
    name = quote_name(login.rolname)

    def finding(code: str, message: str, remedy: str) -> Finding:
        return Finding(code, login.rolname, "error", message, remedy)

    use_another = "connect the application as a login of its own, that has no rights"
    if login.rolsuper:
        # everything else that follows from it goes without saying
        yield finding(
            "login-superuser",
            "the login is a superuser, to whom policies do not apply",
            use_another,
        )
        return
    if login.rolbypassrls:
        yield finding(
            "login-bypassrls",
            "the login has BYPASSRLS",
            f"ALTER ROLE {name} NOBYPASSRLS",
        )
    owned = [
        quote_qualified(*key)
        for key in marked
        if key in database.tables and database.tables[key].owner in login.owners
    ]
    if owned:
        yield finding(
            "login-owns-tables",
            f"the login owns {', '.join(owned)}, or may act as the owner, and could "
            f"switch policies off",
            use_another,
        )
    if login.inherits:
        yield finding(
            "login-inherits-tenants",
            "the login has the privileges of tenants while it acts as itself",
            f"ALTER ROLE {name} NOINHERIT, and from PostgreSQL 16 on grant tenants' "
            f"roles WITH INHERIT FALSE",
        )
    if login.is_admin:
        yield finding(
            "login-is-admin",
            f"the login may act as {tenancy.admin_role}, who sees all tenants",
            f"REVOKE {quote_name(tenancy.admin_role)} FROM {name}, and pass another "
            f"engine as admin_engine",
        )
    if isolation == "shared" and login.acts_as_tenants:
        yield finding(
            "login-acts-as-tenants",
            "the login of isolation='shared' may act as roles of tenants",
            "use a login of its own for isolation='shared'",
        )


def _check_database(
    database: Catalog, tenancy: Tenancy, schema: str | None
) -> Iterator[Finding]:
    upgrade = "alembic upgrade head"
    if schema is not None and schema not in database.schemas:
        yield Finding(
            "schema-missing",
            schema,
            "error",
            "sessions look for their tables in a schema that does not exist",
            f"pass the schema of the tables as schema, or {upgrade}",
        )
    missing = [role for role in tenancy.group_roles if role not in database.roles]
    for name in missing:
        yield Finding(
            "role-missing", name, "error", "the group role does not exist", upgrade
        )
    for role in database.roles.values():
        if role.superuser or role.bypass_rls:
            yield Finding(
                "role-bypasses-rls",
                role.name,
                "error",
                "policies do not apply to the group role",
                f"ALTER ROLE {quote_name(role.name)} NOSUPERUSER NOBYPASSRLS",
            )
    name = quote_qualified(tenancy.schema, "current_tenant") + "()"
    if database.function is None:
        yield Finding(
            "function-missing", name, "error", "the function does not exist", upgrade
        )
    elif database.function != catalog.function_definition(tenancy):
        yield Finding(
            "function-altered",
            name,
            "error",
            "the function is not the one that policies rely on",
            "alembic revision --autogenerate, and upgrade",
        )


def _check_tables(
    database: Catalog, marked: _Marked, tenancy: Tenancy
) -> Iterator[Finding]:
    repair = "alembic revision --autogenerate, and upgrade"
    for key, mark in marked.items():
        name = quote_qualified(*key)

        def finding(
            code: str, message: str, remedy: str = repair, name: str = name
        ) -> Finding:
            return Finding(code, name, "error", message, remedy)

        table = database.tables.get(key)
        if table is None:
            yield finding(
                "table-missing",
                "the models mark a table that the database does not have",
                "alembic upgrade head",
            )
            continue
        if mark is not None and not isinstance(mark, TenantTable):
            continue
        if not table.rls:
            yield finding(
                "rls-disabled", "row-level security is off: all rows are visible"
            )
        if tenancy.force and not table.force:
            yield finding(
                "rls-not-forced", "row-level security does not apply to the owner"
            )
        column = _tenant_column(table, mark)
        if mark is None and column is None:
            yield finding("policy-altered", "its policies compare no column")
            continue
        assert column is not None
        yield from min(
            (
                list(_check_policies(table, each, tenancy, database.function_visible))
                for each in _possible_marks(column, mark)
            ),
            key=len,
        )
        others = [
            policy.name
            for policy in table.policies.values()
            if "public" in (policy.roles or ()) and policy.permissive
        ]
        for policy in others:
            yield Finding(
                "policy-for-public",
                name,
                "warning",
                f"policy {quote_name(policy)} lets every role with privileges in",
                f"DROP POLICY {quote_name(policy)} ON {name}, or name its roles",
            )


# Types for which two texts may be equal, and which PostgreSQL compares as text, as it
# does a VARCHAR: the policy looks like that of one.
_FOLDING_TYPE = re.compile(r"(character|bpchar)(\(\d+\))?|(.*\.)?citext")


def _check_columns(
    connection: Connection, database: Catalog, marked: _Marked
) -> Iterator[Finding]:
    columns: dict[tuple[str, str, str], str] = {}
    if database.folding:
        columns = catalog.read_folding_columns(connection)
    for key, mark in marked.items():
        table = database.tables.get(key)
        column = None if table is None else _tenant_column(table, mark)
        if table is None or column is None:
            continue
        type_ = table.columns.get(column, "")
        if _FOLDING_TYPE.fullmatch(type_):
            yield Finding(
                "tenant-type",
                quote_qualified(*key),
                "error",
                f"column {quote_name(column)} has type {type_}, for which two tenants "
                f"could be equal",
                f"DROP the table's policies, ALTER TABLE {quote_qualified(*key)} ALTER "
                f"COLUMN {quote_name(column)} TYPE text, then alembic revision "
                f"--autogenerate, and upgrade",
            )
        if (*key, column) in columns:
            yield Finding(
                "tenant-collation",
                quote_qualified(*key),
                "error",
                f"column {quote_name(column)} has the nondeterministic collation "
                f"{quote_name(columns[*key, column])}, under which two tenants could "
                f"be equal",
                f"DROP the table's policies, ALTER TABLE {quote_qualified(*key)} ALTER "
                f"COLUMN {quote_name(column)} TYPE text COLLATE "
                f'pg_catalog."default", then alembic revision --autogenerate, and '
                f"upgrade",
            )


def _check_tenants(
    roles: Iterable[Any], tenancy: Tenancy, metadata: MetaData | None
) -> Iterator[Finding]:
    tenants = [tenancy.tenant_of(row.name) for row in roles if row.kind == "tenant"]
    invalid = [
        tenant
        for tenant in sorted(tenants)
        if metadata is not None and not is_canonical(tenant, casts_of(metadata))
    ]
    if invalid:
        shown = ", ".join(map(repr, invalid[:5])) + (", ..." if invalid[5:] else "")
        yield Finding(
            "tenant-invalid",
            tenancy.tenants_role,
            "warning",
            f"tenants see no rows, because no tenant column prints a value like this: "
            f"{shown} ({len(invalid)} in all)",
            f"delete_tenant({invalid[0]!r}), unless it belongs to another database",
        )


def _check_policies(
    table: TableState, mark: TenantTable, tenancy: Tenancy, visible: bool
) -> Iterator[Finding]:
    for policy in mark.policies(tenancy)[:3]:
        found = table.policies.get(policy.name)
        if found is None:
            code, message = "policy-missing", f"policy {policy.name} is missing"
        else:
            texts = printed(
                policy.name,
                mark.column,
                mark.cast,
                tenancy,
                bytewise=mark.bytewise,
                visible=visible,
            )
            same = (
                found.using in texts
                and found.with_check in texts
                and (found.command, found.permissive, found.roles)
                == (policy.command, policy.permissive, policy.roles)
            )
            if same:
                continue
            code, message = "policy-altered", f"policy {policy.name} was altered"
        yield Finding(
            code,
            quote_qualified(table.schema, table.name),
            "error",
            message,
            "alembic revision --autogenerate, and upgrade",
        )


def _possible_marks(column: str, mark: Mark | None) -> list[TenantTable]:
    """Return the mark; without models, each that the column could have."""
    if isinstance(mark, TenantTable):
        return [mark]
    return [
        TenantTable(column, cast, bytewise=bytewise)
        for cast in CASTS
        for bytewise in (False, True)
        if not (cast and bytewise)
    ]


def _tenant_column(table: TableState, mark: Mark | None) -> str | None:
    """Return the tenant column's name, taken from the floor policy without a mark."""
    if isinstance(mark, TenantTable):
        return mark.column
    for name in (FLOOR_POLICY, ISOLATION_POLICY):
        policy = table.policies.get(name)
        if policy is not None and policy.using is not None:
            compared = policy.using.lstrip("(")
            for column in table.columns:
                left = quote_name(column)
                if compared.startswith((f"{left} = ", f"{left})::")):
                    return column
    return None


def _reaches_tenants(role: str, tenancy: Tenancy) -> bool:
    """Whether a tenant's session has what is granted to a role, or may have."""
    return role in ("public", *tenancy.group_roles) or role.startswith(
        tenancy.role_prefix
    )


def _check_unmarked(
    database: Catalog, marked: _Marked, tenancy: Tenancy
) -> Iterator[Finding]:
    columns = {
        column
        for key, mark in marked.items()
        if key in database.tables
        and (column := _tenant_column(database.tables[key], mark)) is not None
    }
    schemas = {schema for schema, name in marked}
    for key, table in database.tables.items():
        shared = columns & set(table.columns)
        if key in marked or not shared or key[0] not in schemas:
            continue
        open_to = sorted(
            {
                grant.role
                for grant in table.grants
                if _reaches_tenants(grant.role, tenancy)
            }
        )
        column = quote_name(sorted(shared)[0])
        yield Finding(
            "table-unmarked",
            quote_qualified(*key),
            "error" if open_to and not table.rls else "warning",
            f"the table has a column {column} but no mark"
            + (f", and {', '.join(open_to)} may use it" if open_to else ""),
            "mark the model with @with_rls, or rename the column",
        )


def _check_around(
    around: Iterable[Any], database: Catalog, marked: _Marked
) -> Iterator[Finding]:
    tenant_tables = {
        key
        for key, mark in marked.items()
        if key in database.tables and (mark is None or isinstance(mark, TenantTable))
    }
    indexed = {
        (row.nspname, row.relname, row.attname) for row in around if row.kind == "index"
    }
    for key in tenant_tables:
        column = _tenant_column(database.tables[key], marked[key])
        if column is not None and (*key, column) not in indexed:
            yield Finding(
                "index-missing",
                quote_qualified(*key),
                "warning",
                f"no index begins with column {quote_name(column)}, so that every "
                f"query reads the rows of all tenants",
                f"CREATE INDEX ON {quote_qualified(*key)} ({quote_name(column)})",
            )
    for row in around:
        if row.kind == "index" or (row.nspname, row.relname) not in tenant_tables:
            continue
        table = quote_qualified(row.nspname, row.relname)
        name = quote_qualified(row.object_schema, row.object_name)
        if row.kind == "heir":
            # one that is marked has policies of its own
            key = (row.object_schema, row.object_name)
            if row.open_to_tenants and key not in marked:
                yield Finding(
                    "heir-open",
                    name,
                    "error",
                    f"tenants may use the table past the policies of {table}, of which "
                    f"it is a partition or an heir",
                    f"REVOKE the privileges of tenants on {name}; those on {table} "
                    f"are enough",
                )
            continue
        yield Finding(
            "view-bypasses-rls",
            name,
            # one for reports may be meant so
            "error" if row.open_to_tenants else "warning",
            f"the {row.kind} reads {table} with the rights of its owner"
            + ("" if row.open_to_tenants else ", though no tenant may use it"),
            "DROP it, or grant it to no tenant"
            if row.kind == "materialized view"
            else f"ALTER VIEW {name} SET (security_invoker = true)",
        )


def _check_bypasses(bypasses: Iterable[Any]) -> Iterator[Finding]:
    for row in bypasses:
        if row.kind == "role":
            yield Finding(
                "role-bypasses-rls",
                row.name,
                "error",
                "policies do not apply to the role of this tenant",
                f"ALTER ROLE {quote_name(row.name)} NOSUPERUSER NOBYPASSRLS",
            )
        elif row.kind == "function":
            yield Finding(
                "function-bypasses-rls",
                row.name,
                "warning",
                f"tenants may execute the function with the rights of {row.owner}, who "
                f"sees the rows of all tenants",
                f"ALTER FUNCTION {row.name} SECURITY INVOKER, or REVOKE EXECUTE from "
                f"PUBLIC",
            )


def _check_privileges(
    database: Catalog, marked: _Marked, tenancy: Tenancy
) -> Iterator[Finding]:
    for key, mark in marked.items():
        if key not in database.tables or not (
            mark is None or isinstance(mark, TenantTable)
        ):
            continue
        beyond = {
            (grant.privilege, grant.role)
            for grant in database.tables[key].grants
            if grant.privilege not in TENANT_PRIVILEGES
            and _reaches_tenants(grant.role, tenancy)
        }
        for privilege, role in sorted(beyond):
            name, grantee = quote_qualified(*key), quote_grantee(role)
            yield Finding(
                "privilege-bypasses-rls",
                name,
                "error",
                f"{grantee} has {privilege}, which no policy confines",
                f"REVOKE {privilege} ON {name} FROM {grantee}",
            )
