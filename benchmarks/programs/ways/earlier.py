"""sqlalchemy-tenants 0.2.0, as its README has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from migrate import migrate
from notes import Base, Note
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine

from sqlalchemy_tenants import get_process_revision_directives, with_rls
from sqlalchemy_tenants.aio.managers import PostgresManager as AsyncPostgresManager
from sqlalchemy_tenants.managers import PostgresManager

with_rls(Note)


def sessions(engine: Engine) -> Callable[[str], Any]:
    return PostgresManager.from_engine(engine, "public").new_tenant_session


def async_sessions(engine: AsyncEngine) -> Callable[[str], Any]:
    return AsyncPostgresManager.from_engine(engine, "public").new_tenant_session


def prepare(url: str, tenants: list[str]) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        directives = get_process_revision_directives(Base.metadata)
        migrate(connection, Base.metadata, directives)
    manager = PostgresManager.from_engine(engine, "public")
    for tenant in tenants:
        manager.create_tenant(tenant)
    engine.dispose()
