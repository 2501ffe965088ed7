"""What the server's refusals mean to the application, and what to do next."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from .drivers import driver_of
from .exceptions import ScopeError, TenantNotFound, TenantSuspended
from .policies import quote_literal, quote_name
from .scope import (
    INSUFFICIENT_PRIVILEGE,
    INVALID_PARAMETER_VALUE,
    NOT_NULL_VIOLATION,
    Scope,
    enter_scope,
    sqlstate,
    suspended_sql,
)

_log = logging.getLogger("sqlalchemy_tenants")

#: The server's function that finds that a row violates a policy. Its message has the
#: SQLSTATE of a missing privilege, and comes in the language of the server.
_CHECKS_POLICIES = "ExecWithCheckOptions"


def explain(
    error: DBAPIError, connection: Connection, scope: Scope, suspended: bool | None
) -> TenantNotFound | ScopeError | None:
    """Return what a refused scope means to the caller, ``None`` for another error.

    :param suspended: whether the tenant is; ``None`` asks, which rolls back.
    """
    state = sqlstate(error)
    if scope.values and not _is_about_role(error, scope):
        return None
    if state == INVALID_PARAMETER_VALUE:
        if scope.setting is None:
            return TenantNotFound(
                f"tenant {scope.tenant!r} has no role {scope.role!r}; create it with "
                f"create_tenant({scope.tenant!r})",
                tenant=scope.tenant,
            )
        return ScopeError(
            f"role {scope.role!r} does not exist; run the migrations "
            f"(alembic upgrade head) first",
            tenant=scope.tenant,
        )
    if state == INSUFFICIENT_PRIVILEGE:
        if suspended is None:
            suspended = scope.setting is None and _ask_suspended(connection, scope)
        if suspended:
            return TenantSuspended(
                f"tenant {scope.tenant!r} is suspended; "
                f"resume_tenant({scope.tenant!r}) opens it again",
                tenant=scope.tenant,
            )
        login = _login(connection)
        who = "this login" if login is None else f"login {login!r}"
        return ScopeError(
            f"{who} may not act as {scope.role!r}; {_remedy(scope, login)}",
            tenant=scope.tenant,
        )
    return None


def _is_about_role(error: DBAPIError, scope: Scope) -> bool:
    """Whether an error is about the role, and not about a setting of the application,
    which may have the same SQLSTATE, and the role's name as its value.

    The message comes in the language of the server, but names what it is about.
    """
    message = str(error.orig).split("\n", 1)[0]
    names = "|".join(re.escape(name) for name, _ in scope.values)
    return scope.role in message and not re.search(
        rf"(?<![\w.])({names})(?![\w.])", message, re.IGNORECASE
    )


def _ask_suspended(connection: Connection, scope: Scope) -> bool:
    """Ask whether a tenant is suspended, in a transaction that could not be confined.

    The server answers nothing in it, so it is rolled back. Then the scope is refused
    again: whatever still holds this connection executes nothing.
    """
    if connection.closed or connection.invalidated:
        return False
    query = f"SELECT {suspended_sql(quote_literal(scope.role))}"
    driver = driver_of(connection.dialect)
    suspended = False
    try:
        # below SQLAlchemy: no listener of the application's runs without a tenant
        raw = connection.connection.dbapi_connection
        assert raw is not None
        raw.rollback()
        cursor = raw.cursor()
        try:
            cursor.execute(query)
            row = cursor.fetchone()
            suspended = row is not None and bool(row[0])
        finally:
            cursor.close()
        enter_scope(connection, scope)
    except Exception as error:
        _log.debug("asked whether %r is suspended: %s", scope.role, error)
    finally:
        if not connection.invalidated and not driver.is_aborted(connection):
            connection.invalidate()
    return suspended


def _login(connection: Connection) -> str | None:
    """Return the login without asking the server, which answers nothing in a
    transaction that is aborted."""
    if connection.closed or connection.invalidated:
        return connection.engine.url.username
    return driver_of(connection.dialect).login(connection)


def _remedy(scope: Scope, login: str | None) -> str:
    role = quote_name(scope.role)
    options = (
        "WITH INHERIT FALSE, SET TRUE (on PostgreSQL 15 without WITH, to a NOINHERIT "
        "login)"
    )
    if scope.is_admin:
        # granted to the application's login, it would open all tenants to a request
        return (
            f"pass admin_engine=..., an engine of a login that is a member of "
            f"{scope.role!r} and serves no requests of tenants"
        )
    if scope.setting is not None:
        own = login or "app"
        if not own.endswith("shared"):
            own += "_shared"
        # granted to a login that acts as tenants' roles, it would join two isolations
        return (
            f"isolation='shared' needs a login of its own, which acts as no tenant's "
            f"role: CREATE ROLE {quote_name(own)} LOGIN NOINHERIT, and as a role that "
            f"administers {role}: GRANT {role} TO {quote_name(own)} {options}"
        )
    if login is None:
        return f"let a role that administers it grant it to this login {options}"
    return (
        f"let a role that administers it run: GRANT {role} TO {quote_name(login)} "
        f"{options}"
    )


def add_note(error: DBAPIError, scope: Scope) -> None:
    """Let an error in a confined transaction say what to do next, where it does not
    by itself."""
    function, column = _origin(error)
    state = sqlstate(error)
    if state == INSUFFICIENT_PRIVILEGE and function == _CHECKS_POLICIES:
        if scope.tenant is not None:
            error.add_note(
                f"This transaction is confined to tenant {scope.tenant!r}, and a row "
                f"that it writes must be of this tenant. Give the row the tenant of "
                f"the session (tenant=session.tenant), or let the column's default do "
                f"it, as TenantMixin and tenant_column() declare it."
            )
    elif state == NOT_NULL_VIOLATION and column == "tenant" and scope.tenant is None:
        error.add_note(
            "An admin session across tenants has no tenant that a row could get by "
            "itself. Give the row its tenant, or open admin_session(tenant)."
        )


@contextmanager
def noting(scope: Scope) -> Iterator[None]:
    """Do :func:`add_note` to an error that leaves the block."""
    try:
        yield
    except DBAPIError as error:
        add_note(error, scope)
        raise


def _origin(error: DBAPIError) -> tuple[str | None, str | None]:
    """Return the server's function that raised an error, and the column that the error
    is about."""
    diagnosis = getattr(error.orig, "diag", None)  # psycopg
    if diagnosis is not None:
        return diagnosis.source_function, diagnosis.column_name
    # SQLAlchemy's adapter raises an error of its own from that of asyncpg
    cause = None if error.orig is None else error.orig.__cause__
    return (
        getattr(cause, "server_source_function", None),
        getattr(cause, "column_name", None),
    )


def refuse(
    error: BaseException,
    connection: Connection,
    scope: Scope | None,
    suspended: bool | None = None,
) -> BaseException:
    """Give up a connection whose scope could not be entered, unless the server refuses
    its statements, and return what to raise.

    :param suspended: see :func:`explain`.
    """
    refusal = None
    if scope is not None and isinstance(error, DBAPIError):
        refusal = explain(error, connection, scope, suspended)
    if not isinstance(error, ScopeError) and not connection.invalidated:
        is_database_error = isinstance(error, DBAPIError)
        if not is_database_error or not driver_of(connection.dialect).is_aborted(
            connection
        ):
            connection.invalidate()  # nobody knows its state
            if isinstance(error, DBAPIError):
                error.connection_invalidated = True
    return error if refusal is None else refusal
