"""Removing: deletes the rows of one tenant, and the tenant with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

from .. import roles
from ..arguments import require_flag
from ..exceptions import TenantNotFound
from ..scope import execute_text
from ..tenancy import TenantId
from .plan import Plan, PlannedTable, in_text, make_plan, require_metadata
from .results import (
    Progress,
    RowCounts,
    RowsProgress,
    explaining,
    require_progress,
)

if TYPE_CHECKING:
    from ..managers import PostgresManager

# Waiting for a lock on a table makes all who come later wait, too.
_LOCK_TIMEOUT = "10s"


def delete_rows(
    manager: PostgresManager,
    tenant: TenantId,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> RowCounts:
    """See :meth:`.PostgresManager.delete_rows`."""
    metadata = require_metadata(manager.metadata, "delete_rows")
    require_flag("dry_run", dry_run)
    require_progress(progress)
    with explaining("deletion", tenant), manager.begin(tenant) as connection:
        plan = make_plan(connection, metadata, manager.tenancy, tenant, "DELETE")
        counts = _count(connection, plan) if dry_run else _delete(connection, plan)
        return told(counts, plan, progress)


def delete_tenant_and_rows(
    manager: PostgresManager, tenant: TenantId, progress: Progress | None = None
) -> RowCounts:
    """See :meth:`.PostgresManager.delete_tenant`."""
    metadata = require_metadata(manager.metadata, "delete_tenant(rows=True)")
    require_progress(progress)
    # narrowed to the tenant; one transaction for its rows and its role
    with explaining("deletion", tenant), manager.admin_session(tenant) as session:
        connection, tenancy = session.connection(), manager.tenancy
        has_role = manager.isolation == "role"
        if has_role and not roles.is_tenant(connection, tenant, tenancy):
            raise TenantNotFound(
                f"tenant {tenant!r} has no role {tenancy.role_for(tenant)!r}; its rows "
                f"were not deleted, because it may never have existed: see "
                f"create_tenant()",
                tenant=tenant,
            )
        plan = make_plan(connection, metadata, tenancy, tenant, "DELETE", admin=True)
        lock(connection, plan)
        counts = _delete(connection, plan)
        if has_role:
            execute_text(connection, "SET LOCAL ROLE NONE")
            roles.delete_tenant(connection, tenant, tenancy)
        result = told(counts, plan, progress)
        session.commit()
        return result


def lock(connection: Connection, plan: Plan) -> None:
    """Let nobody else write to the tables until the transaction ends: what another
    transaction has written and not committed yet would stay behind."""
    if plan.tables:
        execute_text(connection, f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        names = ", ".join(table.source for table in plan.tables)
        execute_text(connection, f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE")


def _count(connection: Connection, plan: Plan) -> Sequence[int]:
    return at_once(
        connection,
        plan.tables,
        (f"SELECT FROM {_rows(table)}" for table in plan.tables),
        {},
    )


def _delete(connection: Connection, plan: Plan) -> Sequence[int]:
    return at_once(
        connection,
        plan.tables,
        (f"DELETE FROM {_rows(table)} RETURNING 1" for table in plan.tables),
        {},
    )


def _rows(table: PlannedTable) -> str:
    return in_text(f"{table.source} WHERE {table.own}")


def at_once(
    connection: Connection,
    tables: Sequence[PlannedTable],
    statements: Iterable[str],
    parameters: dict[str, str],
) -> Sequence[int]:
    """Execute one statement a table as parts of a single one, and count their rows.

    Foreign keys are checked when all parts are done, so that their order and cycles
    between the tables do not matter.
    """
    parts = [f"t{n} AS ({part})" for n, part in enumerate(statements)]
    if not parts:
        return ()
    counts = ", ".join(
        f"(SELECT pg_catalog.count(*) FROM t{n})" for n in range(len(tables))
    )
    statement = text(f"WITH {', '.join(parts)} SELECT {counts}")
    return connection.execute(statement, parameters).one()


def told(counts: Sequence[int], plan: Plan, progress: Progress | None) -> RowCounts:
    """Return counts by table, and tell them."""
    result = RowCounts(
        {table.name: count for table, count in zip(plan.tables, counts, strict=True)},
        plan.left_out,
    )
    if progress is not None:
        for name, count in result.items():
            progress(RowsProgress(name, count, count))
    return result
