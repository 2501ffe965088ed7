"""Checks: what makes the isolation of tenants void, found in the catalog.

A few queries for any number of tables, and any login may run them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, MetaData

from ..declare import Mark, TenantTable, casts_of, marks
from ..identity import CASTS, is_canonical
from ..policies import (
    ADMIN_POLICY,
    FLOOR_POLICY,
    ISOLATION_POLICY,
    OWN_POLICIES,
    TENANT_PRIVILEGES,
    quote_grantee,
    quote_name,
    quote_qualified,
)
from ..roles import list_tenants
from ..tenancy import Isolation, Tenancy
from . import catalog
from .beyond import check_policies_of_others, check_shared, owned_objects
from .catalog import Catalog, TableState, View
from .expected import Expected, admitted, altered_parts, printed_policy, readers
from .findings import Finding, Severity
from .reach import PREDEFINED, Reach, Reached, Start, read_reach
from .same import compare_expressions, questions_of

_UPGRADE = "alembic upgrade head"
_REPAIR = "alembic revision --autogenerate, and upgrade"

# Predefined roles that are as good as a superuser.
_SERVER_ROLES = frozenset(
    ("pg_execute_server_program", "pg_read_server_files", "pg_write_server_files")
)


@dataclass
class _Checked:
    """What is checked: the database, and what it is held against.

    :param marked: tables to check. A table has no mark where there are no models, and
        its policies compare no column.
    :param has_models: whether marks come from models.
    :param schema: the schema of sessions, ``None`` for the login's search path.
    :param invalid: tenants that no tenant column of the models can hold.
    :param altered: policies of the user's own, by schema, table and name, whose
        condition is another one, or why that cannot be told.
    """

    expected: Expected
    isolation: Isolation
    schema: str | None
    database: Catalog
    reach: Reach
    views: list[View]
    marked: dict[tuple[str, str], Mark | None]
    has_models: bool
    readers: dict[str, frozenset[str] | None]
    invalid: list[str]
    altered: dict[tuple[str, str, str], str | None]

    @property
    def tenancy(self) -> Tenancy:
        return self.expected.tenancy

    @property
    def dumps(self) -> set[str]:
        """Logins that may read all tables, whatever was granted on these."""
        asked = {r for _, t, _ in self.tables() for r in readers(t, self.expected)}
        return set(self.readers) - asked

    def tables(self) -> Iterator[tuple[str, TableState, Mark | None]]:
        """Yield the marked tables that exist, with their quoted names."""
        for key, mark in self.marked.items():
            if key in self.database.tables:
                yield quote_qualified(*key), self.database.tables[key], mark

    def tenant_tables(self) -> Iterator[tuple[str, TableState, TenantTable]]:
        """Yield the tables of tenants."""
        for name, table, mark in self.tables():
            if isinstance(mark, TenantTable):
                yield name, table, mark

    @property
    def schemas(self) -> set[str]:
        """Schemas that sessions of tenants look for objects in, and the function's."""
        found = {schema for schema, name in self.marked} | {self.tenancy.schema}
        return found if self.schema is None else found | {self.schema}

    def belongs_to(self, start: Start, owner: str) -> bool:
        """Whether the login, or a tenant, is an object's owner or may act as it."""
        if owner in self.reach.of(start):
            return True
        if start == "login":
            return bool(owner == self.reach.login.rolname)
        return self.expected.is_ours(owner) and owner != self.tenancy.admin_role

    def gives_tenants(self, role: str) -> bool:
        """Whether a tenant has what is granted to a role, or may act as it."""
        return role == "public" or self.belongs_to("tenants", role)

    def opened(
        self, schema: str, holders: list[str], owner: str | None = None
    ) -> list[str]:
        """Return who lets tenants use a relation, or call a function.

        :param holders: who holds privileges on it.
        """
        # everybody may use the schemas that are not read: those of the system
        state = self.database.schemas.get(schema)
        is_usable = (
            state is None
            or self.belongs_to("tenants", state.owner)
            or any(
                grant.privilege == "USAGE" and self.gives_tenants(grant.role)
                for grant in state.grants
            )
        )
        found = [owner] if owner and self.belongs_to("tenants", owner) else []
        found += filter(self.gives_tenants, holders if is_usable else ())
        return sorted(map(quote_grantee, found))


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
    checked = _read(connection, tenancy, metadata, isolation, schema)
    findings = [finding for check in _CHECKS for finding in check(checked)]
    findings.sort(key=lambda finding: (finding.severity, finding.object))
    return list(dict.fromkeys(findings))


