"""Sessions whose every transaction is confined to a tenant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from contextlib import ExitStack
from functools import wraps
from inspect import isawaitable, iscoroutine, iscoroutinefunction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from uuid import UUID
from weakref import ref

from sqlalchemy import Connection, Engine, NestedTransaction, RootTransaction, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import (
    IdentityMap,
    Session,
    SessionTransaction,
)

from .arguments import require_flag
from .claims import Claim, claim_transaction
from .drivers import driver_of
from .exceptions import ScopeError
from .refusals import add_note, refuse
from .scope import Scope, admin_scope, enter_scope, tenant_scope, two_phase_error
from .statements import guard_statements, release_statements, require_words
from .tenancy import Isolation, Tenancy, TenantId

if TYPE_CHECKING:
    from .values import Context, Settings, Values

_Bind: TypeAlias = Engine | Connection
_BIND = (Engine, Connection)


# A connection's transaction and savepoint when it entered the scope, and its claim.
_Entry: TypeAlias = tuple[RootTransaction, NestedTransaction | None, Claim]

# Tenants, and what would be called by mistake.
_NOT_ASKED = (str, int, UUID, type)

_NO_CONTEXT: Context = MappingProxyType({})

# SQLAlchemy 2.1.7 and later tell which connections a transaction has.
_TELLS = hasattr(SessionTransaction, "connections")


class ScopedSession(Session):
    """A session that enters a :class:`.Scope` in each of its transactions.

    Base of :class:`TenantSession` and :class:`AdminSession`.

    :param scope: the scope, or a function that is asked for it at the beginning of
        each transaction.
    :param tenant_criteria: whether ORM statements say ``tenant = 'acme'`` for the
        models with a mark by themselves, so that PostgreSQL plans for this tenant and
        not for one of average size. The policies hold with and without. Off unless said
        otherwise: it takes 40 to 50 µs of Python for each ORM statement, and most
        queries gain nothing.
    :param allow_statements: what statements may begin with, as :data:`.DML`; ``None``
        for all of them. Another one gets a :class:`.ScopeError` and is not sent, and a
        message to the server has one statement.
    """

    # What a subclass has whose __init__() does not call ours: it is refused.
    _scope: Scope | None = None
    _choose: Callable[[], Scope] | None = None
    _values: Values | None = None
    _asked: frozenset[Engine] = frozenset()
    _bind_at_hand: _Bind | None = None
    _root_at_hand: RootTransaction | None = None
    _entered: tuple[ref[SessionTransaction], dict[Connection, _Entry]] | None = None
    _joins = False
    #: Whether to refuse a transaction of the session's own, which it would commit.
    joins_only = False
    _words: frozenset[str] | None = None

    def __init__(
        self,
        bind: Engine | Connection | None = None,
        *,
        scope: Scope | Callable[[], Scope],
        twophase: bool = False,
        tenant_criteria: bool = False,
        allow_statements: Set[str] | None = None,
        **kw: Any,
    ) -> None:
        chosen = scope if isinstance(scope, Scope) else None
        if twophase:
            raise two_phase_error(chosen)
        if bind is not None and not isinstance(bind, _BIND):
            raise TypeError(f"bind is an Engine or a Connection, not {bind!r}")
        super().__init__(bind=bind, **kw)
        if allow_statements is not None:
            self._words = require_words(allow_statements)
            if bind is not None:
                driver_of(bind.dialect).require_guard(bind.dialect)
        if isinstance(scope, Scope):
            self._scope = scope
        else:
            self._choose = scope
            event.listen(self, "after_transaction_create", _choose_scope)
        if require_flag("tenant_criteria", tenant_criteria):
            from .criteria import add_criteria  # where somebody wants them

            # of this session only: a statement without it costs nothing
            event.listen(self, "do_orm_execute", add_criteria)
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
        self._bind_at_hand = bind
        if isinstance(bind, Connection):
            self._root_at_hand = bind.get_transaction()
        transaction = self.get_transaction()
        if transaction is None:
            if not _TELLS:
                self._asked = frozenset((bind.engine,))
            return bind
        if not transaction.is_active:
            return bind  # SQLAlchemy executes nothing in it
        if self._choose is not None:
            self._require_same_tenant(self._choose)
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
        # Another holder of this connection may have ended its transaction.
        if entry is not None:
            root, savepoint, claim = entry
            if (
                connection.get_transaction() is root
                and (savepoint is None or savepoint.is_active)
                and not claim.is_undone
            ):
                return
        raise ScopeError(
            "this transaction is not confined to its tenant: it could not be, or was "
            "ended past the session; roll it back: session.rollback()",
            tenant=None if self._scope is None else self._scope.tenant,
        )

    def joins(self, connection: Connection, root: RootTransaction) -> bool:
        """Whether the connection was in a transaction before this session's began; also
        where that is not known.

        :raises ScopeError: nobody asked this class for the connection.
        """
        bind = self._bind_at_hand
        if bind is None:
            raise ScopeError(
                f"the get_bind() of {type(self).__name__} is not guarded, and could go "
                f"on in a transaction without a tenant; define get_bind() in the body "
                f"of the class, and let __init_subclass__() call super()",
                tenant=None if self._scope is None else self._scope.tenant,
            )
        if isinstance(bind, Engine):
            return bind is not connection.engine
        return bind is not connection or self._root_at_hand is root

    def note_entry(
        self,
        transaction: SessionTransaction,
        connection: Connection,
        root: RootTransaction,
        claim: Claim,
    ) -> None:
        """Note that a connection of a transaction has entered the scope."""
        entry = (root, connection.get_nested_transaction(), claim)
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

    def require_statements(self, words: frozenset[str]) -> None:
        """Refuse a session of a class that did not hand ``allow_statements`` on."""
        if self._words != words:
            raise ScopeError(
                f"{type(self).__name__} does not keep allow_statements; its __init__() "
                f"must hand it on to that of TenantSession"
            )

    def listen_for_end(self) -> None:
        """Call :meth:`leave_claims` when a transaction ends."""
        # of this session only: one that joins no transaction pays nothing for it
        if not self._joins:
            event.listen(self, "after_transaction_end", _leave)
            self._joins = True

    def leave_claims(self, transaction: SessionTransaction) -> None:
        """Set back what the connections of a transaction had before it joined them."""
        with ExitStack() as stack:
            for connection, (*_, claim) in self._entries(transaction).items():
                if self._words is not None:
                    # first: what comes after it are statements of ours
                    release_statements(connection, transaction)
                stack.callback(claim.leave, connection, transaction)

    @property
    def scope(self) -> Scope:
        """What the transaction at work is confined to, or the next one."""
        if self._choose is not None and (
            self._scope is None or self.get_transaction() is None
        ):
            return self._with_values(self._choose())
        if self._scope is None:
            raise _without_scope(self)
        return self._scope

    @property
    def context(self) -> Context:
        """The context that was given, read-only: in Python what
        :func:`.context_value` is in SQL."""
        return _NO_CONTEXT if self._values is None else self._values.context

    def _keep_values(
        self, tenancy: Tenancy, context: Context | None, settings: Settings | None
    ) -> None:
        if context is not None or settings is not None:
            from .values import Values

            self._values = Values(tenancy, context, settings)

    def _with_values(self, scope: Scope) -> Scope:
        return scope if self._values is None else self._values.added_to(scope)

    # --- a tenant that is asked for ---

    @property
    def identity_map(self) -> IdentityMap:
        """The objects of the session: of the tenant at hand, and of no other one.

        Where the tenant is asked for, this is what keeps ``session.get()`` from
        answering with an object of the tenant before, without asking the database.
        """
        if self._choose is not None:
            self._require_own_objects(self._choose)
        return self._objects

    @identity_map.setter
    def identity_map(self, objects: IdentityMap) -> None:
        self._objects = objects

    def expunge_all(self) -> None:
        """Remove all objects, as :meth:`sqlalchemy.orm.Session.expunge_all` does."""
        # a session closes whatever tenant there is, or none
        choose, self._choose = self._choose, None
        try:
            super().expunge_all()
        finally:
            self._choose = choose

    def choose_scope(self) -> None:
        """Ask for the scope of the transaction that begins."""
        assert self._choose is not None
        before, self._scope = self._scope, None
        try:
            self._scope = self._with_values(self._choose())
        finally:
            now = None if self._scope is None else self._scope.plain
            if before is not None and before.plain != now:
                self.expunge_all()

    def _require_own_objects(self, choose: Callable[[], Scope]) -> None:
        if self._scope is None:
            return  # there are none
        transaction = self.get_nested_transaction() or self.get_transaction()
        if transaction is None:
            try:
                found = choose()
            except Exception:  # the transaction that comes next raises it
                found = None
            if found != self._scope.plain:
                self.expunge_all()
                self._scope = None
        elif transaction.is_active:
            self._require_same_tenant(choose)

    def _require_same_tenant(self, choose: Callable[[], Scope]) -> None:
        if self._scope is None:
            raise _without_scope(self)
        found = choose()
        if found != self._scope.plain:
            raise ScopeError(
                f"the transaction is that of {self._scope.who}, and now the function "
                f"says {found.tenant!r}; end a transaction before the tenant changes: "
                f"commit(), rollback(), close(), or remove() of a registry",
                tenant=found.tenant,
            )


def _without_scope(session: ScopedSession) -> ScopeError:
    if session._choose is None:
        return ScopeError(
            f"{type(session).__name__} has no tenant; its __init__() must call "
            f"super().__init__(...) of TenantSession or AdminSession"
        )
    return ScopeError(
        "this transaction has no tenant, because asking for it failed; call "
        "session.rollback() to roll it back"
    )


def _choose_scope(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        assert isinstance(session, ScopedSession)
        session.choose_scope()


class TenantSession(ScopedSession):
    """A :class:`~sqlalchemy.orm.Session` that sees the rows of one tenant.

    Each transaction begins with ``SET LOCAL ROLE`` (and the setting under
    ``isolation="shared"``) and ``SET LOCAL search_path``. Usable alone, too::

        Sessions = sessionmaker(engine, class_=TenantSession, schema="public")
        with Sessions(tenant="acme") as session:
            ...

    :param bind: engine or connection.
    :param tenant: the tenant, always given by name; or a function without arguments,
        for registries as :class:`~sqlalchemy.orm.scoped_session`. It is asked at the
        beginning of each transaction, and with each statement whether its answer is
        still the same. Objects of one tenant leave the session when it begins a
        transaction of another one.
    :param isolation: ``"role"`` or ``"shared"``.
    :param schema: the schema on the search path; ``None`` keeps the login's path and
        asks for it once a connection.
    :param tenancy: names of roles and setting.
    :param context: values of the application, as in ``{"user_id": 7}``, for policies,
        column defaults and queries that ask :func:`.context_value`: ``SET LOCAL
        tenancy.user_id = '7'`` in each transaction. Text, ``int``, ``bool``, ``UUID``,
        or ``None`` for a value that is not given. The empty string is refused, because
        a parameter that was used is empty afterwards.
    :param settings: parameters of PostgreSQL, as in ``{"statement_timeout": "5s"}``,
        set likewise; or a function that is asked for them, with the tenant, at the
        beginning of each transaction where ``tenant`` is a function, and else once.
    :param tenant_criteria: see :class:`ScopedSession`; likewise ``allow_statements``.
    :param kw: further arguments of :class:`~sqlalchemy.orm.Session`.
    :raises InvalidTenant: for what cannot identify a tenant.
    :raises ScopeError: for ``twophase=True``.
    :raises TypeError: ``tenant`` is a coroutine function, or a name or value of
        ``context`` or ``settings`` has another type.
    :raises ValueError: for a name or value that cannot be set, or must not be.
    """

    def __init__(
        self,
        bind: Engine | Connection | None = None,
        *,
        tenant: TenantId | Callable[[], TenantId],
        isolation: Isolation = "role",
        schema: str | None = None,
        tenancy: Tenancy | None = None,
        context: Context | None = None,
        settings: Settings | None = None,
        tenant_criteria: bool = False,
        allow_statements: Set[str] | None = None,
        **kw: Any,
    ) -> None:
        tenancy = Tenancy.given(tenancy)
        kw |= {"tenant_criteria": tenant_criteria, "allow_statements": allow_statements}
        self._keep_values(tenancy, context, settings)
        scope: Scope | Callable[[], Scope]
        self._tenant: TenantId | None
        if callable(tenant) and not isinstance(tenant, _NOT_ASKED):
            scope = _chooser(tenant, isolation, tenancy, schema)
            self._tenant = None
        else:
            self._tenant = cast(TenantId, tenant)
            scope = tenant_scope(self._tenant, isolation, tenancy, schema)
            scope = self._with_values(scope)
        super().__init__(bind=bind, scope=scope, **kw)

    @property
    def tenant(self) -> TenantId:
        """The tenant, as it was given: of the transaction at work, where a function
        says it, or of the next one."""
        if self._tenant is not None:
            return self._tenant
        tenant = self.scope.tenant
        assert tenant is not None
        return tenant


class AdminSession(ScopedSession):
    """A :class:`~sqlalchemy.orm.Session` across tenants, or narrowed to one.

    It acts as the admin role in each of its transactions.

    :param bind: engine or connection of a login that is a member of the admin role.
    :param tenant: ``None`` for the rows of all tenants.
    :param context: see :class:`TenantSession`; likewise ``settings``, of which a
        function is asked with ``tenant``.
    :param tenant_criteria: see :class:`ScopedSession`; likewise ``allow_statements``.
    """

    def __init__(
        self,
        bind: Engine | Connection | None = None,
        *,
        tenant: TenantId | None = None,
        schema: str | None = None,
        tenancy: Tenancy | None = None,
        context: Context | None = None,
        settings: Settings | None = None,
        tenant_criteria: bool = False,
        allow_statements: Set[str] | None = None,
        **kw: Any,
    ) -> None:
        tenancy = Tenancy.given(tenancy)
        kw |= {"tenant_criteria": tenant_criteria, "allow_statements": allow_statements}
        self._keep_values(tenancy, context, settings)
        scope = self._with_values(admin_scope(tenant, tenancy, schema))
        super().__init__(bind=bind, scope=scope, **kw)
        self._tenant = tenant

    @property
    def tenant(self) -> TenantId | None:
        """The tenant that the session is narrowed to, or ``None``."""
        return self._tenant


def _noting(name: str) -> Callable[..., Any]:
    """Return a method of :class:`ScopedSession` that executes, and lets errors say
    what to do next.

    The ``handle_error`` event would take 4 % of a transaction's time without an error:
    SQLAlchemy goes other ways for a dialect that has events.
    """

    @wraps(getattr(Session, name))
    def execute(self: ScopedSession, *args: Any, **kw: Any) -> Any:
        try:
            return getattr(super(ScopedSession, self), name)(*args, **kw)
        except DBAPIError as error:
            if self._scope is not None:
                add_note(error, self._scope)
            raise

    return execute


for _name in ("flush", "execute", "scalar", "scalars"):
    setattr(ScopedSession, _name, _noting(_name))


def _guarded(choose: Callable[..., _Bind]) -> Callable[..., _Bind]:
    """Return a ``get_bind()`` that refuses what :meth:`ScopedSession.get_bind` does."""

    @wraps(choose)
    def get_bind(self: ScopedSession, *args: Any, **kw: Any) -> _Bind:
        asked = self._asked  # before choose() asks, too, through super()
        return self._guard(choose(self, *args, **kw), asked)

    return get_bind


def _chooser(
    ask: Callable[[], TenantId],
    isolation: Isolation,
    tenancy: Tenancy,
    schema: str | None,
) -> Callable[[], Scope]:
    """Return what asks for a tenant, and answers with its scope."""
    problem = (
        f"tenant={ask!r} is asked within statements, where nothing can be awaited; "
        f"give a plain function, as one that reads a ContextVar"
    )
    if iscoroutinefunction(ask):
        raise TypeError(problem)

    def choose() -> Scope:
        tenant: Any = ask()
        if isawaitable(tenant):
            if iscoroutine(tenant):
                tenant.close()
            raise TypeError(problem)
        return tenant_scope(tenant, isolation, tenancy, schema)

    return choose


def not_begun_error(tenant: TenantId | None = None) -> ScopeError:
    """Return the error of a bound manager whose connection is in no transaction."""
    return ScopeError(
        "the connection that the manager is bound to is in no transaction that could "
        "be rolled back, so that what happens on it would stay; begin one first: with "
        "connection.begin() as transaction, and transaction.rollback() at the end",
        tenant=tenant,
    )


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
    scope = session._scope
    root = connection.get_transaction()
    assert root is not None
    claim = joined = None
    try:
        if scope is None:
            raise _without_scope(session)
        if session.joins(connection, root):
            joined = transaction
            session.listen_for_end()
        elif session.joins_only:
            raise not_begun_error(scope.tenant)
        claim = claim_transaction(connection, scope, root, joined)
        enter_scope(connection, scope)
        if session._words is not None:
            guard_statements(connection, session._words, joined)
        session.note_entry(transaction, connection, root, claim)
    except BaseException as error:
        # The Session keeps this connection, and get_bind() refuses to go on with it
        suspended = None
        if joined is not None:
            suspended = claim is not None and claim.suspended
        refusal = refuse(error, connection, scope, suspended)
        if claim is not None:
            claim.cancel(connection, transaction)
        if refusal is error:
            raise
        raise refusal from error


def _leave(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        assert isinstance(session, ScopedSession)
        session.leave_claims(transaction)
