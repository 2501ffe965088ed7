"""Renaming: gives a tenant's rows and its role another name, in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from .. import roles
from ..arguments import require_progress
from ..declare import require_tenant_of
from ..exceptions import ScopeError, TenantAlreadyExists, TenantNotFound
from ..policies import quote_name
from ..scope import INSUFFICIENT_PRIVILEGE, execute_text, quote, sqlstate
from ..tenancy import Tenancy, TenantId, tenant_text
from .plan import Plan, PlannedTable, in_text, make_plan, require_metadata, set_up
from .removing import lock, report, until_none_is_left
from .results import Progress, RowCounts, RowsError, explaining

if TYPE_CHECKING:
    from ..managers import PostgresManager


def rename_tenant(
    manager: PostgresManager,
    old: TenantId,
    new: TenantId,
    *,
    progress: Progress | None = None,
) -> RowCounts:
    """See :meth:`.PostgresManager.rename_tenant`."""
    metadata = require_metadata(manager.metadata, "rename_tenant")
    require_progress(progress)
    tenancy, has_role = manager.tenancy, manager.isolation == "role"
    for tenant in (old, new):
        require_tenant_of(tenant, metadata)
    if tenant_text(old) == tenant_text(new):
        raise RowsError(f"tenant {old!r} has this name already", tenant=old)
    _require_declared(old, new, tenancy)
    # across tenants: a row that changes its tenant is not a row of either alone
    with explaining("renaming", old), manager.admin_session() as session:
        connection = session.connection()
        set_up(connection)
        if has_role:
            _require_roles(connection, old, new, tenancy)
        plan = make_plan(connection, metadata, tenancy, old, "UPDATE", admin=True)
        lock(connection, plan)
        _require_no_rows(connection, plan, new)
        counts = until_none_is_left(
            connection,
            plan,
            old,
            statement=_update,
            rows=_rows,
            parameters={"old": tenant_text(old), "new": tenant_text(new)},
        )
        if has_role:
            execute_text(connection, "SET LOCAL ROLE NONE")
            _rename_role(connection, old, new, tenancy)
        result = report(counts, plan, progress)
        session.commit()
        return result


def _require_declared(old: TenantId, new: TenantId, tenancy: Tenancy) -> None:
    """Refuse what the next autogenerate would undo."""
    if tenancy.tenants is None:
        return
    declared = {tenant_text(tenant) for tenant in tenancy.tenants}
    if tenant_text(old) in declared or tenant_text(new) not in declared:
        raise RowsError(
            f"Tenancy(tenants=...) is the complete list of tenants, and autogenerate "
            f"would undo the renaming; put {new!r} there in the place of {old!r} first",
            tenant=old,
        )


def _require_roles(
    connection: Connection, old: TenantId, new: TenantId, tenancy: Tenancy
) -> None:
    role = tenancy.role_for(new)
    query = text("SELECT pg_catalog.to_regrole(:role) IS NOT NULL")
    # before 16 to_regrole() is the only one that finds every role; quoted, as a name
    if connection.execute(query, {"role": quote(role)}).scalar_one():
        raise TenantAlreadyExists(
            f"tenant {new!r} exists, or its role {role!r} does; choose another name, "
            f"or delete that one first",
            tenant=new,
        )
    if not roles.is_tenant(connection, old, tenancy):
        raise TenantNotFound(
            f"tenant {old!r} has no role {tenancy.role_for(old)!r}, nothing to rename",
            tenant=old,
        )


def _require_no_rows(connection: Connection, plan: Plan, new: TenantId) -> None:
    """Refuse a name under which there are rows: the two tenants would be one."""
    for table in plan.tables:
        query = text(
            f"SELECT EXISTS (SELECT FROM {in_text(table.source)} "
            f"WHERE {_is(table, 'new')})"
        )
        if connection.execute(query, {"new": tenant_text(new)}).scalar_one():
            raise RowsError(
                f"table {table.name!r} has rows of tenant {new!r}, which would become "
                f"one tenant with the other; choose another name, or delete them first",
                tenant=new,
            )


def _update(table: PlannedTable) -> str:
    column = in_text(quote(table.mark.column))
    return (
        f"UPDATE {in_text(table.source)} SET {column} = {_value(table, 'new')} "
        f"WHERE {_is(table, 'old')} RETURNING 1"
    )


def _rows(table: PlannedTable) -> str:
    return f"{in_text(table.source)} WHERE {_is(table, 'old')}"


def _is(table: PlannedTable, parameter: str) -> str:
    """Return the condition that a row belongs to a tenant, which the policies of the
    admin role do not have while it works across tenants."""
    column, value = in_text(quote(table.mark.column)), _value(table, parameter)
    condition = f"{column} OPERATOR(pg_catalog.=) {value}"
    if table.mark.bytewise:
        condition += (
            f' AND {column} COLLATE pg_catalog."C" OPERATOR(pg_catalog.=) {value}'
        )
    return condition


def _value(table: PlannedTable, parameter: str) -> str:
    value = f"CAST(:{parameter} AS pg_catalog.text)"
    cast = table.mark.cast.removeprefix("::")
    return f"CAST({value} AS {cast})" if cast else value


def _rename_role(
    connection: Connection, old: TenantId, new: TenantId, tenancy: Tenancy
) -> None:
    role, renamed = tenancy.role_for(old), tenancy.role_for(new)
    try:
        execute_text(
            connection,
            f"ALTER ROLE {quote_name(role)} RENAME TO {quote_name(renamed)}",
        )
    except DBAPIError as error:
        if sqlstate(error) != INSUFFICIENT_PRIVILEGE:
            raise
        raise ScopeError(
            f"this login may not rename role {role!r}: {error.orig}; pass "
            f"admin_engine=..., an engine whose login created the role; nothing was "
            f"changed",
            tenant=old,
        ) from error