def _read(
    connection: Connection,
    tenancy: Tenancy,
    metadata: MetaData | None,
    isolation: Isolation,
    schema: str | None,
) -> _Checked:
    expected = Expected(tenancy)
    database = catalog.read_database(connection, tenancy)
    database.tables = catalog.read_tables(connection, tenancy)
    default_schema = schema or connection.dialect.default_schema_name or "public"
    marked: dict[tuple[str, str], Mark | None]
    if metadata is not None:
        marked = {
            (table.schema or default_schema, table.name): mark
            for table, mark in marks(metadata)
        }
    else:
        marked = {
            key: _mark_of(table, tenancy, database.function_visible)
            for key, table in database.tables.items()
            if {ISOLATION_POLICY, FLOOR_POLICY, ADMIN_POLICY} & set(table.policies)
        }
    tables = [database.tables[key] for key in marked if key in database.tables]
    owners = {table.owner for table in tables}
    holders = owners | {
        grant.role
        for table in tables
        for grant in table.grants
        if grant.privilege in TENANT_PRIVILEGES
    }
    return _Checked(
        expected,
        isolation,
        schema,
        database,
        read_reach(connection, tenancy, holders, owners),
        catalog.read_views(connection, tenancy),
        marked,
        metadata is not None,
        catalog.read_readers(
            connection,
            {role for table in tables for role in readers(table, expected)},
            {r for table in tables for r in admitted(table.policies.values())},
            dumps=True,
        ),
        _invalid_tenants(connection, tenancy, metadata),
        _altered_conditions(connection, tenancy, marked, database),
    )


def _altered_conditions(
    connection: Connection,
    tenancy: Tenancy,
    marked: Mapping[tuple[str, str], Mark | None],
    database: Catalog,
) -> dict[tuple[str, str, str], str | None]:
    questions = [
        question
        for key, mark in marked.items()
        if key in database.tables and isinstance(mark, TenantTable)
        for question in questions_of(database.tables[key], mark, tenancy)
    ]
    return {
        question[:3]: answer.reason
        for question, answer in compare_expressions(connection, questions).items()
        if not answer.same
    }


def _invalid_tenants(
    connection: Connection, tenancy: Tenancy, metadata: MetaData | None
) -> list[str]:
    casts = frozenset[str]() if metadata is None else casts_of(metadata)
    # any text is a tenant's where a column holds text only
    if not casts - {""}:
        return []
    tenants = list_tenants(connection, tenancy)
    return [tenant for tenant in tenants if not is_canonical(tenant, casts)]


def _mark_of(table: TableState, tenancy: Tenancy, visible: bool) -> TenantTable | None:
    """Return the mark that fits best to the policies of a table without a model."""
    for name in (FLOOR_POLICY, ISOLATION_POLICY):
        policy = table.policies.get(name)
        if policy is None or policy.using is None:
            continue
        compared = policy.using.lstrip("(")
        for column in table.columns:
            left = quote_name(column)
            if compared.startswith((f"{left} = ", f"{left})::")):
                possible = [
                    TenantTable(column, cast, bytewise=bytewise)
                    for cast in CASTS
                    for bytewise in (False, True)
                    if not (cast and bytewise)
                ]
                return min(
                    possible,
                    key=lambda mark: len(
                        [*_check_policies("", table, mark, tenancy, visible)]
                    ),
                )
    return None


# --- roles -------------------------------------------------------------------------


def _check_login(checked: _Checked) -> Iterator[Finding]:
    login = checked.reach.login
    name = quote_name(login.rolname)
    if login.rolsuper:
        # everything else follows from it
        yield Finding(
            "login-superuser",
            login.rolname,
            "error",
            "the login is a superuser, to whom policies do not apply",
            "connect the application as a login of its own, without rights",
        )
        return
    for reached in checked.reach.roles:
        if reached.start == "login":
            yield from _check_reached(checked, reached, "login")
    yield from _check_owned(checked, "login", login.rolname)
    if login.inherits:
        yield Finding(
            "login-inherits-tenants",
            login.rolname,
            "error",
            "the login has the privileges of tenants while it acts as itself",
            f"ALTER ROLE {name} NOINHERIT, and from PostgreSQL 16 on grant tenants' "
            f"roles WITH INHERIT FALSE",
        )
    if checked.isolation == "shared" and login.acts_as_tenants:
        yield Finding(
            "login-acts-as-tenants",
            login.rolname,
            "error",
            "the login of isolation='shared' may act as roles of tenants",
            "use a login of its own for isolation='shared'",
        )


