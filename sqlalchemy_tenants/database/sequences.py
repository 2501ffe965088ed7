"""Sequences that models name, as in ``Column(Sequence("order_seq"))``.

The sequence of a serial column belongs to the column, and is read with its table. One
that a model names is created by hand, and tenants need ``USAGE`` on it, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from json import loads
from typing import NamedTuple

from sqlalchemy import Connection, Sequence, Table, text

from .catalog import _USER_SCHEMAS, Grant, _as_grants, _grants


class SequenceState(NamedTuple):
    """A sequence that belongs to no column.

    :param is_administered: whether the current user has its owner's rights.
    """

    owner: str
    is_administered: bool
    grants: frozenset[Grant]


_SEQUENCES = text(
    f"""
    SELECT n.nspname, c.relname, pg_catalog.pg_get_userbyid(c.relowner),
        pg_catalog.pg_has_role(c.relowner, 'USAGE'), pg_catalog.array_to_json(
            ARRAY({_grants("c.relacl", "c.relowner")}))::text
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND {_USER_SCHEMAS}
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend d
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
        AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i'))
    """
)


def read_sequences(connection: Connection) -> dict[tuple[str, str], SequenceState]:
    """Read the sequences that belong to no column, by schema and name; one query."""
    return {
        (schema, name): SequenceState(owner, administered, _as_grants(loads(grants)))
        for schema, name, owner, administered, grants in connection.execute(_SEQUENCES)
    }


def named_sequences(table: Table, default_schema: str) -> Iterator[tuple[str, str]]:
    """Yield schema and name of the sequences that the columns of a table name."""
    for column in table.columns:
        if isinstance(column.default, Sequence):
            yield column.default.schema or default_schema, column.default.name
