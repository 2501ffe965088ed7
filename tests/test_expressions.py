"""Comparison of policy expressions, each against what a real server prints.

``TENANTS_EXAMPLES`` raises the number of generated examples.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

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
INSERT INTO orders (id, i, small, big, num, re, dbl, t, t2, v, c, nm,
                    flag, flag2, flag3, d, ts, tz, iv, j, arr, tarr, e, tenant)
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
INSERT INTO members
SELECT n, (ARRAY['a', 'b'])[1 + n % 2], 'x', n FROM generate_series(1, 9) n;
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


def test_same(connection: Connection, subtests: pytest.Subtests) -> None:
    for a, b in SAME:
        with subtests.test(a=a, b=b):
            text = printed(connection, a)
            assert text == printed(connection, b)
            assert same(a, b)
            assert same(a, text)
            assert same(b, text)
            # Printed text is read as it was printed.
            assert same(text, printed(connection, text))


def test_different(connection: Connection, subtests: pytest.Subtests) -> None:
    for a, b in DIFFERENT:
        with subtests.test(a=a, b=b):
            text_a, text_b = printed(connection, a), printed(connection, b)
            assert text_a != text_b
            for one, other in ((a, b), (text_a, b), (a, text_b), (text_a, text_b)):
                assert not same(one, other)
            assert same(a, text_a)
            assert same(b, text_b)
            # Where less is known less is the same, and nothing else is.
            assert not same(a, text_b, column_types=None)
            assert not same(text_a, b, column_types=None)


# --- generated expressions -----------------------------------------------------------

Text = st.SearchStrategy[str]


@st.composite
def spelled(draw: Callable[..., Any], parts: st.SearchStrategy[list[str]]) -> str:
    """Join words, with the white space, case and parentheses of a careless writer."""
    words = draw(parts)
    result = draw(st.sampled_from(("{}", "{}", "({})", "({})", "( ({}))"))).format(
        draw(st.sampled_from((" ", " ", "\n  ", " /* ' */ "))).join(words)
    )
    return result


def phrase(*parts: str | Text) -> Text:
    """Keywords as given, but for their case; the rest drawn."""

    def word(part: str | Text) -> Text:
        if not isinstance(part, str):
            return part
        return st.sampled_from((part, part.lower()))

    return spelled(st.tuples(*map(word, parts)).map(list))


def constants(*texts: str) -> Text:
    return st.sampled_from(texts)


INTEGERS = constants("0", "1", "2", "-1", "'1'", "3000000000", "1::bigint", "2::int")
STRINGS = constants(
    "'a'", "'b'", "'a'::text", "'x%'", "''", "$$a$$", "E'a'", "text 'b'", "NULL"
)


def numbers(children: Text) -> Text:
    return st.one_of(
        constants("i", "id", "orders.id", "small", "big", "num", "dbl", "re"),
        phrase(children, st.sampled_from("+-*%"), children),
        phrase("-", constants("i", "num", "(2)")),
        phrase("COALESCE(", children, ",", children, ")"),
        phrase("GREATEST(", constants("i", "big"), ",", constants("1", "num"), ")"),
        phrase("CASE WHEN", booleans_flat(), "THEN", children, "ELSE", children, "END"),
        phrase(children, "::", constants("numeric", "int8", "float8", "numeric(8,1)")),
        phrase("(j ->> 'a')::int"),
        phrase(
            "EXTRACT(", constants("year", "MONTH", "day"), "FROM", constants("d"), ")"
        ),
    )


def texts(children: Text) -> Text:
    return st.one_of(
        constants(
            "t", "t2", "v", "orders.t", '"t"', "v::text", "current_setting('a.b', true)"
        ),
        phrase(children, "||", children),
        phrase("lower(", children, ")"),
        phrase("COALESCE(", children, ",", STRINGS, ")"),
        phrase("NULLIF(", children, ",", constants("''", "'a'"), ")"),
        phrase("substring(", children, "FROM 1 FOR 2 )"),
        phrase("TRIM(", children, ")"),
        phrase("CASE", children, "WHEN", STRINGS, "THEN", children, "END"),
        phrase("CAST(", numbers_flat(), "AS text)"),
        phrase("j", "->>", constants("'a'", "'b'", "'a'::text")),
        phrase("(SELECT current_tenant())"),
        phrase(children, 'COLLATE "C"'),
    )


def booleans_flat() -> Text:
    return constants("flag", "flag2", "flag3", "true", "flag IS NULL", "i = 1")


def numbers_flat() -> Text:
    return constants("i", "id", "big", "num", "1", "1.5")


COMPARISONS = st.sampled_from(("=", "<>", "!=", "<", "<=", ">", ">="))
NUMBERS = st.recursive(
    constants("i", "id", "big", "num", "dbl", "small"), numbers, max_leaves=4
)
TEXTS = st.recursive(constants("t", "t2", "v", "orders.v"), texts, max_leaves=4)
SUBSELECTS = st.one_of(
    phrase("EXISTS (SELECT FROM members m WHERE m.tenant =", TEXTS, ")"),
    phrase("EXISTS (SELECT FROM members WHERE members.id =", NUMBERS, ")"),
    phrase("t", constants("IN", "NOT IN", "= ANY"), "(SELECT tenant FROM members)"),
)


def booleans(children: Text) -> Text:
    negation = constants("", "NOT")
    number = st.one_of(NUMBERS, INTEGERS)
    text = st.one_of(TEXTS, STRINGS)
    return st.one_of(
        phrase(children, constants("AND", "OR"), children),
        phrase(children, constants("AND", "OR"), children),
        phrase("NOT", children),
        phrase(NUMBERS, COMPARISONS, number),
        phrase(TEXTS, COMPARISONS, text),
        phrase(STRINGS, COMPARISONS, TEXTS),
        phrase(children, constants("=", "<>"), children),
        phrase(TEXTS, negation, constants("LIKE", "ILIKE"), text),
        phrase(TEXTS, constants("~", "!~", "~~", "!~~*"), TEXTS),
        phrase(TEXTS, negation, "LIKE 'a!%' ESCAPE '!'"),
        phrase(NUMBERS, negation, "BETWEEN", number, "AND", number),
        phrase(NUMBERS, "BETWEEN SYMMETRIC", number, "AND", number),
        phrase(NUMBERS, negation, "IN (", number, ",", number, ",", INTEGERS, ")"),
        phrase(TEXTS, negation, "IN (", text, ",", STRINGS, ")"),
        phrase(TEXTS, constants("= ANY", "<> ALL"), "(ARRAY[", STRINGS, ", 'c'])"),
        phrase(TEXTS, "IS", negation, "DISTINCT FROM", text),
        phrase(TEXTS, constants("IS NULL", "IS NOT NULL", "ISNULL", "NOTNULL")),
        phrase(children, "IS", negation, constants("TRUE", "FALSE", "UNKNOWN", "NULL")),
        phrase("CASE WHEN", children, "THEN", children, "ELSE", children, "END"),
        phrase("(", TEXTS, ",", NUMBERS, ")", constants("=", "<>"), "(", text, ", 1 )"),
        phrase("d", COMPARISONS, constants("'2020-01-09'", "DATE '2020-1-9'", "ts")),
        phrase("ts", COMPARISONS, constants("'2020-01-09'", "ts - interval '1 day'")),
        phrase("iv", COMPARISONS, constants("'1 day'", "interval '24 hours'")),
        phrase("e", constants("=", "<>"), constants("'on'", "'off'::status")),
        phrase("j", constants("@>", "="), constants("'{\"a\":1}'", "'{}'::jsonb")),
        phrase("arr", constants("&&", "@>"), constants("'{1}'", "ARRAY[1, 2]")),
        SUBSELECTS,
    )


BOOLEANS = st.recursive(booleans_flat(), booleans, max_leaves=6)

generated = settings(
    max_examples=int(os.environ.get("TENANTS_EXAMPLES", "150")),
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)


def accepted(connection: Connection, expression: str) -> str | None:
    """As :func:`printed`; None for what the server refuses."""
    try:
        return printed(connection, expression)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", "")[:2] not in {"42", "22", "0A"}:
            raise
        return None


def results(connection: Connection, expression: str) -> list[Any] | None:
    """What an expression is on each row; None if it fails on any."""
    savepoint = connection.begin_nested()
    try:
        statement = f"SELECT ({expression}\n) FROM orders ORDER BY id"
        return list(run(connection, statement).scalars())
    except DBAPIError:
        return None
    finally:
        savepoint.rollback()


@given(expression=BOOLEANS)
@generated
def test_generated(connection: Connection, expression: str) -> None:
    text = accepted(connection, expression)
    if text is not None:
        assert same(expression, text)
        assert same(text, text.replace("\n", " "))


def mutants(expression: str) -> Iterator[tuple[str, bool]]:
    """Expressions that differ in one place, and whether they must mean another thing.

    Parentheses may be redundant, the others never are.
    """
    for pattern, replacement in (
        (r"\bAND\b", "OR"),
        (r"\bOR\b", "AND"),
        (r"\bNOT\b", ""),
        (r"\bTRUE\b", "FALSE"),
        (r"(?<![<>!~@&])=(?!>)", "<>"),
        (r"'a'", "'b'"),
        (r"\b1\b", "2"),
        (r"\bt\b", "t2"),
        (r"\bi\b", "id"),
    ):
        for match in re.finditer(pattern, expression, re.IGNORECASE):
            start, end = match.span()
            yield f"{expression[:start]}{replacement}{expression[end:]}", True
    opened: list[int] = []
    for position, character in enumerate(expression):
        if character == "(":
            opened.append(position)
        elif character == ")" and opened:
            start = opened.pop()
            inner = expression[start + 1 : position]
            yield f"{expression[:start]} {inner} {expression[position + 1 :]}", False


@given(expression=BOOLEANS, data=st.data())
@generated
def test_generated_mutants(
    connection: Connection, expression: str, data: st.DataObject
) -> None:
    text = accepted(connection, expression)
    candidates = list(mutants(expression))
    if text is None or not candidates:
        return
    mutant, strict = data.draw(st.sampled_from(candidates))
    other = accepted(connection, mutant)
    if other is None:
        return
    if text == other:
        assert same(expression, other)
        return
    claims = {same(expression, other), same(text, mutant), same(text, other)}
    if strict:
        assert claims == {False}
    elif True in claims:
        # Another text, which the comparison takes for the same: it had better be.
        assert results(connection, expression) == results(connection, mutant)


@given(data=st.data())
@generated
def test_any_text_is_compared(data: st.DataObject) -> None:
    """Text that is no SQL is compared as text; nothing but an answer comes out."""
    pieces = [
        word for pair in SAME + DIFFERENT for text in pair for word in text.split()
    ]
    text = " ".join(data.draw(st.lists(st.sampled_from(pieces), max_size=12)))
    same_expression(text, text + " ", column_types=COLUMN_TYPES)
    with suppress(ExpressionError):
        canonical(text, column_types=COLUMN_TYPES)


# --- what is not SQL, or not known ---------------------------------------------------


def test_none_and_text() -> None:
    assert same_expression(None, None)
    assert not same_expression(None, "true")
    assert not same_expression("true", None)
    assert same_expression("(( ? ", "((  /* what */ ?\n")
    assert not same_expression("(( 'a  b' ? ", "(( 'a b' ?")
    assert not same_expression('(( "a" ?', '(( "A" ?')
    assert not same_expression("a b", "ab")


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "a = 1; DROP TABLE orders",
        "a = 1)",
        "(a = 1",
        "a = 'x",
        "a = $1",
        "a = 1 b",
        "a /* b",
        "t IS JSON",
        "t IS NFC NORMALIZED",
        "count(*) OVER (PARTITION BY a) > 1",
        "count(*) FILTER (WHERE a) > 1",
        "a IN (WITH q AS (SELECT 1) SELECT 1 FROM q)",
        "a IN (SELECT 1 UNION SELECT 2)",
        "EXISTS (SELECT 1 FROM a NATURAL JOIN b)",
        "EXISTS (SELECT 1 FROM a, LATERAL (SELECT 1) b)",
        "EXISTS (SELECT 1 FROM a FOR UPDATE)",
        "t = U&'\\0041'",
        "t = B'1'",
    ],
)
def test_refused(expression: str) -> None:
    with pytest.raises(ExpressionError) as error:
        canonical(expression)
    assert error.value.reason
    assert "cannot read" in str(error.value)


def test_types_decide() -> None:
    printed_for_varchar = "((tenant)::text = 'x'::text)"
    for column_type, expected in (
        ("character varying(20)", True),
        ("text", True),
        ("integer", False),
        ("citext", False),
        (None, False),
    ):
        types = {"tenant": column_type} if column_type else None
        result = same_expression(
            "tenant = 'x'", printed_for_varchar, column_types=types
        )
        assert result is expected
    assert same_expression("tenant = 'x'", "(tenant = 'x'::text)")
    assert not same_expression("tenant = 'x'", "(tenant = 'x'::name)")
    assert not same_expression("f('1')", "f(1)")
    assert not same_expression("f('1')", "f('1'::integer)")


# --- the server's opinion ------------------------------------------------------------


def ask(connection: Connection, using: str, **kw: Any) -> Any:
    arguments = {"columns": COLUMNS, "with_check": None, "table": TABLE, **kw}
    return deparse_on_server(connection, using=using, **arguments)


def test_server_prints_the_same(connection: Connection) -> None:
    for pair in SAME + DIFFERENT:
        for expression in pair:
            if "public.orders" not in expression:
                answer = ask(connection, expression)
                assert answer == (printed(connection, expression), None)
    answer = ask(connection, "t LIKE '%x :y' -- %", with_check="i % 2 = 0 --")
    assert answer == ("(t ~~ '%x :y'::text)", "((i % 2) = 0)")
    arguments: dict[str, Any] = {"columns": COLUMNS, "table": 'public."orders"'}
    answer = deparse_on_server(
        connection, using=None, with_check="flag", command="INSERT", **arguments
    )
    assert answer == (None, "flag")


def test_server_has_no_opinion(
    engine_for_expressions: Engine, database: Database
) -> None:
    with engine_for_expressions.connect() as connection:
        assert ask(connection, "flag") == ("flag", None)
        assert not connection.in_transaction()
        for expression in ("missing = 1", "flag +", "i = 'x'", "t", "true); SELECT (1"):
            assert ask(connection, expression) is None
        assert not connection.in_transaction()
        with connection.begin():
            assert ask(connection, "flag +") is None
            run(connection, "SELECT 1")  # the transaction lives
            run(connection, "SET TRANSACTION READ ONLY")
            assert ask(connection, "flag") is None
            run(connection, "SELECT 1")
        with pytest.raises(ValueError, match="command"):
            ask(connection, "flag", command="ALL USING (true)")
    with engine_for_expressions.connect() as connection:
        autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
        assert ask(autocommit, "flag") is None
    database.execute(f'REVOKE TEMP ON DATABASE "{database.name}" FROM PUBLIC')
    engine = create_engine(database.app_url)
    with engine.connect() as connection:
        assert ask(connection, "flag", columns=[("flag", "boolean")]) is None
        run(connection, "SELECT 1")
    engine.dispose()


def test_server_leaves_no_trace(engine_for_expressions: Engine) -> None:
    state = """
        SELECT current_setting('search_path'), current_setting('lock_timeout'),
               (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_policy),
               (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()
                 AND relation = 'orders'::regclass)
    """
    with (
        engine_for_expressions.connect() as blocker,
        engine_for_expressions.connect() as connection,
    ):
        with connection.begin():
            before = run(connection, state).one()
            assert ask(connection, "EXISTS (SELECT FROM orders o WHERE o.id = 1)")
            assert run(connection, state).one() == before
        # Whatever holds the table: the answer comes at once, or none does.
        run(blocker, "LOCK TABLE orders, members")
        assert ask(connection, "t = 'x'") == ("(t = 'x'::text)", None)
        assert ask(connection, "orders.t = 'x'") == ("(t = 'x'::text)", None)
        assert ask(connection, "EXISTS (SELECT FROM members)") is None
        blocker.rollback()


async def test_server_through_asyncpg(
    engine_for_expressions: Engine, database: Database
) -> None:
    engine = create_async_engine(database.url("owner", "asyncpg"))
    async with engine.connect() as connection:
        answer = await connection.run_sync(ask, "t LIKE '%x :y' AND i % 2 = 0")
        assert answer == ("((t ~~ '%x :y'::text) AND ((i % 2) = 0))", None)
        assert await connection.run_sync(ask, "flag +") is None
        async with connection.begin():
            assert await connection.run_sync(ask, "missing = 1") is None
            assert await connection.scalar(sqlalchemy.text("SELECT 1")) == 1
    await engine.dispose()
