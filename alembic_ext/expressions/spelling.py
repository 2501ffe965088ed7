"""Spelling: one spelling for what PostgreSQL prints in one way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import reduce

from sqlglot import exp

from .casts import _number
from .tree import ExpressionError, _Rule, _unalias


def _spell(node: exp.Expr) -> exp.Expr:
    """Replace a construct by the one that PostgreSQL's parser makes of it."""
    rule = _SPELLINGS.get(type(node))
    return node if rule is None else rule(node)


def _call(name: str, *arguments: exp.Expr | None) -> exp.Expr:
    return exp.Anonymous(
        this=exp.to_identifier(name, quoted=True),
        expressions=[each for each in arguments if each is not None],
    )


def _joined(connector: type[exp.Expr], parts: Sequence[exp.Expr]) -> exp.Expr:
    return reduce(lambda a, b: connector(this=a, expression=b), parts)


def _like(node: exp.Expr) -> exp.Expr:
    # LIKE is the operator ~~, ILIKE is ~~*; NOT LIKE is !~~.
    name = "~~*" if isinstance(node, exp.ILike) else "~~"
    name = f"!{name}" if node.args.get("negate") else name
    return exp.Operator(this=node.this, operator=name, expression=node.expression)


def _similar(node: exp.Expr) -> exp.Expr:
    # SIMILAR TO is a regular expression made by similar_to_escape().
    name = "!~" if node.args.get("negate") else "~"
    pattern = _call("similar_to_escape", node.expression)
    return exp.Operator(this=node.this, operator=name, expression=pattern)


def _escape(node: exp.Expr) -> exp.Expr:
    # ESCAPE is a second argument of the function that prepares the pattern.
    match, pattern = node.this, node.this.expression
    if isinstance(pattern, exp.Anonymous) and pattern.name == "similar_to_escape":
        pattern.append("expressions", node.expression)
    else:
        match.set("expression", _call("like_escape", pattern, node.expression))
    result: exp.Expr = match
    return result


def _between(node: exp.Expr) -> exp.Expr:
    # BETWEEN is two comparisons, BETWEEN SYMMETRIC twice two.
    def within(low: str, high: str) -> exp.Expr:
        def operand(name: str) -> exp.Expr:
            copy: exp.Expr = node.args[name].copy()
            return copy

        if node.args.get("negate"):
            return exp.Or(
                this=exp.LT(this=operand("this"), expression=operand(low)),
                expression=exp.GT(this=operand("this"), expression=operand(high)),
            )
        return exp.And(
            this=exp.GTE(this=operand("this"), expression=operand(low)),
            expression=exp.LTE(this=operand("this"), expression=operand(high)),
        )

    if not node.args.get("symmetric"):
        return within("low", "high")
    connector = exp.And if node.args.get("negate") else exp.Or
    return connector(this=within("low", "high"), expression=within("high", "low"))


def _in(node: exp.Expr) -> exp.Expr:
    # IN (list) is = ANY (ARRAY[...]) for what holds no column, and an equation for each
    # of the rest (transformAExprIn); NOT IN is <> ALL, and so on.
    negate = bool(node.args.get("negate"))
    node.set("negate", None)
    if node.args.get("query"):
        return exp.Not(this=node) if negate else node
    values: list[exp.Expr] = list(node.expressions)
    fixed = [value for value in values if not value.find(exp.Column, exp.Tuple)]
    parts: list[exp.Expr] = []
    comparison = exp.NEQ if negate else exp.EQ
    if len(fixed) > 1:
        quantifier = exp.All if negate else exp.Any
        array = exp.Array(expressions=fixed)
        array.meta["in"] = True
        quantified = quantifier(this=array)
        parts = [comparison(this=node.this.copy(), expression=quantified)]
        values = [value for value in values if not any(value is each for each in fixed)]
    parts += [
        _comparison(comparison(this=node.this.copy(), expression=value))
        for value in values
    ]
    return _joined(exp.And if negate else exp.Or, parts)


