"""A migrated database, and ways to try one test on every driver and isolation.

A test module imports the fixtures that it uses, and those that they use.
"""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from io import StringIO
from typing import Any, TypeAlias

import pytest
from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.operations.ops import MigrationScript
from sqlalchemy import (
    Engine,
    ForeignKeyConstraint,
    Identity,
    Integer,
    MetaData,
    UniqueConstraint,
    Uuid,
    create_engine,
    event,
)
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from servers import Database, requested_version
from sqlalchemy_tenants import TenantId, TenantMixin, TenantSession, with_rls
from sqlalchemy_tenants.declare import tenant_column
from sqlalchemy_tenants.managers import PostgresManager


class Base(DeclarativeBase):
    pass


@with_rls
class Note(TenantMixin, Base):
    """The tenant is text."""

    __tablename__ = "notes"
    __table_args__ = (UniqueConstraint("tenant", "id"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    body: Mapped[str] = mapped_column(default="")
    comments: Mapped[list[Comment]] = relationship(back_populates="note")


@with_rls
class Comment(TenantMixin, Base):
    """Belongs to a note of the same tenant."""

    __tablename__ = "comments"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "note_id"], ["notes.tenant", "notes.id"]),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    note_id: Mapped[int]
    note: Mapped[Note] = relationship(back_populates="comments")


@with_rls
class Count(Base):
    """The tenant is an integer."""

    __tablename__ = "counts"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    tenant: Mapped[int] = tenant_column(Integer)
    body: Mapped[str] = mapped_column(default="")


@with_rls
class Asset(Base):
    """The tenant is a UUID."""

    __tablename__ = "assets"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    tenant: Mapped[uuid.UUID] = tenant_column(Uuid)
    body: Mapped[str] = mapped_column(default="")


Model: TypeAlias = type[Note] | type[Count] | type[Asset]

#: A model of each type of tenant column, and two tenants.
MODELS: dict[str, tuple[Model, Any, Any]] = {
    "text": (Note, "acme", "globex"),
    "int": (Count, 1, 2),
    "uuid": (Asset, uuid.UUID(int=1), uuid.UUID(int=2)),
}


# Asking the database what is there takes most of the time, and in an empty one the
# answer is always the same.
_scripts: dict[MetaData, str] = {}


def migrate(
    database: Database, metadata: MetaData = Base.metadata, *, login: str = "owner"
) -> None:
    """Do to an empty database what autogenerate would write for ``metadata``."""
    if metadata not in _scripts:
        engine = create_engine(database.url(login))
        with engine.connect() as connection:
            context = MigrationContext.configure(connection)
            _scripts[metadata] = _as_sql(produce_migrations(context, metadata))
        engine.dispose()
    database.execute(_scripts[metadata], login=login)


def _as_sql(script: MigrationScript) -> str:
    """What ``alembic upgrade --sql`` would print."""
    output = StringIO()
    operations = Operations(
        MigrationContext.configure(
            dialect_name="postgresql",
            opts={"as_sql": True, "output_buffer": output},
        )
    )

    def invoke(container: Any) -> None:
        for operation in container.ops:
            if hasattr(operation, "ops"):
                invoke(operation)
            else:
                operations.invoke(operation)

    invoke(script.upgrade_ops)
    return output.getvalue()


def grant_logins(database: Database) -> None:
    """Let ``manager`` create tenants and act across them, and ``app_shared`` act as
    the shared role: what an installation does once, after its first migration."""
    if requested_version() >= 16:
        database.execute(
            "GRANT tenants TO manager WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;"
            "GRANT tenants_admin TO manager WITH INHERIT FALSE, SET TRUE;"
            "GRANT tenants_shared TO app_shared WITH INHERIT FALSE, SET TRUE"
        )
    else:
        database.execute(
            "ALTER ROLE manager NOINHERIT;"
            "GRANT tenants_admin TO manager;"
            "GRANT tenants_shared TO app_shared"
        )


@pytest.fixture(name="migrated")
def migrated_fixture(database: Database) -> Database:
    """A database with the tables above, and logins that have what they need."""
    migrate(database)
    grant_logins(database)
    return database


DRIVERS = ("psycopg", "psycopg-async", "asyncpg")


