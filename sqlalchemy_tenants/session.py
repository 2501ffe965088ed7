"""Sessions whose every transaction is confined to a tenant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeAlias
from weakref import ref

from sqlalchemy import Connection, Engine, NestedTransaction, RootTransaction, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import (
    ORMExecuteState,
    Session,
    SessionTransaction,
    with_loader_criteria,
)
from sqlalchemy.sql.base import ExecutableOption

from .drivers import driver_of
from .exceptions import ScopeError
from .scope import Scope, admin_scope, enter_scope, tenant_scope, two_phase_error
from .tenancy import Isolation, Tenancy, TenantId

_Bind: TypeAlias = Engine | Connection
_BIND = (Engine, Connection)

# A connection's transaction and savepoint when the scope was entered.
_Entry: TypeAlias = tuple[RootTransaction, NestedTransaction | None]

# SQLAlchemy 2.1.7 and later tell which connections a transaction has.
_TELLS = hasattr(SessionTransaction, "connections")

# Key of Connection.info: the transactions of sessions that entered a scope.
_CLAIMS_KEY = "sqlalchemy_tenants.claims"


class ScopedSession(Session):
    """A session that enters a :class:`.Scope` in each of its transactions.

    Base of :class:`TenantSession` and :class:`AdminSession`.

    :param criteria_for: a class that models with an attribute ``tenant`` inherit from,
        as :class:`.TenantMixin`. ORM statements then say ``tenant = 'acme'`` for these
        models by themselves, so that PostgreSQL plans for this tenant and not for one
        of average size. The policies hold with and without.
    """

    def __init__(
        self,
        bind: Engine | Connection | None = None,
        *,
        scope: Scope,
        twophase: bool = False,
        criteria_for: type[Any] | None = None,
        **kw: Any,
    ) -> None:
        if twophase:
            raise two_phase_error(scope)
        if bind is not None and not isinstance(bind, _BIND):
            raise TypeError(f"bind is an Engine or a Connection, not {bind!r}")
        super().__init__(bind, **kw)
        self._scope = scope
        if criteria_for is not None and scope.tenant is not None:
            self._criteria = _tenant_criteria(criteria_for, scope.tenant)
            # of this session only: a statement without it costs nothing
            event.listen(self, "do_orm_execute", _add_criteria)
        # the transaction that is confined, and how its connections were
        self._entered: tuple[ref[SessionTransaction], dict[Connection, _Entry]] | None
        self._entered = None
        # engines that older versions of SQLAlchemy may have connected since
        self._asked: frozenset[Engine] = frozenset()
        if isinstance(bind, Engine):
            driver_of(bind.dialect).register(bind.dialect)

    def __init_subclass__(cls, **kw: Any) -> None:
        super().__init_subclass__(**kw)
        # a class that chooses among engines need not call ours
        owner = next(each for each in cls.__mro__ if "get_bind" in vars(each))
        if owner is cls or not issubclass(owner, ScopedSession):
            cls.get_bind = _guarded(cls.get_bind)  # type: ignore[method-assign]

    def get_bind(self, *args: Any, **kw: Any) -> _Bind:
        """Refuse to go on in a transaction that could not be confined.

        With each statement SQLAlchemy asks here for the engine, and then gives the
        transaction a connection of it, if it has none, and runs our hook. It keeps the
        connection where the hook fails, and where an exception out of a signal's
        handler, as of Ctrl-C, comes before the hook's first line.
        """
        asked = self._asked
        return self._guard(super().get_bind(*args, **kw), asked)

    def connection(
        self,
        bind_arguments: dict[str, Any] | None = None,
        execution_options: Mapping[str, Any] | None = None,
    ) -> Connection:
        """Return the connection, as :meth:`sqlalchemy.orm.Session.connection` does."""
        bind = None if bind_arguments is None else bind_arguments.get("bind")
        if bind is not None:  # then SQLAlchemy asks no get_bind()
            self._guard(bind, self._asked)
        return super().connection(bind_arguments, execution_options)

    def _guard(self, bind: _Bind, asked: frozenset[Engine]) -> _Bind:
        """Return ``bind``, unless the transaction has a connection of it that is not
        confined.

        :param asked: what had been asked for before.
        """
        transaction = self.get_transaction()
        if transaction is None:
            if not _TELLS:
                self._asked = frozenset((bind.engine,))
            return bind
        if not transaction.is_active:
            return bind  # SQLAlchemy executes nothing in it
        # a transaction has one connection of an engine, whichever of the two is asked
        engine = bind.engine
        for connection, entry in self._entries(transaction).items():
            if connection.engine is engine:
                self._require_entry(connection, entry)
                return bind
        if _TELLS:
            for connection in transaction.connections:
                if connection.engine is engine:
                    self._require_entry(connection, None)
        elif engine in asked:
            # If it was not connected, as where the pool had no connection left, it is
            # now, and our hook has run.
            self.require_entry(super().connection({"bind": bind}))
        else:
            self._asked |= {engine}
        return bind

    def _entries(self, transaction: SessionTransaction) -> dict[Connection, _Entry]:
        entered = self._entered
        if entered is None or entered[0]() is not transaction:
            return {}
        return entered[1]

    def _require_entry(self, connection: Connection, entry: _Entry | None) -> None:
        # Who has the same connection may have ended its transaction.
        if entry is not None and connection.get_transaction() is entry[0]:
            savepoint = entry[1]
            if savepoint is None or savepoint.is_active:
                return
        raise ScopeError(
            "the transaction could not be confined to its tenant, or was ended past "
            "the session; roll it back",
            tenant=self._scope.tenant,
        )

    def note_entry(
        self, transaction: SessionTransaction, connection: Connection
    ) -> None:
        """Note that a connection of a transaction has entered the scope."""
        root = connection.get_transaction()
        assert root is not None
        entry = (root, connection.get_nested_transaction())
        entered = self._entered
        if entered is None or entered[0]() is not transaction:
            self._entered = (ref(transaction), {connection: entry})
        else:
            entered[1][connection] = entry
        if not _TELLS:
            self._asked -= {connection.engine}

    def require_entry(self, connection: Connection) -> None:
        """Refuse a connection that has not entered the scope."""
        transaction = self.get_transaction()
        entries = {} if transaction is None else self._entries(transaction)
        self._require_entry(connection, entries.get(connection))

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
    :param kw: ``criteria_for`` of :class:`ScopedSession`, and further arguments of
        :class:`~sqlalchemy.orm.Session`.
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
        scope = tenant_scope(tenant, isolation, Tenancy.given(tenancy), schema)
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
        scope = admin_scope(tenant, Tenancy.given(tenancy), schema)
        super().__init__(bind, scope=scope, **kw)
        self._tenant = tenant

    @property
    def tenant(self) -> TenantId | None:
        """The tenant that the session is narrowed to, or ``None``."""
        return self._tenant


def _guarded(choose: Callable[..., _Bind]) -> Callable[..., _Bind]:
    """Return a ``get_bind()`` that refuses what :meth:`ScopedSession.get_bind` does."""

    @wraps(choose)
    def get_bind(self: ScopedSession, *args: Any, **kw: Any) -> _Bind:
        asked = self._asked  # before choose() asks, too, through super()
        return self._guard(choose(self, *args, **kw), asked)

    return get_bind


def _tenant_criteria(model: type[Any], tenant: TenantId) -> ExecutableOption:
    # not hasattr(), which would evaluate what a mixin declares for its subclasses
    if not any(
        "tenant" in vars(each) or "tenant" in vars(each).get("__annotations__", ())
        for each in model.__mro__
    ):
        raise TypeError(
            f"criteria_for={model.__name__} has no attribute 'tenant'; name a class "
            f"that has one, as TenantMixin"
        )
    return with_loader_criteria(
        model, lambda cls: cls.tenant == tenant, include_aliases=True
    )


def _add_criteria(state: ORMExecuteState) -> None:
    # the option goes with rows that were loaded to what they load later
    if (
        state.is_orm_statement
        and (state.is_select or state.is_update or state.is_delete)
        and not state.is_column_load
        and not state.is_relationship_load
    ):
        assert isinstance(state.session, ScopedSession)
        state.statement = state.statement.options(state.session._criteria)


# insert=True: before a listener of the application's, whose statements would begin the
# transaction without the scope
@event.listens_for(ScopedSession, "after_begin", propagate=True, insert=True)
def _enter(
    session: ScopedSession, transaction: SessionTransaction, connection: Connection
) -> None:
    # a savepoint inherits the scope, and rolling it back restores the scope
    if transaction.nested:
        session.require_entry(connection)
        return
    try:
        _claim(session, transaction, connection)
        enter_scope(connection, session._scope)
    except BaseException as error:
        # The Session keeps this connection, and get_bind() refuses to go on with it
        if isinstance(error, ScopeError) or connection.invalidated:
            pass
        elif not (
            isinstance(error, DBAPIError)
            and driver_of(connection.dialect).is_aborted(connection)
        ):
            connection.invalidate()  # nobody knows its state
            if isinstance(error, DBAPIError):
                error.connection_invalidated = True
        raise
    session.note_entry(transaction, connection)


def _claim(
    session: ScopedSession, transaction: SessionTransaction, connection: Connection
) -> None:
    """Refuse a connection that another session works on in another scope: its next
    statement would see rows of this session's tenant.

    Possible where the application gives the same connection to both.
    """
    info = connection.info
    living = []
    claims: list[ref[SessionTransaction]] = info.get(_CLAIMS_KEY, [])
    for claim in claims:
        claimed = claim()
        other = None if claimed is None else claimed.session
        if (
            isinstance(other, ScopedSession)
            and other is not session
            and other.get_transaction() is claimed
            and other.in_transaction()
        ):
            if other.scope != session.scope:
                raise ScopeError(
                    f"the connection is in use by a session of tenant "
                    f"{other.scope.tenant!r}, whose transaction has not ended; end it "
                    f"first, or give each session a connection of its own",
                    tenant=session.scope.tenant,
                )
            living.append(claim)
    info[_CLAIMS_KEY] = [*living, ref(transaction)]
