"""What ``allow_statements`` needs of the database: found by ``check()``, and given."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from attacks import security
from servers import (
    Database,
    Server,
    bin_dir,
    fresh_database,
    lacking,
    requested_version,
)
from sqlalchemy_tenants import DML, Finding, ScopeError
from sqlalchemy_tenants.aio.managers import PostgresManager as AsyncManager
from sqlalchemy_tenants.database.hardening import hardening_sql
from sqlalchemy_tenants.managers import PostgresManager
from tenancy import Base, grant_logins, migrate

CODES = {"executes-text", "set-config-open", "temporary-open"}


@pytest.fixture(scope="module")
def installed(server: Server) -> Iterator[Database]:
    """A migrated database, which each test leaves as it was."""
    with fresh_database(server) as database:
        migrate(database)
        grant_logins(database)
        yield database


def check(database: Database, words: frozenset[str] | None = DML) -> list[Finding]:
    engine = create_engine(database.app_url)
    manager = PostgresManager.from_engine(
        engine, "public", metadata=Base.metadata, allow_statements=words
    )
    found = [each for each in manager.check() if each.code in CODES]
    engine.dispose()
    return found


def harden(database: Database) -> None:
    for statement in hardening_sql(database.name, ["owner"]):
        database.execute(statement)


def test_what_is_needed_is_found_and_given(installed: Database) -> None:
    assert check(installed, None) == []
    found = {(each.code, each.severity) for each in check(installed)}
    assert found == {("set-config-open", "error"), ("temporary-open", "warning")}
    # the remedies are statements of the same list
    statements = hardening_sql(installed.name, ["owner"])
    for finding in check(installed):
        assert finding.remedy.count("; ") == 1
        for statement in finding.remedy.split(": ", 1)[1].split(" (sql")[0].split("; "):
            assert statement in statements
    harden(installed)
    assert check(installed) == []
    harden(installed)  # again
    assert check(installed) == []

    for grant, code in (
        ("EXECUTE ON FUNCTION set_config(text, text, boolean)", "set-config-open"),
        (f"TEMPORARY ON DATABASE {installed.name}", "temporary-open"),
    ):
        for role in ("tenants", "tenants_shared", "tenant_x", "PUBLIC"):
            if role == "tenant_x":
                installed.execute("CREATE ROLE tenant_x IN ROLE tenants")
            installed.execute(f"GRANT {grant} TO {role}")
            assert {each.code for each in check(installed)} == {code}
            installed.execute(f"REVOKE {grant} FROM {role}")
            if role == "tenant_x":
                installed.execute("DROP ROLE tenant_x")
    assert check(installed) == []


def test_only_a_superuser_can(installed: Database) -> None:
    installed.execute(
        "GRANT EXECUTE ON FUNCTION set_config(text, text, boolean) TO PUBLIC"
    )
    installed.execute(hardening_sql("x", [])[0], login="owner")
    assert "set-config-open" in {each.code for each in check(installed)}
    harden(installed)


def test_the_owner_dumps_and_migrates(installed: Database) -> None:
    harden(installed)
    server = installed.server
    programs = bin_dir(requested_version())
    assert programs is not None
    installed.execute("INSERT INTO notes (tenant, body) VALUES ('acme', 'dumped')")
    if (programs / "pg_dump").exists():
        command = [
            *(programs / "pg_dump", "--enable-row-security", "--username=owner"),
            *(f"--host={server.directory}", f"--port={server.port}", installed.name),
        ]
        result = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
        )
        assert result.returncode == 0, result.stderr
        assert "dumped" in result.stdout
    engine = create_engine(installed.owner_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Base.metadata) == []
        # what autogenerate does to compare conditions
        connection.execute(text("CREATE TEMP VIEW v AS TABLE notes"))
    engine.dispose()


async def test_asyncpg_is_told_of_enums(installed: Database) -> None:
    """It would ask for them with the help of set_config()."""
    harden(installed)
    installed.execute("CREATE TYPE mood AS ENUM ('a', 'b')")
    engine = create_async_engine(installed.url("app_shared", "asyncpg"))
    manager = AsyncManager.from_engine(
        engine, "public", isolation="shared", allow_statements=DML
    )
    query = text("SELECT 'a'::mood, CAST(:mood AS mood)")
    with pytest.raises(DBAPIError, match="set_config"):
        async with manager.new_session("acme") as session:
            await session.execute(query, {"mood": "b"})
    await engine.dispose()
    exec(security.blocks("python")[1], {"engine": engine})
    async with manager.new_session("acme") as session:
        rows = await session.execute(query, {"mood": "b"})
        assert rows.one() == ("a", "b")
    await engine.dispose()
    installed.execute("DROP TYPE mood")


FUNCTIONS = {
    "builds a statement": (
        "CREATE FUNCTION f(text) RETURNS void LANGUAGE plpgsql AS"
        " $$ BEGIN EXECUTE $1; END $$",
        "warning",
    ),
    "builds one, in a procedure": (
        "CREATE PROCEDURE f(text) LANGUAGE plpgsql AS $$ BEGIN EXECUTE $1; END $$",
        "warning",
    ),
    "for one tenant": (
        "CREATE ROLE tenant_x IN ROLE tenants;"
        "CREATE FUNCTION f(text) RETURNS void LANGUAGE plpgsql AS"
        " $$ BEGIN EXECUTE $1; END $$;"
        "REVOKE EXECUTE ON FUNCTION f(text) FROM PUBLIC;"
        "GRANT EXECUTE ON FUNCTION f(text) TO tenant_x",
        "warning",
    ),
    "a trigger": (
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN EXECUTE 'SELECT 1'; END $$",
        None,
    ),
    "builds nothing": (
        "CREATE FUNCTION f(text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN END $$",
        None,
    ),
    "not for tenants": (
        "CREATE FUNCTION f(text) RETURNS void LANGUAGE plpgsql AS"
        " $$ BEGIN EXECUTE $1; END $$;"
        "REVOKE EXECUTE ON FUNCTION f(text) FROM PUBLIC",
        None,
    ),
    "in a closed schema": (
        "CREATE SCHEMA s; CREATE FUNCTION s.f(text) RETURNS void LANGUAGE plpgsql AS"
        " $$ BEGIN EXECUTE $1; END $$",
        None,
    ),
    "an untrusted language": (
        "UPDATE pg_language SET lanpltrusted = false WHERE lanname = 'plpgsql';"
        "CREATE FUNCTION f(text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN END $$",
        "warning",
    ),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_functions_that_execute_text_are_found(kind: str, installed: Database) -> None:
    statement, severity = FUNCTIONS[kind]
    harden(installed)
    installed.execute(statement)
    try:
        found = {
            (each.object.rpartition(".")[2][:2], each.code, each.severity)
            for each in check(installed)
            if "current_tenant" not in each.object
        }
        assert found == ({("f(", "executes-text", severity)} if severity else set())
    finally:
        installed.execute(
            "DROP ROUTINE IF EXISTS f; DROP SCHEMA IF EXISTS s CASCADE;"
            "DROP ROLE IF EXISTS tenant_x;"
            "UPDATE pg_language SET lanpltrusted = true WHERE lanname = 'plpgsql'"
        )


@pytest.fixture(scope="module")
def with_extensions() -> Iterator[Database]:
    """A database on a server that has the extensions of PostgreSQL's own source."""
    for version in dict.fromkeys((requested_version(), 15, 16, 17, 18)):
        programs = bin_dir(version)
        if programs and (programs.parent / "lib" / "pgxml.so").exists():
            break
    else:
        lacking("no PostgreSQL with its contrib extensions is installed")
    with (
        pytest.MonkeyPatch.context() as patch,
        Server(version) as server,
        fresh_database(server) as database,
    ):
        patch.setenv("TENANTS_PG", str(version))
        migrate(database)
        grant_logins(database)
        database.execute("CREATE EXTENSION xml2; CREATE EXTENSION dblink")
        database.execute("INSERT INTO notes (tenant, body) VALUES ('globex', 'secret')")
        yield database


