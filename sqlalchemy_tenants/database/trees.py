"""Conditions as trees, where the server cannot be asked how it prints one.

Few forms are read: those of which it is certain how PostgreSQL prints them. Whatever
else stands in a condition leaves the question open. So do columns of any type that is
not in ``_TYPES``, and operators whose precedence sqlglot sees otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import sqlglot
from sqlalchemy import Connection
from sqlglot import exp
from sqlglot.errors import SqlglotError

from . import catalog

if TYPE_CHECKING:
    from .same import Question


def same_trees(connection: Connection, questions: Iterable[Question]) -> list[Question]:
    """Return the questions whose conditions are certainly the same; one query."""
    columns = catalog.read_columns(connection)
    same = []
    for question in questions:
        key = (question.schema, question.table)
        try:
            reader = _Reader(*key, columns.get(key, {}))
            if reader.read(question.declared) == reader.read(question.existing):
                same.append(question)
        except (_Uncertain, SqlglotError, RecursionError):
            pass
    return same


class _Uncertain(Exception):
    """A form that is not known here."""


#: Types that are compared with a string of no type as with one of their own, by the
#: names that sqlglot has for them.
_TYPES = frozenset(
    {"text", "varchar", "smallint", "int", "bigint", "uuid", "boolean", "date"}
)

_COMPARISONS: dict[type[exp.Expr], str] = {
    exp.EQ: "=",
    exp.NEQ: "<>",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
}

#: What a node may have; with anything beside it, it has another meaning.
_PARTS: dict[type[exp.Expr], set[str]] = {
    **{each: {"this", "expression"} for each in _COMPARISONS},
    exp.And: {"this", "expression"},
    exp.Or: {"this", "expression"},
    exp.Not: {"this"},
    exp.Paren: {"this"},
    exp.Subquery: {"this"},
    exp.Any: {"this"},
    exp.Dot: {"this", "expression"},
    exp.Alias: {"this", "alias"},
    exp.Is: {"this", "expression", "negate"},
    exp.In: {"this", "expressions"},
    exp.Between: {"this", "low", "high"},
    exp.Array: {"expressions"},
    exp.Select: {"expressions"},
    exp.Anonymous: {"this", "expressions"},
    exp.Cast: {"this", "to"},
    exp.Column: {"this", "table", "db"},
    exp.Boolean: {"this"},
    exp.Literal: {"this", "is_string"},
}

#: Constants that are of type integer without a cast.
_INTEGER = r"[1-9]\d{0,8}|0"

_Tree = tuple[Any, ...]


class _Reader:
    """Reads conditions on one table into tuples, alike for both spellings.

    :param columns: types as ``format_type`` prints them, by column.
    """

    def __init__(self, schema: str, table: str, columns: Mapping[str, str]) -> None:
        self.names = {"db": schema, "table": table}
        self.columns = columns

    def read(self, expression: str) -> _Tree:
        """Return the tree of a condition."""
        select = sqlglot.parse_one(f"SELECT ({expression}\n)", read="postgres")
        (condition,) = _known(select).expressions
        return self.condition(condition)

    def condition(self, node: exp.Expr) -> _Tree:
        """Return the tree of a node that is true or false."""
        _known(node)
        if isinstance(node, exp.Paren):
            return self.condition(node.this)
        if isinstance(node, exp.And | exp.Or):
            kind = type(node).__name__
            left, right = self.condition(node.this), self.condition(node.expression)
            # as PostgreSQL does: what stands on the left becomes a part
            return (*(left if left[0] == kind else (kind, left)), right)
        if isinstance(node, exp.Not):
            return ("not", self.condition(node.this))
        if isinstance(node, exp.Is) and isinstance(node.expression, exp.Null):
            tree = ("is null", self.value(node.this, {*_TYPES})[0])
            return ("not", tree) if node.args.get("negate") else tree
        if isinstance(node, exp.Between):
            low, high = node.args["low"], node.args["high"]
            return (
                "And",
                self.comparison(">=", node.this, low),
                self.comparison("<=", node.this, high),
            )
        if isinstance(node, exp.In):
            return self.any(node.this, node.expressions)
        if type(node) in _COMPARISONS:
            right = node.expression
            if isinstance(node, exp.EQ) and isinstance(right, exp.Any):
                array = _known(_known(right).this.unnest())
                if isinstance(array, exp.Array):
                    return self.any(node.this, array.expressions)
            return self.comparison(_COMPARISONS[type(node)], node.this, right)
        return self.value(node, {"boolean", None})[0]

    def any(self, node: exp.Expr, items: list[exp.Expr]) -> _Tree:
        """Return the tree of ``IN`` with a list."""
        if len(items) < 2:
            raise _Uncertain  # PostgreSQL prints no list
        comparisons = [self.comparison("=", node, item) for item in items]
        if not all(tree[2][0] in ("string", "number") for tree in comparisons):
            raise _Uncertain
        if comparisons[0][1][0] != "column":
            raise _Uncertain
        return ("any", *comparisons)

    def comparison(self, operator: str, left: exp.Expr, right: exp.Expr) -> _Tree:
        """Return the tree of a comparison, with the casts that PostgreSQL adds."""
        sides = [self.value(left), self.value(right)]
        found = {type_ for _, type_ in sides}
        if None in found:
            # an operator for just these two, or there would be a cast
            if found & {"varchar", "unknown"}:
                raise _Uncertain
            return (operator, *(tree for tree, _ in sides))
        types = {"text" if each == "varchar" else str(each) for each in found}
        types.discard("unknown")
        if len(types) != 1 and not (types and types <= {"smallint", "int", "bigint"}):
            raise _Uncertain
        return (operator, *(_taken_as(min(types), *side) for side in sides))

    def value(
        self, node: exp.Expr, types: set[str | None] | None = None
    ) -> tuple[_Tree, str | None]:
        """Return the tree of a value, and its type.

        The type of a string without a cast is ``"unknown"``, that of a function
        ``None``.

        :param types: what it must be one of.
        """
        tree, type_ = self._value(_known(node))
        if types is not None and type_ not in types:
            raise _Uncertain
        return tree, type_

    def _value(self, node: exp.Expr) -> tuple[_Tree, str | None]:
        if isinstance(node, exp.Paren):
            return self.value(node.this)
        if isinstance(node, exp.Column):
            return self._column(node)
        if isinstance(node, exp.Literal):
            if node.is_string:
                return ("string", node.this), "unknown"
            if re.fullmatch(_INTEGER, node.this):
                return ("number", node.this), "int"
        if isinstance(node, exp.Boolean):
            return ("boolean", node.this), "boolean"
        if isinstance(node, exp.Cast):
            return self._cast(node)
        if isinstance(node, exp.Subquery):
            select = _known(node.this)
            if isinstance(select, exp.Select) and len(select.expressions) == 1:
                (item,) = select.expressions
                value = _known(item).this if isinstance(item, exp.Alias) else item
                tree, type_ = self.value(value, {None, *_TYPES} - {"varchar"})
                return ("select", tree), type_
        if isinstance(node, exp.Dot) and isinstance(node.expression, exp.Anonymous):
            return ("of", _name(node.this), self.value(node.expression)[0]), None
        if isinstance(node, exp.Anonymous):
            return self._call(node)
        raise _Uncertain

    def _column(self, node: exp.Column) -> tuple[_Tree, str]:
        for part, name in self.names.items():
            if node.args.get(part) and _name(node.args[part]) != name:
                raise _Uncertain
        name = _name(node.this)
        type_ = _type(self.columns.get(name, "unknown")).partition("(")[0]
        if type_ not in _TYPES:
            raise _Uncertain
        return ("column", name), type_

    def _cast(self, node: exp.Cast) -> tuple[_Tree, str]:
        target = _type(node.args["to"])
        tree, type_ = self.value(node.this)
        if type_ == target or target not in _TYPES:
            raise _Uncertain
        if type_ == "unknown":
            return _taken_as(target, tree, type_), target
        return ("cast", tree, target), target

    def _call(self, node: exp.Anonymous) -> tuple[_Tree, str | None]:
        name = node.this if isinstance(node.this, str) else ""
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise _Uncertain
        arguments = [self.value(each) for each in node.expressions]
        type_ = None
        if name.lower() == "current_setting":
            type_ = "text"
            arguments = [(_taken_as("text", *each), "") for each in arguments]
        if any(each == "unknown" for _, each in arguments):
            raise _Uncertain  # the function may take another type than text
        return ("call", name.lower(), *(tree for tree, _ in arguments)), type_


def _known(node: exp.Expr) -> exp.Expr:
    """Return a node of a form that is known here, with nothing beside."""
    parts = {key for key, value in node.args.items() if value not in (None, False, [])}
    if type(node) not in _PARTS or not parts <= _PARTS[type(node)]:
        raise _Uncertain
    return node


def _taken_as(target: str, tree: _Tree, type_: str | None) -> _Tree:
    """Return how PostgreSQL prints a value that it takes as one of another type."""
    if type_ == "varchar":
        return ("cast", tree, "text")
    if type_ != "unknown":
        return tree
    if target == "int" and re.fullmatch(_INTEGER, tree[1]):
        return ("number", tree[1])
    return ("string", tree[1], target)


def _name(node: Any) -> str:
    if not isinstance(node, exp.Identifier):
        raise _Uncertain
    name: str = node.this
    if node.args.get("quoted"):
        return name
    if not name.isascii():
        raise _Uncertain
    return name.lower()


def _type(type_: Any) -> str:
    built = exp.DataType.build(type_, dialect="postgres", udt=True)
    return built.sql("postgres").lower()
