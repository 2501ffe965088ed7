"""Are two conditions of a policy the same: the models', and what PostgreSQL printed.

``pg_get_expr`` prints an analysed tree, not the text that the policy was created with.
The answer is found in this order:

1. The texts are equal, but for white space and comments. Both are read in the same
   session, and the server qualifies each name that would lead to another object there,
   so that equal texts mean the same objects.
2. The server prints the declared condition, too: as the body of a temporary function,
   which is created and never called, in a savepoint that is rolled back. All conditions
   of a run go in one statement.
3. Where the server cannot be asked (read-only, no privilege to create temporary
   objects, a locked table), the trees are compared, as far as that is certain:
   :mod:`.trees`.
4. Otherwise the condition is taken for altered, and the reason is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from json import loads
from typing import Any, NamedTuple

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from ..policies import (
    OWN_POLICIES,
    Policy,
    quote_dollar,
    quote_literal,
    quote_qualified,
)
from .catalog import TableState


class Question(NamedTuple):
    """A condition that the models declare, and the one that stands in its place.

    :param schema: schema of the policy's table.
    :param table: name of the table.
    :param policy: name of the policy.
    :param part: ``"using"`` or ``"with_check"``.
    :param declared: SQL text of the models.
    :param existing: what ``pg_get_expr`` printed in this session.
    """

    schema: str
    table: str
    policy: str
    part: str
    declared: str
    existing: str


def questions_of(table: TableState, policies: Iterable[Policy]) -> Iterator[Question]:
    """Yield the conditions of a user's own policies that the database has, too."""
    for policy in policies:
        found = table.policies.get(policy.name)
        if policy.name in OWN_POLICIES:
            continue
        for part in ("using", "with_check"):
            old, new = getattr(found, part, None), getattr(policy, part)
            if old is not None and new is not None:
                yield Question(table.schema, table.name, policy.name, part, new, old)


class Answer(NamedTuple):
    """Whether both are the same.

    :param same: false where they differ, and where that cannot be told.
    :param reason: why it cannot be told, for a message; ``None`` where it can.
    :param frozen: constants of the declared text that PostgreSQL replaces by another
        one when it reads them, as ``'today'``.
    """

    same: bool
    reason: str | None = None
    frozen: tuple[str, ...] = ()


def compare_expressions(
    connection: Connection, questions: Iterable[Question]
) -> dict[Question, Answer]:
    """Answer all questions of a run: without a statement where the texts are equal, and
    otherwise with four (``SAVEPOINT``, ``DO``, ``SELECT``, ``ROLLBACK TO``).

    :param connection: in a transaction or not; it is left as it was.
    """
    answers: dict[Question, Answer] = {}
    asked: dict[Question, tuple[list[str], list[str] | None]] = {}
    read = cache(lexemes)  # many tables have the same conditions
    for question in questions:
        declared, existing = read(question.declared), read(question.existing)
        if declared is None or not _is_closed(declared):
            reason = "the declared text is not one closed condition"
            answers[question] = Answer(False, reason)
        elif declared == existing:
            answers[question] = Answer(True)
        else:
            asked[question] = declared, existing
    if asked:
        conditions = list(dict.fromkeys((q.schema, q.table, q.declared) for q in asked))
        printed = dict(zip(conditions, _printed(connection, conditions), strict=True))
        undecided = []
        for question, texts in asked.items():
            answer = printed[question.schema, question.table, question.declared]
            answers[question] = _judged(answer, *texts)
            if isinstance(answer, _Refusal) and answer.is_of_the_session:
                undecided.append(question)
        if undecided:
            from .trees import same_trees

            for question in same_trees(connection, undecided):
                answers[question] = Answer(True)
    return answers


class _Refusal(NamedTuple):
    """An error of the server in place of a printed condition."""

    sqlstate: str
    message: str

    @property
    def is_of_the_session(self) -> bool:
        """Whether the error is about the session, and says nothing of the condition."""
        return not re.match("42(?!501|723)|22|0A", self.sqlstate)


#: Undefined column, function, object, table: the revision that needs them may create
#: them. A condition of the database has all that it mentions, so this is another one.
_UNDEFINED = frozenset({"42703", "42883", "42704", "42P01"})


