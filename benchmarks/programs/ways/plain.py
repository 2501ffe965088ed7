"""Plain SQLAlchemy: nothing keeps tenants apart but the query's own condition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from notes import Columns
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Session


class PlainBase(DeclarativeBase):
    pass


class Note(Columns, PlainBase):
    """The table without row-level security."""

    __tablename__ = "plain_notes"


def sessions(engine: Engine) -> Callable[[str], Any]:
    return lambda tenant: Session(engine)


def async_sessions(engine: AsyncEngine) -> Callable[[str], Any]:
    return lambda tenant: AsyncSession(engine)
