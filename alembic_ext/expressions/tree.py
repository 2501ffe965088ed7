"""Trees: the error of an expression that is none, and helpers to take trees apart."""

from __future__ import annotations

from collections.abc import Callable

from sqlglot import exp


class ExpressionError(ValueError):
    """An expression that cannot be read as a tree; its text is kept.

    :param expression: the SQL text.
    :param reason: what could not be read.
    """

    def __init__(self, expression: str, reason: str) -> None:
        super().__init__(expression, reason)
        self.expression = expression
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read policy expression {self.expression!r}: {self.reason}"


_Rule = Callable[[exp.Expr], exp.Expr]


def _rewrite(node: exp.Expr, rule: _Rule) -> exp.Expr:
    """Apply a rule to all nodes of a tree, the inner ones first."""
    return rule(_replace_children(node, lambda child: _rewrite(child, rule)))


def _replace_children(node: exp.Expr, rule: _Rule) -> exp.Expr:
    for child in list(node.iter_expressions()):
        # Before the rule: it may put the child into another node.
        key, index = child.arg_key or "", child.index
        result = rule(child)
        if result is not child:
            node.set(key, result, index)
    return node


def _unalias(node: exp.Expr) -> exp.Expr:
    result: exp.Expr = node.this if isinstance(node, exp.Alias) else node
    return result


def _is_string(node: exp.Expr) -> bool:
    return isinstance(node, exp.Literal) and bool(node.is_string)
