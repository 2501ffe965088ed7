"""Ours, installed and switched off in env.py."""

from __future__ import annotations

from typing import Any

from . import ours


def options(count: int) -> dict[str, Any]:
    plugins = ["alembic.autogenerate.*", "~alembic.autogenerate.tenants"]
    return {**ours.options(count), "autogenerate_plugins": plugins}
