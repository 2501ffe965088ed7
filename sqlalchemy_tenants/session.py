"""Sessions whose every transaction is confined to a tenant."""

from __future__ import annotations

from typing import Any
from weakref import ref

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

from .drivers import driver_of
from .exceptions import ScopeError
from .scope import Scope, admin_scope, enter_scope, tenant_scope, two_phase_error
from .tenancy import Isolation, Tenancy, TenantId

# Key of Connection.info: which session, and in which transaction, entered a scope last.
_CLAIM_KEY = "sqlalchemy_tenants.claim"

_DEFAULT_TENANCY = Tenancy()


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
            raise two_phase_error(scope)
        super().__init__(bind, **kw)
        self._scope = scope
        self._refused: ref[SessionTransaction] | None = None
        if isinstance(bind, Engine):
            driver_of(bind.dialect).register(bind.dialect)

    def get_bind(self, *args: Any, **kw: Any) -> Engine | Connection:
        """Refuse to go on in a transaction that could not be confined."""
        if self._refused is not None:
            if self._refused() is self.get_transaction() is not None:
                raise ScopeError(
                    "the transaction could not be confined to its tenant; roll it back",
                    tenant=self._scope.tenant,
                )
            self._refused = None
        return super().get_bind(*args, **kw)

    @property
    def scope(self) -> Scope:
        """What each transaction is confined to."""
        return self._scope


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
        scope = tenant_scope(tenant, isolation, tenancy or _DEFAULT_TENANCY, schema)
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
        scope = admin_scope(tenant, tenancy or _DEFAULT_TENANCY, schema)
        super().__init__(bind, scope=scope, **kw)
        self._tenant = tenant

    @property
    def tenant(self) -> TenantId | None:
        """The tenant that the session is narrowed to, or ``None``."""
        return self._tenant


# insert=True: before a listener of the application's, whose statements would begin the
# transaction without the scope
@event.listens_for(ScopedSession, "after_begin", propagate=True, insert=True)
def _enter(
    session: ScopedSession, transaction: SessionTransaction, connection: Connection
) -> None:
    # a savepoint inherits the scope, and rolling it back restores the scope
    if transaction.nested:
        return
    try:
        _claim(session, transaction, connection)
        enter_scope(connection, session.scope)
    except BaseException as error:
        # The Session keeps this connection and would go on unscoped
        session._refused = ref(transaction)
        if isinstance(error, ScopeError) or connection.invalidated:
            pass
        elif not (
            isinstance(error, DBAPIError)
            and driver_of(connection.dialect).is_aborted(connection)
        ):
            connection.invalidate()  # nobody knows its state
        raise


def _claim(
    session: ScopedSession, transaction: SessionTransaction, connection: Connection
) -> None:
    """Refuse a connection that another session works on in another scope: its next
    statement would see rows of this session's tenant.

    Possible where the application gives the same connection to both.
    """
    info = connection.info
    claim = info.get(_CLAIM_KEY)
    if claim is not None:
        other: ScopedSession | None = claim[0]()
        if (
            other is not None
            and other is not session
            and other.scope != session.scope
            and other.get_transaction() is claim[1]()
            and other.in_transaction()
        ):
            raise ScopeError(
                f"the connection is in use by a session of tenant "
                f"{other.scope.tenant!r}, whose transaction has not ended; end it "
                f"first, or give each session a connection of its own",
                tenant=session.scope.tenant,
            )
    info[_CLAIM_KEY] = (ref(session), ref(transaction))
