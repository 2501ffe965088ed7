"""Drivers: how a transaction begins in its scope, in one round trip.

Each driver has a module here, loaded when it is first used. :class:`Driver`, the
interface, is also the fallback: it begins nothing, and the caller sends the scope as
statements of their own, which is as safe and costs more round trips.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Dialect

from ..exceptions import ScopeError

_log = logging.getLogger("sqlalchemy_tenants")


class Driver:
    """What the runtime asks of a driver, and the answers for an unknown one."""

    def register(self, dialect: Dialect) -> None:
        """Prepare the engines of a dialect, which has one and its copies with other
        execution options, for :meth:`begin`; open connections stay as they are."""

    def begin(self, connection: Connection, scope: str) -> bool:
        """Send ``BEGIN`` and ``scope`` together.

        :param connection: in a transaction, for SQLAlchemy; the driver begins it with
            its first statement, or did so already.
        :param scope: statements, separated by semicolons.
        :return: ``False`` if nothing was sent, because the driver's transaction has
            begun already, or because this connection cannot.
        :raises Exception: the DBAPI's error, not wrapped by SQLAlchemy.
        """
        log_once(
            f"driver {connection.dialect.driver!r}: each transaction of a tenant takes "
            f"additional round trips to the server; psycopg and asyncpg take none"
        )
        return False

    def separate(self, connection: Connection, scope: Sequence[str]) -> Sequence[str]:
        """Return the statements to send where :meth:`begin` was not possible."""
        return scope

    def in_transaction(self, connection: Connection) -> bool | None:
        """Whether the server is in a transaction, ``None`` where nobody knows."""
        return None

    def is_aborted(self, connection: Connection) -> bool:
        """Whether the server refuses every statement until the transaction ends."""
        return False

    def search_path(self, connection: Connection) -> str | None:
        """Return the search path if the server has told it, as 18 and later do."""
        return None

    def login(self, connection: Connection) -> str | None:
        """Return the login of the connection, as far as it is known without asking."""
        return connection.engine.url.username

    def require_guard(self, dialect: Dialect) -> None:
        """Refuse a driver that cannot :meth:`guard`.

        :raises ScopeError: it sends several statements at once, or nobody knows.
        """
        raise ScopeError(
            f"allow_statements: driver {dialect.driver!r} may send several statements "
            f"in one message, of which only the first would be checked; use psycopg "
            f"(postgresql+psycopg://) or asyncpg (postgresql+asyncpg://)"
        )

    def guard(self, connection: Connection, words: frozenset[str] | None) -> bool:
        """Let the connection send one statement in a message.

        :param connection: in a transaction.
        :param words: what statements may begin with, ``None`` where the caller checks.
        :return: whether the driver refuses other words by itself.
        :raises ScopeError: the driver cannot.
        """
        self.require_guard(connection.dialect)
        return False

    def unguard(self, driver_connection: Any) -> None:
        """Undo :meth:`guard`."""


def driver_of(dialect: Dialect) -> Driver:
    """Return the driver of a dialect."""
    return _driver(dialect.driver, dialect.is_async)


@cache
def _driver(name: str, is_async: bool) -> Driver:
    # a driver's version may lack what its module needs
    try:
        if name == "psycopg":
            from . import psycopg

            return psycopg.AsyncPsycopg() if is_async else psycopg.Psycopg()
        if name == "asyncpg":
            from . import asyncpg

            return asyncpg.Asyncpg()
    except (ImportError, AttributeError) as error:
        log_once(f"driver {name!r}: this version is unknown: {error}")
    return Driver()


def prove_one_statement(connection: Connection) -> None:
    """Let the server refuse two statements in one message, for SQLSTATE 42601.

    :param connection: in a transaction, and guarded.
    :raises ScopeError: it executed both.
    """
    cursor: Any = connection.connection.cursor()
    savepoint = "SAVEPOINT sa_savepoint_0"
    try:
        cursor.execute(savepoint)
        try:
            cursor.execute("SELECT 1; SELECT 2")
        except Exception as error:
            if getattr(error, "sqlstate", None) != "42601":
                raise
        else:
            raise ScopeError(
                f"allow_statements: this version of driver "
                f"{connection.dialect.driver!r} sends several statements in one "
                f"message, of which only the first would be checked; use a version "
                f"that this version of sqlalchemy-tenants was tested with"
            )
        cursor.execute(f"ROLLBACK TO {savepoint}")
        cursor.execute(f"RELEASE {savepoint}")
    finally:
        cursor.close()


@cache
def log_once(message: str) -> None:
    """Log a message, the first time that it comes."""
    _log.warning(message)


def driver_connection(connection: Connection) -> Any:
    """Return the connection object of the driver itself."""
    return connection.connection.driver_connection
