"""Names: the table that a column belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import NamedTuple

from sqlglot import exp

from .reading import _lexemes, _Reader
from .tree import ExpressionError, _replace_children, _unalias


class _Source(NamedTuple):
    """A table or derived table in FROM."""

    visible: str  # the name that qualifies its columns
    schema: str
    table: str  # empty for a derived table or a renamed one
    alias: str  # the name it gets here
    prefixes: Sequence[str]  # of the keys of its columns, as to their types


def _split_name(table: str) -> tuple[str, str]:
    """``schema.table``, names as they are or quoted as in SQL."""
    if '"' in table:
        names = ["", *(each.value for each in _lexemes(table) if each.kind != "mark")]
        return names[-2], names[-1]
    schema, _, name = table.rpartition(".")
    return schema, name


class _Names:
    """Write each column in one way: which names it carries says nothing.

    PostgreSQL prints columns of the policy's table bare at the top and qualified inside
    of a subselect, where it qualifies all columns, by an alias that it may have made up
    (``orders_1``).  Here tables in FROM are numbered, their columns always qualified,
    and those of the policy's table never.
    """

    def __init__(
        self,
        table: str | None,
        column_types: Mapping[str, str],
        default_schema: str | None,
    ) -> None:
        self.default_schema = default_schema or ""
        self.schema, self.table = _split_name(table or "")
        self.types = column_types
        self.numbers = count(1)

    def names(self, schema: str, name: str) -> list[str]:
        """The keys under which a table or function may have been given."""
        if schema not in {"", self.default_schema}:
            return [f"{schema}.{name}"]
        return [name, f"{self.default_schema}.{name}"]

    def type_of(self, keys: Iterable[str]) -> str | None:
        given = next((self.types[key] for key in keys if key in self.types), None)
        return _Reader(given).type_name() if given else None

    def resolve(self, node: exp.Expr, scopes: Sequence[list[_Source]] = ()) -> exp.Expr:
        if isinstance(node, exp.Select):
            return self.select(node, scopes)
        if isinstance(node, exp.Column):
            return self.column(node, scopes)
        if isinstance(node, exp.Anonymous):
            schema = node.parent.this.name if isinstance(node.parent, exp.Dot) else ""
            names = self.names(schema, node.name)
            node.meta["pg_type"] = self.type_of(f"{name}()" for name in names)
        return _replace_children(node, lambda child: self.resolve(child, scopes))

    def select(
        self,
        node: exp.Select,
        scopes: Sequence[list[_Source]],
        derived: bool = False,
    ) -> exp.Expr:
        sources: list[_Source] = []
        if node.args.get("from_"):
            first = node.args["from_"].this
            items = [first, *(join.this for join in node.args.get("joins") or [])]
            for item in items:
                self.source(item, sources, scopes)
        if not derived:
            # SELECT f() AS f: PostgreSQL names all columns, of which nobody asks.
            node.set("expressions", [_unalias(each) for each in node.expressions])
        return _replace_children(
            node, lambda child: self.in_select(child, (*scopes, sources))
        )

    def in_select(self, child: exp.Expr, scopes: Sequence[list[_Source]]) -> exp.Expr:
        if isinstance(child, exp.From):
            return child
        if isinstance(child, exp.Join):
            if child.args.get("on"):
                child.set("on", self.resolve(child.args["on"], scopes))
            return child
        return self.resolve(child, scopes)

    def source(
        self,
        item: exp.Expr,
        sources: list[_Source],
        scopes: Sequence[list[_Source]],
    ) -> None:
        alias = item.args.get("alias")
        name = f"t{next(self.numbers)}"
        if isinstance(item, exp.Table) and not item.args.get("joins"):
            schema, table = item.text("db"), item.name
            names = self.names(schema, table)
            own = names == self.names(self.schema, self.table)
            prefixes = [*([""] if own else []), *(f"{each}." for each in names)]
            visible = alias.name if alias else table
            source = _Source(visible, schema, "" if alias else table, name, prefixes)
            if schema == self.default_schema:
                item.set("db", None)
        elif isinstance(item, exp.Subquery) and isinstance(item.this, exp.Select):
            self.select(item.this, scopes, derived=True)
            source = _Source(alias.name if alias else "", "", "", name, [])
        else:
            raise ExpressionError(item.sql(), "not a table")
        sources.append(source)
        item.set("alias", exp.TableAlias(this=exp.to_identifier(name, quoted=True)))

    def column(self, node: exp.Column, scopes: Sequence[list[_Source]]) -> exp.Expr:
        source = self.owner(node, scopes)
        prefixes: Sequence[str] = ()
        if source is not None:
            node.set("table", exp.to_identifier(source.alias, quoted=True))
            node.set("db", None)
            prefixes = source.prefixes
        elif self.is_own(node):
            node.set("table", None)
            node.set("db", None)
            own = self.names(self.schema, self.table)
            prefixes = ["", *(f"{each}." for each in own)]
        node.meta["pg_type"] = self.type_of(f"{each}{node.name}" for each in prefixes)
        return node

    def is_own(self, node: exp.Column) -> bool:
        if not node.table:
            return True
        schemas = {"", self.schema or self.default_schema}
        return node.table == self.table and node.text("db") in schemas

    def has(self, source: _Source, column: str) -> bool:
        return any(f"{prefix}{column}" in self.types for prefix in source.prefixes)

    def is_known(self, source: _Source) -> bool:
        """Are the types, and so the names, of its columns given?"""
        return any(
            key.startswith(prefix) and "." not in key[len(prefix) :]
            for prefix in source.prefixes
            for key in self.types
            if not key.endswith("()")
        )

    def owner(
        self, node: exp.Column, scopes: Sequence[list[_Source]]
    ) -> _Source | None:
        """The table of a column, from the inside out; None is the policy's table.

        A bare name belongs to the innermost table that has such a column.  Where the
        columns are not known the innermost table is assumed: in what PostgreSQL printed
        no name is bare, and if it names a column of that table, the table has it.
        """
        for sources in reversed(scopes):
            if node.table:
                for source in sources:
                    schema = node.text("db")
                    if (not schema and source.visible == node.table) or (
                        schema and (source.schema, source.table) == (schema, node.table)
                    ):
                        return source
                continue
            known = [each for each in sources if self.has(each, node.name)]
            unknown = [each for each in sources if not self.is_known(each)]
            if len(known) == 1 or (not known and len(unknown) == 1):
                return (known or unknown)[0]
            if known or unknown:
                raise ExpressionError(node.name, "a column of one of several tables")
        return None
