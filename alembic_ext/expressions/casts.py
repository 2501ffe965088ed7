"""Casts: what PostgreSQL adds where types differ, left out of the comparison."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

from sqlglot import exp

from .reading import _words
from .tree import _is_string, _unalias


def _number(value: Decimal, numeric: bool = False) -> exp.Expr:
    text = format(value, "f")
    literal = exp.Literal(this=text, is_string=False)
    # 1e3 is not an integer, though it is printed as '1000'::numeric.
    return _cast(literal, "numeric") if numeric and "." not in text else literal


_INTEGERS = ("smallint", "integer", "bigint")


_NUMBERS = (*_INTEGERS, "numeric", "real", "double precision")


_ORDERING = (exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.NullSafeNEQ)


_ARITHMETIC = (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod, exp.Pow)


_Integers = Literal["keep", "plain", "widen"]


_LISTS = frozenset({"coalesce", "greatest", "least"})


#: What the right operand is, if it is a string without a type.
_RIGHT_OPERANDS = {
    **dict.fromkeys(("->", "->>", "?"), "text"),
    **dict.fromkeys(("#>", "#>>", "#-", "?|", "?&"), "text[]"),
}


_TEXT_OPERATORS = frozenset(
    f"{prefix}{name}{suffix}"
    for name in ("~", "~~")
    for prefix in ("", "!")
    for suffix in ("", "*")
)


_SAME_TYPE_OPERATORS = _words("@> <@ && << >> <<= >>= &< &> -|- & | #")


#: What these return depends on what they are given: text, or bytea, a range ...
_TEXT_OF_TEXT = _words(
    "btrim initcap lower ltrim overlay reverse rtrim substr substring upper"
)


_TEXT_FUNCTIONS = _words(
    "concat concat_ws current_setting format left lpad quote_ident regexp_replace "
    "repeat replace right rpad split_part to_char translate"
)


_FUNCTION_TYPES = {
    **dict.fromkeys(_TEXT_FUNCTIONS, "text"),
    **dict.fromkeys(_words("CURRENT_ROLE CURRENT_USER SESSION_USER USER"), "name"),
    **dict.fromkeys(_words("now CURRENT_TIMESTAMP"), "timestamp with time zone"),
    **dict.fromkeys(_words("length char_length position"), "integer"),
    "CURRENT_DATE": "date",
    "LOCALTIMESTAMP": "timestamp without time zone",
    "count": "bigint",
    "date_part": "double precision",
    "extract": "numeric",
    "starts_with": "boolean",
}


def _cast(node: exp.Expr, type_name: str) -> exp.Expr:
    kind = exp.to_identifier(type_name, quoted=True)
    to = exp.DataType(this=exp.DataType.Type.USERDEFINED, kind=kind)
    return _settle_cast(exp.Cast(this=node.copy(), to=to))


def _cast_type(node: exp.Expr) -> str:
    name: str = node.args["to"].args["kind"].name
    return name


def _base(type_name: str | None) -> str | None:
    """The type without its length, and text for varchar, which has no operators."""
    if type_name is None:
        return None
    name = re.sub(r"\(\d+(,\d+)?\)", "", type_name)
    return re.sub(r"^character varying(\[\])?$", r"text\1", name)


def _is_bare(node: exp.Expr) -> bool:
    """Is it a constant that takes its type from what surrounds it?"""
    return _is_string(node) or isinstance(node, exp.Null)


def _element(type_name: str | None) -> str | None:
    if type_name is None or not type_name.endswith("[]"):
        return None
    return type_name[:-2]


def _number_type(value: Decimal, text: str) -> str:
    if "." in text or not -(2**63) <= value < 2**63:
        return "numeric"
    return "integer" if -(2**31) <= value < 2**31 else "bigint"


def _type(node: exp.Expr) -> str | None:
    """The type of an expression, where it is known."""
    if isinstance(node, exp.Column):
        type_name: str | None = node.meta.get("pg_type")
        return type_name
    if isinstance(node, exp.Cast):
        return _cast_type(node)
    if isinstance(node, exp.Literal) and not node.is_string:
        return _number_type(Decimal(node.name), node.name)
    if isinstance(
        node, (*_ORDERING, exp.Boolean, exp.Connector, exp.Not, exp.Is, exp.Exists)
    ):
        return "boolean"
    if isinstance(node, (exp.Neg, exp.Collate)):
        return _base(_type(node.this))
    if isinstance(node, _ARITHMETIC):
        types = [_base(_type(node.this)), _base(_type(node.expression))]
        return _common(types) if all(each in _NUMBERS for each in types) else None
    if isinstance(node, exp.Operator):
        if node.args["operator"] in {"->>", "#>>"}:
            return "text"
        left = _base(_type(node.this))
        if node.args["operator"] == "||":
            texts = left == "text" or _base(_type(node.expression)) == "text"
            return "text" if texts else None
        return left if node.args["operator"] in {"->", "#>", "#-"} else None
    if isinstance(node, exp.Dot) and isinstance(node.expression, exp.Anonymous):
        return _type(node.expression)
    if isinstance(node, exp.Anonymous):
        if node.meta.get("pg_type"):
            return str(node.meta["pg_type"])
        if node.name in _LISTS:
            return _common([_type(each) for each in _typed(node.expressions)])
        if node.name == "nullif":
            return _base(_type(node.expressions[0]))
        if node.name in _TEXT_OF_TEXT:
            known = node.expressions and _base(_type(node.expressions[0])) == "text"
            return "text" if known else None
        return _FUNCTION_TYPES.get(node.name)
    if isinstance(node, exp.Case):
        results = [*(each.args["true"] for each in node.args["ifs"])]
        return _common(
            [_type(each) for each in _typed([*results, node.args["default"]])]
        )
    if isinstance(node, exp.Array):
        element = _common([_type(each) for each in _typed(node.expressions)])
        return f"{element}[]" if element else None
    if isinstance(node, (exp.Any, exp.All)):
        return _element(_base(_type(node.this)))
    if isinstance(node, exp.Subquery) and len(node.this.expressions) == 1:
        return _base(_type(_unalias(node.this.expressions[0])))
    return None


def _typed(nodes: Sequence[exp.Expr]) -> list[exp.Expr]:
    return [node for node in nodes if not _is_bare(node)]


def _common(types: Sequence[str | None]) -> str | None:
    """The type that a list of values gets (select_common_type), where that is clear."""
    bases = {_base(each) for each in types}
    if len(bases) == 1:
        return types[0] if len(set(types)) == 1 else bases.pop()
    if bases and all(each in _NUMBERS for each in bases):
        return max((each for each in bases if each), key=_NUMBERS.index)
    return None


class _Types:
    """Give constants the type that PostgreSQL gives them, and drop casts it adds."""

    def settle(self, node: exp.Expr) -> exp.Expr:
        if isinstance(node, exp.Cast):
            return _settle_cast(node)
        if isinstance(node, _ORDERING):
            return self.comparison(node)
        if isinstance(node, _ARITHMETIC):
            return self.arithmetic(node)
        if isinstance(node, exp.Operator):
            return self.operator(node)
        if isinstance(node, exp.Array) or (
            isinstance(node, exp.Anonymous) and node.name in _LISTS
        ):
            node.set("expressions", self.list(node.expressions))
        elif isinstance(node, exp.Anonymous) and node.name == "nullif":
            left, right = node.expressions
            node.set("expressions", self.pair(left, right, integers="plain"))
        elif isinstance(node, exp.Case):
            self.case(node)
        return node

    def comparison(self, node: exp.Expr) -> exp.Expr:
        left, right = node.this, node.expression
        if isinstance(right, (exp.Any, exp.All)) and right.this.meta.get("in"):
            # what stands left of IN has a say in the type of the list
            right.this.set(
                "expressions", self.list([left, *right.this.expressions])[1:]
            )
        left, right = self.pair(left, right, integers="plain")
        node.set("this", left)
        node.set("expression", right)
        return node

    def arithmetic(self, node: exp.Expr) -> exp.Expr:
        left, right = node.this, node.expression
        own = _base(_type(left)) or ""
        if isinstance(node, exp.Sub) and own == "jsonb":
            right = self.coerce(right, "text")
        elif isinstance(node, exp.Add) and own.startswith("timestamp"):
            right = self.coerce(right, "interval")
        integers: _Integers = "widen" if isinstance(node, exp.Mod) else "keep"
        left, right = self.pair(left, right, integers=integers)
        types = {_base(_type(left)), _base(_type(right))}
        if isinstance(node, exp.Pow) and types <= set(_NUMBERS) - {"numeric"}:
            # there is no power of integers or of reals
            left, right = (_cast(each, "double precision") for each in (left, right))
        node.set("this", left)
        node.set("expression", right)
        return node

    def operator(self, node: exp.Expr) -> exp.Expr:
        name = node.args["operator"]
        left, right = node.this, node.expression
        if name in _RIGHT_OPERANDS:
            right = self.coerce(right, _RIGHT_OPERANDS[name])
        elif name in _TEXT_OPERATORS:
            # c ~ 'a' is a comparison with text, whatever type c has
            left, right = (
                self.coerce(each, "text")
                if _is_bare(each) or isinstance(each, (exp.Any, exp.All))
                else each
                for each in (left, right)
            )
        elif name in _SAME_TYPE_OPERATORS:
            integers: _Integers = "widen" if name in {"&", "|", "#"} else "keep"
            left, right = self.pair(left, right, integers=integers)
        elif name == "||":
            left, right = self.concatenation(left, right)
        node.set("this", left)
        node.set("expression", right)
        return node

    def concatenation(self, left: exp.Expr, right: exp.Expr) -> list[exp.Expr]:
        # text || anything is text, as is a bare string || what is no array or jsonb
        if _is_bare(left) == _is_bare(right):
            return [left, right]
        other = _base(_type(right if _is_bare(left) else left))
        if other in {"text", "name", "uuid", "boolean", "date", *_NUMBERS}:
            return [self.coerce(left, "text"), self.coerce(right, "text")]
        return self.pair(left, right)

    def pair(
        self,
        left: exp.Expr,
        right: exp.Expr,
        integers: _Integers = "keep",
    ) -> list[exp.Expr]:
        """The operands of an operator that takes two of one type.

        :param integers: whether there are operators between integers of different
            width ("keep"), or not ("widen"), or whether they are comparisons, for which
            the width of a constant does not matter ("plain").
        """
        types = [_base(_type(left)), _base(_type(right))]
        targets = [types[1], types[0]]
        if all(each in _NUMBERS for each in types):
            widest = max((each for each in types if each), key=_NUMBERS.index)
            if widest == "real" and len(set(types)) > 1:
                widest = "double precision"
            targets = [widest, widest]
        return [
            self.coerce(each, target, integers)
            for each, target in zip((left, right), targets, strict=True)
        ]

    def coerce(
        self, node: exp.Expr, target: str | None, integers: _Integers = "keep"
    ) -> exp.Expr:
        """Add the cast that PostgreSQL would."""
        if target is None:
            return node
        if isinstance(node, (exp.Any, exp.All)):
            if isinstance(node.this, exp.Array):
                elements = node.this.expressions
                node.this.set(
                    "expressions",
                    [self.coerce(each, target, integers) for each in elements],
                )
            elif _is_string(node.this):
                node.set("this", _cast(node.this, f"{target}[]"))
            return node
        if _is_string(node):
            # the type character(3) is printed as bpchar, without a length
            node = _cast(node, "bpchar" if target == "character" else target)
            if integers != "plain" or target not in _INTEGERS:
                return node
        own = _base(_type(node))
        if isinstance(node, exp.Cast) and isinstance(node.this, exp.Null):
            return node.this if own == target else node
        if own in _NUMBERS and target in _NUMBERS:
            if own in _INTEGERS and target in _INTEGERS:
                inner = node.this if isinstance(node, exp.Cast) else node
                number = isinstance(inner, exp.Literal) and not inner.is_string
                if integers == "plain" and number:
                    return inner
                if integers == "widen" and _NUMBERS.index(own) < _NUMBERS.index(target):
                    return _cast(node, target)
            elif _NUMBERS.index(own) < _NUMBERS.index(target) and own != "real":
                return _cast(node, target)
        elif own == "character" and target == "text":
            return _cast(node, target)
        return node

    def list(self, nodes: Sequence[exp.Expr]) -> list[exp.Expr]:
        """Values of one type: ARRAY[...], COALESCE, the results of CASE."""
        target = _base(_common([_type(each) for each in _typed(nodes)]))
        if target in _NUMBERS:
            return [
                each
                if _is_bare(each) or _base(_type(each)) == target
                else _cast(each, target)
                for each in (self.coerce(each, target) for each in nodes)
            ]
        return [self.coerce(each, target) for each in nodes]

    def case(self, node: exp.Case) -> None:
        branches = node.args["ifs"]
        results = self.list(
            [*(each.args["true"] for each in branches), node.args["default"]]
        )
        for branch, result in zip(branches, results, strict=False):
            branch.set("true", result)
        node.set("default", results[-1])
        if node.this:
            for branch in branches:
                pair = self.pair(node.this.copy(), branch.this, integers="plain")
                branch.set("this", pair[1])


def _settle_cast(node: exp.Expr) -> exp.Expr:
    """Drop a cast that changes nothing; write a constant in one way."""
    inner, target = node.this, _cast_type(node)
    if _is_string(inner):
        return _settle_string(node, inner.name, target)
    if isinstance(inner, exp.Array) and inner.expressions and _element(target):
        # ARRAY[...]::text[] casts each of the elements
        element = _element(target) or ""
        if not inner.find(exp.Select):
            return exp.Array(
                expressions=[_cast(each, element) for each in inner.expressions]
            )
    if (
        target in _NUMBERS
        and isinstance(inner, exp.Cast)
        and isinstance(inner.this, exp.Literal)
        and _cast_type(inner) in _INTEGERS
    ):
        # 1::bigint::numeric is 1::numeric
        return _cast(inner.this, target)
    own = _type(inner)
    # varchar and text are stored alike: PostgreSQL relabels, for want of operators
    relabeled = _base(own) == _base(target) and target == re.sub(r"\(.*?\)", "", target)
    if own is not None and (
        own == target or (relabeled and _base(own) in {"text", "text[]"})
    ):
        result: exp.Expr = inner
        return result
    return node


def _settle_string(node: exp.Expr, text: str, target: str) -> exp.Expr:
    """``'...'::type`` as the type's output function writes it, as far as known."""
    if target == "character varying":
        return _cast(exp.Literal.string(text), "text")
    if target == "boolean":
        value = text.strip().lower()
        for spelling, result in (
            ("true", True),
            ("yes", True),
            ("false", False),
            ("no", False),
        ):
            if value and spelling.startswith(value):
                return exp.Boolean(this=result)
        words = {"on": True, "1": True, "off": False, "of": False, "0": False}
        return exp.Boolean(this=words[value]) if value in words else node
    if target in _NUMBERS and re.fullmatch(r"\s*[-+]?\d+(\.\d+)?\s*", text):
        number = Decimal(text.strip())
        if target in _INTEGERS and "." in text:
            return node
        return _cast(_number(number), target)
    write = _OUTPUT.get(target)
    if write is not None:
        try:
            written = write(text.strip())
        except ValueError:
            written = None
        if written is not None:
            node.set("this", exp.Literal.string(written))
    return node


