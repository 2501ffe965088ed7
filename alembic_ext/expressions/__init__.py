"""Compare policy expressions: the user's text and what PostgreSQL printed back.

``pg_get_expr`` prints an analysed tree, not the text the policy was created with.  Both
sides are therefore parsed and brought to one canonical `sqlglot` tree: :class:`_Reader`
(text to tree), :func:`_spell` (one spelling for each construct), :class:`_Names` (the
table a column belongs to) and :class:`_Types` (the casts that PostgreSQL adds).

Two rules hold throughout.  A construct that is not known here is refused, not guessed
(:class:`ExpressionError`), and then only equal text counts as the same.  And a cast is
left out of the comparison only where the types are known and PostgreSQL would add the
same cast.  What remains different can be put to the server: :func:`deparse_on_server`.

Only this package imports sqlglot.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sqlglot import exp

from .casts import _LISTS, _ORDERING, _cast, _cast_type, _is_bare, _Types
from .names import _Names
from .reading import _plain_text, _Reader
from .server import deparse_on_server
from .spelling import _chain, _spell
from .tree import ExpressionError, _rewrite

__all__ = ["ExpressionError", "canonical", "deparse_on_server", "same_expression"]


def same_expression(
    a: str | None,
    b: str | None,
    *,
    table: str | None = None,
    column_types: Mapping[str, str] | None = None,
    default_schema: str | None = None,
) -> bool:
    """Tell whether two policy expressions are the same definition.

    :param a: SQL text, or None for a policy without this expression.
    :param b: the other one; either may be the text that ``pg_get_expr`` printed.
    :param table: name of the policy's table, optionally with its schema.
    :param column_types: see :func:`canonical`.
    :param default_schema: see :func:`canonical`.
    """
    if a is None or b is None or a == b:
        return a == b
    try:
        trees = [
            canonical(
                text,
                table=table,
                column_types=column_types,
                default_schema=default_schema,
            )
            for text in (a, b)
        ]
    except ExpressionError:
        return _plain_text(a) == _plain_text(b)
    return _same(trees[0], trees[1], None)


def canonical(
    expression: str,
    *,
    table: str | None = None,
    column_types: Mapping[str, str] | None = None,
    default_schema: str | None = None,
) -> exp.Expr:
    """Return the canonical tree of a policy expression.

    :param expression: a boolean SQL expression, PostgreSQL's dialect.
    :param table: name of the policy's table, optionally with its schema;
        ``orders.tenant`` is then the same as ``tenant``.
    :param column_types: types as ``format_type`` prints them, for a domain those of its
        base type.  The key is the column's name, for columns of other tables
        ``table.column`` or ``schema.table.column``; all columns of a table or none.
        Functions may be added, as ``schema.function()``.
        Without it a comparison of a ``varchar`` column is taken for a different one:
        ``(v)::text = 'x'`` could as well be written on a column of another type, where
        it means something else.
    :param default_schema: the schema that the server leaves out when it prints the name
        of a table.
    :raises ExpressionError: the expression is not SQL, or of a form not known here.
    """
    names = _Names(table, column_types or {}, default_schema)
    try:
        tree = names.resolve(_rewrite(_Reader(expression).tree(), _spell))
        return _rewrite(_rewrite(tree, _Types().settle), _chain)
    except RecursionError as error:
        raise ExpressionError(expression, "nested too deeply") from error


def _same(a: Any, b: Any, context: exp.Expr | None) -> bool:
    """Compare canonical trees, with leave for a constant whose type is not known."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(
            _same(x, y, context) for x, y in zip(a, b, strict=True)
        )
    if not (isinstance(a, exp.Expr) and isinstance(b, exp.Expr)):
        return bool(a == b)
    if _is_bare(a) and isinstance(b, exp.Cast):
        return _takes(a, b, context)
    if _is_bare(b) and isinstance(a, exp.Cast):
        return _takes(b, a, context)
    if type(a) is not type(b):
        return False
    keys = {key for node in (a, b) for key, value in node.args.items() if value}
    if not isinstance(a, (exp.Any, exp.All, exp.Array)):
        context = a
    return all(_same(a.args.get(key), b.args.get(key), context) for key in keys)


#: Constants of these types can be compared with values of another type, and mean
#: something else then.
_CROSSING = re.compile(
    r'bpchar|"char"|char|date|double|interval|name|real|reg|time|timestamp'
)


def _takes(bare: exp.Expr, typed: exp.Expr, context: exp.Expr | None) -> bool:
    """Can a constant without a type be this one, next to something of unknown type?

    In a comparison it takes the type of the other side; else it is text before all.
    """
    if isinstance(bare, exp.Null) or isinstance(typed.this, exp.Null):
        if isinstance(context, (exp.Anonymous, exp.Kwarg)):
            return context.name in _LISTS and bool(bare == typed.this)
        return bool(bare == typed.this)
    target = _cast_type(typed)
    allowed = isinstance(context, _ORDERING) and not _CROSSING.match(target)
    return (allowed or target == "text") and bool(_cast(bare, target) == typed)