def _judged(
    printed: list[str] | _Refusal, declared: list[str], existing: list[str] | None
) -> Answer:
    if isinstance(printed, _Refusal):
        known = printed.sqlstate in _UNDEFINED
        return Answer(False, None if known else printed.message)
    kept = _moments(printed)
    moments = _moments(declared).items()
    frozen = tuple(string for word, string in moments if word not in kept)
    return Answer(printed == existing, None, frozen)


# --- the text ------------------------------------------------------------------------

# A lexeme each: a string with backslashes, a string or quoted name, the beginning of a
# string in dollars, a word or number, an operator, a comment or its beginning, one of
# the other characters. White space is PostgreSQL's.
_LEXEME = re.compile(
    r"""
    [eE]'(?:[^'\\]|\\.|'')*'
  | '(?:[^']|'')*'
  | "(?:[^"]|"")*"
  | \$(?:[^\W\d]\w*)?\$
  | (?![eE]')\w[\w$]* | \$\d+
  | :: | /\* | --[^\n\r]*
  | (?:(?!--|/\*)[-+*/<>=~!@\#%^&|`?])+
  | [eE]?'
  | [^ \t\n\r\f\v]
    """,
    re.VERBOSE | re.DOTALL,
)
#: One of these as a lexeme means that a string or a quoted name does not end.
_OPEN = frozenset(("'", "e'", "E'", '"', "$"))


def lexemes(expression: str) -> list[str] | None:
    """Return the lexemes of an expression, without white space and comments.

    :return: ``None`` where a string, a name or a comment does not end.
    """
    if "/*" in expression or "$" in expression:
        for match in _LEXEME.finditer(expression):
            start, end = match.span()
            if match[0] == "/*":
                end, literal = _end_of_comment(expression, start), []
            elif match[0][0] == match[0][-1] == "$" != match[0]:
                end = expression.find(match[0], end)
                end += len(match[0]) if end > 0 else 0
                literal = [expression[start:end]]
            else:
                continue
            before = lexemes(expression[:start])
            after = lexemes(expression[end:]) if end > start + 1 else None
            if before is None or after is None:
                return None
            return [*before, *literal, *after]
    # strings, because match objects would keep the garbage collector busy
    found = _LEXEME.findall(expression)
    if not _OPEN.isdisjoint(found):
        return None
    if "--" in expression:
        found = [lexeme for lexeme in found if not lexeme.startswith("--")]
    return found


def _end_of_comment(expression: str, position: int) -> int:
    depth = 0
    for match in re.compile(r"/\*|\*/").finditer(expression, position):
        depth += 1 if match[0] == "/*" else -1
        if not depth:
            return match.end()
    return -1


def _is_closed(found: Iterable[str]) -> bool:
    """Whether no statement ends in it, and it closes what it opens, in that order."""
    opened: list[str] = []
    for lexeme in found:
        if lexeme in _PAIRS:
            opened.append(_PAIRS[lexeme])
        elif lexeme in _ENDS and (not opened or opened.pop() != lexeme):
            return False
    return not opened


_PAIRS = {"(": ")", "[": "]"}
_ENDS = (")", "]", ";")


# --- the server ----------------------------------------------------------------------

# No condition finds these names: a call reaches pg_temp only if it names pg_temp.
_FUNCTION = "pg_temp.sqlalchemy_tenants_condition_"
_SETTING = "tenancy.printed_conditions"