_DATE = r"(\d{4})-(\d{1,2})-(\d{1,2})"


_TIME = r"(\d{1,2}):(\d{2})(?::(\d{2})(\.\d{1,6})?)?"


def _date(text: str) -> str | None:
    match = re.fullmatch(_DATE, text)
    return datetime.date(*map(int, match.groups())).isoformat() if match else None


def _clock(groups: Sequence[str | None]) -> datetime.time:
    hour, minute, second, fraction = groups
    microsecond = int(Decimal(fraction or 0) * 1_000_000)
    return datetime.time(
        int(hour or 0), int(minute or 0), int(second or 0), microsecond
    )


def _time(text: str) -> str | None:
    match = re.fullmatch(_TIME, text)
    return _clock(match.groups()).isoformat() if match else None


def _timestamp(text: str) -> datetime.datetime | None:
    match = re.fullmatch(f"{_DATE}(?:[ T]{_TIME})?", text)
    if match is None:
        return None
    day = datetime.date(*map(int, match.groups()[:3]))
    return datetime.datetime.combine(day, _clock(match.groups()[3:]))


def _timestamptz(text: str) -> str | None:
    # Without an offset the session's time zone decides, which is not known here.
    match = re.fullmatch(r"(.*\d)\s*(?:([-+])(\d{2})(?::?(\d{2}))?|Z|UTC)", text)
    value = _timestamp(match[1]) if match and ":" in match[1] else None
    if match is None or value is None:
        return None
    offset = datetime.timedelta(hours=int(match[3] or 0), minutes=int(match[4] or 0))
    return str(value + offset if match[2] == "-" else value - offset) + "+00"


