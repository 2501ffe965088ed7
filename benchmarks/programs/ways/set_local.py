"""By hand, on our tables: ``SET LOCAL ROLE`` as a statement of its own, in a hook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from notes import Note
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

__all__ = ["Note", "async_sessions", "sessions"]


class ScopedSession(Session):
    pass


@event.listens_for(ScopedSession, "after_begin")
def _set_role(
    session: Session, transaction: SessionTransaction, connection: Connection
) -> None:
    role = connection.dialect.identifier_preparer.quote(session.info["role"])
    connection.execute(text(f"SET LOCAL ROLE {role}"))


def sessions(engine: Engine) -> Callable[[str], Any]:
    return lambda tenant: ScopedSession(engine, info={"role": f"tenant_{tenant}"})


def async_sessions(engine: AsyncEngine) -> Callable[[str], Any]:
    return lambda tenant: AsyncSession(
        engine, sync_session_class=ScopedSession, info={"role": f"tenant_{tenant}"}
    )
