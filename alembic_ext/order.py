"""Order: what has to stand before what in a migration. Pure functions.

Restrictive policies come first and go last, privileges come last and go first, so that
no prefix of a migration opens a table, also where each statement commits on its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from alembic.operations.ops import (
    AlterColumnOp,
    DropColumnOp,
    DropTableOp,
    MigrateOperation,
    ModifyTableOps,
)

from sqlalchemy_tenants.database.catalog import Dependency
from sqlalchemy_tenants.policies import Policy

from . import ops


def drop_key(policy: Policy) -> tuple[bool, str]:
    """Return the key that sorts policies in the order in which they are dropped."""
    return (not policy.permissive, policy.name)


def altered_columns(operations: Iterable[MigrateOperation]) -> set[str]:
    """Return the columns that get another type: no policy may mention them
    meanwhile."""
    return {
        op.column_name
        for op in operations
        if isinstance(op, AlterColumnOp) and op.modify_type is not None
    }


def dropped(
    operations: Iterable[MigrateOperation], default_schema: str
) -> set[Dependency]:
    """Return the tables and columns that are dropped."""
    found = set()
    for op in operations:
        if isinstance(op, DropTableOp):
            schema = op.schema or default_schema
            found.add(Dependency(schema, op.table_name, None))
        elif isinstance(op, ModifyTableOps):
            schema = op.schema or default_schema
            found |= {
                Dependency(schema, op.table_name, each.column_name)
                for each in op.ops
                if isinstance(each, DropColumnOp)
            }
    return found


def altered(
    operations: Iterable[MigrateOperation], default_schema: str
) -> set[Dependency]:
    """Return the columns that get another type: as with what is dropped, no policy may
    mention them meanwhile."""
    return {
        Dependency(op.schema or default_schema, op.table_name, column)
        for op in operations
        if isinstance(op, ModifyTableOps)
        for column in altered_columns(op.ops)
    }


def flat(operations: Iterable[Any]) -> Iterator[Any]:
    """Yield operations, and those within operations on tables, one by one."""
    for op in operations:
        if hasattr(op, "ops"):
            yield from flat(op.ops)
        else:
            yield op


def is_among(each: Dependency, found: set[Dependency]) -> bool:
    """Whether a column, or its whole table, is among those that were found."""
    return each in found or each._replace(column=None) in found


def outside_of_batches(
    operations: Iterable[MigrateOperation],
) -> Iterator[MigrateOperation]:
    """Split ``ModifyTableOps``, so that ours stand outside of ``batch_alter_table``.

    A batch executes its own operations when it ends, and would execute ours at once.
    """
    for op in operations:
        if not isinstance(op, ModifyTableOps):
            yield op
            continue
        segment: list[MigrateOperation] = []
        for inner in op.ops:
            if isinstance(inner, ops.TenancyOp):
                if segment:
                    yield ModifyTableOps(op.table_name, segment, schema=op.schema)
                    segment = []
                yield inner
            else:
                segment.append(inner)
        if segment:
            yield ModifyTableOps(op.table_name, segment, schema=op.schema)
