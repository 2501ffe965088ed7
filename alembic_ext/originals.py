"""Originals: what a revision keeps of policies that it drops or alters.

A downgrade restores them in a session of its own, with another search path perhaps. So
their conditions name everything in full, and a comment comes back, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from alembic.operations.ops import MigrateOperation
from sqlalchemy import text

from sqlalchemy_tenants.database.same import qualified_expressions

from . import ops
from .comparison import Comparison
from .order import flat

_COMMENTS = text(
    """
    SELECT n.nspname, c.relname, p.polname, d.description
    FROM pg_catalog.pg_description d
    JOIN pg_catalog.pg_policy p ON p.oid = d.objoid
    JOIN pg_catalog.pg_class c ON c.oid = p.polrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE d.classoid = 'pg_catalog.pg_policy'::regclass
    """
)


def keep_originals(
    comparison: Comparison, operations: Iterable[MigrateOperation]
) -> None:
    """Complete the operations on policies of the database; two queries, where there are
    any, and none otherwise."""
    operations = list(operations)
    found: dict[tuple[str, str, str], list[Any]] = {}
    for each in flat(operations):
        if isinstance(each, ops.DropPolicyOp | ops.AlterPolicyOp):
            name = (
                each.policy.name
                if isinstance(each, ops.DropPolicyOp)
                else each.policy_name
            )
            schema = each.schema or comparison.default_schema
            found.setdefault((schema, each.table_name, name), []).append(each)
    if not found:
        return
    texts = qualified_expressions(comparison.connection, found)
    for key, (using, with_check) in texts.items():
        for each in found[key]:
            if isinstance(each, ops.DropPolicyOp):
                each.policy = dataclasses.replace(
                    each.policy, using=using, with_check=with_check
                )
            else:
                each.existing_using = each.existing_using and using
                each.existing_with_check = each.existing_with_check and with_check
    comments = {
        (schema, table, policy): comment
        for schema, table, policy, comment in comparison.connection.execute(_COMMENTS)
    }
    for each in flat(operations) if comments else ():
        if isinstance(each, ops.DropPolicyOp | ops.CreatePolicyOp):
            schema = each.schema or comparison.default_schema
            each.comment = comments.get((schema, each.table_name, each.policy.name))
