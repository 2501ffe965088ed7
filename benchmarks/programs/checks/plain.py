"""Plain Alembic."""

from __future__ import annotations

from typing import Any

from tables import Base, create_models


def options(count: int) -> dict[str, Any]:
    create_models(count)
    return {"target_metadata": Base.metadata}
