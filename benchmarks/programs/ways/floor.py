"""The same text as ours, sent by the driver, without sessions of tenants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from notes import Note
from same_text import create_async_floor, create_floor, set_text, text_of
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

__all__ = ["Note", "async_sessions", "sessions"]


def sessions(engine: Engine, isolation: str) -> Callable[[str], Any]:
    return _sessions(Session, create_floor(_text(engine)), isolation)


def async_sessions(engine: AsyncEngine, isolation: str) -> Callable[[str], Any]:
    return _sessions(AsyncSession, create_async_floor(_text(engine)), isolation)


def _sessions(
    session_class: Callable[[Any], Any], engine: Any, isolation: str
) -> Callable[[str], Any]:
    def open_session(tenant: str) -> Any:
        set_text(text_of(tenant, isolation))
        return session_class(engine)

    return open_session


def _text(engine: Engine | AsyncEngine) -> str:
    return engine.url.render_as_string(hide_password=False)
