"""Removing: deletes the rows of one tenant, and the tenant with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

from .. import roles
from ..arguments import require_flag, require_progress
from ..scope import execute_text
from ..tenancy import TenantId
from .plan import (
    Plan,
    PlannedTable,
    acting,
    at_once,
    in_text,
    make_plan,
    require_metadata,
    require_role,
    set_up,
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

# Waiting for a lock on a table makes all who come later wait, too.
_LOCK_TIMEOUT = "10s"
# Triggers may write further rows meanwhile; this many times we look for them.
_PASSES = 3


def delete_rows(
    manager: PostgresManager,
    tenant: TenantId,
    *,
    dry_run: bool = False,
    as_admin: bool = False,
    progress: Progress | None = None,
) -> RowCounts:
    """See :meth:`.PostgresManager.delete_rows`."""
    metadata = require_metadata(manager.metadata, "delete_rows")
    require_flag("dry_run", dry_run)
    require_flag("as_admin", as_admin)
    require_progress(progress)
    with (
        explaining("deletion", tenant),
        acting(manager, tenant, as_admin) as connection,
    ):
        plan = make_plan(
            connection, metadata, manager.tenancy, tenant, "DELETE", admin=as_admin
        )
        count = _count if dry_run else _delete
        counts = count(connection, plan, tenant)
        if not sum(counts):
            require_role(connection, tenant, manager)
        return report(counts, plan, progress)


def delete_tenant_and_rows(
    manager: PostgresManager, tenant: TenantId, progress: Progress | None = None
) -> RowCounts:
    """See :meth:`.PostgresManager.delete_tenant`."""
    metadata = require_metadata(manager.metadata, "delete_tenant(rows=True)")
    require_progress(progress)
    # narrowed to the tenant; one transaction for its rows and its role
    with explaining("deletion", tenant), manager.admin_session(tenant) as session:
        connection, tenancy = session.connection(), manager.tenancy
        set_up(connection)
        require_role(connection, tenant, manager)
        plan = make_plan(connection, metadata, tenancy, tenant, "DELETE", admin=True)
        lock(connection, plan)
        counts = _delete(connection, plan, tenant)
        if manager.isolation == "role":
            execute_text(connection, "SET LOCAL ROLE NONE")
            roles.delete_tenant(connection, tenant, tenancy)
        result = report(counts, plan, progress)
        session.commit()
        return result


def lock(connection: Connection, plan: Plan) -> None:
    """Let nobody else write to the tables until the transaction ends: what another
    transaction has written and not committed yet would stay behind."""
    if plan.tables:
        execute_text(connection, f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        names = ", ".join(table.source for table in plan.tables)
        execute_text(connection, f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE")


def _count(connection: Connection, plan: Plan, tenant: TenantId) -> Sequence[int]:
    return at_once(
        connection, (f"SELECT FROM {_rows(table)}" for table in plan.tables), {}
    )


def _delete(connection: Connection, plan: Plan, tenant: TenantId) -> Sequence[int]:
    return until_none_is_left(
        connection,
        plan,
        tenant,
        statement=lambda table: f"DELETE FROM {_rows(table)} RETURNING 1",
        rows=_rows,
        parameters={},
    )


def _rows(table: PlannedTable) -> str:
    return in_text(f"{table.source} WHERE {table.own}")


def until_none_is_left(
    connection: Connection,
    plan: Plan,
    tenant: TenantId,
    *,
    statement: Callable[[PlannedTable], str],
    rows: Callable[[PlannedTable], str],
    parameters: dict[str, str],
) -> Sequence[int]:
    """Execute one statement a table, until no rows are left that it is for, and count
    what it changed.

    A trigger may keep rows, as where deleting only sets a flag, and may write further
    ones, as into a table of what has happened.

    :param statement: what changes the rows of a table.
    :param rows: what these rows are, as after ``FROM``.
    :raises RowsError: rows are left.
    """
    total = dict.fromkeys((table.oid for table in plan.tables), 0)
    left: Sequence[PlannedTable] = plan.tables
    for _ in range(_PASSES):
        counts = at_once(connection, map(statement, left), parameters)
        for table, count in zip(left, counts, strict=True):
            total[table.oid] += count
        left = _having(connection, plan.tables, rows, parameters)
        if not left:
            return list(total.values())
    raise RowsError(
        f"rows of tenant {tenant!r} are left in {', '.join(t.name for t in left)}: a "
        f"trigger keeps them or writes them again, as one for a soft deletion, or "
        f"others go on writing; disable the trigger, or take the tenant out of service "
        f"first; nothing was changed",
        tenant=tenant,
    )


def _having(
    connection: Connection,
    tables: Sequence[PlannedTable],
    rows: Callable[[PlannedTable], str],
    parameters: dict[str, str],
) -> Sequence[PlannedTable]:
    """Return the tables that have such rows."""
    if not tables:
        return ()
    found = ", ".join(f"EXISTS (SELECT FROM {rows(table)})" for table in tables)
    row = connection.execute(text(f"SELECT {found}"), parameters).one()
    return [table for table, has in zip(tables, row, strict=True) if has]


def report(counts: Sequence[int], plan: Plan, progress: Progress | None) -> RowCounts:
    """Return the counts by table, and call ``progress`` with each."""
    result = RowCounts(
        {table.name: count for table, count in zip(plan.tables, counts, strict=True)},
        plan.left_out,
    )
    if progress is not None:
        for name, count in result.items():
            progress(RowsProgress(name, count, count))
    return result
