"""asyncpg.

SQLAlchemy's adapter starts a transaction of asyncpg with its first statement, and
asyncpg sends ``BEGIN`` through ``Connection.execute()``. A subclass of the connection,
which asyncpg lets one choose, adds the scope there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

import asyncpg  # type: ignore[import-untyped, unused-ignore]
from sqlalchemy import Connection, Dialect, event

from ..statements import require_allowed
from . import Driver, driver_connection, log_once, prove_one_statement

# What makes the adapter start its transaction. It never reaches the server.
_START = "-- start the transaction"


class ScopedConnection(asyncpg.Connection):  # type: ignore[misc, unused-ignore]
    """An asyncpg connection that can begin a transaction in a scope."""

    __slots__ = ("_scope", "_scope_error")

    _scope: str | None
    _scope_error: asyncpg.PostgresError | None

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self._scope = None
        self._scope_error = None

    def set_scope(self, scope: str | None) -> str | None:
        """Set the scope of the transaction that begins next, and return what was set
        before: ``None`` if it was used."""
        before, self._scope = self._scope, scope
        return before

    async def execute(
        self, query: str, *args: Any, timeout: float | None = None
    ) -> str:
        """Execute, and add the scope to a ``BEGIN``."""
        if self._scope is None or not query.startswith("BEGIN"):
            status: str = await super().execute(query, *args, timeout=timeout)
            return status
        query = f"{query.rstrip(';')}; {self._scope}"
        self._scope = None
        try:
            return str(await super().execute(query, timeout=timeout))
        except asyncpg.PostgresError as error:
            if self.is_closed():
                raise
            # To asyncpg and to the adapter the transaction has started, and is to be
            # rolled back, which is what the server wants, too.
            self._scope_error = error
            return ""

    async def executemany(
        self, command: str, args: Iterable[Any], *, timeout: float | None = None
    ) -> None:
        """Execute, or report the error that ``BEGIN`` met."""
        if command is not _START:
            await super().executemany(command, args, timeout=timeout)
            return
        error, self._scope_error = self._scope_error, None
        if error is not None:
            raise error


class GuardedConnection(ScopedConnection):
    """One that can refuse statements by their first word.

    :ivar words: what statements may begin with, ``None`` for all of them.
    """

    __slots__ = ("words",)

    words: frozenset[str] | None

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.words = None

    async def prepare(self, query: str, **kw: Any) -> Any:
        """Prepare a statement, which is checked with each execution: the adapter keeps
        it, and may have got it from somebody who was not guarded."""
        require_allowed(query, self.words)
        return _Prepared(self, query, await super().prepare(query, **kw))

    async def executemany(
        self, command: str, args: Iterable[Any], *, timeout: float | None = None
    ) -> None:
        if command is not _START:
            require_allowed(command, self.words)
        await super().executemany(command, args, timeout=timeout)


class _Prepared:
    """A prepared statement, which is checked whenever it is executed."""

    __slots__ = ("_connection", "_prepared", "_query")

    def __init__(
        self, connection: GuardedConnection, query: str, prepared: Any
    ) -> None:
        self._connection = connection
        self._query = query
        self._prepared = prepared

    def __getattr__(self, name: str) -> Any:
        # fetch(), cursor() and the others of asyncpg; none is called past this line
        require_allowed(self._query, self._connection.words)
        return getattr(self._prepared, name)


class Asyncpg(Driver):
    """:class:`asyncpg.Connection`, below SQLAlchemy's adapter."""

    def __init__(self) -> None:
        # asked with each session, and event.contains() takes its time
        self._registered: WeakSet[Dialect] = WeakSet()
        self._guarded: WeakSet[Dialect] = WeakSet()
        self._is_proved = False

    def register(self, dialect: Dialect) -> None:
        """Let the connections that are opened from now on be ours."""
        if dialect not in self._registered:
            self._registered.add(dialect)
            event.listen(dialect, "do_connect", self._choose_class)

    def begin(self, connection: Connection, scope: str) -> bool:
        """Send ``BEGIN`` and ``scope`` together."""
        adapter: Any = connection.connection.dbapi_connection
        raw = adapter.driver_connection
        # not isinstance(), which asyncpg answers in its own way
        if not issubclass(type(raw), ScopedConnection):
            log_once(
                "asyncpg: this connection was opened before the engine met a manager "
                "or a TenantSession, or has a connection_class or async_creator of its "
                "own; the scope takes round trips of its own on such a connection"
            )
            self.register(connection.dialect)
            return False
        if raw.is_in_transaction():
            return False
        raw.set_scope(scope)
        cursor = adapter.cursor()
        try:
            # the adapter starts its transaction, and has nothing to execute
            cursor.executemany(_START, ())
        finally:
            cursor.close()
            # whatever happens, no later transaction finds it
            unused = raw.set_scope(None)
        if unused is not None:
            log_once(
                "asyncpg: no transaction began where one was expected; the scope takes "
                "round trips of its own"
            )
        return unused is None

    def in_transaction(self, connection: Connection) -> bool | None:
        inside: bool = driver_connection(connection).is_in_transaction()
        return inside

    def is_aborted(self, connection: Connection) -> bool:
        # asyncpg tells "in a transaction" and "in an aborted one" not apart, but
        # nobody asks unless there was an error
        return self.in_transaction(connection) is True

    def search_path(self, connection: Connection) -> str | None:
        settings = driver_connection(connection).get_settings()
        path: str | None = getattr(settings, "search_path", None)
        return path

    def login(self, connection: Connection) -> str | None:
        settings = driver_connection(connection).get_settings()
        login: str | None = getattr(settings, "session_authorization", None)
        return login or super().login(connection)

    def require_guard(self, dialect: Dialect) -> None:
        """The adapter prepares every statement, which takes one of them."""
        self._guarded.add(dialect)

    def guard(self, connection: Connection, words: frozenset[str] | None) -> bool:
        raw = driver_connection(connection)
        if not self._is_proved:
            prove_one_statement(connection)  # with words that may not be allowed
            self._is_proved = True
        checks = issubclass(type(raw), GuardedConnection)
        if checks:
            raw.words = words
        return checks

    def unguard(self, driver_connection: Any) -> None:
        if issubclass(type(driver_connection), GuardedConnection):
            driver_connection.words = None

    def _choose_class(
        self, dialect: Dialect, record: Any, cargs: list[Any], cparams: dict[str, Any]
    ) -> None:
        # a creator of the user's own decides by itself
        if "async_creator_fn" not in cparams:
            chosen = GuardedConnection if dialect in self._guarded else ScopedConnection
            cparams.setdefault("connection_class", chosen)
