"""Sequences: set behind the highest key that is imported.

The tenant draws the values where it may. Where it may not, as for identity columns, or
where too many are to be drawn, the login of the admin engine does it: the owner can.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text

from ..scope import execute_text
from ..tenancy import TenantId
from .plan import acting, set_up
from .results import RowsError

if TYPE_CHECKING:
    from ..managers import PostgresManager

# Values that are drawn one by one, about a second. A sequence cannot go back that way,
# as it could by setval() while others draw from it.
_DRAWN = 1_000_000

_STATE = text(
    """
    SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) AS name, s.seqincrement,
        s.seqmax, s.seqstart,
        pg_catalog.has_sequence_privilege(c.oid, 'USAGE, UPDATE') AS draws,
        pg_catalog.has_sequence_privilege(c.oid, 'UPDATE') AS sets,
        CASE WHEN pg_catalog.has_sequence_privilege(c.oid, 'USAGE, SELECT')
            THEN pg_catalog.pg_sequence_last_value(c.oid) END AS last
    FROM pg_catalog.pg_sequence s
    JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = CAST(:sequence AS oid)
    """
)
_SEQUENCE = "CAST(CAST(:sequence AS oid) AS regclass)"
_DRAW = text(
    f"""
    SELECT pg_catalog.count(pg_catalog.nextval({_SEQUENCE}))
    FROM pg_catalog.generate_series(1, :values)
    """
)
_SET = text(f"SELECT pg_catalog.setval({_SEQUENCE}, :value)")


def advance_sequences(
    manager: PostgresManager,
    tenant: TenantId,
    highest: Mapping[int, int],
    *,
    as_admin: bool,
) -> None:
    """Set sequences behind the highest values that are to come in.

    :param highest: values by the OID of the sequence.
    :param as_admin: see :func:`.acting`.
    :raises RowsError: neither the tenant nor the admin engine's login may do it.
    """
    if not highest:
        return
    with acting(manager, tenant, as_admin) as connection:
        left = {
            sequence: value
            for sequence, value in highest.items()
            if not _advance(connection, tenant, sequence, value, by_owner=False)
        }
    if not left:
        return
    with manager.admin_session(tenant) as session:
        connection = session.connection()
        set_up(connection)
        execute_text(connection, "SET LOCAL ROLE NONE")
        for sequence, value in left.items():
            _advance(connection, tenant, sequence, value, by_owner=True)
        session.commit()


def _advance(
    connection: Connection,
    tenant: TenantId,
    sequence: int,
    highest: int,
    *,
    by_owner: bool,
) -> bool:
    """Set a sequence behind a value, and return whether it is."""
    state = connection.execute(_STATE, {"sequence": sequence}).one()
    last = state.seqstart - state.seqincrement if state.last is None else state.last
    if state.seqincrement < 0:
        return True  # it moves away from this value
    if state.draws:
        values = -(-(highest - last) // state.seqincrement)
        if values <= 0:
            return True
        _require_room(state, highest, tenant)
        if values <= _DRAWN:
            connection.execute(_DRAW, {"sequence": sequence, "values": values})
            return True
        if state.sets and by_owner:
            connection.execute(_SET, {"sequence": sequence, "value": highest})
            return True
    if by_owner:
        raise RowsError(
            f"sequence {state.name} must be set behind {highest}, the highest imported "
            f"key, and this login may not do it; import with a manager whose "
            f"admin_engine logs in as the owner of the tables, or run as that: "
            f"SELECT setval('{state.name}', {highest}) if it is below",
            tenant=tenant,
        )
    return False


def _require_room(state: Any, highest: int, tenant: TenantId) -> None:
    """Refuse a file that would take the values of all other tenants."""
    if highest > state.seqmax // 2:
        raise RowsError(
            f"the file has key {highest}, which is beyond half of the values of "
            f"sequence {state.name}; a file of another origin could use the sequence "
            f"up, for all tenants; if this is right, set the sequence behind it first, "
            f"as its owner",
            tenant=tenant,
        )