def _check_roles(checked: _Checked) -> Iterator[Finding]:
    for reached in checked.reach.roles:
        if reached.start == "tenants":
            yield from _check_reached(checked, reached, "role")
    yield from _check_owned(checked, "tenants", None)
    admin = checked.database.roles.get(checked.tenancy.admin_role)
    if admin is not None and (admin.superuser or admin.bypass_rls):
        yield Finding(
            "role-bypasses-rls",
            admin.name,
            "error",
            "policies do not apply to the admin role",
            f"ALTER ROLE {quote_name(admin.name)} NOSUPERUSER NOBYPASSRLS",
        )


def _check_reached(
    checked: _Checked, reached: Reached, subject: str
) -> Iterator[Finding]:
    """Yield what follows from a role that the login or a tenant may act as.

    :param subject: ``"login"`` or ``"role"``: what the codes begin with.
    """
    by, role = quote_name(reached.by), quote_name(reached.role)
    itself = reached.by == reached.role
    revoke = f"REVOKE {role} FROM {by}, or the role between them"

    def finding(
        code: str, what: str, alter: str = "", severity: Severity = "error"
    ) -> Finding:
        message = f"the {subject} {what}" if itself else f"it may act as {role}: {what}"
        remedy = f"ALTER ROLE {role} {alter}" if itself else revoke
        return Finding(f"{subject}-{code}", reached.by, severity, message, remedy)

    def reached_as(kind: str, code: str) -> str:
        return code if subject == "login" else kind

    if reached.superuser:
        code = reached_as("bypasses-rls", "superuser")
        yield finding(code, "is a superuser", "NOSUPERUSER")
        return
    if reached.bypass_rls:
        code = reached_as("bypasses-rls", "bypassrls")
        yield finding(code, "has BYPASSRLS", "NOBYPASSRLS")
    if reached.create_role and checked.database.server_version < 160000:
        what = "has CREATEROLE, and before PostgreSQL 16 may give itself any role"
        yield finding("creates-roles", what, "NOCREATEROLE")
    elif reached.create_role and subject == "role":
        yield finding("creates-roles", "has CREATEROLE", "NOCREATEROLE", "warning")
    if reached.replication:
        what = "has REPLICATION, and may stream everything that is written"
        yield finding("replicates", what, "NOREPLICATION")
    if itself or reached.role == checked.tenancy.tenants_role:
        return
    if reached.role == checked.tenancy.admin_role:
        yield finding("is-admin", "who sees all tenants")
    elif subject == "role" and checked.expected.is_ours(reached.role):
        yield finding("acts-as-tenant", "another tenant, or any")
    if reached.role in PREDEFINED:
        is_error = subject == "role" or reached.role in _SERVER_ROLES
        yield finding(
            "has-predefined-role",
            f"who may {PREDEFINED[reached.role]}",
            severity="error" if is_error else "warning",
        )


def _check_owned(
    checked: _Checked, start: Start, login: str | None
) -> Iterator[Finding]:
    """Yield what the login, or a tenant, owns, or may act as the owner of.

    :param login: the login, ``None`` for tenants, who are then named by what they own.
    """
    subject = "role" if login is None else "login"
    database, tenancy = checked.database, checked.tenancy
    owned = [
        (kind, quote_name(name), owner)
        for (kind, name), owner in checked.reach.owners.items()
        if kind == "database" or name in checked.schemas
    ]
    if database.function_owner is not None:
        name = quote_qualified(tenancy.schema, "current_tenant") + "()"
        owned.append(("function", name, database.function_owner))
    owned += [("tables", name, table.owner) for name, table, _ in checked.tables()]
    owned += owned_objects(checked, start)
    found: dict[tuple[str, str], list[str]] = {}
    for kind, name, owner in owned:
        if checked.belongs_to(start, owner):
            found.setdefault((kind, login or owner), []).append(name)
    for (kind, who), names in found.items():
        what = "" if kind == "tables" else f"{kind} "
        yield Finding(
            f"{subject}-owns-{kind}",
            who,
            "error",
            f"the {subject} owns {what}{', '.join(names)}, or may act as the owner, "
            f"and could switch the isolation off",
            "connect the application as a login of its own, without rights"
            if login is not None
            else f"give {what}{', '.join(names)} another owner",
        )


