"""Checks of tables: policies, privileges, what leads past them, and who sees
nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..declare import TenantTable
from ..policies import (
    ADMIN_POLICY,
    quote_grantee,
    quote_name,
    quote_qualified,
)
from ..tenancy import Tenancy
from .catalog import TableState
from .checked import Checked
from .expected import admitted, altered_policies, readers
from .findings import REPAIR, UPGRADE, Finding, Severity, error, warning
from .views import View


def check_distributed(checked: Checked) -> Iterator[Finding]:
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
        yield error("table-distributed", name, message, remedy)


def check_tables(checked: Checked) -> Iterator[Finding]:
    for key, mark in checked.marked.items():
        name, table = quote_qualified(*key), checked.database.tables.get(key)
        if table is None:
            yield error(
                "table-missing",
                name,
                "the models mark a table that the database does not have",
                UPGRADE,
            )
            continue
        if mark is None:
            message = "none of its policies compares a tenant column"
            yield error("policy-altered", name, message, REPAIR)
        elif isinstance(mark, TenantTable):
            yield from _check_table(checked, name, table, mark)


def _check_table(
    checked: Checked, name: str, table: TableState, mark: TenantTable
) -> Iterator[Finding]:
    if not table.rls:
        message = "row-level security is off: all rows are visible"
        yield error("rls-disabled", name, message, REPAIR)
    if checked.tenancy.force and not table.force:
        message = "row-level security does not apply to the owner"
        yield error("rls-not-forced", name, message, REPAIR)
    yield from _check_column(checked, name, table, mark.column)
    yield from _check_policies(
        name, table, mark, checked.tenancy, checked.database.function_visible
    )
    for key in checked.altered:
        if key[:2] == (table.schema, table.name):
            yield _altered_condition(checked, name, mark, key)
    for policy in table.policies.values():
        if "public" in (policy.roles or ()) and policy.permissive:
            yield warning(
                "policy-for-public",
                name,
                f"policy {quote_name(policy.name)} lets every role with privileges in",
                f"DROP POLICY {quote_name(policy.name)} ON {name}, or name its roles",
            )


def _altered_condition(
    checked: Checked, name: str, mark: TenantTable, key: tuple[str, str, str]
) -> Finding:
    reason, quoted = checked.altered[key], quote_name(key[2])
    narrows = any(p.name == key[2] and not p.permissive for p in mark.extra)
    if reason is None:
        severity: Severity = "error" if narrows else "warning"
        message = f"policy {quoted} was altered"
        return Finding("policy-altered", name, severity, message, REPAIR)
    message = f"the login cannot tell whether policy {quoted} was altered: {reason}"
    remedy = "alembic check, as the role that migrates"
    return warning("policy-unknown", name, message, remedy)


# Types for which two texts may be equal, and which PostgreSQL compares as text, as it
# does a VARCHAR: the policy looks like that of one.
_FOLDING_TYPE = re.compile(r"(character|bpchar)(\(\d+\))?|(.*\.)?citext")


def _check_column(
    checked: Checked, name: str, table: TableState, column: str
) -> Iterator[Finding]:
    """Yield what makes tenants equal that differ."""
    key = (table.schema, table.name)
    kind = checked.columns.get(key, {}).get(column, "")
    collation = checked.database.folded.get(key, {}).get(column)
    column = quote_name(column)
    alter = f"DROP the table's policies, ALTER TABLE {name} ALTER COLUMN {column} TYPE"
    if _FOLDING_TYPE.fullmatch(kind):
        yield error(
            "tenant-type",
            name,
            f"column {column} has type {kind}, for which two tenants could be equal",
            f"{alter} text, then {REPAIR}",
        )
    if collation is not None:
        yield error(
            "tenant-collation",
            name,
            f"column {column} has the nondeterministic collation "
            f"{quote_name(collation)}, under which two tenants could be equal",
            f'{alter} text COLLATE pg_catalog."default", then {REPAIR}',
        )


def _check_policies(
    name: str, table: TableState, mark: TenantTable, tenancy: Tenancy, visible: bool
) -> Iterator[Finding]:
    for policy, is_own in altered_policies(table, mark, tenancy, visible):
        # without a permissive policy of the user's own, tenants see less, not more
        severity: Severity = "error" if is_own or not policy.permissive else "warning"
        quoted = quote_name(policy.name)
        if policy.name in table.policies:
            code, message = "policy-altered", f"policy {quoted} was altered"
        else:
            code, message = "policy-missing", f"policy {quoted} is missing"
        yield Finding(code, name, severity, message, REPAIR)


def check_policies_of_others(checked: Checked) -> Iterator[Finding]:
    """Yield policies whose roles the login or a tenant may act as.

    The floor is a policy for tenants, so it does not confine who acts as another role.
    """
    reached = checked.reach.of("login") | checked.reach.of("tenants")
    for name, table, mark in checked.tenant_tables():
        declared = {policy.name for policy in mark.extra}
        for policy in table.policies.values():
            quoted = quote_name(policy.name)
            if (
                policy.permissive
                and policy.name not in {*declared, ADMIN_POLICY}
                and checked.tenancy.admin_role in (policy.roles or ())
            ):
                yield error(
                    "policy-altered",
                    name,
                    f"policy {quoted} shows rows of others to an admin session that is "
                    f"narrowed to one tenant",
                    f"DROP POLICY {quoted} ON {name}",
                )
            roles = {
                role
                for role in policy.roles or ()
                if role in reached and not checked.expected.is_ours(role)
            }
            if not roles or not policy.permissive:
                continue
            severity: Severity = "warning" if policy.name in declared else "error"
            yield Finding(
                "policy-reachable",
                name,
                severity,
                f"policy {quoted} is for {', '.join(sorted(map(quote_name, roles)))}: "
                f"the login or a tenant may act as that role, past the floor",
                f"REVOKE that role from the login and from tenants, or DROP POLICY "
                f"{quoted} ON {name}",
            )


def check_privileges(checked: Checked) -> Iterator[Finding]:
    """Yield privileges that no policy confines, and on shared tables those that the
    models do not give."""
    for name, table, mark in checked.tables():
        if mark is None:
            continue
        is_shared = not isinstance(mark, TenantTable)
        beyond = {
            (grant.privilege, grant.role)
            for grant in table.grants
            if grant.privilege not in mark.privileges
            and (
                checked.gives_tenants(grant.role)
                if grant.role != checked.tenancy.admin_role
                else not is_shared
            )
        }
        why = "which no policy confines"
        if is_shared:
            why = "which the models do not give tenants on a shared table"
        for privilege, role in sorted(beyond):
            grantee = quote_grantee(role)
            yield error(
                "privilege-bypasses-rls",
                name,
                f"{grantee} has {privilege}, {why}",
                f"REVOKE {privilege} ON {name} FROM {grantee}",
            )


def check_unmarked(checked: Checked) -> Iterator[Finding]:
    """Yield tables without a mark that look like those of tenants, or that tenants can
    use although they are not shared."""
    heirs = _heirs(checked)
    schemas = {schema for schema, name in checked.marked}
    open_to: dict[tuple[str, str], list[str]] = {}
    for row in checked.reach.open:
        roles = checked.opened(row.nspname, row.holders, row.owner)
        if roles and not (checked.metadata is None and _looks_shared(checked, row)):
            open_to[row.nspname, row.relname] = roles
    for view in checked.views:
        table = checked.database.tables.get(view.table)
        if table is not None and not table.rls and checked.alike(view.table):
            name = quote_qualified(view.schema, view.name)
            if checked.opened(view.schema, view.holders):
                open_to.setdefault(view.table, []).append(f"who reads {name}")
    for key in {*open_to, *checked.database.tables}:
        if key in checked.marked or key in heirs:
            continue
        alike = checked.alike(key)
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


def _looks_shared(checked: Checked, row: Any) -> bool:
    """Whether a table has the privileges that ``@shared_table`` gives, and no more."""
    key = (row.nspname, row.relname)
    table = checked.database.tables.get(key)
    if table is None:
        return False
    held = {
        role: {grant.privilege for grant in table.grants if grant.role == role}
        for role in checked.expected.grantees
    }
    tenants, admin = (held[role] for role in checked.expected.grantees)
    others = {g.role for g in table.grants if checked.expected.reaches_tenants(g.role)}
    return (
        tenants == admin
        and others <= set(checked.expected.grantees)
        and not checked.alike(key)
    )


def _heirs(checked: Checked) -> set[tuple[str, str]]:
    """Return partitions and heirs of marked tables."""
    return {
        (row.object_schema, row.object_name)
        for row in checked.reach.around
        if row.kind == "heir" and (row.nspname, row.relname) in checked.marked
    }


def check_around(checked: Checked) -> Iterator[Finding]:
    around = checked.reach.around
    indexed = {(r.nspname, r.relname, r.attname) for r in around if r.kind == "index"}
    tables = {}
    for name, table, mark in checked.tenant_tables():
        tables[table.schema, table.name] = name
        if (table.schema, table.name, mark.column) not in indexed:
            column = quote_name(mark.column)
            yield warning(
                "index-missing",
                name,
                f"no index begins with column {column}, so that every query reads the "
                f"rows of all tenants",
                f"CREATE INDEX ON {name} ({column})",
            )
    for row in around:
        key = (row.nspname, row.relname)
        heir = (row.object_schema, row.object_name)
        # a marked heir has policies of its own
        if (
            row.kind == "heir"
            and key in tables
            and heir not in checked.marked
            and checked.opened(row.object_schema, row.holders, row.owner)
        ):
            name = quote_qualified(*heir)
            yield error(
                "heir-open",
                name,
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
        # a view for reports may be intended
        "error" if is_open else "warning",
        f"the {kind} reads {table} with the rights of its owner"
        + ("" if is_open else ", though no tenant may use it"),
        "DROP it, or grant it to no tenant"
        if view.materialized
        else f"ALTER VIEW {name} SET (security_invoker = true)",
    )


def check_definers(checked: Checked) -> Iterator[Finding]:
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


def check_tenants(checked: Checked) -> Iterator[Finding]:
    if checked.invalid:
        shown = ", ".join(map(repr, checked.invalid[:5]))
        yield warning(
            "tenant-invalid",
            checked.tenancy.tenants_role,
            f"these tenants see no rows, because no tenant column holds such a value: "
            f"{shown} ({len(checked.invalid)} in all)",
            f"delete_tenant({checked.invalid[0]!r}), unless it belongs to another "
            f"database",
        )


# --- who sees nothing ---------------------------------------------------------------


def check_readers(checked: Checked) -> Iterator[Finding]:
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
        yield warning(
            "reads-nothing",
            role,
            f"the role may read {', '.join(names)}, but no policy shows it a row: "
            f"queries and dumps are empty, without an error",
            f"give it a Policy(..., command='SELECT', roles=[{role!r}]), BYPASSRLS, or "
            f"membership in {quote_name(checked.tenancy.admin_role)}",
        )
    for view in checked.views:
        if view.materialized and not view.owner_reads and view.table in checked.marked:
            name = quote_qualified(view.schema, view.name)
            yield warning(
                "reads-nothing",
                name,
                "the owner of the materialized view sees no row of tenants: REFRESH "
                "empties it, without an error",
                f"give it an owner that is a member of "
                f"{quote_name(checked.tenancy.admin_role)}",
            )


def check_owners(checked: Checked) -> Iterator[Finding]:
    for name, table, _ in checked.tenant_tables():
        owner = quote_name(table.owner)
        if table.rls and table.force and table.owner_is_admin is not True:
            yield warning(
                "owner-confined",
                name,
                f"its owner {owner} is subject to the policies: dumps are empty, and "
                f"migrations change no row, without an error",
                f"GRANT {quote_name(checked.tenancy.admin_role)} TO {owner}, which has "
                f"to be INHERIT; if {owner} is a login of the application, give the "
                f"table another owner instead",
            )
    for owner in checked.reach.without_set_config:
        yield warning(
            "owner-without-set-config",
            owner,
            "the owner of tables may not execute set_config(), which pg_dump and "
            "migrations need",
            f"as a superuser: GRANT EXECUTE ON FUNCTION pg_catalog.set_config(text, "
            f"text, boolean) TO {quote_name(owner)}",
        )
