"""Originals: what a revision keeps of policies that it drops or alters.

A downgrade restores them in a session of its own, with another search path perhaps. So
their conditions name everything in full, and a comment comes back, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from alembic.operations.ops import MigrateOperation

from sqlalchemy_tenants.database.same import read_originals

from . import ops
from .comparison import Comparison
from .order import flat


def keep_originals(
    comparison: Comparison, operations: Iterable[MigrateOperation]
) -> None:
    """Complete the operations on policies of the database; one query, where there are
    any, and none otherwise."""
    found: dict[tuple[str, str, str], list[Any]] = {}
    for each in flat(operations):
        if isinstance(each, ops.AlterPolicyOp):
            name = each.policy_name
        elif isinstance(each, ops.DropPolicyOp | ops.CreatePolicyOp):
            name = each.policy.name
        else:
            continue
        schema = each.schema or comparison.default_schema
        found.setdefault((schema, each.table_name, name), []).append(each)
    # one that is only created has no original
    wanted = [
        key
        for key, each in found.items()
        if not all(isinstance(op, ops.CreatePolicyOp) for op in each)
    ]
    if not wanted:
        return
    for key, original in read_originals(comparison.connection, wanted).items():
        for each in found[key]:
            if isinstance(each, ops.AlterPolicyOp):
                each.existing_using = each.existing_using and original.using
                each.existing_with_check = (
                    each.existing_with_check and original.with_check
                )
                continue
            each.comment = original.comment
            if isinstance(each, ops.DropPolicyOp):
                each.policy = dataclasses.replace(
                    each.policy, using=original.using, with_check=original.with_check
                )