#: All conditions in one function. If one of them is refused, a function each, so that
#: it does not spoil the others. After one wait for a lock, the next ones are cut short.
_PRINT = """
DECLARE
  conditions text[] := {conditions};
  answers text[];
  state text;
  message text;
BEGIN
  PERFORM pg_catalog.set_config('lock_timeout', '100ms', true);
  -- the validator would apply the policies of the tables
  PERFORM pg_catalog.set_config('check_function_bodies', 'off', true);
  BEGIN
    EXECUTE pg_catalog.concat('CREATE FUNCTION {function}0() RETURNS void ',
      'BEGIN ATOMIC ', pg_catalog.array_to_string(conditions, ''), 'END');
    answers := ARRAY[pg_catalog.json_build_array(pg_catalog.pg_get_function_sqlbody(
      '{function}0'::pg_catalog.regproc))::text];
  EXCEPTION WHEN OTHERS THEN
    FOR i IN 1 .. pg_catalog.cardinality(conditions) LOOP
      BEGIN
        EXECUTE pg_catalog.concat('CREATE FUNCTION {function}', i,
          '() RETURNS void BEGIN ATOMIC ', conditions[i], 'END');
        answers[i] := pg_catalog.json_build_array(pg_catalog.pg_get_function_sqlbody(
          pg_catalog.concat('{function}', i)::pg_catalog.regproc));
      EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
        answers[i] := pg_catalog.json_build_array(state, message);
        IF state = '55P03' THEN
          PERFORM pg_catalog.set_config('lock_timeout', '1ms', true);
        END IF;
      END;
    END LOOP;
  END;
  PERFORM pg_catalog.set_config(
    '{setting}', pg_catalog.array_to_json(answers)::text, true);
END
"""


def _printed(
    connection: Connection, conditions: Sequence[tuple[str, str, str]]
) -> list[list[str] | _Refusal]:
    """Let the server print conditions: schema, table and text of each.

    :return: the lexemes of each, or why there are none.
    """
    statements = ", ".join(
        # a comment at the end of a text must not hide the parenthesis
        quote_literal(f"SELECT FROM {quote_qualified(schema, table)} WHERE ({text}\n);")
        for schema, table, text in conditions
    )
    body = _PRINT.format(
        conditions=f"ARRAY[{statements}]", function=_FUNCTION, setting=_SETTING
    )
    try:
        with _undone(connection):
            _execute(connection, f"DO {quote_dollar(body)}")
            found = _execute(
                connection, f"SELECT pg_catalog.current_setting('{_SETTING}')"
            ).scalar_one()
    except DBAPIError as error:
        if not _is_refusal(error):
            raise
        refusal = _Refusal(_sqlstate(error), str(error.orig).partition("\n")[0])
        return [refusal] * len(conditions)
    printed: list[list[str] | _Refusal] = []
    for answer in map(loads, loads(found)):
        printed += _conditions(answer[0]) if len(answer) == 1 else [_Refusal(*answer)]
    return printed


def _conditions(body: str) -> Iterator[list[str]]:
    """Yield the conditions in the printed body of a function."""
    found = lexemes(body)
    assert found is not None
    statement: list[str] = []
    for lexeme in found[2:-1]:
        if lexeme == ";":
            yield _as_in_a_policy(statement)
            statement = []
        else:
            statement.append(lexeme)


def _as_in_a_policy(statement: Sequence[str]) -> list[str]:
    """Return the condition of ``SELECT FROM table WHERE condition`` as a policy's is
    printed: columns of the table without its name, but for those in subselects."""
    where = statement.index("WHERE")
    table = statement[where - 1]
    condition = [*statement[where + 1 :], "", "", ""]
    result: list[str] = []
    opened: list[bool] = []
    position = 0
    while condition[position]:
        lexeme, *following = condition[position : position + 4]
        if lexeme == "(":
            opened.append(following[0] in ("SELECT", "VALUES", "WITH"))
        elif lexeme == ")":
            opened.pop()
        elif (
            lexeme == table
            and not any(opened)
            and following[0] == "."
            # neither the whole row nor an operator
            and re.match(r'[\w"]', following[1])
            # before a function, a type or a collation the name is a schema's
            and following[2] != "("
            and (result or [""])[-1] not in ("::", "COLLATE", "AS", "RETURNING")
        ):
            position += 2
            continue
        result.append(lexeme)
        position += 1
    return result


@contextmanager
def _undone(connection: Connection) -> Iterator[None]:
    """Undo what happens within, whether there is a transaction, or autocommit."""
    began = not connection.in_transaction()
    try:
        try:
            savepoint = connection.begin_nested()
        except DBAPIError as error:
            if _sqlstate(error) != "25P01":
                raise
            # AUTOCOMMIT: SQLAlchemy opens no transaction, so begin one by hand
            _execute(connection, "BEGIN")
            try:
                yield
            finally:
                _execute(connection, "ROLLBACK")
        else:
            try:
                yield
            finally:
                savepoint.rollback()
    finally:
        if began:
            connection.rollback()


