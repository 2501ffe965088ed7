"""Claims: which scope has been entered on a driver's connection, and how that
connection was before.

A connection of the driver acts as one tenant at a time. Whoever enters a scope claims
the connection first, sessions and Core connections alike, and a second scope is
refused while the first one is at work. A claim lives as long as the transaction that
it was made in.

A session may join a transaction that the application has begun. Its ``SET LOCAL``
outlives the session then, so the values are read before, and set back after it.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from weakref import WeakSet, ref

from sqlalchemy import Connection, RootTransaction, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import SessionTransaction

from .exceptions import ScopeError
from .policies import quote_literal
from .scope import (
    IN_FAILED_SQL_TRANSACTION,
    Scope,
    execute_all,
    execute_text,
    quote,
    quote_path,
    require_transaction,
    sqlstate,
    suspended_sql,
)

# Keys of Connection.info, which lives as long as the driver's connection.
_CLAIM_KEY = "sqlalchemy_tenants.claim"
_OUTER_KEY = "sqlalchemy_tenants.outer"

# Also as SQLAlchemy sends them; its events do not tell the name of a new savepoint.
_SAVEPOINT = re.compile(
    r"\s*(?:(?P<rollback>ROLLBACK)\s+(?:(?:WORK|TRANSACTION)\s+)?TO\s+(?:SAVEPOINT\s+)?"
    r'|SAVEPOINT\s+)(?P<name>"(?:[^"]|"")*"|[^\s;]+)',
    re.IGNORECASE,
)


class _Before(NamedTuple):
    """What a transaction had before a session joined it.

    :param suspended: whether the session's tenant is, which nobody could ask in a
        transaction that is aborted.
    """

    role: str
    search_path: str
    setting: tuple[str, str] | None
    suspended: bool

    @classmethod
    def read(cls, connection: Connection, scope: Scope) -> _Before:
        columns = ["role", "search_path"]
        if scope.setting is not None:
            columns.append(scope.setting[0])
        shown = [
            f"pg_catalog.current_setting({quote_literal(each)}, true)"
            for each in columns
        ]
        if scope.setting is None:
            shown.append(suspended_sql(quote_literal(scope.role)))
        query = f"SELECT {', '.join(shown)}"
        role, path, last = tuple[Any, ...](execute_text(connection, query).one())
        if scope.setting is None:
            return cls(role, path, None, last)
        return cls(role, path, (scope.setting[0], last or ""), False)

    def statements(self) -> list[str]:
        """Return what sets all of it back."""
        role = "NONE" if self.role == "none" else quote(self.role)
        statements = [f"SET LOCAL ROLE {role}"]
        if self.setting is not None:
            name, value = self.setting
            statements.append(f"SET LOCAL {name} = {quote_literal(value)}")
        path = quote_path(self.search_path)
        statements.append(f"SET LOCAL search_path = {path}")
        return statements


class _Outer:
    """A transaction of the application that sessions join.

    :ivar savepoints: savepoints with the claim that was at work when each was made:
        rolling back to one of them brings its scope back.
    :ivar due: what is to be set back before the next statement.
    """

    __slots__ = ("due", "root", "savepoints")

    def __init__(self, root: RootTransaction) -> None:
        self.root = ref(root)
        self.savepoints: dict[str, Claim | None] = {}
        self.due: _Before | None = None


class Claim:
    """A scope that was entered on a connection.

    :ivar scope: the scope.
    :ivar is_undone: the savepoint that it was entered in was rolled back.
    """

    __slots__ = (
        "__weakref__",
        "_at",
        "_before",
        "_holders",
        "is_undone",
        "scope",
    )

    def __init__(
        self,
        scope: Scope,
        connection: Connection,
        root: RootTransaction | None,
        before: _Before | None = None,
    ) -> None:
        self.scope = scope
        self.is_undone = False
        # weak: neither a session nor a connection is kept by what the pool keeps
        self._at: ref[RootTransaction] | ref[Connection]
        self._at = ref(connection) if root is None else ref(root)
        self._before = before
        # transactions of sessions that share it; nobody counts them where the claim
        # ends with the transaction of the connection
        self._holders: WeakSet[SessionTransaction] | None = None
        if before is not None:
            self._holders = WeakSet()

    @property
    def suspended(self) -> bool:
        """Whether the tenant was suspended when a session joined a transaction."""
        return self._before is not None and self._before.suspended

    @property
    def _connection(self) -> Connection | None:
        at = self._at()
        return at.connection if isinstance(at, RootTransaction) else at

    def _is_living(self) -> bool:
        root = self._at()
        if isinstance(root, Connection):
            root = root.get_transaction()
        if root is None or not root.is_active or self.is_undone:
            return False
        connection = root.connection
        return (
            connection.get_transaction() is root
            and not connection.invalidated
            # the pool has not taken it back past the Connection
            and connection.connection.is_valid
        )

    def leave(self, connection: Connection, transaction: SessionTransaction) -> None:
        """End a session's part in the claim. The last one sets back what a transaction
        that goes on had before.

        :raises ScopeError: that failed, and the connection was given up.
        """
        if self._holders is not None:
            self._holders.discard(transaction)
            if not self._holders:
                self._release(connection)

    def cancel(self, connection: Connection, transaction: SessionTransaction) -> None:
        """Give up a claim of a session whose scope could not be entered."""
        if self._holders is None or connection.invalidated:
            return
        self._holders.discard(transaction)
        if not self._holders and connection.info.get(_CLAIM_KEY) is self:
            connection.info[_CLAIM_KEY] = None

    def _release(self, connection: Connection) -> None:
        if connection.closed or connection.invalidated:
            return
        outer = _outer(connection)
        if outer is None or connection.info.get(_CLAIM_KEY) is not self:
            return
        connection.info[_CLAIM_KEY] = None
        if not self.is_undone:
            outer.due = self._before
        if outer.due is not None:
            _set_back(connection, outer)


def claim_transaction(
    connection: Connection,
    scope: Scope,
    root: RootTransaction | None,
    joined: SessionTransaction | None = None,
) -> Claim:
    """Claim a connection for a scope.

    :param root: the transaction, ``None`` where each transaction of the connection
        enters the same scope.
    :param joined: the session's transaction, where ``root`` had begun before that.
    :raises ScopeError: another scope is at work on it.
    """
    info = connection.info
    claim: Claim | None = info.get(_CLAIM_KEY)
    if claim is not None and claim._is_living():
        _require_same(claim, connection, scope)
        if joined is not None and claim._holders is not None:
            claim._holders.add(joined)
        return claim
    if joined is None or root is None:
        claim = Claim(scope, connection, root)
    else:
        claim = Claim(scope, connection, root, _prepare(connection, scope, root))
        assert claim._holders is not None
        claim._holders.add(joined)
    info[_CLAIM_KEY] = claim
    return claim


def claim_at_work(connection: Connection) -> Claim | None:
    """Return the claim of whoever works on a connection, ``None`` for nobody."""
    if connection.closed or connection.invalidated:
        return None
    claim: Claim | None = connection.info.get(_CLAIM_KEY)
    if claim is None or not claim._is_living():
        return None
    # its sessions may be gone, and have not said so
    return None if claim._holders is not None and not claim._holders else claim


def _require_same(claim: Claim, connection: Connection, scope: Scope) -> None:
    if claim._connection is not connection:
        raise ScopeError(
            "two Connection objects share one connection of the driver, as with "
            "StaticPool and SingletonThreadPool, and a transaction of the other one "
            "has not ended; end it first, or use a pool that gives each its own",
            tenant=scope.tenant,
        )
    if claim.scope != scope:
        raise ScopeError(
            f"the connection is in use by {claim.scope.who}, whose transaction has "
            f"not ended, and cannot be used by {scope.who}; end that transaction "
            f"first, or give each a connection of its own",
            tenant=scope.tenant,
        )


def _prepare(connection: Connection, scope: Scope, root: RootTransaction) -> _Before:
    """Read what a transaction has before a session joins it, and watch it."""
    require_transaction(connection, scope)  # before any statement
    outer = _outer(connection)
    if outer is None:
        connection.info[_OUTER_KEY] = outer = _Outer(root)
        # of this Connection: what other ones execute costs nothing
        if not event.contains(connection, "before_cursor_execute", _at_statement):
            event.listen(connection, "before_cursor_execute", _at_statement)
    if outer.due is not None:
        _set_back(connection, outer)
    return _Before.read(connection, scope)


def _outer(connection: Connection) -> _Outer | None:
    """Return what is known of the transaction that the connection is in."""
    if connection.closed or connection.invalidated:
        return None
    outer: _Outer | None = connection.info.get(_OUTER_KEY)
    root = connection.get_transaction()
    if outer is None or root is None or not root.is_active or outer.root() is not root:
        return None
    return outer


def _set_back(connection: Connection, outer: _Outer) -> None:
    before, outer.due = outer.due, None
    assert before is not None
    try:
        execute_all(connection, before.statements())
    except BaseException as error:
        if (
            isinstance(error, DBAPIError)
            and sqlstate(error) == IN_FAILED_SQL_TRANSACTION
        ):
            # nothing but a rollback is possible; after it there is another try
            outer.due = before
            return
        if not connection.invalidated:
            connection.invalidate()
        if isinstance(error, DBAPIError):
            raise ScopeError(
                f"the role, the tenant and the search path that the connection had "
                f"before a session used it could not be set back, and the connection "
                f"was given up: {error.orig}"
            ) from error
        raise


def _at_statement(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
    outer = _outer(connection)
    if outer is None:
        return
    claim: Claim | None = connection.info.get(_CLAIM_KEY)
    if claim is not None and not claim._is_living():
        claim = None
    savepoint = _SAVEPOINT.match(statement)
    if savepoint is None or savepoint["rollback"] is None:
        if claim is not None and claim._holders is not None and not claim._holders:
            # its sessions are gone, and have not said so
            claim._release(connection)
            claim = None
        elif claim is None and outer.due is not None:
            _set_back(connection, outer)
    if savepoint is None:
        return
    name = savepoint["name"]
    if savepoint["rollback"] is None:
        outer.savepoints[name] = claim
        return
    # the server goes back to the scope that was there at the savepoint
    made_in = outer.savepoints.get(name)
    if claim is not None and claim is not made_in:
        claim.is_undone = True
    outer.due = None if made_in is None or made_in is claim else made_in._before
