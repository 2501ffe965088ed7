"""What ``alembic revision --autogenerate`` and ``alembic upgrade head`` do together."""

from __future__ import annotations

from typing import Any

from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.operations.ops import OpContainer
from sqlalchemy import Connection, MetaData


def migrate(connection: Connection, metadata: MetaData, directives: Any = None) -> None:
    """Make the database what ``metadata`` says.

    :param directives: ``process_revision_directives`` of an env.py.
    """
    # as env.py's configure() has it, which alembic_utils looks for
    opts = {"include_schemas": False}
    context = MigrationContext.configure(connection, opts=opts)
    operations = Operations(context)

    def invoke(operation: Any) -> None:
        if isinstance(operation, OpContainer):
            for each in operation.ops:
                invoke(each)
        else:
            operations.invoke(operation)

    script = produce_migrations(context, metadata)
    if directives is not None:
        directives(context, None, [script])
    invoke(script.upgrade_ops)