def test_a_function_that_pastes_its_arguments_together(
    with_extensions: Database,
) -> None:
    """``xpath_table()`` of xml2 executes several statements."""
    engine = create_engine(with_extensions.shared_url)
    manager = PostgresManager.from_engine(
        engine, "public", isolation="shared", allow_statements=DML
    )

    def attack() -> Any:
        with manager.new_session("acme") as session:
            session.execute(
                text(
                    "SELECT * FROM xpath_table('id', 'body', 'notes', '/', :attack)"
                    " AS x (a text, b text)"
                ),
                {
                    "attack": "true; SET LOCAL tenancy.tenant = 'globex';"
                    " SELECT 1, '<a/>'"
                },
            )
            return session.execute(text("TABLE notes")).all()

    before = [each for each in check(with_extensions) if each.code == "executes-text"]
    assert {each.severity for each in before} == {"error"}
    assert {each.object.split("(")[0] for each in before} >= {"dblink", "xpath_table"}
    assert "secret" in str(attack())
    harden(with_extensions)
    assert check(with_extensions) == []
    with pytest.raises(Exception, match="permission denied for function xpath_table"):
        attack()
    with pytest.raises(ScopeError), manager.new_session("acme") as session:
        session.execute(text("SET tenancy.tenant = 'globex'"))
    engine.dispose()
