"""The test setup itself: the right server, and logins that prove something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine

import sqlalchemy_tenants
from servers import Database, Server, fresh_database, requested_version


def test_package_is_the_installed_one() -> None:
    # The Alembic plugin's entry point exists only there.
    assert "site-packages" in Path(sqlalchemy_tenants.__file__).parts


def test_server_is_of_the_version_asked_for(database: Database) -> None:
    ((number,),) = database.rows("SHOW server_version_num")
    assert int(number) // 10000 == requested_version()


@pytest.mark.parametrize("login", ["owner", "app", "app_shared", "manager"])
def test_login_is_subject_to_row_level_security(database: Database, login: str) -> None:
    query = (
        "SELECT current_user, rolsuper OR rolbypassrls FROM pg_roles"
        " WHERE rolname = current_user"
    )
    assert database.rows(query, login=login) == [(login, False)]


def test_owner_owns_schema_public(database: Database) -> None:
    database.execute("COMMENT ON SCHEMA public IS ''", login="owner")


def test_sync_engine(database: Database, make_engine: Callable[..., Engine]) -> None:
    with make_engine(database.app_url).connect() as connection:
        assert connection.scalar(text("SELECT current_user")) == "app"


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_async_engine(
    database: Database, make_async_engine: Callable[..., AsyncEngine], driver: str
) -> None:
    async with make_async_engine(database.url("app", driver)).connect() as connection:
        assert await connection.scalar(text("SELECT current_user")) == "app"


def test_cluster_is_clean_after_a_test(server: Server) -> None:
    def objects() -> set[tuple[str]]:
        with server.connect() as connection:
            return set(
                connection.execute(
                    "SELECT rolname FROM pg_roles UNION SELECT datname FROM pg_database"
                )
            )

    before = objects()
    with fresh_database(server) as database:
        database.execute('CREATE ROLE "tenant_ä" ROLE app', login="owner")
        database.execute("CREATE ROLE tenants", login="manager")
        database.execute("CREATE DATABASE another")
        database.execute(
            "GRANT tenants TO app; GRANT CREATE ON DATABASE postgres TO tenants;"
            "CREATE TABLE t (); GRANT SELECT ON t TO tenants"
        )
        database.execute("BEGIN; CREATE TABLE u (); PREPARE TRANSACTION 'x'")
    assert objects() == before


def test_restart_keeps_the_data_and_the_port(database: Database) -> None:
    database.execute("CREATE TABLE t ()")
    database.server.restart("immediate")
    assert database.rows("SELECT count(*) FROM t") == [(0,)]