# --- what a database has once -------------------------------------------------------


def _check_database(checked: _Checked) -> Iterator[Finding]:
    database, tenancy, schema = checked.database, checked.tenancy, checked.schema
    if schema is not None and schema not in database.schemas:
        yield Finding(
            "schema-missing",
            schema,
            "error",
            "sessions look for their tables in a schema that does not exist",
            f"pass the schema of the tables as schema, or {_UPGRADE}",
        )
    for name in tenancy.group_roles:
        if name not in database.roles:
            message = "the group role does not exist"
            yield Finding("role-missing", name, "error", message, _UPGRADE)
    name = quote_qualified(tenancy.schema, "current_tenant") + "()"
    if database.function is None:
        message = "the function does not exist"
        yield Finding("function-missing", name, "error", message, _UPGRADE)
    elif database.function != checked.expected.function:
        yield Finding(
            "function-altered",
            name,
            "error",
            "the function is not the one that policies rely on",
            _REPAIR,
        )
    for each in sorted(checked.schemas & set(database.schemas)):
        for grant in sorted(database.schemas[each].grants, key=str):
            if grant.privilege == "CREATE" and checked.gives_tenants(grant.role):
                name, role = quote_name(each), quote_grantee(grant.role)
                yield Finding(
                    "schema-open",
                    name,
                    "error",
                    f"{role} may create functions and operators in the schema, which "
                    f"sessions of other tenants would find there",
                    f"REVOKE CREATE ON SCHEMA {name} FROM {role}",
                )


# --- tables -------------------------------------------------------------------------


def _check_distributed(checked: _Checked) -> Iterator[Finding]:
    for key in checked.reach.distributed:
        if key[1] == "pg_dist_partition":
            message = "the login cannot read which tables Citus distributes"
            remedy = f"GRANT SELECT ON {quote_qualified(*key)} TO PUBLIC"
        elif key in checked.marked:
            message = (
                "Citus distributes the table, which is not supported: its shards hold "
                "other policies"
            )
            remedy = "SELECT undistribute_table(...), or use several clusters"
        else:
            continue
        name = quote_qualified(*key)
        yield Finding("table-distributed", name, "error", message, remedy)


def _check_tables(checked: _Checked) -> Iterator[Finding]:
    for key, mark in checked.marked.items():
        name, table = quote_qualified(*key), checked.database.tables.get(key)
        if table is None:
            yield Finding(
                "table-missing",
                name,
                "error",
                "the models mark a table that the database does not have",
                _UPGRADE,
            )
            continue
        if mark is None:
            message = "none of its policies compares a tenant column"
            yield Finding("policy-altered", name, "error", message, _REPAIR)
        elif isinstance(mark, TenantTable):
            yield from _check_table(checked, name, table, mark)


def _check_table(
    checked: _Checked, name: str, table: TableState, mark: TenantTable
) -> Iterator[Finding]:
    if not table.rls:
        message = "row-level security is off: all rows are visible"
        yield Finding("rls-disabled", name, "error", message, _REPAIR)
    if checked.tenancy.force and not table.force:
        message = "row-level security does not apply to the owner"
        yield Finding("rls-not-forced", name, "error", message, _REPAIR)
    yield from _check_column(checked, name, table, mark.column)
    yield from _check_policies(
        name, table, mark, checked.tenancy, checked.database.function_visible
    )
    for key in checked.altered:
        if key[:2] == (table.schema, table.name):
            yield _altered_condition(checked, name, mark, key)
    for policy in table.policies.values():
        if "public" in (policy.roles or ()) and policy.permissive:
            yield Finding(
                "policy-for-public",
                name,
                "warning",
                f"policy {quote_name(policy.name)} lets every role with privileges in",
                f"DROP POLICY {quote_name(policy.name)} ON {name}, or name its roles",
            )
    beyond = {
        (grant.privilege, grant.role)
        for grant in table.grants
        if grant.privilege not in TENANT_PRIVILEGES
        and (
            grant.role == checked.tenancy.admin_role
            or checked.gives_tenants(grant.role)
        )
    }
    for privilege, role in sorted(beyond):
        grantee = quote_grantee(role)
        yield Finding(
            "privilege-bypasses-rls",
            name,
            "error",
            f"{grantee} has {privilege}, which no policy confines",
            f"REVOKE {privilege} ON {name} FROM {grantee}",
        )