@pytest.fixture(name="driver", params=DRIVERS)
def driver_fixture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(name="isolation", params=["role", "shared"])
def isolation_fixture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@dataclass
class World:
    """Engines, sessions and rows for a test that runs on one driver and isolation.

    Async engines are used through their sync face, in a greenlet: see
    :func:`on_each_driver`. So one text tests what all drivers have in common.
    """

    database: Database
    driver: str
    isolation: Any
    engines: list[Engine] = field(default_factory=list)

    @property
    def is_async(self) -> bool:
        return self.driver != "psycopg"

    @property
    def login(self) -> str:
        return "app" if self.isolation == "role" else "app_shared"

    def engine(
        self,
        login: str | None = None,
        url: str | None = None,
        *,
        prepared: bool = True,
        **kw: Any,
    ) -> Engine:
        """An engine with one connection, of the application's login unless given.

        :param prepared: whether a manager has seen it before its first connection.
        """
        if "poolclass" not in kw:
            kw = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5, **kw}
        if url is None:
            name = self.driver.removesuffix("-async")
            url = self.database.url(login or self.login, name)
        if self.is_async:
            engine = create_async_engine(url, **kw).sync_engine
        else:
            engine = create_engine(url, **kw)
        if prepared:
            PostgresManager.from_engine(engine)
        self.engines.append(engine)
        return engine

    def manager(self, engine: Engine | None = None, **kw: Any) -> PostgresManager:
        """A manager, whose admin engine is that of ``manager``."""
        kw = {
            "schema": "public",
            "isolation": self.isolation,
            "admin_engine": self.engine("manager"),
            **kw,
        }
        return PostgresManager.from_engine(engine or self.engine(), **kw)

    def session(self, tenant: TenantId, engine: Any, **kw: Any) -> TenantSession:
        """A session without a manager; the tenant exists already."""
        kw = {"schema": "public", "isolation": self.isolation, **kw}
        return TenantSession(engine, tenant=tenant, **kw)

    def create(self, *tenants: TenantId) -> None:
        """Create tenants, as far as the database keeps any."""
        if self.isolation == "role":
            options = "WITH INHERIT FALSE, SET TRUE" if requested_version() > 15 else ""
            for tenant in tenants:
                role = '"' + f"tenant_{tenant}".replace('"', '""') + '"'
                self.database.execute(
                    f"CREATE ROLE {role} NOLOGIN IN ROLE tenants;"
                    f"GRANT {role} TO app {options}",
                    login="manager",
                )

    def fill(self, model: Model, *tenants: TenantId, rows: int = 1) -> None:
        """Write rows of tenants, past all policies."""
        for tenant in tenants:
            self.database.execute(
                f"INSERT INTO {model.__tablename__} (tenant, body)"
                f" SELECT %s, 'row of ' || %s FROM generate_series(1, {rows})",
                [tenant, str(tenant)],
            )

    def run(self, function: Callable[[], None]) -> None:
        """Run a function as the driver needs it, and dispose of all engines."""

        def run(session: Any = None) -> None:
            try:
                function()
            finally:
                for engine in self.engines:
                    engine.dispose()

        if not self.is_async:
            run()
            return

        async def run_in_greenlet() -> None:
            await AsyncSession().run_sync(run)

        asyncio.run(run_in_greenlet())


def on_each_driver(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test that takes ``world`` or ``role_world`` as :meth:`World.run` does."""

    @functools.wraps(test)
    def run(**kw: Any) -> None:
        world: World = kw.get("world") or kw["role_world"]
        world.run(lambda: test(**kw))

    return run


@pytest.fixture(name="world")
def world_fixture(migrated: Database, driver: str, isolation: str) -> World:
    """See :class:`World`; over all drivers and both isolations."""
    return World(migrated, driver, isolation)


@pytest.fixture(name="role_world")
def role_world_fixture(migrated: Database, driver: str) -> World:
    """See :class:`World`; over all drivers, with a role for each tenant."""
    return World(migrated, driver, "role")


def raw_state(engine: Engine) -> tuple[str, str, str]:
    """What a connection of the pool is left with: role, tenant and search path."""
    with engine.connect() as connection:
        row = connection.exec_driver_sql(
            "SELECT current_user::text,"
            " coalesce(current_setting('tenancy.tenant', true), ''),"
            " current_setting('search_path')"
        ).one()
        return tuple(row)  # type: ignore[return-value]


def statements(engine: Engine) -> list[str]:
    """A list that grows with each statement that SQLAlchemy sends by ``engine``."""
    sent: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def record(connection: Any, cursor: Any, statement: str, *args: Any) -> None:
        sent.append(statement)

    return sent
