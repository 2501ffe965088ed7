"""Scope: what confines one transaction to one tenant.

The scope belongs to the transaction. Every statement here is ``SET LOCAL``, so commit
and rollback end it, and a pooled connection never carries it on.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NoReturn
from uuid import UUID

from sqlalchemy import Connection, CursorResult, TwoPhaseTransaction
from sqlalchemy.exc import DBAPIError

from .arguments import require_name
from .drivers import Driver, driver_of
from .exceptions import ScopeError
from .policies import quote_literal
from .tenancy import Isolation, Tenancy, TenantId, tenant_text

# SQLSTATEs, https://www.postgresql.org/docs/current/errcodes-appendix.html
INVALID_PARAMETER_VALUE = "22023"  # SET ROLE: the role does not exist
INSUFFICIENT_PRIVILEGE = "42501"  # SET ROLE: the login is no member
DUPLICATE_OBJECT = "42710"
UNIQUE_VIOLATION = "23505"
UNDEFINED_OBJECT = "42704"
NOT_NULL_VIOLATION = "23502"
IN_FAILED_SQL_TRANSACTION = "25P02"
DEPENDENT_OBJECTS_STILL_EXIST = "2BP01"
INTERNAL_ERROR = "XX000"

#: Begins the part of a comment on a tenant's role that says that it is suspended.
SUSPENDED = "\nsuspended by sqlalchemy-tenants: "

_log = logging.getLogger("sqlalchemy_tenants")

# Key of Connection.info, which lives as long as the driver's connection.
_SEARCH_PATH_KEY = "sqlalchemy_tenants.search_path"

_NAMES = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^,"\s]*))\s*(?:,|$)')


@dataclass(frozen=True)
class Scope:
    """A role to act as, with the tenant in a setting where the role is not its own.

    :param role: database role.
    :param setting: name and value of the custom parameter, or ``None``.
    :param schema: the only schema on the search path; ``None`` keeps the login's path.
    :param tenant: the tenant as the caller gave it, for error messages. Scopes whose
        statements are the same are equal.
    :param is_admin: whether ``role`` is the admin role.
    """

    role: str
    setting: tuple[str, str] | None
    schema: str | None
    tenant: TenantId | None = field(compare=False)
    is_admin: bool = False

    def __post_init__(self) -> None:
        if self.schema is not None:
            require_name("schema", self.schema)

    @property
    def who(self) -> str:
        """Who works in this scope, for error messages."""
        if not self.is_admin:
            return f"a session of tenant {self.tenant!r}"
        if self.tenant is None:
            return "an admin session"
        return f"an admin session of tenant {self.tenant!r}"

    @cached_property
    def text(self) -> str | None:
        """The statements in one text, ``None`` where the login's search path is needed
        for them."""
        return None if self.schema is None else "; ".join(self.statements())

    def statements(self, search_path: str | None = None) -> list[str]:
        """Return the statements that enter this scope.

        The search path ends in ``pg_temp``: where it is not named, it comes first, and
        one tenant's temporary table would shadow the table of the next tenant on the
        same pooled connection.

        :param search_path: the login's path, needed where ``schema`` is ``None``.
        """
        statements = [f"SET LOCAL ROLE {quote(self.role)}"]
        if self.setting is not None:
            name, value = self.setting
            statements.append(f"SET LOCAL {name} = {quote_literal(value)}")
        path = search_path if self.schema is None else f"{quote(self.schema)}, pg_temp"
        statements.append(f"SET LOCAL search_path = {path}")
        return statements


_PLAIN = {str, int, UUID, type(None)}


def tenant_scope(
    tenant: TenantId, isolation: Isolation, tenancy: Tenancy, schema: str | None
) -> Scope:
    """Return the scope of one tenant.

    :raises InvalidTenant: for what cannot identify a tenant.
    """
    # plain types only: a subclass may call two tenants equal that are not
    if type(tenant) in _PLAIN and type(isolation) in _PLAIN and type(schema) in _PLAIN:
        return _known_scope(tenant, isolation, tenancy, schema)
    return _tenant_scope(tenant, isolation, tenancy, schema)


def _tenant_scope(
    tenant: TenantId, isolation: Isolation, tenancy: Tenancy, schema: str | None
) -> Scope:
    if isolation == "role":
        return Scope(tenancy.role_for(tenant), None, schema, tenant)
    if isolation == "shared":
        setting = (tenancy.setting, tenant_text(tenant))
        return Scope(tenancy.shared_role, setting, schema, tenant)
    raise ValueError(f'isolation is "role" or "shared", not {isolation!r}')


# A tenant's scope is needed again with its next session, text and all.
_known_scope = lru_cache(maxsize=1024)(_tenant_scope)


def admin_scope(tenant: TenantId | None, tenancy: Tenancy, schema: str | None) -> Scope:
    """Return the scope across tenants, or narrowed to one.

    :raises InvalidTenant: for what cannot identify a tenant, the empty string
        included: it must not mean "all".
    """
    # set even where it is empty: the login may come with a value of its own
    value = "" if tenant is None else tenant_text(tenant)
    setting = (tenancy.setting, value)
    return Scope(tenancy.admin_role, setting, schema, tenant, is_admin=True)


def enter_scope(connection: Connection, scope: Scope) -> None:
    """Confine the transaction that ``connection`` is in.

    The statements go together with the driver's ``BEGIN`` where they can.

    :raises ScopeError: the connection is in autocommit mode or in a two-phase
        transaction, or not on PostgreSQL.
    :raises sqlalchemy.exc.DBAPIError: the database refused, for instance SQLSTATE
        22023 for a role that does not exist.
    """
    require_transaction(connection, scope)
    driver = driver_of(connection.dialect)
    text = scope.text
    if text is None:
        statements = scope.statements(_login_search_path(connection, driver))
        text = "; ".join(statements)
    else:
        statements = None
    try:
        begun = driver.begin(connection, text)
    except Exception as error:
        _raise_wrapped(connection, text, error)
    if begun:
        _log.debug("BEGIN; %s", text)
    else:
        _send_separately(connection, driver, scope, statements or scope.statements())


def _send_separately(
    connection: Connection, driver: Driver, scope: Scope, statements: list[str]
) -> None:
    """Enter a scope in a transaction that has begun, or by a driver that has no
    better way."""
    execute_all(connection, statements)
    if driver.in_transaction(connection) is False:
        # SET LOCAL gave a warning, and had no effect
        raise ScopeError(
            "the connection is in no transaction, although it should be: a COMMIT or "
            "ROLLBACK was sent as a statement; use the methods commit() and rollback()",
            tenant=scope.tenant,
        )


def two_phase_error(scope: Scope | None) -> ScopeError:
    """Return the error of a two-phase transaction."""
    return ScopeError(
        "two-phase transactions cannot be confined to a tenant: COMMIT PREPARED runs "
        "as another role than the one that prepared it",
        tenant=None if scope is None else scope.tenant,
    )


def _raise_wrapped(
    connection: Connection, statement: str, error: Exception
) -> NoReturn:
    """Raise an error of :meth:`.Driver.begin` as SQLAlchemy raises it."""
    dialect = connection.dialect
    dbapi_error = None if dialect.dbapi is None else dialect.dbapi.Error
    if dbapi_error is None or not isinstance(error, dbapi_error):
        raise error
    lost = dialect.is_disconnect(error, connection.connection, None)
    if lost:
        # fails, so that SQLAlchemy notices, and gives up the pool's older connections
        with suppress(DBAPIError):
            execute_text(connection, statement)
    raise DBAPIError.instance(
        statement,
        None,
        error,
        dbapi_error,
        hide_parameters=connection.engine.hide_parameters,
        connection_invalidated=lost,
        dialect=dialect,
    ) from error


def sqlstate(error: DBAPIError) -> str | None:
    """Return the SQLSTATE of a database error, of psycopg and asyncpg alike."""
    return getattr(error.orig, "sqlstate", None)


def suspended_sql(role: str) -> str:
    """Return the condition that a tenant is suspended. Comments on roles are read by
    everybody, and written by those that administer the role.

    :param role: the role's name, as an expression of SQL.
    """
    comment = "pg_catalog.shobj_description(role.oid, 'pg_authid')"
    return (
        f"EXISTS (SELECT FROM pg_catalog.pg_roles role WHERE role.rolname = {role}"
        f" AND pg_catalog.strpos({comment}, {quote_literal(SUSPENDED)}) > 0)"
    )


def require_transaction(connection: Connection, scope: Scope) -> None:
    """Refuse a connection on which nothing can be confined.

    :raises ScopeError: see :func:`enter_scope`.
    """
    if connection.dialect.name != "postgresql":
        raise ScopeError(
            f"tenants need PostgreSQL; this connection's dialect is "
            f"{connection.dialect.name!r}",
            tenant=scope.tenant,
        )
    # the driver's own flag covers engine, connection and execution options alike
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise ScopeError(
            "the connection is in AUTOCOMMIT mode, where no statement after SET LOCAL "
            "would be confined to the tenant; use an engine or connection with another "
            "isolation level",
            tenant=scope.tenant,
        )
    # here, because some drivers have sent nothing yet
    if isinstance(connection.get_transaction(), TwoPhaseTransaction):
        raise two_phase_error(scope)


def _login_search_path(connection: Connection, driver: Driver) -> str:
    """Return the login's search path with ``pg_temp`` last, asked once a connection."""
    path: str | None = connection.info.get(_SEARCH_PATH_KEY)
    if path is None:
        shown = driver.search_path(connection)
        if shown is None:
            # SHOW, not a SELECT: that would take a snapshot, and then the
            # transaction's isolation level could no longer be set
            shown = execute_text(connection, "SHOW search_path").scalar_one()
        names = [name for name in _split_names(shown) if name != "pg_temp"]
        path = ", ".join(map(quote, [*names, "pg_temp"]))
        connection.info[_SEARCH_PATH_KEY] = path
    return path


def quote_path(text: str) -> str:
    """Return a search path as ``SET`` takes it, from what ``SHOW`` prints."""
    return ", ".join(map(quote, _split_names(text))) or "''"


def _split_names(text: str) -> list[str]:
    """Split a list of identifiers as ``SHOW search_path`` prints it."""
    return [
        quoted.replace('""', '"') if quoted else bare.lower()
        for quoted, bare in _NAMES.findall(text)
        if quoted or bare
    ]


def execute_text(connection: Connection, statement: str) -> CursorResult[Any]:
    """Execute a statement without parameters."""
    # no_parameters: the text reaches the server as it is, percent signs included
    return connection.exec_driver_sql(
        statement, execution_options={"no_parameters": True}
    )


def execute_all(connection: Connection, statements: Sequence[str]) -> None:
    """Execute statements without results, at once where the driver can."""
    for statement in driver_of(connection.dialect).separate(connection, statements):
        execute_text(connection, statement)


def quote(name: str) -> str:
    """Return a name in quotes."""
    # always quoted: as a bare word, NONE would mean "no role"
    return '"' + name.replace('"', '""') + '"'
