"""rls 0.3.2, as its README has it."""

from __future__ import annotations

from typing import Any

from rls.alembic_rls import set_metadata_info
from rls.schemas import Command, ConditionArg, Permissive
from sqlalchemy import Text, column
from tables import Base, create_models


def options(count: int) -> dict[str, Any]:
    # with String it finds all policies different, whose VARCHAR PostgreSQL prints as
    # "character varying"
    policy = Permissive(
        condition_args=[ConditionArg(comparator_name="tenant", type=Text)],
        cmd=[Command.all],
        custom_expr=lambda tenant: column("tenant") == tenant,
        custom_policy_name="tenant",
    )
    create_models(count, __rls_policies__=[policy])
    return {"target_metadata": set_metadata_info(Base).metadata}