def _altered_condition(
    checked: _Checked, name: str, mark: TenantTable, key: tuple[str, str, str]
) -> Finding:
    reason, quoted = checked.altered[key], quote_name(key[2])
    narrows = any(p.name == key[2] and not p.permissive for p in mark.extra)
    if reason is None:
        severity: Severity = "error" if narrows else "warning"
        message = f"policy {quoted} was altered"
        return Finding("policy-altered", name, severity, message, _REPAIR)
    message = f"the login cannot tell whether policy {quoted} was altered: {reason}"
    remedy = "alembic check, as the role that migrates"
    return Finding("policy-unknown", name, "warning", message, remedy)


# Types for which two texts may be equal, and which PostgreSQL compares as text, as it
# does a VARCHAR: the policy looks like that of one.
_FOLDING_TYPE = re.compile(r"(character|bpchar)(\(\d+\))?|(.*\.)?citext")


def _check_column(
    checked: _Checked, name: str, table: TableState, column: str
) -> Iterator[Finding]:
    """Yield what makes tenants equal that differ."""
    kind = table.columns.get(column, "")
    collation = checked.database.folded.get((table.schema, table.name), {}).get(column)
    column = quote_name(column)
    alter = f"DROP the table's policies, ALTER TABLE {name} ALTER COLUMN {column} TYPE"
    if _FOLDING_TYPE.fullmatch(kind):
        yield Finding(
            "tenant-type",
            name,
            "error",
            f"column {column} has type {kind}, for which two tenants could be equal",
            f"{alter} text, then {_REPAIR}",
        )
    if collation is not None:
        yield Finding(
            "tenant-collation",
            name,
            "error",
            f"column {column} has the nondeterministic collation "
            f"{quote_name(collation)}, under which two tenants could be equal",
            f'{alter} text COLLATE pg_catalog."default", then {_REPAIR}',
        )


def _check_policies(
    name: str, table: TableState, mark: TenantTable, tenancy: Tenancy, visible: bool
) -> Iterator[Finding]:
    for number, policy in enumerate(mark.policies(tenancy)):
        is_own = number < OWN_POLICIES
        # without a permissive policy of the user's own, tenants see less, not more
        severity: Severity = "error" if is_own or not policy.permissive else "warning"
        found = table.policies.get(policy.name)
        if found is None:
            message = f"policy {quote_name(policy.name)} is missing"
            yield Finding("policy-missing", name, severity, message, _REPAIR)
            continue
        is_altered = bool(altered_parts(found, policy))
        if is_own:
            texts = printed_policy(policy, mark, tenancy, visible)
            is_altered |= found.using not in texts or found.with_check not in texts
        if is_altered:
            message = f"policy {quote_name(policy.name)} was altered"
            yield Finding("policy-altered", name, severity, message, _REPAIR)