def _comparison(node: exp.Expr) -> exp.Expr:
    left, right = node.this, node.expression
    if not isinstance(node, (exp.EQ, exp.NEQ)):
        return node
    # (a, b) = (1, 2) is a = 1 AND b = 2, with <> an OR.
    if isinstance(left, exp.Tuple) and isinstance(right, exp.Tuple):
        if len(left.expressions) == len(right.expressions):
            pairs = zip(left.expressions, right.expressions, strict=True)
            parts = [type(node)(this=a.copy(), expression=b.copy()) for a, b in pairs]
            return _joined(exp.And if isinstance(node, exp.EQ) else exp.Or, parts)
    # x = ANY (SELECT ...) is x IN (SELECT ...).
    elif isinstance(node, exp.EQ) and isinstance(right, exp.Any):
        query = right.this
        if isinstance(query, exp.Select):
            query = exp.Subquery(this=query)
        if isinstance(query, exp.Subquery):
            return exp.In(this=left, query=query)
    return node


def _distinct(node: exp.Expr) -> exp.Expr:
    # IS [NOT] DISTINCT FROM NULL is IS [NOT] NULL; the negated form is NOT (...).
    negate = isinstance(node, exp.NullSafeEQ)
    if isinstance(node.expression, exp.Null):
        return exp.Is(
            this=node.this, expression=node.expression, negate=None if negate else True
        )
    if not negate:
        return node
    inner = exp.NullSafeNEQ(this=node.this, expression=node.expression)
    return exp.Not(this=inner)


_NAMED_OPERATORS: dict[str, type[exp.Expr]] = {
    "+": exp.Add,
    "-": exp.Sub,
    "*": exp.Mul,
    "/": exp.Div,
    "%": exp.Mod,
    "^": exp.Pow,
    "=": exp.EQ,
    "<>": exp.NEQ,
    "<": exp.LT,
    "<=": exp.LTE,
    ">": exp.GT,
    ">=": exp.GTE,
}


def _named_operator(node: exp.Expr) -> exp.Expr:
    # OPERATOR(pg_catalog.=) is printed as =.
    operator = _NAMED_OPERATORS.get(node.args["operator"])
    if operator is None:
        return node
    return _comparison(operator(this=node.this, expression=node.expression))


def _anonymous(node: exp.Expr) -> exp.Expr:
    # ROW(a, b) is (a, b).
    if node.this == "ARRAY":
        return exp.Array(expressions=node.expressions)
    if isinstance(node.this, str):
        raise ExpressionError(node.this, "a keyword that is not known")
    if node.name == "ROW":
        return exp.Tuple(expressions=node.expressions)
    return node


def _dot(node: exp.Expr) -> exp.Expr:
    # pg_catalog is searched first, and its name left out.
    if node.this.name == "pg_catalog" and isinstance(node.expression, exp.Anonymous):
        return node.expression
    return node


def _negative(node: exp.Expr) -> exp.Expr:
    # -1 is a constant, not an operator on one.
    operand = node.this
    if isinstance(operand, exp.Literal) and not operand.is_string:
        return _number(-Decimal(operand.name))
    return node


def _literal(node: exp.Expr) -> exp.Expr:
    return node if node.is_string else _number(Decimal(node.name), "e" in node.name)


def _trim(node: exp.Expr) -> exp.Expr:
    # TRIM is btrim(), ltrim() or rtrim().
    side = {"LEADING": "ltrim", "TRAILING": "rtrim"}.get(node.text("position"), "btrim")
    return _call(side, node.this, node.args.get("expression"))


def _exists(node: exp.Expr) -> exp.Expr:
    # What EXISTS selects is of no account, as long as it is one row for each row.
    select = node.this
    if not any(map(select.args.get, ("group", "having", "limit", "offset"))) and all(
        isinstance(_unalias(each), (exp.Column, exp.Literal, exp.Star, exp.Null))
        for each in select.expressions
    ):
        select.set("expressions", None)
        select.set("distinct", None)
    return node


