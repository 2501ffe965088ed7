"""A manager on one connection: for tests that roll back.

Whatever it does happens within savepoints of the transaction that the connection is in.
Nobody but the caller ends that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, event

from .claims import claim_at_work
from .exceptions import ScopeError
from .managers import PostgresManager
from .opening import Connecting
from .options import require_engines
from .refusals import noting
from .session import ScopedSession, not_begun_error
from .tenancy import TenantId

_M = TypeVar("_M", bound=PostgresManager)
_T = TypeVar("_T")


def require_bindable(connection: Connection) -> None:
    """Refuse anything but a connection to PostgreSQL.

    :raises TypeError: it is something else, as an engine.
    :raises ScopeError: it is not of PostgreSQL.
    """
    if not isinstance(connection, Connection):
        raise TypeError(
            f"bound_to() takes a Connection, as engine.connect() opens it, not "
            f"{connection!r}; the async manager takes an AsyncConnection"
        )
    require_engines(connection.engine, connection.engine)


def _refuse_commit(connection: Connection) -> None:
    claim = claim_at_work(connection)
    if claim is None:
        return  # the caller's own
    # SQLAlchemy takes its transaction as ended, and sends no ROLLBACK any more
    raw = connection.connection.dbapi_connection
    assert raw is not None
    raw.rollback()
    raise ScopeError(
        "commit() would end the transaction of the connection that the manager is "
        "bound to, which was rolled back; commit a session, or let the block of "
        "begin() end: both commit to a savepoint",
        tenant=claim.scope.tenant,
    )


class _BoundEngine:
    """What a manager asks of its engines, on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Work as the connection's login, to a savepoint."""
        if not self._connection.in_transaction():
            raise not_begun_error()
        claim = claim_at_work(self._connection)
        if claim is not None:
            raise ScopeError(
                f"the connection that the manager is bound to is in use by "
                f"{claim.scope.who}, and this would act as it; end that session first",
                tenant=claim.scope.tenant,
            )
        with self._connection.begin_nested():
            yield self._connection

    connect = begin


class _Bound(PostgresManager):
    """What a manager does otherwise on one connection."""

    def connect(self, tenant: TenantId, **kw: Any) -> Connecting:
        return Connecting(self._on_savepoint(tenant, kw, commit=False))

    def begin(self, tenant: TenantId, **kw: Any) -> Connecting:
        return Connecting(self._on_savepoint(tenant, kw, commit=True))

    @contextmanager
    def _on_savepoint(
        self, tenant: TenantId, kw: dict[str, Any], *, commit: bool
    ) -> Iterator[Connection]:
        # a session, because it sets back what the connection was before
        kw["create_if_missing"] = False
        with self.new_session(tenant, **kw) as session:
            with noting(session.scope):
                yield session.connection()
            if commit:
                session.commit()

    def start_session(
        self, session: ScopedSession, *, create_if_missing: bool = False
    ) -> None:
        session.joins_only = True
        super().start_session(session, create_if_missing=create_if_missing)


def copy_as(manager: _T, mixin: type[Any]) -> _T:
    """Return a copy of a manager, whose class is its own and ``mixin``."""
    kind = type(manager)
    if not issubclass(kind, mixin):
        kind = type(f"Bound{kind.__name__}", (mixin, kind), {})
    copy = object.__new__(kind)
    vars(copy).update(vars(manager))
    return copy


def bind(manager: _M, connection: Connection) -> _M:
    """Return a copy of a manager that works on one connection; see
    :meth:`.PostgresManager.bound_to`."""
    require_bindable(connection)
    if not event.contains(connection, "commit", _refuse_commit):
        event.listen(connection, "commit", _refuse_commit)
    bound = copy_as(manager, _Bound)
    engine: Any = _BoundEngine(connection)
    bound._engine = bound._admin_engine = engine
    bound._bind = bound._admin_bind = connection
    bound._login_name = None
    bound._session_options = {
        **manager._session_options,
        "join_transaction_mode": "create_savepoint",
    }
    return bound