def _check_unmarked(checked: _Checked) -> Iterator[Finding]:
    """Yield tables without a mark that look like those of tenants, or that tenants can
    use although they are not shared."""
    heirs = _heirs(checked)
    columns = {mark.column for _, _, mark in checked.tenant_tables()}
    schemas = {schema for schema, name in checked.marked}
    open_to: dict[tuple[str, str], list[str]] = {}
    for row in checked.reach.open:
        roles = checked.opened(row.nspname, row.holders, row.owner)
        if roles and not (not checked.has_models and _looks_shared(checked, row)):
            open_to[row.nspname, row.relname] = roles
    for view in checked.views:
        table = checked.database.tables.get(view.table)
        if table is not None and not table.rls and columns & set(table.columns):
            name = quote_qualified(view.schema, view.name)
            if checked.opened(view.schema, view.holders):
                open_to.setdefault(view.table, []).append(f"who reads {name}")
    for key in {*open_to, *checked.database.tables}:
        if key in checked.marked or key in heirs:
            continue
        table = checked.database.tables.get(key)
        alike = set() if table is None else columns & set(table.columns)
        if key not in open_to and not (alike and key[0] in schemas):
            continue
        message = "the table has no mark"
        if alike:
            message += f", but a column {quote_name(min(alike))}"
        if key in open_to:
            message += f", and {', '.join(open_to[key])} may use it"
        name = quote_qualified(*key)
        yield Finding(
            "table-unmarked",
            name,
            "error" if key in open_to else "warning",
            message,
            "mark the model with @with_rls or @shared_table"
            + (f", or REVOKE ALL ON {name} FROM the roles" if key in open_to else ""),
        )


def _looks_shared(checked: _Checked, row: Any) -> bool:
    """Whether a table has the privileges that ``@shared_table`` gives, and no more."""
    table = checked.database.tables.get((row.nspname, row.relname))
    if table is None:
        return False
    columns = {mark.column for _, _, mark in checked.tenant_tables()}
    held = {
        role: {grant.privilege for grant in table.grants if grant.role == role}
        for role in checked.expected.grantees
    }
    tenants, admin = (held[role] for role in checked.expected.grantees)
    others = {g.role for g in table.grants if checked.expected.reaches_tenants(g.role)}
    return (
        tenants == admin
        and others <= set(checked.expected.grantees)
        and not columns & set(table.columns)
    )


def _heirs(checked: _Checked) -> set[tuple[str, str]]:
    """Return partitions and heirs of marked tables."""
    return {
        (row.object_schema, row.object_name)
        for row in checked.reach.around
        if row.kind == "heir" and (row.nspname, row.relname) in checked.marked
    }


def _check_around(checked: _Checked) -> Iterator[Finding]:
    around = checked.reach.around
    indexed = {(r.nspname, r.relname, r.attname) for r in around if r.kind == "index"}
    tables = {}
    for name, table, mark in checked.tenant_tables():
        tables[table.schema, table.name] = name
        if (table.schema, table.name, mark.column) not in indexed:
            column = quote_name(mark.column)
            yield Finding(
                "index-missing",
                name,
                "warning",
                f"no index begins with column {column}, so that every query reads the "
                f"rows of all tenants",
                f"CREATE INDEX ON {name} ({column})",
            )
    for row in around:
        key = (row.nspname, row.relname)
        heir = (row.object_schema, row.object_name)
        # one that is marked has policies of its own
        if (
            row.kind == "heir"
            and key in tables
            and heir not in checked.marked
            and checked.opened(row.object_schema, row.holders, row.owner)
        ):
            name = quote_qualified(*heir)
            yield Finding(
                "heir-open",
                name,
                "error",
                f"tenants may use the table past the policies of {tables[key]}, of "
                f"which it is a partition or an heir",
                f"REVOKE the privileges of tenants on {name}; those on {tables[key]} "
                f"are enough",
            )
    for view in checked.views:
        if view.table in tables:
            is_open = bool(checked.opened(view.schema, view.holders))
            yield from _check_view(view, tables[view.table], is_open)


def _check_view(view: View, table: str, is_open: bool) -> Iterator[Finding]:
    name = quote_qualified(view.schema, view.name)
    kind = "materialized view" if view.materialized else "view"
    yield Finding(
        "view-bypasses-rls",
        name,
        # one for reports may be meant so
        "error" if is_open else "warning",
        f"the {kind} reads {table} with the rights of its owner"
        + ("" if is_open else ", though no tenant may use it"),
        "DROP it, or grant it to no tenant"
        if view.materialized
        else f"ALTER VIEW {name} SET (security_invoker = true)",
    )


