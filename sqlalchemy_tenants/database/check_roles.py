"""Checks of what a database has once: the login, the roles, owners, schemas and the
function."""

from __future__ import annotations

from collections.abc import Iterator

from ..policies import (
    quote_grantee,
    quote_name,
    quote_qualified,
)
from ..tenancy import FUNCTION_NAME
from .check_beyond import owned_objects
from .checked import Checked
from .expected import GROUP_ROLE_ATTRIBUTES, altered_attributes
from .findings import REPAIR, UPGRADE, Finding, Severity
from .reach import PREDEFINED, Reached, Start

# Predefined roles that are as good as a superuser.
_SERVER_ROLES = frozenset(
    ("pg_execute_server_program", "pg_read_server_files", "pg_write_server_files")
)


def check_login(checked: Checked) -> Iterator[Finding]:
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


def check_roles(checked: Checked) -> Iterator[Finding]:
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
    checked: Checked, reached: Reached, subject: str
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
    checked: Checked, start: Start, login: str | None
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
    owned += [
        ("function", quote_qualified(tenancy.schema, name) + "()", function.owner)
        for name, function in database.functions.items()
    ]
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


def check_database(checked: Checked) -> Iterator[Finding]:
    database, tenancy, schema = checked.database, checked.tenancy, checked.schema
    if schema is not None and schema not in database.schemas:
        yield Finding(
            "schema-missing",
            schema,
            "error",
            "sessions look for their tables in a schema that does not exist",
            f"pass the schema of the tables as schema, or {UPGRADE}",
        )
    for name in tenancy.group_roles:
        if name not in database.roles:
            message = "the group role does not exist"
            yield Finding("role-missing", name, "error", message, UPGRADE)
            continue
        altered = altered_attributes(database.roles[name], GROUP_ROLE_ATTRIBUTES)
        if altered:
            is_not = ", ".join(f"{each} = {not altered[each]}" for each in altered)
            message = f"the group role was altered: {is_not}"
            yield Finding("role-altered", name, "warning", message, REPAIR)
    for parameter, alter in checked.reach.presets:
        yield Finding(
            "context-preset",
            parameter,
            "warning",
            "the parameter comes with a login or the database, so that the context "
            "has a value where a session gives none",
            f"{alter} RESET {parameter}",
        )
    for function, definition in checked.expected.functions.items():
        name = quote_qualified(tenancy.schema, function) + "()"
        found = database.functions.get(function)
        if found is None:
            # no policy asks what a later version has added
            is_error = function == FUNCTION_NAME
            yield Finding(
                "function-missing",
                name,
                "error" if is_error else "warning",
                "the function does not exist",
                UPGRADE if is_error else REPAIR,
            )
        elif found.definition != definition:
            message = "the function is not the one that policies rely on"
            yield Finding("function-altered", name, "error", message, REPAIR)
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