def _execute(connection: Connection, statement: str) -> Any:
    # The text is the user's: no driver may find parameters in it.
    return connection.exec_driver_sql(
        statement, None, execution_options={"no_parameters": True}
    )


def _is_refusal(error: DBAPIError) -> bool:
    """Whether the server refused, and the session still works: not supported, no
    privilege, limits, cancelled by a timeout, read-only, raised by an event trigger."""
    state = _sqlstate(error)
    return not error.connection_invalidated and bool(
        re.match("0A|42|53|54|55|57014|25006|P0001", state)
    )


def _sqlstate(error: DBAPIError) -> str:
    # psycopg and asyncpg have it as sqlstate, psycopg2 as pgcode
    state = getattr(error.orig, "sqlstate", None)
    return state or getattr(error.orig, "pgcode", None) or ""


# --- what a migration keeps ----------------------------------------------------------

_ORIGINALS = text(
    """
    SELECT n.nspname, c.relname, p.polname,
        pg_catalog.pg_get_expr(p.polqual, p.polrelid) AS using,
        pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) AS with_check,
        pg_catalog.obj_description(p.oid, 'pg_policy') AS comment
    FROM pg_catalog.pg_policy p
    JOIN pg_catalog.pg_class c ON c.oid = p.polrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN unnest(
        CAST(:schemas AS text[]), CAST(:tables AS text[]), CAST(:policies AS text[])
    ) AS wanted (schema, name, policy)
    ON wanted.schema = n.nspname AND wanted.name = c.relname
        AND wanted.policy = p.polname
    """
)


def read_originals(
    connection: Connection, policies: Iterable[tuple[str, str, str]]
) -> dict[tuple[str, str, str], Any]:
    """Read comments on policies, and their conditions with all names in full, so that a
    revision that holds them means the same objects in every session, or fails.

    One query under an empty search path, in a savepoint that is rolled back.

    :param policies: schema, table and name of each.
    :return: by the same, rows with ``using``, ``with_check`` and ``comment``.
    """
    schemas, tables, names = map(list, zip(*policies, strict=True))
    with _undone(connection):
        _execute(connection, "SELECT pg_catalog.set_config('search_path', '', true)")
        rows = connection.execute(
            _ORIGINALS, {"schemas": schemas, "tables": tables, "policies": names}
        ).all()
    return {(row[0], row[1], row[2]): row for row in rows}


# --- constants that change by themselves ---------------------------------------------

_MOMENT = re.compile(r"(?i)(?<![a-z])(?:now|today|tomorrow|yesterday)(?![a-z])")

_TIME = (
    r'(?:pg_catalog \. )?"?'
    r"(?:date|time|timetz|timestamp|timestamptz|(?:date|ts|tstz)(?:multi)?range)\b"
)
#: A string that is cast, or follows a type. What is cast to text before stays text.
_FROZEN = re.compile(
    rf"(?i)(?:\( )*('\d+')(?: \))* :: {_TIME}"
    rf"|\bcast \((?: \()* ('\d+')(?: \))* as {_TIME}"
    rf'|{_TIME}"?(?: \( \d+ \))?(?: with(?:out)? time zone)? (\'\d+\')'
)


def _moments(found: Iterable[str]) -> dict[str, str]:
    """Return strings with a word that a date or time reads as the current moment."""
    return {
        match[0].lower(): lexeme
        for lexeme in found
        if lexeme[0] == "'"
        for match in _MOMENT.finditer(lexeme)
    }


def frozen_constants(expression: str) -> list[str]:
    """Return constants as ``'today'::date``, of which PostgreSQL keeps the date that
    they had when the policy was created: those that the text alone gives away."""
    if not _MOMENT.search(expression):
        return []
    found = lexemes(expression) or []
    moments = set(_moments(found).values())
    # each string by its number, so that nothing within it is read
    numbered = [
        f"'{index}'" if lexeme.startswith("'") else lexeme
        for index, lexeme in enumerate(found)
    ]
    matches = _FROZEN.finditer(" ".join(numbered))
    strings = (found[int(next(filter(None, m.groups()))[1:-1])] for m in matches)
    return list(dict.fromkeys(each for each in strings if each in moments))