def _check_definers(checked: _Checked) -> Iterator[Finding]:
    marked = {(t.schema, t.name): name for name, t, _ in checked.tables()}
    # what comes into a partition by its parent runs the partition's triggers
    marked |= {key: quote_qualified(*key) for key in _heirs(checked)}
    for row in checked.reach.definers:
        table = marked.get((row.nspname, row.relname))
        if row.kind != "function" and table is None:
            continue
        if row.kind == "function" and not checked.opened(row.nspname, row.callers):
            continue
        is_tenants = checked.expected.is_tenant(row.owner)
        if not (row.is_exempt or row.acts_as or is_tenants):
            continue
        name = row.name if table is None else f"{quote_name(row.name)} on {table}"
        what = {
            "function": "tenants may execute the function",
            "trigger": "the trigger's function runs",
            "rule": "the rule runs",
        }[row.kind]
        remedy = {
            "function": f"ALTER FUNCTION {name} SECURITY INVOKER, or REVOKE EXECUTE "
            f"from PUBLIC",
            "trigger": "make its function SECURITY INVOKER, or see that it copies rows "
            "to no table that tenants can read",
            "rule": "replace it by a trigger",
        }[row.kind]
        yield Finding(
            f"{row.kind}-bypasses-rls",
            name,
            "error" if is_tenants else "warning",
            f"{what} with the rights of {quote_name(row.owner)}, who sees rows of "
            + ("another tenant" if is_tenants else "all tenants"),
            remedy,
        )


def _check_tenants(checked: _Checked) -> Iterator[Finding]:
    if checked.invalid:
        shown = ", ".join(map(repr, checked.invalid[:5]))
        yield Finding(
            "tenant-invalid",
            checked.tenancy.tenants_role,
            "warning",
            f"tenants see no rows, because no tenant column prints a value like this: "
            f"{shown} ({len(checked.invalid)} in all)",
            f"delete_tenant({checked.invalid[0]!r}), unless it belongs to another "
            f"database",
        )


# --- who sees nothing ---------------------------------------------------------------


def _check_readers(checked: _Checked) -> Iterator[Finding]:
    """Yield roles that may read tables of tenants, and get silence."""
    silent: dict[str, list[str]] = {}
    for name, table, _ in checked.tenant_tables():
        shown = admitted(table.policies.values())
        if not table.rls or "public" in shown:
            continue
        direct = readers(table, checked.expected)
        for role, has in checked.readers.items():
            if has is None or has & shown or checked.expected.is_ours(role):
                continue
            if role in direct or role in checked.dumps:
                silent.setdefault(role, []).append(name)
    for role, names in sorted(silent.items()):
        yield Finding(
            "reads-nothing",
            role,
            "warning",
            f"the role may read {', '.join(names)}, but no policy shows it a row: "
            f"queries and dumps are empty, without an error",
            f"give it a Policy(..., command='SELECT', roles=[{role!r}]), BYPASSRLS, or "
            f"membership in {quote_name(checked.tenancy.admin_role)}",
        )
    for view in checked.views:
        if view.materialized and not view.owner_reads and view.table in checked.marked:
            name = quote_qualified(view.schema, view.name)
            yield Finding(
                "reads-nothing",
                name,
                "warning",
                "the owner of the materialized view sees no row of tenants: REFRESH "
                "empties it, without an error",
                f"give it an owner that is a member of "
                f"{quote_name(checked.tenancy.admin_role)}",
            )


def _check_owners(checked: _Checked) -> Iterator[Finding]:
    for name, table, _ in checked.tenant_tables():
        owner = quote_name(table.owner)
        if table.rls and table.force and table.owner_is_admin is not True:
            yield Finding(
                "owner-confined",
                name,
                "warning",
                f"its owner {owner} is subject to the policies: dumps are empty, and "
                f"migrations change no row, without an error",
                f"GRANT {quote_name(checked.tenancy.admin_role)} TO {owner}, who has "
                f"to inherit, unless {owner} is a login of the application; give the "
                f"table another owner then",
            )
    for owner in checked.reach.without_set_config:
        yield Finding(
            "owner-without-set-config",
            owner,
            "warning",
            "the owner of tables may not execute set_config(), which pg_dump and "
            "migrations need",
            f"as a superuser: GRANT EXECUTE ON FUNCTION pg_catalog.set_config(text, "
            f"text, boolean) TO {quote_name(owner)}",
        )


_CHECKS = (
    _check_login,
    _check_roles,
    _check_database,
    _check_distributed,
    _check_tables,
    check_policies_of_others,
    check_shared,
    _check_unmarked,
    _check_around,
    _check_definers,
    _check_tenants,
    _check_readers,
    _check_owners,
)
