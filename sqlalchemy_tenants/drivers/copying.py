"""COPY: how rows leave the server by the driver's own way to stream them.

In the transaction of a connection of SQLAlchemy, which is confined to its tenant. Only
what copies rows loads this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

# What the driver hands over: bytes, or a view of its buffer.
Sink = Callable[[Any], None]


def copy_out(connection: Connection, query: str, sink: Sink) -> None:
    """Send ``COPY (query) TO STDOUT``, in PostgreSQL's text format and in UTF-8.

    :param query: a ``SELECT`` without parameters.
    :param sink: called with one piece of the data after the other.
    :raises NotImplementedError: for a driver whose COPY is not known.
    :raises Exception: the driver's own error; the connection is given up, because
        nobody knows how much of the data is still to come.
    """
    dialect = connection.dialect
    copy = _COPY_OUT.get((dialect.driver, dialect.is_async))
    if copy is None:
        raise NotImplementedError(
            f"rows are copied with psycopg and asyncpg, not with {dialect.driver!r}"
        )
    try:
        copy(connection, query, sink)
    except BaseException:
        connection.invalidate()
        raise


def _psycopg(connection: Connection, query: str, sink: Sink) -> None:
    raw: Any = connection.connection.driver_connection
    with raw.cursor() as cursor, cursor.copy(_statement(query)) as copy:
        for data in copy:
            sink(data)


def _async_psycopg(connection: Connection, query: str, sink: Sink) -> None:
    async def run(raw: Any) -> None:
        async with raw.cursor() as cursor, cursor.copy(_statement(query)) as copy:
            async for data in copy:
                sink(data)

    adapter: Any = connection.connection.dbapi_connection
    adapter.run_async(run)


def _asyncpg(connection: Connection, query: str, sink: Sink) -> None:
    async def write(data: bytes) -> None:
        sink(data)

    async def run(raw: Any) -> None:
        await raw.copy_from_query(query, output=write, format="text", encoding="utf8")

    adapter: Any = connection.connection.dbapi_connection
    adapter.run_async(run)


def _statement(query: str) -> str:
    return f"COPY ({query}) TO STDOUT (FORMAT text, ENCODING 'UTF8')"


_COPY_OUT: dict[tuple[str, bool], Callable[[Connection, str, Sink], None]] = {
    ("psycopg", False): _psycopg,
    ("psycopg", True): _async_psycopg,
    ("asyncpg", True): _asyncpg,
}
