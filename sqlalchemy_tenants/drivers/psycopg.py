"""psycopg, sync and async.

psycopg sends its ``BEGIN`` by itself, before the first statement. It leaves that out
when it finds the connection in a transaction, so here ``BEGIN`` and the scope are sent
below it, on the connection of libpq that it wraps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import psycopg
from psycopg import pq

# Not documented: the generator that sends a query and collects its results, and the
# exception of a failed result. Tests fail when they go.
from psycopg.errors import error_from_result
from psycopg.generators import execute
from sqlalchemy import Connection, Dialect

from ..exceptions import ScopeError
from ..statements import require_allowed
from . import Driver, driver_connection, prove_one_statement

_IDLE = int(pq.TransactionStatus.IDLE)
_INTRANS = int(pq.TransactionStatus.INTRANS)
_INERROR = int(pq.TransactionStatus.INERROR)
_COMMAND_OK = int(pq.ExecStatus.COMMAND_OK)


class _BasePsycopg(Driver):
    def __init__(self) -> None:
        self._is_proved = False

    def separate(self, connection: Connection, scope: Sequence[str]) -> Sequence[str]:
        # without parameters psycopg uses the simple protocol, which takes several
        # statements at once
        return ["; ".join(scope)]

    def in_transaction(self, connection: Connection) -> bool | None:
        status = driver_connection(connection).pgconn.transaction_status
        return int(status) in (_INTRANS, _INERROR)

    def is_aborted(self, connection: Connection) -> bool:
        status = driver_connection(connection).pgconn.transaction_status
        return int(status) == _INERROR

    def search_path(self, connection: Connection) -> str | None:
        path: str | None = driver_connection(connection).info.parameter_status(
            "search_path"
        )
        return path

    def login(self, connection: Connection) -> str | None:
        login: str | None = driver_connection(connection).info.parameter_status(
            "session_authorization"
        )
        return login or super().login(connection)

    def require_guard(self, dialect: Dialect) -> None:
        """Cursors of this module send one statement in a message."""

    def guard(self, connection: Connection, words: frozenset[str] | None) -> bool:
        """Let the connection open cursors that check what they send."""
        raw = driver_connection(connection)
        if not self._is_proved:
            _open_guarded(raw, None)  # the proof has words that may not be allowed
            prove_one_statement(connection)
            self._is_proved = True
        _open_guarded(raw, words)
        return True

    def unguard(self, driver_connection: Any) -> None:
        raw = driver_connection
        raw.cursor_factory = _plain(raw.cursor_factory)
        raw.server_cursor_factory = _plain(raw.server_cursor_factory)


_PLAIN = (
    psycopg.Cursor,
    psycopg.ServerCursor,
    psycopg.AsyncCursor,
    psycopg.AsyncServerCursor,
)


class _OneStatement:
    """A cursor that sends one statement in a message, and only those that it may.

    Without parameters psycopg uses the simple protocol, which takes several statements
    at once. ``_execute_send()`` is not documented; where a version does not call it,
    :func:`.prove_one_statement` finds out.
    """

    __slots__ = ()

    words: frozenset[str] | None

    def execute(self, query: Any, *args: Any, **kw: Any) -> Any:
        """Execute a statement that is allowed; async where the cursor is."""
        require_allowed(query, self.words)
        return super().execute(query, *args, **kw)  # type: ignore[misc]

    def executemany(self, query: Any, *args: Any, **kw: Any) -> Any:
        """Execute a statement that is allowed; async where the cursor is."""
        require_allowed(query, self.words)
        return super().executemany(query, *args, **kw)  # type: ignore[misc]

    def _execute_send(self, query: Any, **kw: Any) -> None:
        super()._execute_send(query, **{**kw, "force_extended": True})  # type: ignore[misc]


def _open_guarded(raw: Any, words: frozenset[str] | None) -> None:
    """Let a connection open guarded cursors."""
    raw.cursor_factory, raw.server_cursor_factory = _guarded(
        raw.cursor_factory, raw.server_cursor_factory, words
    )


@cache
def _guarded(
    cursor: type[Any], server_cursor: type[Any], words: frozenset[str] | None
) -> list[type[Any]]:
    """Return classes of cursors that send ``words``, in place of those given."""
    guarded = []
    for each in (cursor, server_cursor):
        plain = _plain(each)
        if plain not in _PLAIN:
            raise ScopeError(
                f"allow_statements: the connection has cursors of its own, "
                f"{plain.__name__}, and nobody knows what they send; leave them out of "
                f"connect_args"
            )
        namespace = {"__slots__": (), "words": words, "plain": plain}
        guarded.append(
            type(f"Guarded{plain.__name__}", (_OneStatement, plain), namespace)
        )
    return guarded


def _plain(cursor: type[Any]) -> type[Any]:
    """Return the class that a guarded one stands for."""
    return getattr(cursor, "plain", cursor)


class Psycopg(_BasePsycopg):
    """:class:`psycopg.Connection`."""

    def begin(self, connection: Connection, scope: str) -> bool:
        """Send ``BEGIN`` and ``scope`` together."""
        raw: Any = connection.connection.dbapi_connection
        if not isinstance(raw, psycopg.Connection):
            return super().begin(connection, scope)
        if not _is_idle(connection, raw):
            return False
        query = _begin(raw, scope)
        with raw.lock:
            raw.pgconn.send_query(query)
            results = raw.wait(execute(raw.pgconn))
        _require_success(raw, results)
        return True


class AsyncPsycopg(_BasePsycopg):
    """:class:`psycopg.AsyncConnection`, below SQLAlchemy's adapter."""

    def begin(self, connection: Connection, scope: str) -> bool:
        """Send ``BEGIN`` and ``scope`` together."""
        adapter: Any = connection.connection.dbapi_connection
        raw = adapter.driver_connection
        if not isinstance(raw, psycopg.AsyncConnection):
            return super().begin(connection, scope)
        if not _is_idle(connection, raw):
            return False
        query = _begin(raw, scope)

        async def send(raw: psycopg.AsyncConnection[Any]) -> list[Any]:
            async with raw.lock:
                raw.pgconn.send_query(query)
                return await raw.wait(execute(raw.pgconn))

        _require_success(raw, adapter.run_async(send))
        return True


