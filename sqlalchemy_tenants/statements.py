"""Statements: which ones a session of a tenant sends, told by their first word.

With one statement in a message, the first word says what the server will do. The lexer
here reads as far as that word, and refuses what PostgreSQL might read otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet, ref

from sqlalchemy import Connection, event
from sqlalchemy.orm import SessionTransaction
from sqlalchemy.pool import ConnectionPoolEntry, Pool
from sqlalchemy.sql.expression import (
    ReleaseSavepointClause,
    RollbackToSavepointClause,
    SavepointClause,
)

from .drivers import Driver, driver_of
from .exceptions import ScopeError

#: Statements that read and write rows, for ``allow_statements``.
DML: frozenset[str] = frozenset(
    {"select", "insert", "update", "delete", "merge", "with", "values", "table"}
)

# Every word that a statement of PostgreSQL 15 to 18 can begin with.
_KNOWN = DML.union(
    re.findall(
        r"\w+",
        """
        abort alter analyse analyze begin call checkpoint close cluster comment commit
        copy create deallocate declare discard do drop end execute explain fetch grant
        import listen load lock move notify prepare reassign refresh reindex release
        reset revoke rollback savepoint security set show start truncate unlisten vacuum
        """,
    )
)

# White space of PostgreSQL is ASCII; \v is so from 17 on, and an error before. A
# parenthesis at the beginning can only be that of a query.
_BLANK = re.compile(r"(?:[ \t\n\r\f\v;(]+|--[^\n\r]*)+")
_WORD = re.compile(r"([A-Za-z]+)(?![A-Za-z0-9_$\x80-\U0010ffff])")
_COMMENT_PART = re.compile(r"/\*|\*/")

# The usual case at once: a word without anything before it.
_FIRST = re.compile(r"\s*([A-Za-z]+)[ \n]", re.ASCII)

# As SQLAlchemy writes its own; it numbers them.
_OWN_SAVEPOINT = re.compile(
    r"(?:RELEASE |ROLLBACK TO )?SAVEPOINT sa_savepoint_[0-9]+", re.ASCII
)
_SAVEPOINTS = (SavepointClause, ReleaseSavepointClause, RollbackToSavepointClause)

# Key of Connection.info, which lives as long as the driver's connection.
_KEY = "sqlalchemy_tenants.guards"


def require_words(given: Set[str] | None) -> frozenset[str] | None:
    """Return an argument ``allow_statements``.

    :raises TypeError: it is no set of words.
    :raises ValueError: it has a word that no statement begins with, or none at all.
    """
    if given is None:
        return None
    if not isinstance(given, Set) or not all(isinstance(word, str) for word in given):
        raise TypeError(
            f"allow_statements is a set of words, as DML or DML | {{'copy'}}, not "
            f"{given!r}"
        )
    unknown = sorted(set(given) - _KNOWN)
    if unknown or not given:
        raise ValueError(
            f"allow_statements has words that statements of PostgreSQL begin with, in "
            f"lower case, as DML | {{'copy'}}; not {', '.join(map(repr, unknown))}"
            if unknown
            else "allow_statements is empty, and would allow no statement; say DML"
        )
    return frozenset(given)


def first_word(statement: str) -> str | None:
    """Return the first word in lower case, ``None`` where there is none, or where
    PostgreSQL might read another one."""
    found = _FIRST.match(statement)
    if found is not None:
        return found[1].lower()
    at, length = 0, len(statement)
    while at < length:
        blank = _BLANK.match(statement, at)
        if blank is not None:
            at = blank.end()
        elif statement.startswith("/*", at):
            at = _end_of_comment(statement, at)
        else:
            break
    # a driver replaces %(name)s, and a name could end the comment that it stands in
    if "%(" in statement[:at]:
        return None
    word = _WORD.match(statement, at)
    return None if word is None else word[1].lower()


def _end_of_comment(statement: str, at: int) -> int:
    """Return where a comment ends; they nest."""
    depth = 0
    for part in _COMMENT_PART.finditer(statement, at):
        depth += 1 if part[0] == "/*" else -1
        if depth == 0:
            return part.end()
    return len(statement)


def require_allowed(statement: Any, words: frozenset[str] | None) -> None:
    """Refuse a statement whose first word is not one of ``words``; ``None`` for all.

    Savepoints pass as SQLAlchemy writes them: all that a transaction has are within
    its scope, unless a session joined the transaction.

    :raises ScopeError: it is another one, and was not sent.
    """
    if words is None:
        return
    word = first_word(statement) if isinstance(statement, str) else None
    if word in words or (word is not None and _OWN_SAVEPOINT.fullmatch(statement)):
        return
    raise _refused(word)


def _refused(word: str | None) -> ScopeError:
    if word is None:
        return ScopeError(
            "allow_statements: the statement has no first word that can be told, and "
            "was not sent; begin it with the word of the statement"
        )
    if word not in _KNOWN:
        return ScopeError(
            f"allow_statements: no statement of PostgreSQL begins with "
            f"{word[:40].upper()}; it was not sent"
        )
    return ScopeError(
        f"allow_statements does not have {word.upper()}, and the statement was not "
        f"sent; if sessions of tenants are to send such statements, say "
        f"allow_statements=DML | {{{word!r}}}"
    )


class _Guard:
    """What checks the statements of a connection before SQLAlchemy sends them."""

    __slots__ = ("holder", "words")

    def __init__(
        self, words: frozenset[str], holder: SessionTransaction | None
    ) -> None:
        self.words = words
        # weak: it ends with a session that nobody closed
        self.holder = None if holder is None else ref(holder)

    def check(
        self,
        connection: Connection,
        cursor: Any,
        statement: str,
        parameters: Any,
        context: Any,
        executemany: bool,
    ) -> None:
        """Refuse a statement that may not be sent; see :func:`require_allowed`.

        Savepoints pass by what they were built from, not by their text: in a
        transaction that a session joined, some are older than the scope.
        """
        guards: _Guards | None = connection.info.get(_KEY)
        if self.holder is not None and self.holder() is None:
            if guards is not None and self in guards.joined:
                guards.joined.remove(self)
                _restore(connection, guards)
            return
        built = None if context is None else context.compiled
        if built is not None and isinstance(built.statement, _SAVEPOINTS):
            return
        if guards is not None and guards.is_lifted:
            return
        word = first_word(statement)
        if word not in self.words:
            raise _refused(word)


class _Guards:
    """How a driver's connection is guarded, until the pool has it back.

    :ivar words: what the driver lets pass, ``None`` where :class:`_Guard` checks.
    :ivar joined: the guards of sessions that joined a transaction.
    :ivar is_heard: a listener checks what the driver does not.
    :ivar is_lifted: statements of this package are being sent.
    """

    __slots__ = ("driver", "is_heard", "is_lifted", "joined", "words")

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.words: frozenset[str] | None = None
        self.joined: list[_Guard] = []
        self.is_heard = False
        self.is_lifted = False


# Pools that take the guard from a connection that comes back. Not engines, of which
# execution_options() makes another one with each call, for the same pool.
_watched: WeakSet[Pool] = WeakSet()


def guard_statements(
    connection: Connection,
    words: frozenset[str],
    joined: SessionTransaction | None = None,
) -> None:
    """Let a connection, which is in a transaction, send no other statements, and one in
    a message, until the pool has it back.

    :param joined: of a session that joined a transaction; the guard ends with it.
    :raises ScopeError: the driver would send several statements at once.
    """
    driver = driver_of(connection.dialect)
    guards: _Guards | None = connection.info.get(_KEY)
    if guards is None:
        guards = connection.info[_KEY] = _Guards(driver)
    if joined is None:
        guards.words = words
    checks = driver.guard(connection, guards.words)
    pool = connection.engine.pool
    if pool not in _watched:
        _watched.add(pool)
        event.listen(pool, "checkin", _forget)
    guard = _Guard(words, joined)
    if joined is not None:
        guards.joined.append(guard)
    elif checks or guards.is_heard:
        return  # SQLAlchemy's events take some time
    else:
        guards.is_heard = True
    event.listen(connection, "before_cursor_execute", guard.check)


def check_joined(connection: Connection, *arguments: Any) -> None:
    """Do what the guards of sessions that joined a transaction will do, for a listener
    that comes before them."""
    guards: _Guards | None = connection.info.get(_KEY)
    if guards is not None:
        for guard in guards.joined:
            guard.check(connection, *arguments)


def release_statements(connection: Connection, joined: SessionTransaction) -> None:
    """End the guard of a session that joined a transaction."""
    if connection.closed or connection.invalidated:
        return
    guards: _Guards | None = connection.info.get(_KEY)
    if guards is None:
        return
    for guard in list(guards.joined):
        holder = guard.holder and guard.holder()
        if holder is None or holder is joined:
            guards.joined.remove(guard)
            event.remove(connection, "before_cursor_execute", guard.check)
    _restore(connection, guards)


def _restore(connection: Connection, guards: _Guards) -> None:
    """Let the driver guard the connection as it is to be."""
    if guards.words is not None or guards.joined:
        guards.driver.guard(connection, guards.words)
    else:
        guards.driver.unguard(connection.connection.driver_connection)
        connection.info.pop(_KEY, None)


@contextmanager
def own_statements(connection: Connection) -> Iterator[None]:
    """Let statements of this package pass, in the block."""
    guards: _Guards | None = connection.info.get(_KEY)
    if guards is None:
        yield
        return
    guards.is_lifted = True
    guards.driver.unguard(connection.connection.driver_connection)
    try:
        yield
    finally:
        guards.is_lifted = False
        if not connection.closed and not connection.invalidated:
            _restore(connection, guards)


def _forget(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    guards: _Guards | None = record.info.pop(_KEY, None)
    if guards is not None and dbapi_connection is not None:
        guards.driver.unguard(record.driver_connection)
