"""Entry point ``alembic.plugins``: registers operations, renderers and comparators.

The entry point is named ``alembic.autogenerate.tenants``, so that Alembic's default
``autogenerate_plugins=["alembic.autogenerate.*"]`` includes it, and
``"~alembic.autogenerate.tenants"`` switches it off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alembic.runtime.plugins import Plugin


def setup(plugin: Plugin) -> None:
    """Register everything; called once by Alembic, while it is imported."""
    # here, and not above: Alembic loads this module halfway through its own import
    from . import compare, ops, render  # noqa: F401

    compare.setup(plugin)
