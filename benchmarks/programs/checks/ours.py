"""Ours, as the README has it: nothing in env.py."""

from __future__ import annotations

from typing import Any

from tables import Base, create_models

from sqlalchemy_tenants import with_rls


def options(count: int) -> dict[str, Any]:
    create_models(count, with_rls)
    return {"target_metadata": Base.metadata}
