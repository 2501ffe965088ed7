"""Ours, as the README has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from notes import Note
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from sqlalchemy_tenants import with_rls
from sqlalchemy_tenants.aio.managers import PostgresManager as AsyncPostgresManager
from sqlalchemy_tenants.managers import PostgresManager

with_rls(Note)


def sessions(engine: Engine, isolation: Any) -> Callable[[str], Any]:
    return PostgresManager.from_engine(
        engine, schema="public", isolation=isolation
    ).new_session


def async_sessions(engine: AsyncEngine, isolation: Any) -> Callable[[str], Any]:
    return AsyncPostgresManager.from_engine(
        engine, schema="public", isolation=isolation
    ).new_session
