"""What a connection is like while its pool has it: unscoped, without a context, and in
no transaction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Engine, event

_STATE = (
    "SELECT current_user = session_user,"
    " concat(current_setting('tenancy.tenant', true),"
    " current_setting('tenancy.marker', true)),"
    " current_setting('search_path')"
)


@dataclass
class Watch:
    """Looks at each connection that a pool gets back, or gives away.

    :param violations: what was found, as text.
    :param looked: at how many connections.
    """

    violations: list[str] = field(default_factory=list)
    looked: int = 0

    def add(
        self, engine: Engine, moment: Literal["checkin", "checkout"], setting: str = ""
    ) -> None:
        """Look at the connections of an engine, async or not.

        :param moment: at ``checkin``, what a user leaves behind; at ``checkout``, the
            same, and a task that is cancelled meanwhile does not upset the pool.
        :param setting: the tenant that the login has in the setting by itself.
        """
        unscoped = (True, setting, '"$user", public')

        @event.listens_for(engine, moment)
        def look(adapter: Any, *args: Any) -> None:
            if adapter is None:  # invalidated
                return
            found = state(adapter)
            if found is not None:
                self.looked += 1
                if found != unscoped:
                    self.violations.append(f"a connection of the pool has {found}")


def state(adapter: Any) -> tuple[Any, ...] | None:
    """Whether a connection is unscoped, its setting and its search path; another
    tuple if it is in a transaction, ``None`` if it is dead.

    :param adapter: a DBAPI connection, or SQLAlchemy's adapter for one.
    """
    raw = getattr(adapter, "driver_connection", adapter)
    if hasattr(raw, "is_in_transaction"):
        inside = raw.is_in_transaction()
    else:
        inside = raw.info.transaction_status.name not in ("IDLE", "UNKNOWN")
    if inside:
        return ("in a transaction",)
    if adapter.autocommit:
        return ("in autocommit mode",)
    cursor = adapter.cursor()
    try:
        cursor.execute(_STATE)
        row = tuple(cursor.fetchone())
        adapter.rollback()
    except Exception:
        closed = raw.is_closed() if hasattr(raw, "is_closed") else raw.closed
        if not closed:
            raise
        return None
    finally:
        cursor.close()
    return row
