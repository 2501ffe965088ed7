"""Checks of what the login or a tenant reaches besides roles and tables: functions and
views that they own, policies that are meant for others, and privileges on shared
tables."""

from __future__ import annotations

from collections.abc import Iterator

from ..declare import TenantTable
from ..policies import ADMIN_POLICY, quote_grantee, quote_name, quote_qualified
from .checked import Checked
from .findings import Finding, Severity, error
from .reach import Start


def owned_objects(checked: Checked, start: Start) -> Iterator[tuple[str, str, str]]:
    """Yield functions and views of the sessions' schemas that the login or a tenant
    owns: the kind of the finding, the name, and the owner.

    Whoever owns a function, or a view, decides what it executes in the sessions of
    those who use it, by itself, a trigger, a default or a policy.
    """
    for kind, schema, name, owner in checked.reach.owned:
        if schema in checked.schemas and checked.belongs_to(start, owner):
            quoted = quote_qualified(schema, name)
            if kind == "function":
                yield "function", quoted + "()", owner
            else:
                yield "tables", quoted, owner


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
                f"policy {quoted} is for {', '.join(sorted(map(quote_name, roles)))}, "
                f"whom the login or a tenant may act as, past the floor",
                f"REVOKE that role from the login and from tenants, or DROP POLICY "
                f"{quoted} ON {name}",
            )


def check_shared(checked: Checked) -> Iterator[Finding]:
    """Yield privileges of tenants on shared tables that the models do not give."""
    if not checked.has_models:
        return
    for name, table, mark in checked.tables():
        if mark is None or isinstance(mark, TenantTable):
            continue
        beyond = {
            (grant.privilege, grant.role)
            for grant in table.grants
            if grant.privilege not in mark.privileges
            and grant.role != checked.tenancy.admin_role
            and checked.gives_tenants(grant.role)
        }
        for privilege, role in sorted(beyond):
            grantee = quote_grantee(role)
            yield error(
                "privilege-bypasses-rls",
                name,
                f"{grantee} has {privilege} on the shared table, which the models do "
                f"not give",
                f"REVOKE {privilege} ON {name} FROM {grantee}",
            )
