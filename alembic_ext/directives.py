"""``get_process_revision_directives``, for ``env.py`` files that have it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from alembic.operations import MigrationScript
from alembic.runtime.migration import MigrationContext
from sqlalchemy import MetaData

from sqlalchemy_tenants.declare import marks

_PLUGIN = "alembic.autogenerate.tenants"

# see .compare: a logger of another name would be disabled by env.py
_log = logging.getLogger(_PLUGIN)

Directive: TypeAlias = Callable[
    [
        MigrationContext,
        "str | Iterable[str | None] | Iterable[str]",
        "list[MigrationScript]",
    ],
    None,
]


def get_process_revision_directives(
    metadata: MetaData | Sequence[MetaData],
) -> Directive:
    """Return a hook for ``context.configure(process_revision_directives=...)``.

    It is not needed: the installed package compares by itself. In an ``env.py`` that
    has it, it adds nothing a second time, but warns where ``autogenerate_plugins``
    leaves the package out.

    :param metadata: one or more collections of models.
    :raises TypeError: for something else.
    """
    collections: list[Any] = [metadata]
    if isinstance(metadata, Iterable):
        collections = list(metadata)
    for each in collections:
        if not isinstance(each, MetaData):
            raise TypeError(
                f"get_process_revision_directives takes MetaData, as in "
                f"Base.metadata, or a list of them, not {each!r}"
            )

    def process_revision_directives(
        context: MigrationContext, revision: Any, directives: list[MigrationScript]
    ) -> None:
        plugins = context.opts.get("autogenerate_plugins")
        if plugins is None or not any(any(marks(each)) for each in collections):
            return
        if not any(
            name in ("alembic.autogenerate.*", _PLUGIN, "~" + _PLUGIN)
            for name in plugins
        ):
            _log.warning(
                "row-level security was not compared: add %r to autogenerate_plugins "
                "in env.py, or %r to say so on purpose",
                _PLUGIN,
                "~" + _PLUGIN,
            )

    return process_revision_directives
