"""Export: all rows of one tenant, as they were at one moment, into a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text

from ..arguments import require_flag, require_progress
from ..drivers.copying import copy_out
from ..scope import execute_text, quote
from ..tenancy import TenantId, tenant_text
from .archive import FileTable, Sink, Writer, require_free, writing
from .plan import (
    Plan,
    PlannedTable,
    acting,
    in_text,
    make_plan,
    require_metadata,
    require_role,
)
from .results import (
    Progress,
    RowCounts,
    RowsError,
    RowsProgress,
    explaining,
)

if TYPE_CHECKING:
    from ..managers import PostgresManager


def export_rows(
    manager: PostgresManager,
    tenant: TenantId,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    as_admin: bool = False,
    progress: Progress | None = None,
) -> RowCounts:
    """See :meth:`.PostgresManager.export_rows`."""
    metadata = require_metadata(manager.metadata, "export_rows")
    require_flag("overwrite", overwrite)
    require_flag("as_admin", as_admin)
    require_progress(progress)
    path = Path(path)
    require_free(path, overwrite)
    with (
        explaining("export", tenant),
        acting(manager, tenant, as_admin) as connection,
    ):
        if connection.in_nested_transaction():
            raise RowsError(
                "an export needs a transaction of its own, for one state of all "
                "tables; take the manager itself, not that of bound_to()",
                tenant=tenant,
            )
        # one state of the database for all tables; before anything has asked for rows
        execute_text(
            connection, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
        )
        plan = make_plan(
            connection, metadata, manager.tenancy, tenant, "SELECT", admin=as_admin
        )
        with writing(path, overwrite) as writer:
            counts = _export(connection, plan, tenant, writer, progress)
            if not counts.total:
                require_role(connection, tenant, manager)
        return counts


def _export(
    connection: Connection,
    plan: Plan,
    tenant: TenantId,
    writer: Writer,
    progress: Progress | None,
) -> RowCounts:
    tables = []
    for table in plan.tables:
        highest = _highest(connection, table)
        with writer.table() as sink:
            _copy(connection, table, sink, tenant, progress)
        tables.append(
            FileTable(
                name=table.name,
                tenant_column=table.mark.column,
                columns=tuple((each.name, each.type) for each in table.columns),
                rows=sink.rows,
                size=sink.size,
                sha256=sink.sha256,
                highest=highest,
            )
        )
        if progress is not None:
            progress(RowsProgress(table.name, sink.rows, sink.rows))
    version = execute_text(connection, "SHOW server_version_num").scalar_one()
    writer.finish(tenant_text(tenant), int(version), tables, plan.left_out)
    return RowCounts({table.name: table.rows for table in tables}, plan.left_out)


def _highest(connection: Connection, table: PlannedTable) -> dict[str, int]:
    """Return the highest value of each column that gets it from a sequence."""
    names = [column.name for column in table.columns if column.sequence is not None]
    if not names:
        return {}
    found = ", ".join(f"pg_catalog.max({in_text(quote(name))})" for name in names)
    query = f"SELECT {found} FROM {in_text(table.source)} WHERE {in_text(table.own)}"
    row = connection.execute(text(query)).one()
    return {
        name: int(value)
        for name, value in zip(names, row, strict=True)
        if value is not None
    }


def _copy(
    connection: Connection,
    table: PlannedTable,
    sink: Sink,
    tenant: TenantId,
    progress: Progress | None,
) -> None:
    names = ", ".join(quote(column.name) for column in table.columns)
    query = f"SELECT {names} FROM {table.source} WHERE {table.own}"
    told = 0
    failures: list[BaseException] = []

    def take(data: Any) -> None:
        nonlocal told
        try:
            sink.write(data)
            if progress is not None and sink.rows > told:
                told = sink.rows
                progress(RowsProgress(table.name, told, None))
        except BaseException as error:
            failures.append(error)
            raise

    try:
        copy_out(connection, query, take)
    except NotImplementedError as error:
        raise RowsError(str(error), tenant=tenant) from error
    except Exception as error:
        if failures:
            raise failures[0] from None  # not the driver's: of the disk, of progress
        # the driver's, and not wrapped by SQLAlchemy, which does not know of it
        raise RowsError(
            f"export of tenant {tenant!r}, table {table.name!r}: {error}; there is no "
            f"file",
            tenant=tenant,
        ) from error
