"""Models as SQLAlchemy lets one write them: dataclasses, and what creates tables."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import ClassVar

import pytest
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    create_mock_engine,
    select,
)
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    mapped_column,
    registry,
)

from servers import Database
from sqlalchemy_tenants import (
    ScopeError,
    Tenancy,
    TenantMixin,
    tenant_column,
    with_rls,
)
from sqlalchemy_tenants.managers import PostgresManager
from sqlalchemy_tenants.testing import create_all

TENANCY = Tenancy.named("fit")


class Base(MappedAsDataclass, DeclarativeBase):
    metadata = MetaData(info={"tenancy": TENANCY})


@with_rls
class Note(TenantMixin, Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    body: Mapped[str]


class Common(TenantMixin, MappedAsDataclass, kw_only=True):
    """A base class of the application's, which is no model itself."""

    body: Mapped[str] = mapped_column(default="")


@with_rls
class Draft(Common, Base):
    __tablename__ = "drafts"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)


@with_rls
class Count(Base):
    __tablename__ = "counts"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    tenant: Mapped[str] = tenant_column(tenancy=TENANCY, init=False)
    body: Mapped[str]


@with_rls
class Label(Base):
    __tablename__ = "labels"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    body: Mapped[str]
    tenant: Mapped[str] = tenant_column(tenancy=TENANCY, default=None)


@pytest.fixture
def manager(database: Database, make_engine: Callable[..., Engine]) -> PostgresManager:
    engine = make_engine(database.owner_url)
    with engine.begin() as connection:
        create_all(connection, Base.metadata)
    return PostgresManager.from_engine(
        make_engine(database.app_url),
        "public",
        admin_engine=engine,
        metadata=Base.metadata,
    )


def test_dataclasses(manager: PostgresManager) -> None:
    models = (Note, Draft, Count, Label)
    with manager.new_session("acme") as session:
        session.add_all(model(body="x") for model in models)
        session.add_all(model(body="y", tenant="acme") for model in (Note, Draft))
        session.add(Label("z", "acme"))
        session.commit()
        for model in models:
            assert set(session.scalars(select(model.tenant))) == {"acme"}
        session.add(Note(body="x", tenant="globex"))
        with pytest.raises(ProgrammingError, match="row-level security"):
            session.commit()


def test_the_tenant_of_a_dataclass_is_given_by_name() -> None:
    parameters = inspect.signature(Note).parameters
    assert list(parameters) == ["body", "tenant"]
    assert parameters["tenant"].kind is inspect.Parameter.KEYWORD_ONLY
    assert Note("x") == Note(body="x")
    with pytest.raises(TypeError):
        Note("x", "acme")  # type: ignore[misc]
    default = Note.__table__.c.tenant.server_default
    assert str(default.arg) == "fit_tenancy.current_tenant()"  # type: ignore[union-attr]


def test_the_decorator_for_dataclasses() -> None:
    """It comes after the mixin, which then cannot know."""
    models = registry()

    @with_rls
    @models.mapped_as_dataclass(kw_only=True)
    class Item:
        __tablename__ = "items"
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        tenant: Mapped[str] = tenant_column(default=None)

    assert list(inspect.signature(Item).parameters) == ["tenant"]


@pytest.mark.parametrize(
    "bases", [(TenantMixin, MappedAsDataclass), (MappedAsDataclass, TenantMixin)]
)
def test_a_dataclass_by_itself(bases: tuple[type, type]) -> None:
    class Own(DeclarativeBase):
        pass

    class Item(*bases, Own):  # type: ignore[misc]
        __tablename__ = "items"
        id: Mapped[int] = mapped_column(primary_key=True, init=False)

    class Single(Item):
        """On the same table."""

        extra: Mapped[str | None] = mapped_column(default=None)

    assert Item(tenant="acme").tenant == "acme"
    assert Single(tenant="acme", extra="x").tenant == "acme"
    assert len(Item.__table__.c) == 3


def test_a_model_with_fields_of_pydantic() -> None:
    """As SQLModel's: such a class has ``model_fields``."""

    class Model:
        model_fields: ClassVar[dict[str, object]] = {}

    with pytest.raises(TypeError, match=r"tenant=... would be ignored"):

        class Wrong(TenantMixin, Model):
            pass


# --- metadata.create_all() ---


def plain_metadata() -> MetaData:
    class Plain(DeclarativeBase):
        pass

    @with_rls
    class Thing(TenantMixin, Plain):
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)

    return Plain.metadata


def test_metadata_create_all_on_an_empty_database(
    database: Database, make_engine: Callable[..., Engine]
) -> None:
    engine, metadata = make_engine(database.owner_url), plain_metadata()
    message = r"'things' needs .*tenancy\.current_tenant\(\).*testing\.create_all\("
    with pytest.raises(ScopeError, match=message):
        metadata.create_all(engine)
    with pytest.raises(ScopeError, match=message):
        metadata.tables["things"].create(engine)
    with engine.begin() as connection:
        create_all(connection, metadata)
    metadata.create_all(engine)
    metadata.drop_all(engine)
    metadata.create_all(engine)


async def test_metadata_create_all_of_an_async_engine(
    database: Database, make_async_engine: Callable[..., AsyncEngine]
) -> None:
    engine = make_async_engine(database.url("owner", "asyncpg"))
    async with engine.connect() as connection:
        with pytest.raises(ScopeError, match=r"testing\.create_all\("):
            await connection.run_sync(plain_metadata().create_all)


def test_metadata_create_all_of_other_tables(
    database: Database, make_engine: Callable[..., Engine]
) -> None:
    """Without a default that asks for the tenant nothing is in the way. Tenants have no
    privileges."""
    metadata = MetaData()
    with_rls(Table("counts", metadata, Column("tenant", Integer)))
    metadata.create_all(make_engine(database.owner_url))
    assert database.rows("SELECT count(*) FROM counts") == [(0,)]


def test_metadata_create_all_without_a_database() -> None:
    """As where the DDL is printed."""
    printed: list[str] = []
    engine = create_mock_engine(
        "postgresql+psycopg://",
        lambda element, *args, **kw: printed.append(
            str(element.compile(dialect=engine.dialect))
        ),
    )
    plain_metadata().create_all(engine, checkfirst=False)
    assert "tenancy.current_tenant()" in printed[0]
