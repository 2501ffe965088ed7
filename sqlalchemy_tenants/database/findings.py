"""Findings: what ``check()`` reports, and every code that it uses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..exceptions import ScopeError

#: What to do about a finding.
UPGRADE = "alembic upgrade head"
REPAIR = "alembic revision --autogenerate, and upgrade"

Severity: TypeAlias = Literal["error", "warning"]

#: Every code of a finding, with what it says. "role" is a group role or a tenant's.
CODES = {
    "context-preset": "a login or the database comes with a value of the context",
    "executes-text": "with `allow_statements`: tenants may execute a function that "
    "executes text, or may do so",
    "function-altered": "`current_tenant()` or `context_value()` is not the one that "
    "policies rely on",
    "function-bypasses-rls": "tenants may execute a `SECURITY DEFINER` function of "
    "somebody who sees rows of tenants",
    "function-missing": "`current_tenant()` or `context_value()` does not exist",
    "heir-open": "tenants may use a partition or heir past the policies of its parent",
    "index-missing": "no index begins with the tenant column",
    "login-acts-as-tenants": "the login of `isolation='shared'` may act as tenants' "
    "roles",
    "login-bypassrls": "the login has `BYPASSRLS`, or may act as a role that has it",
    "login-creates-roles": "the login may give itself any role (before PostgreSQL 16)",
    "login-has-predefined-role": "the login may act as a predefined role that leads "
    "past the policies",
    "login-inherits-tenants": "the login has the privileges of tenants while it acts "
    "as itself",
    "login-is-admin": "the login may act as the admin role",
    "login-owns-database": "the login owns the database, or may act as its owner",
    "login-owns-function": "the login owns a function of ours, or may act as its owner",
    "login-owns-schema": "the login owns a schema of tenants, or may act as its owner",
    "login-owns-tables": "the login owns tables of tenants, or may act as their owner",
    "login-replicates": "the login may stream everything that is written",
    "login-superuser": "the login is a superuser, or may act as one",
    "owner-confined": "a table's owner is subject to the policies: dumps and "
    "migrations see no row",
    "owner-without-set-config": "a table's owner may not execute `set_config()`, which "
    "`pg_dump` and migrations need",
    "policy-altered": "a policy is not the one that the models declare",
    "policy-for-public": "a permissive policy lets every role with privileges in",
    "policy-missing": "a policy that the models declare does not exist",
    "policy-reachable": "a policy is for a role that the login or a tenant may act as",
    "policy-unknown": "the login cannot tell whether a policy's condition is the one "
    "that the models declare",
    "privilege-bypasses-rls": "tenants have a privilege that no policy confines",
    "reads-nothing": "a role may read a table of tenants, but no policy shows it a row",
    "rls-disabled": "row-level security is off",
    "rls-not-forced": "row-level security does not apply to the table's owner",
    "role-acts-as-tenant": "a tenant may act as another tenant",
    "role-altered": "a group role has attributes that it must not have, or lacks one",
    "role-bypasses-rls": "policies do not apply to the role, or to one that it may act "
    "as",
    "role-creates-roles": "the role may create roles",
    "role-has-predefined-role": "the role may act as a predefined role that leads past "
    "the policies",
    "role-is-admin": "the role may act as the admin role",
    "role-missing": "a group role does not exist",
    "role-owns-database": "the role owns the database, or may act as its owner",
    "role-owns-function": "the role owns a function of ours, or may act as its owner",
    "role-owns-schema": "the role owns a schema of tenants, or may act as its owner",
    "role-owns-tables": "the role owns tables of tenants, or may act as their owner",
    "role-replicates": "the role may stream everything that is written",
    "rule-bypasses-rls": "a rule on a table of tenants runs with its owner's rights",
    "schema-missing": "the schema of sessions does not exist",
    "schema-open": "tenants may create objects where others look for theirs",
    "set-config-open": "with `allow_statements`: tenants may execute `set_config()`",
    "table-distributed": "Citus distributes a table of tenants: its shards hold other "
    "policies",
    "table-missing": "the models mark a table that the database does not have",
    "table-unmarked": "a table looks like one of tenants, or is open to them, and has "
    "no mark",
    "temporary-open": "with `allow_statements`: tenants may create temporary tables",
    "tenant-collation": "the tenant column takes tenants for equal whose names differ",
    "tenant-invalid": "no tenant column of the models can hold a tenant that exists",
    "tenant-type": "the tenant column has a type for which two tenants could be equal",
    "trigger-bypasses-rls": "a trigger runs a `SECURITY DEFINER` function of somebody "
    "who sees rows of tenants",
    "view-bypasses-rls": "a view reads a table of tenants with the rights of its owner",
}


@dataclass(frozen=True)
class Finding:
    """Something that makes the isolation void, or may.

    :param code: stable identifier of the kind of finding, one of :data:`CODES`.
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


def error(code: str, object: str, message: str, remedy: str) -> Finding:
    """Return a finding that makes the isolation void."""
    return Finding(code, object, "error", message, remedy)


def warning(code: str, object: str, message: str, remedy: str) -> Finding:
    """Return a finding that is worth a look."""
    return Finding(code, object, "warning", message, remedy)


def require_no_errors(findings: Iterable[Finding]) -> None:
    """Raise if a finding is an error.

    :raises ScopeError: with all findings in the message.
    """
    findings = list(findings)
    if any(finding.severity == "error" for finding in findings):
        raise ScopeError(
            "the isolation of tenants is void:\n" + "\n".join(map(str, findings))
        )
