"""Sessions whose every transaction is confined to a tenant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeAlias
from weakref import ref

from sqlalchemy import Connection, Engine, event
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

_NOTHING: tuple[Callable[[], SessionTransaction | None], frozenset[_Bind]]
_NOTHING = (lambda: None, frozenset())

# Key of Connection.info: the transaction of a session that entered a scope last.
_CLAIM_KEY = "sqlalchemy_tenants.claim"


def _asking(choose: Callable[..., _Bind]) -> Callable[..., _Bind]:
    """Return a ``get_bind()`` that refuses to go on in a transaction that could not be
    confined.

    With each statement SQLAlchemy asks there for the engine, and then gives the
    transaction a connection of it, if it has none, and runs our hook. It keeps the
    connection where the hook fails, and where an exception out of a signal's handler,
    as of Ctrl-C, comes before the hook's first line.
    """

    @wraps(choose)
    def get_bind(self: ScopedSession, *args: Any, **kw: Any) -> _Bind:
        asked = self._asked  # before choose() asks, too, through super()
        return self._ask(choose(self, *args, **kw), asked)

    return get_bind


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
        # the transaction that is confined, and its binds that are
        self._confined = _NOTHING
        # binds that SQLAlchemy may have connected since, confined or not
        self._asked: frozenset[_Bind] = _NOTHING[1]
        if isinstance(bind, Engine):
            driver_of(bind.dialect).register(bind.dialect)

    def __init_subclass__(cls, **kw: Any) -> None:
        super().__init_subclass__(**kw)
        # a class that chooses among engines need not call ours
        owner = next(each for each in cls.__mro__ if "get_bind" in vars(each))
        if owner is cls or not issubclass(owner, ScopedSession):
            cls.get_bind = _asking(cls.get_bind)

    get_bind = _asking(Session.get_bind)

    def connection(
        self,
        bind_arguments: Mapping[str, Any] | None = None,
        execution_options: Mapping[str, Any] | None = None,
    ) -> Connection:
        """Return the connection, as :meth:`sqlalchemy.orm.Session.connection` does."""
        arguments = dict(bind_arguments or {})
        bind = arguments.pop("bind", None)
        if bind is None:
            bind = self.bind_as_chosen(**arguments)
        self._asked |= {bind}
        return self._connect(bind, execution_options)

    def _ask(self, bind: _Bind, asked: frozenset[_Bind]) -> _Bind:
        """Return ``bind``, which SQLAlchemy may connect now.

        :param asked: what had been asked for before.
        """
        transaction = self.get_transaction()
        if transaction is None:
            self._asked = frozenset((bind,))
        elif not self._is_confined(transaction, bind):
            if bind in asked:
                # either it was not connected, as where the pool had no connection left,
                # or it was not confined
                self._connect(bind)
            else:
                self._asked |= {bind}
        return bind

    def _connect(
        self, bind: _Bind, execution_options: Mapping[str, Any] | None = None
    ) -> Connection:
        connection = super().connection({"bind": bind}, execution_options)
        transaction = self.get_transaction()
        if transaction is None or not self._is_confined(transaction, bind):
            # our hook has not run, or not to its end
            raise ScopeError(
                "the transaction could not be confined to its tenant; roll it back",
                tenant=self._scope.tenant,
            )
        return connection

    def _is_confined(self, transaction: SessionTransaction, bind: _Bind) -> bool:
        confined, binds = self._confined
        return confined() is transaction and bind in binds

    def _note_confined(
        self, transaction: SessionTransaction, connection: Connection
    ) -> None:
        # the keys that SQLAlchemy finds the connection by, too
        binds: frozenset[_Bind] = frozenset((connection, connection.engine))
        self._asked -= binds
        confined, others = self._confined
        if confined() is transaction:
            binds |= others
        self._confined = (ref(transaction), binds)

    def bind_as_chosen(self, *args: Any, **kw: Any) -> Engine | Connection:
        """Return what :meth:`~sqlalchemy.orm.Session.get_bind` does, for no statement:
        it never connects."""
        get_bind: Any = type(self).get_bind
        bind: _Bind = get_bind.__wrapped__(self, *args, **kw)
        return bind

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
        return
    try:
        _claim(session, transaction, connection)
        enter_scope(connection, session.scope)
    except BaseException as error:
        # The Session keeps this connection, and get_bind() refuses to go on with it
        if isinstance(error, ScopeError) or connection.invalidated:
            pass
        elif not (
            isinstance(error, DBAPIError)
            and driver_of(connection.dialect).is_aborted(connection)
        ):
            connection.invalidate()  # nobody knows its state
        raise
    session._note_confined(transaction, connection)


def _claim(
    session: ScopedSession, transaction: SessionTransaction, connection: Connection
) -> None:
    """Refuse a connection that another session works on in another scope: its next
    statement would see rows of this session's tenant.

    Possible where the application gives the same connection to both.
    """
    info = connection.info
    claim: ref[SessionTransaction] | None = info.get(_CLAIM_KEY)
    claimed = None if claim is None else claim()
    if claimed is not None:
        other = claimed.session
        assert isinstance(other, ScopedSession)
        if (
            other is not session
            and other.scope != session.scope
            and other.get_transaction() is claimed
            and other.in_transaction()
        ):
            raise ScopeError(
                f"the connection is in use by a session of tenant "
                f"{other.scope.tenant!r}, whose transaction has not ended; end it "
                f"first, or give each session a connection of its own",
                tenant=session.scope.tenant,
            )
    info[_CLAIM_KEY] = ref(transaction)
