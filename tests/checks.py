"""Checks of a migrated database that the tests of a module share.

Each test plants its faults in a transaction, asks what ``check()`` finds there, and
rolls back: roles, owners and privileges come back as they were. Creating a database
for each fault took ten times as long.

A test module imports the fixtures ``shared``, ``migrated`` and ``check``. It must not
use ``database`` as well: the roles of both are in the same cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    create_engine,
)

from servers import Server, fresh_database
from sqlalchemy_tenants import Finding, Tenancy, shared_table, with_rls
from sqlalchemy_tenants.database.check import run_checks
from tenancy import migrate

METADATA = MetaData()
for name, type_ in {
    "texts": Text,
    "varchars": String(20),
    "ints": Integer,
    "uuids": Uuid,
}.items():
    with_rls(
        Table(
            name,
            METADATA,
            Column("id", Integer, primary_key=True),
            Column("tenant", type_, nullable=False),
        )
    )
shared_table(Table("countries", METADATA, Column("code", Text, primary_key=True)))

Check = Callable[..., list[Finding]]


def planted(table: str, **texts: str) -> list[tuple[str, str, str]]:
    """Return what is planted, the code and the object of the finding, of each line.

    :param table: ``code | object | SQL``; a line that begins with spaces goes on.
    :param texts: what replaces names in braces.
    """
    lines = table.replace("\n    ", " ").format(**texts).splitlines()
    rows = [line.split(" | ", 2) for line in lines if line and line[0] != "#"]
    return [(sql, code, object_) for code, object_, sql in rows]


@dataclass
class Transaction:
    """A transaction of the superuser, which sees what the test has done in it."""

    connection: Connection

    def execute(self, statement: str) -> None:
        """Run SQL, several statements at once."""
        self._driver.execute(statement)

    def rows(self, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Return the rows of a query; its parameters are ``%s``."""
        rows: list[tuple[Any, ...]] = self._driver.execute(query, parameters).fetchall()
        return rows

    @property
    def _driver(self) -> Any:
        return self.connection.connection.driver_connection

    def check(
        self,
        login: str = "app",
        metadata: MetaData | None = METADATA,
        schema: str = "public",
        isolation: Any = "role",
    ) -> list[Finding]:
        """Return what ``check()`` of a manager finds, as a login of the application."""
        tenancy = Tenancy() if metadata is None else Tenancy.of(metadata)
        self.execute(f"SET SESSION AUTHORIZATION {login}")
        found = run_checks(self.connection, tenancy, metadata, isolation, schema)
        self.execute("RESET SESSION AUTHORIZATION")
        return found


@pytest.fixture(scope="module")
def shared(server: Server) -> Iterator[Connection]:
    with fresh_database(server) as database:
        migrate(database, METADATA)
        engine = create_engine(database.superuser_url)
        with engine.connect() as connection:
            yield connection
        engine.dispose()


@pytest.fixture
def migrated(shared: Connection) -> Iterator[Transaction]:
    with shared.begin() as transaction:
        yield Transaction(shared)
        transaction.rollback()


@pytest.fixture
def check(migrated: Transaction) -> Check:
    return migrated.check