def _interval(text: str) -> str | None:
    units: dict[str, tuple[int, int, int]] = {
        "y(?:ea)?rs?|years?|y": (12, 0, 0),
        "mons?|months?": (1, 0, 0),
        "weeks?|w": (0, 7, 0),
        "days?|d": (0, 1, 0),
        "hours?|hrs?|h": (0, 0, 3600),
        "minutes?|mins?": (0, 0, 60),
        "seconds?|secs?|s": (0, 0, 1),
    }
    months, days, seconds = 0, 0, Decimal(0)
    rest = text.strip().lower()
    while rest:
        clock = re.match(
            r"([-+]?)(\d+):(\d{2})(?::(\d{2}(?:\.\d{1,6})?))?(?:\s+|$)", rest
        )
        if clock is not None:
            part = int(clock[2]) * 3600 + int(clock[3]) * 60 + Decimal(clock[4] or 0)
            seconds += -part if clock[1] == "-" else part
            rest = rest[clock.end() :]
            continue
        for names, unit in units.items():
            match = re.match(rf"([-+]?\d+)\s*(?:{names})(?:\s+|$)", rest)
            if match is not None:
                months += int(match[1]) * unit[0]
                days += int(match[1]) * unit[1]
                seconds += int(match[1]) * unit[2]
                rest = rest[match.end() :]
                break
        else:
            return None
    return f"{months} mons {days} days {seconds.normalize():f} secs"


def _jsonb(text: str) -> str:
    # A number keeps its digits (1.0 is not printed as 1); a string has no NUL.
    def number(digits: str) -> str:
        return f"\0{Decimal(digits):f}"

    def refuse(name: str) -> Any:
        raise ValueError(name)

    value = json.loads(text, parse_float=number, parse_constant=refuse)
    return json.dumps(value, sort_keys=True)


#: How constants of a type are written; a wrong value is left as it is.
_OUTPUT: dict[str, Callable[[str], str | None]] = {
    "date": _date,
    "interval": _interval,
    "jsonb": _jsonb,
    "time without time zone": _time,
    "timestamp with time zone": _timestamptz,
    "timestamp without time zone": lambda text: str(_timestamp(text) or "") or None,
    "uuid": lambda text: str(UUID(text)),
}
