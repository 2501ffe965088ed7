"""Sessions whose every transaction is confined to a tenant."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

from .exceptions import ScopeError
from .scope import Scope, admin_scope, enter_scope, tenant_scope
from .tenancy import Isolation, Tenancy, TenantId


class ScopedSession(Session):
    """A session that enters a :class:`.Scope` in each of its transactions.

    Base of :class:`TenantSession` and :class:`AdminSession`.
    """

    def __init__(
        self,
        bind: Engine | Connection | None = None,
        *,
        scope: Scope,
        twophase: bool = False,
        **kw: Any,
    ) -> None:
        if twophase:
            raise ScopeError(
                "two-phase transactions cannot be confined to a tenant: COMMIT "
                "PREPARED runs as another role than the one that prepared it",
                tenant=scope.tenant,
            )
        super().__init__(bind, **kw)
        #: What each transaction is confined to.
        self.scope = scope


class TenantSession(ScopedSession):
    """A :class:`~sqlalchemy.orm.Session` that sees the rows of one tenant.

    Each transaction begins with ``SET LOCAL ROLE`` (and the setting under
    ``isolation="shared"``) and ``SET LOCAL search_path``. Usable alone, too::

        Sessions = sessionmaker(engine, class_=TenantSession, schema="public")
        with Sessions(tenant="acme") as session:
            ...

    :param bind: engine or connection.
    :param tenant: the tenant, always given by name.
    :param isolation: ``"role"`` or ``"shared"``.
    :param schema: the schema on the search path; ``None`` keeps the login's path and
        asks for it once a connection.
    :param tenancy: names of roles and setting.
    :param kw: further arguments of :class:`~sqlalchemy.orm.Session`.
    :raises InvalidTenant: for what cannot identify a tenant.
    :raises ScopeError: for ``twophase=True``.
    """

    def __init__(
        self,
        bind: Engine | Connection | None = None,
        *,
        tenant: TenantId,
        isolation: Isolation = "role",
        schema: str | None = None,
        tenancy: Tenancy | None = None,
        **kw: Any,
    ) -> None:
        scope = tenant_scope(tenant, isolation, tenancy or Tenancy(), schema)
        super().__init__(bind, scope=scope, **kw)
        self._tenant = tenant

    @property
    def tenant(self) -> TenantId:
        """The tenant, as it was given."""
        return self._tenant


class AdminSession(ScopedSession):
    """A :class:`~sqlalchemy.orm.Session` across tenants, or narrowed to one.

    It acts as the admin role in each of its transactions.

    :param bind: engine or connection of a login that is a member of the admin role.
    :param tenant: ``None`` for the rows of all tenants.
    """

    def __init__(
        self,
        bind: Engine | Connection | None = None,
        *,
        tenant: TenantId | None = None,
        schema: str | None = None,
        tenancy: Tenancy | None = None,
        **kw: Any,
    ) -> None:
        scope = admin_scope(tenant, tenancy or Tenancy(), schema)
        super().__init__(bind, scope=scope, **kw)
        self._tenant = tenant

    @property
    def tenant(self) -> TenantId | None:
        """The tenant that the session is narrowed to, or ``None``."""
        return self._tenant


@event.listens_for(ScopedSession, "after_begin", propagate=True)
def _enter(
    session: ScopedSession, transaction: SessionTransaction, connection: Connection
) -> None:
    # a savepoint inherits the scope, and rolling it back restores the scope
    if transaction.nested:
        return
    try:
        enter_scope(connection, session.scope)
    except BaseException as error:
        # The Session keeps this connection and would go on unscoped, so nothing may
        # be executed on it any more
        if not isinstance(error, DBAPIError | ScopeError):
            connection.invalidate()  # interrupted: nobody knows its state
        elif connection is not session.bind:
            connection.close()  # back to the pool
        elif isinstance(error, ScopeError):
            connection.invalidate()
        # else the caller's own connection, whose transaction the server has aborted
        raise
