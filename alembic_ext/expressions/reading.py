"""Reading: the text of an expression to a tree of sqlglot."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

from sqlglot import ErrorLevel, TokenType, exp
from sqlglot.dialects.postgres import Postgres
from sqlglot.errors import SqlglotError
from sqlglot.parsers.postgres import PostgresParser

from .tree import ExpressionError, _is_string

_LEXEME = re.compile(
    r"""
    (?P<space>     \s+ | --[^\r\n]* )
  | (?P<comment>   /\* )
  | (?P<escape>    [eE]'(?:[^'\\]|\\.|'')*' )
  | (?P<refused>   [uU]&['"] | [bBxXnN]' | [$]\d | \d[\w$]*[g-zG-Z_$] )
  | (?P<string>    '(?:[^']|'')*' )
  | (?P<dollar>    [$](?P<tag>(?:[^\W\d]\w*)?)[$].*?[$](?P=tag)[$] )
  | (?P<quoted>    "(?:[^"]|"")+" )
  | (?P<number>    (?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]) )
  | (?P<word>      [^\W\d][\w$]* )
  | (?P<operator>  [-+*/<>=~!@\#%^&|`?]+ )
  | (?P<mark>      ::|:=|[(),.;:\[\]] )
    """,
    re.VERBOSE | re.DOTALL,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


class _Lexeme(NamedTuple):
    kind: str
    value: str

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and self.value in words

    def is_mark(self, mark: str) -> bool:
        return self.kind == "mark" and self.value == mark


#: Words with a meaning that is read here; all others are ordinary names.  sqlglot would
#: give a meaning to many of them (those of other dialects) that PostgreSQL does not.
_KEYWORDS = _words(
    """
    all and any array as asc asymmetric between both case collate cross desc
    distinct else end escape false for from full group having ilike in inner is
    isnull join leading left like limit not notnull null offset on or order outer
    placing right select similar symmetric then to trailing true when where
    """
)


#: Reserved words that are not read: they cannot be names.
_RESERVED = _words(
    """
    analyse analyze authorization binary check collation column concurrently constraint
    create default deferrable do except fetch foreign freeze grant initially intersect
    into lateral natural only overlaps primary references returning table tablesample
    union unique using variadic verbose window with
    """
)


#: Read as keywords only in front of a parenthesis; columns may carry these names.
_CALLED_KEYWORDS = _words("cast exists extract overlay position substring trim")


#: Functions that are called without parentheses.
_VALUE_KEYWORDS = _words(
    """
    current_catalog current_date current_role current_schema current_time
    current_timestamp current_user localtime localtimestamp session_user
    system_user user
    """
)


#: Operators with a precedence of their own; ``=>`` names an argument.
_PLAIN_OPERATORS = _words("+ - * / % ^ < > = <= >= <> != =>")


def _lexemes(text: str) -> Iterator[_Lexeme]:
    """Split SQL text by PostgreSQL's rules, without white space and comments."""
    position = 0
    while position < len(text):
        match = _LEXEME.match(text, position)
        if match is None or match.lastgroup == "refused" or match["refused"]:
            raise ExpressionError(text, f"at {text[position : position + 20]!r}")
        value, kind = match[0], match.lastgroup or ""
        if kind == "comment":
            position = _end_of_comment(text, position)
            continue
        if kind == "operator":
            value = _operator(value)
        position += len(value)
        if kind == "string":
            yield _Lexeme("string", value[1:-1].replace("''", "'"))
        elif kind == "escape":
            yield _Lexeme("string", _unescape(value[2:-1], text))
        elif match["dollar"]:
            width = len(match["tag"]) + 2
            yield _Lexeme("string", value[width:-width])
        elif kind == "quoted":
            yield _Lexeme("quoted", value[1:-1].replace('""', '"'))
        elif kind == "word":
            # PostgreSQL folds ASCII only, in a multibyte encoding.
            fold = re.compile("[A-Z]+")
            yield _Lexeme("word", fold.sub(lambda match: match[0].lower(), value))
        elif kind != "space":
            yield _Lexeme(kind, value)


def _end_of_comment(text: str, start: int) -> int:
    """Block comments nest."""
    depth = 0
    for match in re.compile(r"/\*|\*/").finditer(text, start):
        depth += 1 if match[0] == "/*" else -1
        if depth == 0:
            return match.end()
    raise ExpressionError(text, "unterminated comment")


def _operator(run: str) -> str:
    """The first operator of a run of operator characters (``=-1`` is ``=``, ``-1``)."""
    run = re.split(r"--|/\*", run)[0]
    while len(run) > 1 and run[-1] in "+-" and not set(run) & set("~!@#%^&|`?"):
        run = run[:-1]
    return run


def _unescape(body: str, text: str) -> str:
    """The value of an ``E''`` string."""

    def replace(match: re.Match[str]) -> str:
        code = match[1]
        if code is None:
            return "'"
        if code[0].isdigit() or len(code) > 1:
            number = int(code, 8) if code[0].isdigit() else int(code[1:], 16)
            plain = range(1, 0xD800 if code[0] in "uU" else 128)
            if number not in plain:
                raise ExpressionError(text, "bytes or surrogates in a string")
            return chr(number)
        return {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}.get(code, code)

    codes = "u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{1,2}|[0-7]{1,3}|[^89]"
    return re.sub(rf"''|\\({codes})", replace, body)


def _plain_text(text: str) -> list[_Lexeme] | str:
    """What is compared where there is no tree: the text but for white space."""
    try:
        return list(_lexemes(text))
    except ExpressionError:
        return text.strip()


_TYPE_NAMES = {
    "bool": "boolean",
    "char": "character",
    "dec": "numeric",
    "decimal": "numeric",
    "double": "double precision",
    "float": "double precision",
    "float4": "real",
    "float8": "double precision",
    "int": "integer",
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "timestamptz": "timestamp with time zone",
    "timetz": "time with time zone",
    "varbit": "bit varying",
    "varchar": "character varying",
}


class _Reader:
    """Turn lexemes into text in which sqlglot has nothing left to misread.

    Strings, names, types and operators become quoted placeholders, so that sqlglot only
    decides on structure.  Otherwise it merges functions that differ, translates types,
    formats and JSON paths of other dialects, and knows neither PostgreSQL's operator
    names nor their precedence.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.lexemes = list(_lexemes(text))
        self.position = 0
        self.parentheses: list[bool] = []  # the open ones: is it CAST's?
        self.values: list[str] = []
        self.modifiers = 0  # numbers that are part of a type's name
        self.found: set[str] = set()  # the placeholders that are in the tree

    def tree(self) -> exp.Expr:
        """:raises ExpressionError: not of a form that is known here."""
        sql = " ".join(self.words())
        try:
            parser = _Parser(error_level=ErrorLevel.IMMEDIATE, dialect=Postgres())
            parsed = parser.parse_into(exp.Condition, Postgres().tokenize(sql), sql)
        except SqlglotError as error:
            raise ExpressionError(self.text, "not parsed by sqlglot") from error
        if len(parsed) != 1 or parsed[0] is None:
            raise ExpressionError(self.text, "not one expression")
        tree: exp.Expr = parsed[0]
        for node in tree.walk():
            arguments = {name for name, value in node.args.items() if value}
            known = _KNOWN.get(type(node))
            if known is None or not arguments <= known:
                raise ExpressionError(self.text, f"{type(node).__name__} is not known")
            if isinstance(node, exp.Alias) and not isinstance(node.parent, exp.Select):
                raise ExpressionError(self.text, "a name where none can be")
        for node in tree.walk():
            name = node.args.get("this")
            if isinstance(node, exp.Identifier):
                node.set("this", self.value(node.name))
                node.set("quoted", True)
            elif isinstance(node, exp.Literal) and node.is_string:
                node.set("this", self.value(node.name))
            elif isinstance(node, exp.Operator):
                node.set("operator", self.value(node.args["operator"]))
            elif isinstance(node, exp.Var):
                node.set("this", self.value(node.name))
            elif isinstance(node, exp.Anonymous) and isinstance(name, str):
                node.set("this", name.upper())
        # Nothing may be lost: sqlglot up to 30.12 reads ((SELECT 1), 2) as (SELECT 1).
        constants = sum(
            each.kind == "number" or each.is_word("true", "false", "null")
            for each in self.lexemes
        )
        kept = sum(
            isinstance(node, (exp.Boolean, exp.Literal, exp.Null))
            and not _is_string(node)
            for node in tree.walk()
        )
        if len(self.found) < len(self.values) or kept < constants - self.modifiers:
            raise ExpressionError(self.text, "sqlglot lost a part of it")
        return tree

    def hold(self, value: str) -> str:
        self.values.append(value)
        return f"v{len(self.values) - 1}"

    def value(self, placeholder: str) -> str:
        if not re.fullmatch(r"v\d+", placeholder):
            raise ExpressionError(self.text, f"{placeholder!r} is no name")
        self.found.add(placeholder)
        return self.values[int(placeholder[1:])]

    def peek(self, offset: int = 0) -> _Lexeme:
        index = self.position + offset
        return self.lexemes[index] if index < len(self.lexemes) else _Lexeme("", "")

    def next(self) -> _Lexeme:
        lexeme = self.peek()
        if not lexeme.kind:
            raise ExpressionError(self.text, "ends too early")
        self.position += 1
        return lexeme

    def words(self) -> Iterator[str]:
        before = _Lexeme("", "")
        while self.peek().kind:
            lexeme = self.next()
            follows = self.peek().value if self.peek().kind == "mark" else ""
            if lexeme.is_mark("("):
                self.parentheses.append(before.is_word("cast"))
                yield "("
            elif lexeme.is_mark(")"):
                if not self.parentheses:
                    raise ExpressionError(self.text, "unbalanced parentheses")
                self.parentheses.pop()
                yield ")"
            elif lexeme.is_mark("::") or (
                lexeme.is_word("as") and self.parentheses[-1:] == [True]
            ):
                yield f'{lexeme.value} "{self.hold(self.type_name())}"'
            elif lexeme.kind == "word":
                yield self.word(lexeme.value, before, follows)
            elif lexeme.kind == "quoted":
                yield f'"{self.hold(lexeme.value)}"'
            elif lexeme.kind == "string":
                if self.peek().kind == "string":
                    raise ExpressionError(self.text, "a string in two parts")
                yield f"'{self.hold(lexeme.value)}'"
            elif lexeme.kind == "operator" and lexeme.value not in _PLAIN_OPERATORS:
                yield f'OPERATOR("{self.hold(lexeme.value)}")'
            elif lexeme.value in {";", ":="}:
                raise ExpressionError(self.text, f"{lexeme.value} in an expression")
            else:
                yield lexeme.value
            before = lexeme
        if self.parentheses:
            raise ExpressionError(self.text, "unbalanced parentheses")

    def word(self, word: str, before: _Lexeme, follows: str) -> str:
        if before.is_mark(".") or follows == ".":
            return f'"{self.hold(word)}"'
        if word in _RESERVED:
            raise ExpressionError(self.text, f"{word.upper()} is not known")
        if word == "operator" and follows == "(":
            return f'OPERATOR("{self.hold(self.operator())}")'
        if word in _VALUE_KEYWORDS:
            return f'"{self.hold(word.upper())}"' + ("" if follows == "(" else "()")
        if word == "row" and follows == "(":
            return f'"{self.hold("ROW")}"'
        if word in {"left", "right"} and follows == "(":
            return f'"{self.hold(word)}"'  # the function, not the join
        if word == "some":
            return "any"
        if word == "extract" and follows == "(" and self.peek(1).kind != "string":
            self.next()
            self.parentheses.append(False)
            return f"extract('{self.hold(self.next().value)}'"
        if word == "unknown" and before.is_word("is", "not"):
            return "NULL"  # the same for a boolean, and only a boolean can be UNKNOWN
        if word == "by" and before.is_word("group", "order"):
            return word
        if (
            word == "at"
            and self.peek().is_word("time")
            and self.peek(1).is_word("zone")
        ):
            self.position += 2
            return "AT TIME ZONE"
        if word in _KEYWORDS or (word in _CALLED_KEYWORDS and follows == "("):
            return word
        # DATE '2020-01-01' is '2020-01-01'::date
        start, modifiers = self.position, self.modifiers
        self.position -= 1
        name = self.type_name()
        if self.peek().kind == "string":
            return f"'{self.hold(self.next().value)}' :: \"{self.hold(name)}\""
        self.position, self.modifiers = start, modifiers
        return f'"{self.hold(word)}"'

    def operator(self) -> str:
        """``OPERATOR(pg_catalog.=)``; the schema of the built-in ones is left out."""
        parts = []
        self.next()
        while not self.peek().is_mark(")"):
            parts.append(self.next().value)
        self.next()
        return "".join(parts).removeprefix("pg_catalog.")

    def type_name(self) -> str:
        """Read the name of a type; give it as ``format_type`` does."""
        lexeme = self.next()
        name = lexeme.value
        if lexeme.kind not in {"word", "quoted"}:
            raise ExpressionError(self.text, "a type was expected")
        if not re.fullmatch("[a-z_][a-z0-9_]*", name):
            name = f'"{name}"'
        elif lexeme == ("quoted", "char"):
            name = '"char"'  # a type of its own
        if self.peek().is_mark("."):
            self.next()
            rest = self.type_name()
            return rest if name == "pg_catalog" else f"{name}.{rest}"
        if lexeme.kind == "word":
            name = self.type_words(name)
        array = self.peek().is_word("array")
        self.position += array
        # PostgreSQL does not tell int[] and int[][] apart.
        while self.peek().is_mark("[") and self.peek(1).is_mark("]"):
            self.position += 2
            array = True
        return f"{name}[]" if array else name

    def type_words(self, word: str) -> str:
        name = _TYPE_NAMES.get(word, word)
        if word == "double" and self.next() != ("word", "precision"):
            raise ExpressionError(self.text, "a type was expected")
        if word in {"character", "char", "bit"} and self.peek().is_word("varying"):
            self.next()
            name = "bit varying" if word == "bit" else "character varying"
        modifier = ""
        if self.peek().is_mark("(") and self.peek(1).kind == "number":
            while not modifier.endswith(")"):
                self.modifiers += self.peek().kind == "number"
                modifier += self.next().value
        elif name in {"character", "bit"}:
            modifier = "(1)"
        if word == "float" and modifier:
            raise ExpressionError(self.text, "float with a precision")
        if word in {"time", "timestamp"}:
            zone = self.peek().is_word("with")
            if zone or self.peek().is_word("without"):
                if not (self.peek(1).is_word("time") and self.peek(2).is_word("zone")):
                    raise ExpressionError(self.text, "a type was expected")
                self.position += 3
            return f"{word}{modifier} with{'' if zone else 'out'} time zone"
        head, _, tail = name.partition(" with ")
        return f"{head}{modifier} with {tail}" if tail else f"{name}{modifier}"


#: PostgreSQL's precedence, from low to high.  That of sqlglot differs, and has changed
#: between its versions: ``a = b IS NULL`` must never be read as ``a = (b IS NULL)``.
_OR, _AND, _NOT, _IS, _COMPARISON, _RANGE, _OPERATOR = range(1, 8)


_TERM, _FACTOR, _POWER, _ZONE, _COLLATE, _SIGN = range(8, 14)


_BINARY: dict[TokenType, tuple[int, type[exp.Expr]]] = {
    TokenType.OR: (_OR, exp.Or),
    TokenType.AND: (_AND, exp.And),
    TokenType.EQ: (_COMPARISON, exp.EQ),
    TokenType.NEQ: (_COMPARISON, exp.NEQ),
    TokenType.LT: (_COMPARISON, exp.LT),
    TokenType.LTE: (_COMPARISON, exp.LTE),
    TokenType.GT: (_COMPARISON, exp.GT),
    TokenType.GTE: (_COMPARISON, exp.GTE),
    TokenType.PLUS: (_TERM, exp.Add),
    TokenType.DASH: (_TERM, exp.Sub),
    TokenType.STAR: (_FACTOR, exp.Mul),
    TokenType.SLASH: (_FACTOR, exp.Div),
    TokenType.MOD: (_FACTOR, exp.Mod),
    TokenType.CARET: (_POWER, exp.Pow),
}


_RANGES = {
    TokenType.LIKE: exp.Like,
    TokenType.ILIKE: exp.ILike,
    TokenType.SIMILAR_TO: exp.SimilarTo,
    TokenType.BETWEEN: exp.Between,
    TokenType.IN: exp.In,
}


class _Parser(PostgresParser):
    """sqlglot's parser, with PostgreSQL's operators and without what it translates."""

    # Every call stays exp.Anonymous: sqlglot makes one function of LENGTH and
    # CHAR_LENGTH, of SUBSTR and SUBSTRING, and it rewrites the formats of to_char().
    FUNCTIONS: ClassVar[dict[str, Any]] = {}
    FUNCTION_PARSERS: ClassVar[dict[str, Any]] = {
        name: PostgresParser.FUNCTION_PARSERS[name]
        for name in ("CAST", "EXTRACT", "OVERLAY", "POSITION", "SUBSTRING", "TRIM")
    }
    # f(a -> 'b') is no lambda, f(a => 1) is a named argument.
    LAMBDAS: ClassVar[dict[TokenType, Any]] = {
        TokenType.FARROW: PostgresParser.LAMBDAS[TokenType.FARROW]
    }
    COLUMN_OPERATORS: ClassVar[dict[TokenType, Any]] = {
        token: PostgresParser.COLUMN_OPERATORS[token]
        for token in (TokenType.DOT, TokenType.DCOLON)
    }

    def _parse_disjunction(self) -> exp.Expr | None:
        return self._operation(_OR)

    def _parse_bitwise(self) -> exp.Expr | None:
        return self._operation(_OPERATOR)

    def _operation(self, lowest: int) -> exp.Expr | None:
        """Operators down to this precedence; all of them associate to the left."""
        left = self._operand()
        while left is not None:
            more = self._continued(left, lowest)
            if more is None:
                break
            left = more
        return left

    def _required(self, lowest: int) -> exp.Expr:
        operand = self._operation(lowest)
        if operand is None:
            self.raise_error("an operand is missing")
        return operand or exp.Null()

    def _in_parentheses(self) -> exp.Expr:
        inside: exp.Expr | None = self._parse_paren()
        if inside is None:
            self.raise_error("a parenthesis is missing")
        return inside or exp.Null()

    def _operand(self) -> exp.Expr | None:
        if self._match(TokenType.NOT):
            return exp.Not(this=self._required(_NOT + 1))
        if self._match(TokenType.DASH):
            return exp.Neg(this=self._required(_SIGN + 1))
        if self._match(TokenType.PLUS):
            return self._required(_SIGN + 1)
        if self._match(TokenType.ANY):
            return exp.Any(this=self._in_parentheses())
        if self._match(TokenType.ALL):
            return exp.All(this=self._in_parentheses())
        operand: exp.Expr | None = self._parse_type()
        return operand

    def _continued(self, left: exp.Expr, lowest: int) -> exp.Expr | None:
        """The operator that follows, if any, applied to what was read."""
        token = self._curr.token_type if self._curr else None
        if token in _BINARY:
            level, node = _BINARY[token]
            if level < lowest:
                return None
            self._advance()
            return node(this=left, expression=self._required(level + 1))
        if lowest <= _OPERATOR and self._match(TokenType.OPERATOR):
            name = self._parse_wrapped(self._placeholder)
            right = self._required(_OPERATOR + 1)
            return exp.Operator(this=left, operator=name, expression=right)
        if lowest <= _RANGE:
            negate = token == TokenType.NOT
            after = self._next if negate else self._curr
            if after and after.token_type in _RANGES:
                self._advance(2 if negate else 1)
                return self._range(left, after.token_type, negate)
        if lowest <= _IS:
            if self._match(TokenType.ISNULL):
                return exp.Is(this=left, expression=exp.Null())
            if self._match(TokenType.NOTNULL):
                return exp.Is(this=left, expression=exp.Null(), negate=True)
            if self._match(TokenType.IS):
                return self._is(left)
        if lowest <= _ZONE and self._match_text_seq("AT", "TIME", "ZONE"):
            return exp.AtTimeZone(this=left, zone=self._required(_ZONE + 1))
        if lowest <= _COLLATE and self._match(TokenType.COLLATE):
            return exp.Collate(this=left, expression=self._parse_column())
        return None

    def _placeholder(self) -> str:
        self._advance()
        return self._prev.text

    def _range(self, left: exp.Expr, token: TokenType, negate: bool) -> exp.Expr:
        node: exp.Expr
        if token == TokenType.BETWEEN:
            symmetric = self._match_text_seq("SYMMETRIC")
            self._match_text_seq("ASYMMETRIC")
            low = self._required(_COMPARISON)
            if not self._match(TokenType.AND):
                self.raise_error("BETWEEN without AND")
            high = self._required(_RANGE + 1)
            node = exp.Between(this=left, low=low, high=high)
            node.set("symmetric", symmetric or None)
        elif token == TokenType.IN:
            values = self._in_parentheses()
            if isinstance(values, exp.Subquery):
                node = exp.In(this=left, query=values)
            elif isinstance(values, exp.Tuple):
                node = exp.In(this=left, expressions=values.expressions)
            else:
                node = exp.In(this=left, expressions=[values])
        else:
            node = _RANGES[token](this=left, expression=self._required(_RANGE + 1))
        # NOT BETWEEN is not the same as NOT ... BETWEEN, as PostgreSQL prints them.
        node.set("negate", negate or None)
        if token not in {TokenType.BETWEEN, TokenType.IN} and self._match(
            TokenType.ESCAPE
        ):
            return exp.Escape(this=node, expression=self._required(_RANGE + 1))
        return node

    def _is(self, left: exp.Expr) -> exp.Expr:
        negate = self._match(TokenType.NOT)
        if self._match_text_seq("DISTINCT", "FROM"):
            node = exp.NullSafeEQ if negate else exp.NullSafeNEQ
            return node(this=left, expression=self._required(_IS + 1))
        if self._match(TokenType.NULL):
            return exp.Is(this=left, expression=exp.Null(), negate=negate or None)
        if not self._match_set((TokenType.TRUE, TokenType.FALSE)):
            self.raise_error("IS something unknown")
        value = self._prev.token_type == TokenType.TRUE
        node_is = exp.Is(this=left, expression=exp.Boolean(this=value))
        return exp.Not(this=node_is) if negate else node_is


#: What may occur in a tree, by the arguments it may have.  sqlglot knows far more, and
#: what is not named here is refused.
_KNOWN: dict[type, set[str]] = {
    getattr(exp, name): set(arguments.split())
    for arguments, names in {
        "": "Null Star",
        "this": "All Any Boolean Exists From Having Neg Not Paren TableAlias Var Where",
        "this expression": "Add And Collate Dot EQ Escape Extract GT GTE Kwarg LT LTE "
        "Mod Mul NEQ NullSafeEQ NullSafeNEQ Or Pow Slice Sub Div",
        "expression": "Limit Offset",
        "expressions": "Array Distinct Group Order Tuple",
        "this expressions": "Anonymous Bracket",
        "this expression negate": "ILike Is Like SimilarTo",
        "this alias": "Alias",
        "this alias joins": "Subquery",
        "this db alias joins": "Table",
        "this desc nulls_first": "Ordered",
        "this expression from_ for_": "Overlay",
        "this expressions query negate": "In",
        "this ifs default": "Case",
        "this is_string": "Literal",
        "this kind": "DataType",
        "this low high symmetric negate": "Between",
        "this operator expression": "Operator",
        "this position expression": "Trim",
        "this quoted": "Identifier",
        "this side kind on": "Join",
        "this start length": "Substring",
        "this substr": "StrPosition",
        "this table db": "Column",
        "this to": "Cast",
        "this true": "If",
        "this zone": "AtTimeZone",
        "expressions distinct from_ joins where group having order limit offset": (
            "Select"
        ),
    }.items()
    for name in names.split()
}
