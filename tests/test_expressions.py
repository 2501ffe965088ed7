"""Comparison of policy expressions, each against what a real server prints.

``TENANTS_EXAMPLES`` raises the number of generated examples.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from alembic_ext.expressions import (
    ExpressionError,
    canonical,
    deparse_on_server,
    same_expression,
)
from expression_pairs import COLUMN_TYPES, COLUMNS, DIFFERENT, SAME, SETUP, TABLE
from servers import Database

# Rows on which expressions that are said to be the same must agree.
ROWS = """
INSERT INTO orders (id, i, small, big, num, re, dbl, t, t2, v, c, nm, flag, flag2, flag3,
                    d, ts, tz, iv, j, arr, tarr, e, tenant)
SELECT n, nullif(n % 5, 4) - 1, n % 3, n % 4, (n % 6) / 2.0, n % 2, n % 3,
       (ARRAY['a', 'b', 'ab', '', 'x%', NULL])[1 + n % 6],
       (ARRAY['a', 'B', 'x', NULL])[1 + n % 4],
       (ARRAY['a', 'b', 'x', '1', NULL])[1 + n % 5],
       'a', 'a', (ARRAY[true, false, NULL])[1 + n % 3],
       (ARRAY[true, false, NULL])[1 + n / 3 % 3],
       (ARRAY[true, false, NULL])[1 + n / 9 % 3],
       DATE '2020-01-01' + n, TIMESTAMP '2020-01-01' + n * INTERVAL '5 hours',
       TIMESTAMPTZ '2020-01-01Z' + n * INTERVAL '5 hours', n * INTERVAL '9 hours',
       jsonb_build_object('a', n % 3, 'b', (ARRAY['a', 'b'])[1 + n % 2]),
       ARRAY[n % 3, 1], ARRAY['a', 'b'], (ARRAY['on', 'off']::status[])[1 + n % 2], 'a'
  FROM generate_series(0, 53) n;
INSERT INTO members SELECT n, (ARRAY['a', 'b'])[1 + n % 2], 'x', n FROM generate_series(1, 9) n;
"""


@pytest.fixture
def engine_for_expressions(database: Database) -> Iterator[Engine]:
    """Connects as the owner of a database with the tables of the pairs."""
    database.execute(SETUP + ROWS, login="owner")
    engine = create_engine(database.owner_url)
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine_for_expressions: Engine) -> Iterator[Connection]:
    with engine_for_expressions.connect() as connection:
        connection.execute(sqlalchemy.text("SET timezone = 'UTC'"))
        connection.commit()
        yield connection


def run(connection: Connection, statement: str) -> Any:
    """Without parameters: the text may contain % and colons."""
    return connection.exec_driver_sql(
        statement, None, execution_options={"no_parameters": True}
    )


def printed(connection: Connection, expression: str) -> str:
    """What the server prints of a policy on the real table."""
    savepoint = connection.begin_nested()
    try:
        run(connection, f"CREATE POLICY printed ON orders USING ({expression}\n)")
        text: str = run(
            connection,
            "SELECT pg_get_expr(polqual, polrelid) FROM pg_policy "
            "WHERE polname = 'printed'",
        ).scalar_one()
        return text
    finally:
        savepoint.rollback()


def same(a: str, b: str, **kw: Any) -> bool:
    arguments = {
        "table": "public.orders",
        "column_types": COLUMN_TYPES,
        "default_schema": "public",
        **kw,
    }
    result = same_expression(a, b, **arguments)
    assert result is same_expression(b, a, **arguments)
    return result


@pytest.mark.parametrize(("a", "b"), SAME)
def test_same(connection: Connection, a: str, b: str) -> None:
    text = printed(connection, a)
    assert text == printed(connection, b)
    assert same(a, b)
    assert same(a, text)
    assert same(b, text)
    # Printed text is read as it was printed.
    assert same(text, printed(connection, text))


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different(connection: Connection, a: str, b: str) -> None:
    text_a, text_b = printed(connection, a), printed(connection, b)
    assert text_a != text_b
    for one, other in ((a, b), (text_a, b), (a, text_b), (text_a, text_b)):
        assert not same(one, other)
    assert same(a, text_a)
    assert same(b, text_b)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_without_types(connection: Connection, a: str, b: str) -> None:
    # Less is known, so less is the same; never more, in what the server printed.
    for text in (printed(connection, a), b):
        assert not same(text, printed(connection, b), column_types=None) or text == b
