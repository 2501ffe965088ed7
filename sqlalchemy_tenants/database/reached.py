"""What the current role can use in the database: relations, and functions that run
with the rights of their owner; and the SQL that tries them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from ..policies import quote_literal, quote_name, quote_qualified
from ..scope import execute_text
from .catalog import _FIRST_OID, _USER_SCHEMAS

_OWN_OBJECTS = """{object}.oid >= {first} AND {schemas}
    AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend d
        WHERE d.classid = 'pg_catalog.{catalog}'::regclass AND d.objid = {object}.oid
        AND d.deptype = 'e')"""


def _own(object_: str, catalog: str) -> str:
    return _OWN_OBJECTS.format(
        object=object_, catalog=catalog, first=_FIRST_OID, schemas=_USER_SCHEMAS
    )


def _columns(privilege: str, condition: str = "true") -> str:
    return f"""ARRAY(
        SELECT a.attname::text FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        AND pg_catalog.has_column_privilege(c.oid, a.attnum, '{privilege}')
        AND {condition} ORDER BY a.attnum)"""


_WRITABLE = "a.attgenerated = '' AND a.attidentity <> 'a'"

_RELATIONS = f"""
    WITH RECURSIVE heirs AS (
        SELECT inhrelid AS heir, inhparent AS parent FROM pg_catalog.pg_inherits
        UNION SELECT i.inhrelid, heirs.parent
        FROM heirs JOIN pg_catalog.pg_inherits i ON i.inhparent = heirs.heir
    ), below AS (
        SELECT heir AS lower, parent AS upper FROM heirs
        UNION SELECT d.refobjid, w.ev_class
        FROM pg_catalog.pg_rewrite w
        JOIN pg_catalog.pg_depend d ON d.objid = w.oid
            AND d.classid = 'pg_catalog.pg_rewrite'::regclass
            AND d.refclassid = 'pg_catalog.pg_class'::regclass
        WHERE w.ev_type = '1'
    ), under AS (
        SELECT lower, upper FROM below
        UNION SELECT below.lower, under.upper
        FROM under JOIN below ON below.upper = under.lower
    )
    SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text,
        pg_catalog.pg_has_role(c.relowner, 'USAGE'),
        pg_catalog.has_table_privilege(c.oid, 'DELETE'),
        pg_catalog.has_table_privilege(c.oid, 'TRUNCATE'),
        {_columns("SELECT")},
        {_columns("UPDATE", _WRITABLE)},
        {_columns("INSERT", _WRITABLE)},
        {_columns("INSERT", _WRITABLE + " AND a.attidentity = '' AND NOT a.atthasdef")},
        ARRAY(
            SELECT ARRAY[pn.nspname::text, p.relname::text] FROM heirs
            JOIN pg_catalog.pg_class p ON p.oid = heirs.parent
            JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
            WHERE heirs.heir = c.oid),
        ARRAY(SELECT lower FROM under WHERE upper = c.oid)
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND {_own("c", "pg_class")}
    AND (pg_catalog.has_table_privilege(c.oid, 'DELETE, TRUNCATE')
        OR pg_catalog.has_any_column_privilege(c.oid, 'SELECT, INSERT, UPDATE'))
    ORDER BY 2, 3
"""

# They need no argument.
_DEFINERS = f"""
    SELECT n.nspname::text, p.proname::text, p.prokind = 'f'
    FROM pg_catalog.pg_proc p
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE p.prosecdef AND p.prokind IN ('f', 'p') AND p.pronargs = p.pronargdefaults
    AND p.prorettype NOT IN (
        'pg_catalog.trigger'::regtype, 'pg_catalog.event_trigger'::regtype)
    AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE')
    AND {_own("p", "pg_proc")}
    ORDER BY 1, 2