def _is_idle(
    connection: Connection, raw: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]
) -> bool:
    """Whether the driver's connection is in no transaction.

    Pipeline mode is refused: the answers are still to come, and SQLAlchemy finds no
    rows. psycopg 3.3.9 leaves a pool's connection in it where a task is cancelled just
    when executemany() enters it, so the connection is given up.
    """
    pgconn = raw.pgconn
    if pgconn.pipeline_status:
        connection.invalidate()
        raise ScopeError(
            "the connection is in psycopg's pipeline mode, where no transaction of a "
            "tenant can begin, and was given up; begin the transaction first"
        )
    return int(pgconn.transaction_status) == _IDLE


def _begin(
    raw: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], scope: str
) -> bytes:
    """Return ``BEGIN`` as psycopg would send it, and the scope."""
    text = "BEGIN"
    level, read_only, deferrable = raw.isolation_level, raw.read_only, raw.deferrable
    if level is not None:
        text += " ISOLATION LEVEL " + level.name.replace("_", " ")
    if read_only is not None:
        text += " READ ONLY" if read_only else " READ WRITE"
    if deferrable is not None:
        text += " DEFERRABLE" if deferrable else " NOT DEFERRABLE"
    text = f"{text}; {scope}"
    # ASCII is the same in every encoding that a client can have
    return text.encode("ascii" if text.isascii() else raw.info.encoding)


def _require_success(
    raw: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], results: Iterable[Any]
) -> None:
    for result in results:
        if result.status != _COMMAND_OK:
            # the transaction is aborted; it ends as any other that had an error
            raise error_from_result(result, encoding=raw.info.encoding)
