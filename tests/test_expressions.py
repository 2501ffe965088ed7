"""Comparison of policy expressions, each against what a real server prints.

``TENANTS_EXAMPLES`` raises the number of generated examples.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from expression_pairs import DIFFERENT, LASTING, MOMENTS, SAME, SETUP, UNCAST, UUID
from servers import Database
from sqlalchemy_tenants.database import trees
from sqlalchemy_tenants.database.same import (
    Answer,
    Question,
    compare_expressions,
    frozen_constants,
)

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


POLICY = "SELECT pg_get_expr(polqual, polrelid) FROM pg_policy WHERE polname = '{}'"


def printed(connection: Connection, expression: str, table: str = "orders") -> str:
    """What the server prints of a policy on the real table."""
    savepoint = connection.begin_nested()
    try:
        run(connection, f"CREATE POLICY printed ON {table} USING ({expression}\n)")
        text: str = run(connection, POLICY.format("printed")).scalar_one()
        return text
    finally:
        savepoint.rollback()


def question(declared: str, existing: str, table: str = "orders") -> Question:
    return Question("public", table, "p", "using", declared, existing)


def compare(connection: Connection, *pairs: tuple[str, str]) -> list[Answer]:
    """Answers about what is declared, and what the server printed of the other."""
    questions = [question(*pair) for pair in pairs]
    answers = compare_expressions(connection, questions)
    return [answers[each] for each in questions]


def same(connection: Connection, declared: str, existing: str) -> bool:
    (answer,) = compare(connection, (declared, existing))
    assert answer.reason is None
    return answer.same


def same_tree(connection: Connection, declared: str, existing: str) -> bool:
    """Where the server cannot be asked."""
    return bool(trees.same_trees(connection, [question(declared, existing)]))


def test_same(connection: Connection, subtests: pytest.Subtests) -> None:
    for a, b in SAME:
        with subtests.test(a=a, b=b):
            text = printed(connection, a)
            assert text == printed(connection, b)
            assert same(connection, a, text)
            assert same(connection, b, text)
            again = printed(connection, text)
            assert same(connection, text, again)
            assert same(connection, text, text.replace("\n", " "))


def test_different(connection: Connection, subtests: pytest.Subtests) -> None:
    for a, b in DIFFERENT:
        with subtests.test(a=a, b=b):
            text_a, text_b = printed(connection, a), printed(connection, b)
            assert text_a != text_b
            assert same(connection, a, text_a)
            assert same(connection, b, text_b)
            for one, other in ((a, text_b), (b, text_a)):
                assert not same(connection, one, other)
            for one, other in ((a, b), (text_a, b), (a, text_b), (text_a, text_b)):
                assert not same_tree(connection, one, other)
                assert not same_tree(connection, other, one)


def test_all_at_once(connection: Connection) -> None:
    """Bad conditions among them spoil no other."""
    texts = [text for pair in SAME + DIFFERENT for text in pair]
    pairs = [(text, printed(connection, text)) for text in texts]
    assert all(answer == Answer(True) for answer in compare(connection, *pairs))
    others = [existing for _, existing in pairs]
    others = [*others[1:], others[0]]
    shifted = [(text, other) for text, other in zip(texts, others, strict=True)]
    expected = [own == other for (_, own), other in zip(pairs, others, strict=True)]
    bad = [("missing = 1", "flag"), ("flag +", "flag"), ("flag) OR (true", "flag")]
    for more in ([], bad):
        answers = compare(connection, *more, *shifted)[len(more) :]
        assert [answer.same for answer in answers] == expected
        assert not any(answer.reason for answer in answers)


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


def accepted(
    connection: Connection, expression: str, table: str = "orders"
) -> str | None:
    """As :func:`printed`; None for what the server refuses."""
    try:
        return printed(connection, expression, table)
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
        assert same(connection, expression, text)
        assert same(connection, expression, text.replace("\n", " "))


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
    assert same(connection, mutant, text) is same(connection, expression, other)
    assert same(connection, mutant, text) is (text == other)
    if text != other:
        claims = {
            same_tree(connection, expression, other),
            same_tree(connection, mutant, text),
            same_tree(connection, text, other),
        }
        assert True not in claims or not strict
        if True in claims:
            # Another text, which the trees take for the same: it had better be.
            assert results(connection, expression) == results(connection, mutant)


@given(data=st.data())
@generated
def test_any_text_is_compared(connection: Connection, data: st.DataObject) -> None:
    """Whatever the text is, nothing but an answer comes out, and nothing is done."""
    pieces = [
        word for pair in SAME + DIFFERENT for text in pair for word in text.split()
    ]
    text = " ".join(data.draw(st.lists(st.sampled_from(pieces), max_size=12)))
    (answer,) = compare(connection, (text, "(flag AND (id = 987654))"))
    assert not answer.same
    assert run(connection, "SELECT 1").scalar_one() == 1
    same_tree(connection, text, text)


# --- the text -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "existing", "expected"),
    [
        ("(t = 'a  b'::text)", "(t =\n  'a  b'::text)", True),
        ("(t = 'a  b'::text) -- few", "(t = 'a  b'::text)", True),
        ("(t /* a /* b */ ' */ = 'a'::text)", "(t = 'a'::text)", True),
        ("(t = 'a  b'::text)", "(t = 'a b'::text)", False),
        ("(t = 'a--b'::text)", "(t = 'a'::text)", False),
        ('("Mixed  Case" = 1)', '("Mixed Case" = 1)', False),
        ("(t = 'it''s'::text)", "(t = 'it' 's'::text)", False),
    ],
)
def test_white_space(declared: str, existing: str, expected: bool) -> None:
    """Equal texts need no server: there is none."""
    nobody: Any = None
    if expected:
        assert same(nobody, declared, existing)
    else:
        with pytest.raises(AttributeError):
            same(nobody, declared, existing)


@pytest.mark.parametrize(
    "text",
    [
        "true) OR (true",
        "true) UNION SELECT 1 FROM teams WHERE (true",
        "true); SELECT nextval('counter'); SELECT (true",
        "true; SELECT nextval('counter')",
        "true\n); END; SELECT nextval('counter'); --",
        "arr[1) = 1",
        "(flag",
        "t = 'x",
        "t = E'x\\'",
        't = "x',
        "t = $$x",
        "t = $a$x$b$",
        "$$x = t",
        "'x = t $$ $$",
        "t = 'x' /* /* */",
    ],
)
def test_text_that_is_no_closed_condition(connection: Connection, text: str) -> None:
    run(connection, "CREATE SEQUENCE counter")
    for pairs in ([(text, "flag")], [(text, "flag"), ("t = 'y'", "(t = 'y'::text)")]):
        answers = compare(connection, *pairs)
        assert not answers[0].same
        assert "closed" in (answers[0].reason or "")
        assert all(answer == Answer(True) for answer in answers[1:])
    assert not run(connection, "SELECT is_called FROM counter").scalar_one()


def test_nothing_is_evaluated(connection: Connection) -> None:
    run(connection, "CREATE SEQUENCE counter")
    text = "nextval('counter') > 0"
    existing = printed(connection, text)
    assert same(connection, text, existing)
    assert same(connection, "nextval('counter'::regclass)>0", existing)
    assert not same(connection, "nextval('counter') > 1", existing)
    assert not run(connection, "SELECT is_called FROM counter").scalar_one()


def test_what_the_server_refuses(connection: Connection) -> None:
    """What a revision may create is no news; the reason of the rest is told."""
    for text in ("missing = 1", "no_function(i)", "i = 1::no_type", "no_table.i = 1"):
        assert compare(connection, (text, "flag")) == [Answer(False)]
    for text, reason in (
        ("", "syntax error"),
        ("flag +", "syntax error"),
        ("i = 'x'", "invalid input syntax"),
        ("t", "must be type boolean"),
        ("i = $1", "no parameter"),
        ("flag, flag2", "must be type boolean"),
        ("count(*) > 1", "aggregate functions are not allowed"),
        ("generate_series(1, 2) = 1", "set-returning functions are not allowed"),
    ):
        (answer,) = compare(connection, (text, "flag"))
        assert not answer.same
        assert reason in (answer.reason or "")


# --- names ---------------------------------------------------------------------------

NAMES = ("Order", "where", "select", 'quo"te', "it's", "100%", ":x", "a.b", "$$", "old")


@pytest.mark.parametrize("name", [*NAMES, "end", "new", "two  words", "\\", "naïve 表"])
def test_names_of_tables(connection: Connection, name: str) -> None:
    quoted = '"{}"'.format(name.replace('"', '""'))
    run(
        connection,
        f"CREATE SCHEMA {quoted};"
        f"CREATE TABLE {quoted}.{quoted} (id int, {quoted} int);"
        f"CREATE FUNCTION {quoted}.id(int) RETURNS int LANGUAGE sql RETURN 1;"
        f"CREATE FUNCTION id(int) RETURNS int LANGUAGE sql RETURN 1;"
        f"CREATE DOMAIN {quoted}.id AS int; CREATE DOMAIN public.id AS int",
    )
    pairs = [
        (f"id = {quoted}", f"{quoted}.id = {quoted}.{quoted}.{quoted}"),
        (f"{quoted}.* IS NULL", f"{quoted}.{quoted}.* IS NULL"),
        ("id(id) = 1", f"public.id({quoted}.id) = 1"),
        (f"{quoted}.id(id) = 1", f"{quoted}.id({quoted}.id) = 1"),
        (f"id::{quoted}.id = 1", f"({quoted}.id)::{quoted}.id = 1"),
        ("id::id = 1", f"{quoted}.id::public.id = 1"),
        (
            f"EXISTS (SELECT FROM {quoted}.{quoted} o WHERE o.id = {quoted}.id)",
            f"EXISTS (SELECT FROM {quoted}.{quoted} AS o WHERE o.id={quoted}.id)",
        ),
        (
            f"EXISTS (SELECT FROM {quoted}.{quoted} WHERE {quoted}.id = 1)",
            f"EXISTS (SELECT FROM {quoted}.{quoted} WHERE id = 1)",
        ),
    ]
    texts = [printed(connection, a, f"{quoted}.{quoted}") for a, _ in pairs]
    questions, expected = [], []
    for existing in texts:
        for pair, text in zip(pairs, texts, strict=True):
            for declared in pair:
                questions.append(Question(name, name, "p", "using", declared, existing))
                expected.append(text == existing)
    answers = compare_expressions(connection, questions)
    assert [answers[each] for each in questions] == list(map(Answer, expected))


def test_a_namesake_is_another_object(connection: Connection) -> None:
    run(
        connection,
        "CREATE SCHEMA auth;"
        "CREATE FUNCTION auth.uid() RETURNS text LANGUAGE sql RETURN 'a';"
        "CREATE FUNCTION public.uid() RETURNS text LANGUAGE sql RETURN 'b';"
        "CREATE POLICY p ON orders USING (t = auth.uid())",
    )
    for path, own, other in (
        ("public, auth", "(t = auth.uid())", "(t = uid())"),
        ("auth, public", "(t = uid())", "(t = public.uid())"),
    ):
        run(connection, f"SET LOCAL search_path = {path}")
        existing = run(connection, POLICY.format("p")).scalar_one()
        assert existing == own
        assert same(connection, own, existing)
        assert same(connection, "auth.uid() = t", "(auth.uid() = t)") is (
            path == "public, auth"
        )
        assert not same(connection, other, existing)


@pytest.mark.parametrize(
    "path", ["public, auth, storage, app", "auth, app, public", ""]
)
def test_search_paths(connection: Connection, path: str) -> None:
    run(connection, "CREATE SCHEMA auth; CREATE SCHEMA storage; CREATE SCHEMA app")
    texts = [text for pair in SAME for text in pair]
    if not path:
        texts = [text for text in texts if accepted_under(connection, text, path)]
        assert len(texts) > 100
    run(connection, f"SELECT set_config('search_path', '{path}', true)")
    pairs = [(text, printed(connection, text, "public.orders")) for text in texts]
    assert all(answer == Answer(True) for answer in compare(connection, *pairs))


def accepted_under(connection: Connection, text: str, path: str) -> bool:
    savepoint = connection.begin_nested()
    try:
        run(connection, f"SELECT set_config('search_path', '{path}', true)")
        return accepted(connection, text, "public.orders") is not None
    finally:
        savepoint.rollback()


def test_kinds_of_tables(connection: Connection) -> None:
    run(
        connection,
        "CREATE TABLE parts (id int, gone int, t text) PARTITION BY RANGE (id);"
        "CREATE TABLE part PARTITION OF parts FOR VALUES FROM (1) TO (2);"
        "CREATE TABLE child () INHERITS (teams);"
        "ALTER TABLE parts DROP COLUMN gone;"
        "ALTER TABLE parts ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
        "CREATE POLICY endless ON parts USING (EXISTS (SELECT FROM parts))",
    )
    for table, text in (
        ("parts", "parts.t = 'x'"),
        ("part", "t = 'x' OR EXISTS (SELECT FROM parts p WHERE p.id = part.id)"),
        ("child", "title = 'x'"),
    ):
        asked = question(text, printed(connection, text, table), table)
        assert compare_expressions(connection, [asked]) == {asked: Answer(True)}


def test_hexadecimal_numbers(connection: Connection, database: Database) -> None:
    existing = printed(connection, "i = 31")
    if database.server.version >= 16:
        assert same(connection, "i = 0x1F", existing)
        assert same(connection, "i = 0b1_1111", existing)
        assert not same(connection, "i = 0x1E", existing)


# --- sessions -------------------------------------------------------------------------

SPELLINGS = [("t = 'x'", "(t = 'x'::text)"), ("flag -- one", "flag")]


def assert_open(connection: Connection, why: str) -> None:
    """The texts and the trees give an answer, and the reason tells the rest."""
    pairs = [
        *SPELLINGS,
        ("t LIKE 'x'", "(t ~~ 'x'::text)"),
        ("t = 'y'", SPELLINGS[0][1]),
    ]
    answers = compare(connection, *pairs)
    assert answers[:2] == [Answer(True), Answer(True)]
    for answer in answers[2:]:
        assert not answer.same
        assert why in (answer.reason or "")
    assert run(connection, "SELECT 1").scalar_one() == 1


def test_sessions(engine_for_expressions: Engine) -> None:
    with engine_for_expressions.connect() as connection:
        assert same(connection, "t='x'", SPELLINGS[0][1])
        assert not connection.in_transaction()
        with connection.begin():
            run(connection, "CREATE TABLE kept ()")
            assert same(connection, "t='x'", SPELLINGS[0][1])
            assert compare(connection, ("flag +", "flag"))[0].reason
        run(connection, "DROP TABLE kept")
        connection.commit()
    with engine_for_expressions.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        assert same(connection, "t='x'", SPELLINGS[0][1])
        assert not same(connection, "t='y'", SPELLINGS[0][1])
        run(connection, "CREATE TABLE kept ()")
        assert compare(connection, ("flag +", "flag"))[0].reason
    with engine_for_expressions.connect() as connection:
        run(connection, "DROP TABLE kept")
        with pytest.raises(DBAPIError):
            run(connection, "SELECT 1/0")
        with pytest.raises(DBAPIError) as error:  # nothing can be asked, nor told
            same(connection, "t='x'", SPELLINGS[0][1])
        assert error.value.orig.sqlstate == "25P02"  # type: ignore[union-attr]


def test_read_only(connection: Connection) -> None:
    run(connection, "SET TRANSACTION READ ONLY")
    assert_open(connection, "read-only transaction")


def test_login_without_rights(database: Database, connection: Connection) -> None:
    """It needs none on the table; USAGE of schemas, and TEMP."""
    hidden = "other.tenant() = t"
    existing = printed(connection, hidden)
    connection.rollback()
    engine = create_engine(database.app_url)
    with engine.connect() as app:
        assert same(app, "t='x'", SPELLINGS[0][1])
        assert same(app, "seen(orders)", "seen(orders.*)")
        (answer,) = compare(app, ("t = other.tenant()", existing))
        assert "permission denied for schema other" in (answer.reason or "")
        database.execute(f'REVOKE TEMP ON DATABASE "{database.name}" FROM PUBLIC')
        assert_open(app, "permission denied to create temporary")
    database.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    with engine.connect() as app:
        told, open_ = compare(app, SPELLINGS[1], ("t LIKE 'x'", "(t ~~ 'x'::text)"))
        assert told == Answer(True)
        assert "permission denied" in (open_.reason or "")
    engine.dispose()


def test_locks(engine_for_expressions: Engine) -> None:
    """Nobody waits for long, whatever holds a table."""
    many = [(f"t LIKE '{n}'", f"(t ~~ '{n}'::text)") for n in range(200)]
    with (
        engine_for_expressions.connect() as blocker,
        engine_for_expressions.connect() as connection,
    ):
        run(blocker, "LOCK TABLE orders, members IN EXCLUSIVE MODE")
        assert same(connection, "t='x'", SPELLINGS[0][1])
        blocker.rollback()
        run(blocker, "LOCK TABLE orders, members")
        started = time.monotonic()
        assert_open(connection, "lock timeout")
        answers = compare(connection, *many)
        assert not any(answer.same for answer in answers)
        assert time.monotonic() - started < 3
        run(connection, "SET LOCAL statement_timeout = '20ms'")
        assert_open(connection, "statement timeout")
        blocker.rollback()
        run(blocker, "LOCK TABLE members")
        connection.rollback()
        answers = compare(
            connection,
            ("EXISTS (SELECT FROM members)", "true"),
            ("t='x'", SPELLINGS[0][1]),
        )
        assert "lock timeout" in (answers[0].reason or "")
        assert answers[1] == Answer(True)


def test_no_trace_is_left(connection: Connection) -> None:
    state = """
        SELECT current_setting('search_path'), current_setting('lock_timeout'),
               current_setting('check_function_bodies'),
               (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_proc),
               (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()
                 AND relation = 'orders'::regclass)
    """
    before = run(connection, state).one()
    assert same(connection, "t='x'", SPELLINGS[0][1])
    assert compare(connection, ("flag +", "flag"))[0].reason
    assert run(connection, state).one() == before


def test_temporary_namesakes(connection: Connection) -> None:
    """Temporary objects of the session do not get in the way."""
    run(
        connection,
        "CREATE TEMP TABLE orders (t int); CREATE TEMP TABLE members (i int)",
    )
    run(
        connection,
        "CREATE POLICY p ON public.orders USING (EXISTS (SELECT FROM public.members))",
    )
    now = run(connection, POLICY.format("p")).scalar_one()
    assert same(connection, "EXISTS (SELECT FROM public.members)", now)
    assert not same(connection, "EXISTS (SELECT FROM members)", now)
    assert same(connection, "public.orders.t='x'", SPELLINGS[0][1])
    run(
        connection,
        "CREATE FUNCTION pg_temp.sqlalchemy_tenants_condition_0() RETURNS int RETURN 1",
    )
    assert same(connection, "public.orders.t='x'", SPELLINGS[0][1])


async def test_asyncpg(engine_for_expressions: Engine, database: Database) -> None:
    engine = create_async_engine(database.url("owner", "asyncpg"))
    pairs = [
        ("t LIKE '%x :y' AND i % 2 = 0", "((t ~~ '%x :y'::text) AND ((i % 2) = 0))"),
        ("t = 'a' --", "(t = 'b'::text)"),
        ("flag +", "flag"),
    ]
    for options in ({}, {"isolation_level": "AUTOCOMMIT"}):
        async with engine.connect() as connection:
            await connection.execution_options(**options)
            answers = await connection.run_sync(compare, *pairs)
            assert [answer.same for answer in answers] == [True, False, False]
            assert answers[2].reason
            assert await connection.scalar(sqlalchemy.text("SELECT 1")) == 1
            if not options:
                await connection.execute(sqlalchemy.text("SET TRANSACTION READ ONLY"))
                await connection.run_sync(assert_open, "read-only transaction")
    await engine.dispose()


def test_few_statements(engine_for_expressions: Engine) -> None:
    statements: list[str] = []
    sqlalchemy.event.listen(
        engine_for_expressions,
        "before_cursor_execute",
        lambda c, cursor, statement, *args: statements.append(statement),
    )
    pairs = [(f"i={n}", f"(i = {n})") for n in range(1000)]
    with engine_for_expressions.connect() as connection:
        assert all(answer.same for answer in compare(connection, *pairs))
        assert len(statements) <= 4
        statements.clear()
        assert all(compare(connection, *((text, text) for _, text in pairs)))
        assert statements == []


# --- trees ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "t = 'x'",
        "orders.v = 'x' AND i = 1 AND NOT flag",
        "(i IN (1, 2)) OR public.orders.flag",
        "t IN ('a', 'b') AND t IS NOT NULL",
        "i BETWEEN 1 AND 2 AND t <> 'x'",
        f"u = '{UUID}' OR d > '2020-01-01'",
        "t = current_setting('a.b', true) OR v = (SELECT current_setting('a.b'))",
        "u = (SELECT current_setting('a.b', true)::uuid)",
        "takes_bigint(big) AND other.tenant() = t AND flag = TRUE",
        "NOT (flag OR flag2) AND (flag3 OR i <= 3)",
    ],
)
def test_trees(connection: Connection, text: str) -> None:
    existing = printed(connection, text)
    assert same_tree(connection, text, existing)
    assert not same_tree(connection, f"NOT ({text})", existing)


# --- constants that change by themselves ----------------------------------------------


def test_constants_that_change(connection: Connection) -> None:
    for texts, by_text, by_server in (
        (MOMENTS, True, True),
        (UNCAST, False, True),
        (LASTING, False, False),
    ):
        for text in texts:
            assert bool(frozen_constants(text)) is by_text, text
            (answer,) = compare(connection, (text, "flag"))
            assert bool(answer.frozen) is by_server, text