"""

# In the FROM of a function that returns no row type, it names the column.
_ALIAS = '"sqlalchemy_tenants row"'


@dataclass(frozen=True)
class Relation:
    """A table, view, materialized view or foreign table that a role can use.

    :param kind: as in ``pg_class.relkind``.
    :param is_owned: whether the role owns it.
    :param readable: columns that it may select; the others likewise.
    :param needed: columns to insert that get no value by themselves.
    :param parents: schema and name of what it is a partition or an heir of.
    :param beneath: OIDs of its own partitions and heirs, and of what a view reads.
    """

    oid: int
    schema: str
    name: str
    kind: str
    is_owned: bool
    may_delete: bool
    may_truncate: bool
    readable: list[str]
    updatable: list[str]
    insertable: list[str]
    needed: list[str]
    parents: list[list[str]]
    beneath: list[int]

    def __str__(self) -> str:
        return quote_qualified(self.schema, self.name)

    @property
    def lineage(self) -> list[tuple[str, str]]:
        """Itself, and what it is a partition or an heir of."""
        return [
            (self.schema, self.name),
            *((each[0], each[1]) for each in self.parents),
        ]

    @property
    def may(self) -> str:
        """The privileges of the role."""
        privileges = {
            "SELECT": self.readable,
            "INSERT": self.insertable,
            "UPDATE": self.updatable,
            "DELETE": self.may_delete,
        }
        return ", ".join(name for name, has in privileges.items() if has)

    def look(self, column: str | None, tenant: str) -> str:
        """Return a query of the number of rows, a sum over all they hold, and how many
        of them are not the tenant's.

        :param column: the tenant column, if there is one.
        """
        others = "0"
        if column in self.readable:
            others = f"count(*) FILTER (WHERE ({_is_of(column, tenant)}) IS NOT TRUE)"
        return _digest(self._row, others, str(self))

    def look_at_own(self, column: str, tenant: str) -> str:
        """Return such a query of the tenant's rows alone."""
        return _digest(self._row, "0", f"{self} WHERE {_is_of(column, tenant)}")

    @property
    def _row(self) -> str:
        return f"ROW({', '.join(map(quote_name, self.readable))})"

    def delete(self) -> str:
        """Return what deletes all rows, without reading one: then only policies for
        ``DELETE`` apply."""
        return f"DELETE FROM {self}"

    def updates(self, column: str | None, tenant: str) -> Iterator[str]:
        """Yield what updates all rows, the best first: the new row is the tenant's, so
        that no check of the new row stops it, and nothing is read."""
        columns = [each for each in self.updatable if each != column]
        if column in self.updatable:
            yield self.give(column, tenant)
        values = ("DEFAULT", None)
        for value in values:
            for each in columns:
                name = quote_name(each)
                yield f"UPDATE {self} SET {name} = {value or name}"

    def give(self, column: str, tenant: str) -> str:
        """Return what makes all rows those of a tenant."""
        return f"UPDATE {self} SET {quote_name(column)} = {quote_literal(tenant)}"

    def insert(self, column: str, tenant: str, source: str | None) -> str:
        """Return what adds a row of a tenant.

        :param source: the tenant that has a row to copy; ``None`` for an empty one.
        """
        name, value = quote_name(column), quote_literal(tenant)
        if source is None or column not in self.readable:
            return f"INSERT INTO {self} ({name}) VALUES ({value})"
        copied = [
            quote_name(each)
            for each in self.needed
            if each != column and each in self.readable
        ]
        return (
            f"INSERT INTO {self} ({', '.join([name, *copied])})"
            f" SELECT {', '.join([value, *copied])} FROM {self}"
            f" WHERE {_is_of(column, source)} LIMIT 1"
        )


@dataclass(frozen=True)
class Function:
    """A function or procedure that runs with the rights of its owner.

    :param returns: it is a function.
    """

    schema: str
    name: str
    returns: bool

    def __str__(self) -> str:
        return quote_qualified(self.schema, self.name) + "()"

    def look(self, column: str | None, tenant: str) -> str:
        """See :meth:`Relation.look`."""
        return _digest(_ALIAS, "0", f"{self} AS {_ALIAS}")

    def call(self) -> str:
        """Return what calls a procedure."""
        return f"CALL {self}"


def _is_of(column: str, tenant: str) -> str:
    return f'{quote_name(column)}::text COLLATE "C" = {quote_literal(tenant)}'


def _digest(row: str, others: str, source: str) -> str:
    total = f"pg_catalog.sum(pg_catalog.hashtextextended({row}::text, 0))"
    return f"SELECT count(*), coalesce({total}, 0)::text, {others} FROM {source}"


def read_reached(connection: Connection) -> list[Relation | Function]:
    """Return what the current role can use."""
    found: list[Relation | Function] = []
    for kind, query in ((Relation, _RELATIONS), (Function, _DEFINERS)):
        rows: list[Any] = list(execute_text(connection, query))
        found += [kind(*row) for row in rows]
    return found
