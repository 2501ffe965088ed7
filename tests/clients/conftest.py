"""Programs as users of other libraries write them: two tenants, no row of the other.

One module for each library, run by ``make test-clients`` in an environment of their
own. They show a library's own way of working, so each begins with a small program.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from foreign import ForeignProject
from sqlalchemy import Engine, MetaData, create_engine, text

from servers import Database
from sqlalchemy_tenants.managers import PostgresManager
from tenancy import grant_logins, migrate

TENANTS = ("acme", "globex")


@pytest.fixture
def create_tenants(database: Database) -> Callable[[], None]:
    """Let the logins of a migrated database act as tenants, and create two tenants."""

    def create_tenants() -> None:
        grant_logins(database)
        engines = [create_engine(url) for url in (database.app_url, database.admin_url)]
        manager = PostgresManager.from_engine(
            engines[0], schema="public", admin_engine=engines[1]
        )
        manager.create_tenants(TENANTS)
        for engine in engines:
            engine.dispose()

    return create_tenants


@pytest.fixture
def prepare(
    database: Database, create_tenants: Callable[[], None]
) -> Callable[..., None]:
    """Migrate the database to some metadata, and create two tenants."""

    def prepare(*metadata: MetaData) -> None:
        migrate(database, metadata)
        create_tenants()

    return prepare


@pytest.fixture
def engine(database: Database, make_engine: Callable[..., Engine]) -> Engine:
    """An engine of the application's login."""
    return make_engine(database.app_url)


@pytest.fixture
def admin_engine(database: Database, make_engine: Callable[..., Engine]) -> Engine:
    """An engine of the login that acts across tenants."""
    return make_engine(database.admin_url)


@pytest.fixture
def fill(database: Database) -> Callable[[str], None]:
    """Write a row of each tenant into a table, past all policies."""

    def fill(table: str) -> None:
        for tenant in TENANTS:
            database.execute(
                f"INSERT INTO {table} (tenant, name) VALUES (%s, %s)",
                [tenant, f"of {tenant}"],
            )

    return fill


@pytest.fixture
def make_project(database: Database, tmp_path: Path) -> Callable[..., ForeignProject]:
    """Return a project in a database that has what these models want."""

    def make(models: str) -> ForeignProject:
        project = ForeignProject(tmp_path, database, models)
        project.migrate()
        return project

    return make


@pytest.fixture
def assert_isolated(
    create_tenants: Callable[[], None], engine: Engine
) -> Callable[[str], None]:
    """Let two tenants write and read a table that has ``name`` and ``tenant``."""

    def assert_isolated(table: str) -> None:
        create_tenants()
        manager = PostgresManager.from_engine(engine, schema="public")
        for tenant in TENANTS:
            with manager.begin(tenant) as connection:
                insert = f"INSERT INTO {table} (name) VALUES ('of {tenant}')"
                connection.execute(text(insert))
        for tenant in TENANTS:
            with manager.connect(tenant) as connection:
                names = connection.scalars(text(f"SELECT name FROM {table}")).all()
                assert names == [f"of {tenant}"]

    return assert_isolated