def _select(node: exp.Expr) -> exp.Expr:
    # FROM ((a JOIN b) JOIN c) is FROM a JOIN b JOIN c; INNER and OUTER say nothing.
    def flat(item: exp.Expr) -> tuple[exp.Expr, list[exp.Expr]]:
        joins = list(item.args.get("joins") or [])
        item.set("joins", None)
        if isinstance(item, exp.Subquery) and not isinstance(item.this, exp.Select):
            if item.args.get("alias"):
                raise ExpressionError(item.sql(), "a join with a name")
            first, inner = flat(item.this)
            joins = inner + joins
        else:
            first = item
        return first, flat_joins(joins)

    def flat_joins(joins: list[exp.Expr]) -> list[exp.Expr]:
        result = []
        for join in joins:
            first, inner = flat(join.this)
            if inner and (
                join.text("kind") or join.text("side") or join.args.get("on")
            ):
                raise ExpressionError(node.sql(), "a join to the right of a join")
            join.set("this", first)
            if join.text("kind").upper() in {"INNER", "OUTER"}:
                join.set("kind", None)
            result += [join, *inner]
        return result

    if node.args.get("from_"):
        first, joins = flat(node.args["from_"].this)
        node.args["from_"].set("this", first)
        joins += flat_joins(list(node.args.get("joins") or []))
        node.set("joins", joins or None)
    return node


def _subquery(node: exp.Expr) -> exp.Expr:
    # ((SELECT ...)) is (SELECT ...).
    inner = node.this
    alone = isinstance(inner, exp.Subquery) and not node.args.get("alias")
    return inner if alone and not node.args.get("joins") else node


def _case(node: exp.Expr) -> exp.Expr:
    # CASE without ELSE has ELSE NULL.
    if node.args.get("default") is None:
        node.set("default", exp.Null())
    return node


def _inner(node: exp.Expr) -> exp.Expr:
    result: exp.Expr = node.this
    return result


_SPELLINGS: dict[type, _Rule] = {
    exp.Anonymous: _anonymous,
    exp.Between: _between,
    exp.Case: _case,
    exp.Dot: _dot,
    exp.EQ: _comparison,
    exp.Escape: _escape,
    exp.Exists: _exists,
    # EXTRACT(year FROM d) is extract('year', d), and so on.
    exp.Extract: lambda node: _call("extract", node.this, node.expression),
    exp.ILike: _like,
    exp.In: _in,
    exp.Like: _like,
    exp.Literal: _literal,
    exp.NEQ: _comparison,
    exp.Neg: _negative,
    exp.NullSafeEQ: _distinct,
    exp.NullSafeNEQ: _distinct,
    exp.Operator: _named_operator,
    exp.Overlay: lambda node: _call(
        "overlay",
        node.this,
        node.expression,
        node.args.get("from_"),
        node.args.get("for_"),
    ),
    exp.Paren: _inner,
    exp.Select: _select,
    exp.SimilarTo: _similar,
    exp.StrPosition: lambda node: _call("position", node.this, node.args["substr"]),
    exp.Subquery: _subquery,
    exp.Substring: lambda node: _call(
        "substring", node.this, node.args.get("start"), node.args.get("length")
    ),
    exp.Trim: _trim,
}


def _chain(node: exp.Expr) -> exp.Expr:
    """AND and OR are associative: group them from the left.  Their order is kept."""
    if not isinstance(node, (exp.And, exp.Or)):
        return node
    connector = type(node)

    def parts(each: exp.Expr) -> Iterator[exp.Expr]:
        if type(each) is connector:
            yield from parts(each.this)
            yield from parts(each.expression)
        else:
            yield each

    return _joined(connector, list(parts(node)))
