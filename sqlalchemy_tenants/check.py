"""Checks: what makes the isolation of tenants void, found in the catalog.

Four queries for any number of tables, and any login may run them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection, MetaData, text

from . import catalog
from .catalog import Catalog, TableState
from .declare import Mark, TenantTable, marks
from .exceptions import ScopeError
from .policies import (
    ADMIN_POLICY,
    FLOOR_POLICY,
    ISOLATION_POLICY,
    deparsed,
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
            WHERE pg_catalog.pg_has_role(r.oid, o.oid, 'USAGE')
        ) AS owners
    FROM pg_catalog.pg_roles r
    LEFT JOIN pg_catalog.pg_roles tenants ON tenants.rolname = :tenants_role
    LEFT JOIN pg_catalog.pg_roles admin ON admin.rolname = :admin_role
    WHERE r.rolname = session_user
    """
)

# One row an index or view: indexes that begin with a plain column, and views that
# read a table with the rights of the view's owner.
_INDEXES_AND_VIEWS = text(
    """
    SELECT 'index' AS kind, n.nspname, c.relname, a.attname, NULL AS view
    FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
    WHERE i.indpred IS NULL AND i.indisvalid
    UNION ALL
    SELECT DISTINCT
        CASE v.relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END,
        n.nspname, c.relname, NULL,
        pg_catalog.quote_ident(vn.nspname) || '.' || pg_catalog.quote_ident(v.relname)
    FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_rewrite w ON w.oid = d.objid
    JOIN pg_catalog.pg_class v ON v.oid = w.ev_class AND v.relkind IN ('v', 'm')
    JOIN pg_catalog.pg_namespace vn ON vn.oid = v.relnamespace
    JOIN pg_catalog.pg_class c ON c.oid = d.refobjid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE d.classid = 'pg_catalog.pg_rewrite'::regclass
    AND d.refclassid = 'pg_catalog.pg_class'::regclass
    AND NOT coalesce(v.reloptions && ARRAY[
        'security_invoker=true', 'security_invoker=on', 'security_invoker=1',
        'security_invoker=yes'], false)
    """
)


def run_checks(
    connection: Connection,
    tenancy: Tenancy,
    metadata: MetaData | None,
    isolation: Isolation,
) -> list[Finding]:
    """Return what is wrong, errors first.

    :param metadata: the models; without them, the tables that have tenant policies in
        the database are checked, and one that lost all of them goes unnoticed.
    """
    database = catalog.read_database(connection, tenancy)
    database.tables = catalog.read_tables(connection, tenancy)
    default_schema = connection.dialect.default_schema_name or "public"
    marked = _marked(metadata, tenancy, database, default_schema)
    names = {
        "role_prefix": tenancy.role_prefix,
        "tenants_role": tenancy.tenants_role,
        "admin_role": tenancy.admin_role,
    }
    login = connection.execute(_LOGIN, names).one()
    relations = connection.execute(_INDEXES_AND_VIEWS).all()
    findings = [
        *_check_login(login, database, marked, tenancy, isolation),
        *_check_database(database, tenancy),
        *_check_tables(database, marked, tenancy),
        *_check_unmarked(database, marked, tenancy),
        *_check_relations(relations, database, marked),
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
            f"the login owns {', '.join(owned)}, and could switch policies off",
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


def _check_database(database: Catalog, tenancy: Tenancy) -> Iterator[Finding]:
    upgrade = "alembic upgrade head"
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
        yield from _check_policies(table, column, mark, tenancy, name)
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


def _check_policies(
    table: TableState,
    column: str | None,
    mark: TenantTable | None,
    tenancy: Tenancy,
    name: str,
) -> Iterator[Finding]:
    assert column is not None
    cast = mark.cast if mark is not None else _CASTS.get(table.columns[column], "")
    for policy in TenantTable(column, cast).policies(tenancy):
        found = table.policies.get(policy.name)
        if found is None:
            code, message = "policy-missing", f"policy {policy.name} is missing"
        else:
            assert policy.using is not None
            texts = deparsed(policy.using, column, cast)
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
            name,
            "error",
            message,
            "alembic revision --autogenerate, and upgrade",
        )


_CASTS = {
    "smallint": "::smallint",
    "integer": "::integer",
    "bigint": "::bigint",
    "uuid": "::uuid",
}


def _tenant_column(table: TableState, mark: Mark | None) -> str | None:
    """Return the tenant column's name, taken from the floor policy without a mark."""
    if isinstance(mark, TenantTable):
        return mark.column
    for name in (FLOOR_POLICY, ISOLATION_POLICY):
        policy = table.policies.get(name)
        if policy is not None and policy.using is not None:
            for column in table.columns:
                if policy.using.startswith(
                    (f"({quote_name(column)} = ", f"(({quote_name(column)})::text = ")
                ):
                    return column
    return None


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
                if grant.role in ("public", *tenancy.group_roles)
                or grant.role.startswith(tenancy.role_prefix)
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


def _check_relations(
    relations: Iterable[Any], database: Catalog, marked: _Marked
) -> Iterator[Finding]:
    indexed = {
        (row.nspname, row.relname, row.attname)
        for row in relations
        if row.kind == "index"
    }
    for key, mark in marked.items():
        if key in database.tables and (mark is None or isinstance(mark, TenantTable)):
            column = _tenant_column(database.tables[key], mark)
            if column is not None and (*key, column) not in indexed:
                yield Finding(
                    "index-missing",
                    quote_qualified(*key),
                    "warning",
                    f"no index begins with column {quote_name(column)}, so that every "
                    f"query reads the rows of all tenants",
                    f"CREATE INDEX ON {quote_qualified(*key)} ({quote_name(column)})",
                )
    for row in relations:
        mark = marked.get((row.nspname, row.relname))
        if row.kind == "index" or (row.nspname, row.relname) not in marked:
            continue
        if mark is not None and not isinstance(mark, TenantTable):
            continue
        table = quote_qualified(row.nspname, row.relname)
        yield Finding(
            "view-bypasses-rls",
            row.view,
            "error",
            f"the {row.kind} reads {table} with the rights of its owner",
            "DROP it, or grant it to no tenant"
            if row.kind == "materialized view"
            else f"ALTER VIEW {row.view} SET (security_invoker = true)",
        )
