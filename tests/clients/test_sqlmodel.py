"""SQLModel: models that are tables and pydantic models, and ``session.exec``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine, Text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import Field, Session, SQLModel, delete, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from servers import Database
from sqlalchemy_tenants import TenantMixin, TenantSession, tenant_column, with_rls
from sqlalchemy_tenants.aio import managers as aio
from sqlalchemy_tenants.managers import PostgresManager


@with_rls
class Hero(TenantMixin, SQLModel, table=True):
    __tablename__ = "heroes"

    id: int | None = Field(default=None, primary_key=True)
    name: str


# A mixin that other models without a table inherit from, too.
class Sidekick(TenantMixin, SQLModel):
    name: str


@with_rls
class SidekickRow(Sidekick, table=True):
    __tablename__ = "sidekicks"

    id: int | None = Field(default=None, primary_key=True)


# A field that type checkers see, too.
class TenantModel(SQLModel):
    """What models inherit from whose rows belong to tenants."""

    tenant: str | None = Field(
        default=None,
        sa_type=Text,
        nullable=False,
        index=True,
        sa_column_kwargs={"server_default": tenant_column().column.server_default},
    )


@with_rls
class Villain(TenantModel, table=True):
    __tablename__ = "villains"

    id: int | None = Field(default=None, primary_key=True)
    name: str


# The same for one model alone.
@with_rls
class Team(SQLModel, table=True):
    __tablename__ = "teams"

    tenant: str | None = Field(default=None, sa_column=tenant_column().column)
    id: int | None = Field(default=None, primary_key=True)
    name: str


MODELS: list[Any] = [Hero, SidekickRow, Villain, Team]


class SQLModelSession(TenantSession, Session):
    """A session of one tenant with ``exec()``."""


class AsyncSQLModelSession(aio.AsyncTenantSession, AsyncSession):
    """The same for asyncio."""

    sync_session_class = SQLModelSession


@pytest.fixture
def manager(
    prepare: Callable[..., None], engine: Engine, admin_engine: Engine
) -> PostgresManager:
    prepare(SQLModel.metadata)
    return PostgresManager.from_engine(
        engine,
        schema="public",
        admin_engine=admin_engine,
        session_class=SQLModelSession,
    )


@pytest.mark.parametrize("model", MODELS)
def test_each_tenant_sees_its_own_rows(manager: PostgresManager, model: Any) -> None:
    for tenant in ("acme", "globex"):
        with manager.new_session(tenant) as session:
            assert session.exec(select(model)).all() == []
            session.add(model(name=f"of {tenant}"))
            session.commit()
    for tenant in ("acme", "globex"):
        with manager.new_session(tenant) as session:
            (row,) = session.exec(select(model)).all()
            assert row.name == f"of {tenant}"
            assert session.exec(select(model.tenant)).all() == [tenant]


def test_writes_of_another_tenant_are_refused(
    manager: PostgresManager, fill: Callable[[str], None]
) -> None:
    fill("heroes")
    with manager.new_session("acme") as session:
        for statement in (
            update(Hero).where(Hero.tenant == "globex").values(name="mine"),
            delete(Hero).where(Hero.tenant == "globex"),
        ):
            assert session.exec(statement).rowcount == 0
        session.commit()
        session.add(Hero(tenant="globex", name="planted"))
        with pytest.raises(ProgrammingError, match="row-level security"):
            session.commit()
    with manager.new_session("globex") as session:
        assert session.exec(select(Hero.name)).all() == ["of globex"]


@pytest.mark.parametrize("model", MODELS)
def test_an_explicit_tenant_is_kept(manager: PostgresManager, model: Any) -> None:
    row = model.model_validate({"tenant": "globex", "name": "x"})
    assert row.model_dump() == {"tenant": "globex", "name": "x", "id": None}
    with manager.admin_session() as session:
        session.add_all([row, model(tenant="acme", name="y")])
        session.commit()
    with manager.new_session("acme") as session:
        assert session.exec(select(model.name)).all() == ["y"]


def test_a_model_of_another_library_is_refused() -> None:
    with pytest.raises(TypeError, match=r"tenant=... would be ignored"):

        class Wrong(TenantMixin, BaseModel):
            name: str


def test_models_on_tables_of_their_own() -> None:
    columns = [each.__table__.c.tenant for each in MODELS]
    assert len({id(each.server_default) for each in columns}) == len(MODELS)
    for each in columns:
        assert isinstance(each.type, Text)
        assert not each.nullable
        assert str(each.server_default.arg) == "tenancy.current_tenant()"
        assert len(each.table.indexes) == 1


async def test_asyncio(
    prepare: Callable[..., None],
    database: Database,
    fill: Callable[[str], None],
    make_async_engine: Callable[..., AsyncEngine],
) -> None:
    prepare(SQLModel.metadata)
    fill("heroes")
    manager = aio.PostgresManager.from_engine(
        make_async_engine(database.url("app", "asyncpg")),
        schema="public",
        session_class=AsyncSQLModelSession,
    )
    for tenant in ("acme", "globex"):
        async with manager.new_session(tenant) as session:
            assert (await session.exec(select(Hero.name))).all() == [f"of {tenant}"]
