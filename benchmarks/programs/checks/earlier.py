"""sqlalchemy-tenants 0.2.0, as its documentation has it."""

from __future__ import annotations

from typing import Any

from tables import Base, create_models

from sqlalchemy_tenants import get_process_revision_directives, with_rls


def options(count: int) -> dict[str, Any]:
    create_models(count, with_rls)
    return {
        "target_metadata": Base.metadata,
        "process_revision_directives": get_process_revision_directives(Base.metadata),
    }
