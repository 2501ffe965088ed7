"""rls 0.3.2, as its README has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from migrate import migrate
from notes import Base, Note
from pydantic import BaseModel
from rls.alembic_rls import set_metadata_info
from rls.rls_session import AsyncRlsSession, RlsSession
from rls.schemas import Command, ConditionArg, Permissive
from sqlalchemy import Engine, String, column, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine

Note.__rls_policies__ = [  # type: ignore[attr-defined]
    Permissive(
        condition_args=[ConditionArg(comparator_name="tenant", type=String)],
        cmd=[Command.all],
        custom_expr=lambda tenant: column("tenant") == tenant,
        custom_policy_name="tenant",
    )
]


class Context(BaseModel):
    tenant: str


def sessions(engine: Engine) -> Callable[[str], Any]:
    return lambda tenant: RlsSession(context=Context(tenant=tenant), bind=engine)


def async_sessions(engine: AsyncEngine) -> Callable[[str], Any]:
    return lambda tenant: AsyncRlsSession(context=Context(tenant=tenant), bind=engine)


def prepare(url: str, tenants: list[str]) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        migrate(connection, set_metadata_info(Base).metadata)
    engine.dispose()
