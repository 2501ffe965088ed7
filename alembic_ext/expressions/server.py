"""The server's opinion: how it prints an expression of a policy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import sqlalchemy
from sqlalchemy.exc import DBAPIError

from .names import _split_name
from .reading import _lexemes
from .tree import ExpressionError

#: Conditions under which the server cannot tell: syntax or name, data, not supported,
#: limits, invalid schema, lock not available, read-only, autocommit, raised by an event
#: trigger.
_NO_OPINION = re.compile("42|22|0A|54|3F|55P03|25006|25P01|P0001")


def deparse_on_server(
    connection: sqlalchemy.Connection,
    *,
    columns: Sequence[tuple[str, str]],
    using: str | None,
    with_check: str | None,
    command: str = "ALL",
    table: str,
) -> tuple[str | None, str | None] | None:
    """Let the server print policy expressions, without touching the policy's table.

    The policy is created on a temporary table with the same name and columns, inside of
    a savepoint that is rolled back.  Nothing locks or waits for the real table: the
    temporary one comes first in the search path.

    :param columns: names and types (as ``format_type`` prints them), in their order.
    :param using: the SQL text of the policy's USING, if any.
    :param with_check: that of its WITH CHECK.
    :param command: what the policy is for.
    :param table: name of the table, optionally with its schema; the schema is not used.
    :return: both texts as ``pg_get_expr`` prints them; None where the server cannot be
        asked (read-only, no TEMP privilege) or refuses an expression.
    """
    if not all(_is_closed(text) for text in (using, with_check) if text is not None):
        return None
    if command.upper() not in {"ALL", "SELECT", "INSERT", "UPDATE", "DELETE"}:
        raise ValueError(f"not a policy's command: {command!r}")
    began = not connection.in_transaction()
    try:
        if not _scalar(connection, _MAY_ASK):
            return None
        savepoint = connection.begin_nested()
        try:
            return _deparse(connection, columns, using, with_check, command, table)
        finally:
            savepoint.rollback()
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None) or ""
        if error.connection_invalidated or not _NO_OPINION.match(state):
            raise
        return None
    finally:
        if began:
            connection.rollback()


_MAY_ASK = """
SELECT current_setting('transaction_read_only') = 'off'
   AND NOT pg_is_in_recovery()
   AND has_database_privilege(current_database(), 'TEMP')
"""


def _scalar(connection: sqlalchemy.Connection, statement: str) -> Any:
    return connection.execute(sqlalchemy.text(statement)).scalar_one()


def _is_closed(text: str) -> bool:
    """No statement ends in it, and it closes each parenthesis that it opens."""
    depth = 0
    try:
        for lexeme in _lexemes(text):
            if lexeme.kind == "mark":
                depth += {"(": 1, ")": -1}.get(lexeme.value, 0)
            if depth < 0 or lexeme == ("mark", ";"):
                return False
    except ExpressionError:
        return False
    return depth == 0


def _deparse(
    connection: sqlalchemy.Connection,
    columns: Sequence[tuple[str, str]],
    using: str | None,
    with_check: str | None,
    command: str,
    table: str,
) -> tuple[str | None, str | None]:
    def execute(statement: str) -> sqlalchemy.CursorResult[Any]:
        # The text is the user's: no driver may find parameters in it.
        options = {"no_parameters": True}
        return connection.exec_driver_sql(statement, None, execution_options=options)

    quote = connection.dialect.identifier_preparer.quote_identifier
    name = quote(_split_name(table)[1])
    definitions = ", ".join(f"{quote(column)} {kind}" for column, kind in columns)
    execute(
        "SELECT set_config('search_path', concat_ws(', ', 'pg_temp', "
        "nullif(current_setting('search_path'), '')), true), "
        "set_config('lock_timeout', '100ms', true)"
    )
    execute(f"CREATE TEMPORARY TABLE {name} ({definitions})")
    # A comment at the end of an expression must not hide the parenthesis.
    clauses = f"USING ({using}\n)" if using is not None else ""
    if with_check is not None:
        clauses += f" WITH CHECK ({with_check}\n)"
    execute(f"CREATE POLICY compared ON pg_temp.{name} FOR {command.upper()} {clauses}")
    row: Any = execute(
        "SELECT pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid) "
        "FROM pg_catalog.pg_policy WHERE polname = 'compared' AND polrelid IN "
        "(SELECT oid FROM pg_catalog.pg_class "
        "WHERE relnamespace = pg_catalog.pg_my_temp_schema())"
    ).one()
    return row[0], row[1]
