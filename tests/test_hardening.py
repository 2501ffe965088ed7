"""What ``allow_statements`` needs of the database: found by ``check()``, and given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import MetaData, create_engine, text
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
from sqlalchemy_tenants import DML, Finding, ScopeError, with_rls
from sqlalchemy_tenants.aio.managers import PostgresManager as AsyncManager
from sqlalchemy_tenants.database.hardening import (
    EXECUTE_QUERY,
    SET_CONFIG,
    hardening_sql,
)
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
    # whatever came before
    installed.execute(
        f"GRANT EXECUTE ON FUNCTION {SET_CONFIG} TO PUBLIC;"
        f"GRANT TEMPORARY ON DATABASE {installed.name} TO PUBLIC"
    )
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


def test_the_page_has_these_statements(installed: Database) -> None:
    statements = hardening_sql("shop", ["owner"])
    page = [block for block in security.blocks("sql") if "TEMPORARY" in block]
    assert page == ["".join(f"{each};\n" for each in statements[:-1])]


EXECUTING = (SET_CONFIG, *EXECUTE_QUERY, "public.anything()", "public.anyhow()")

#: What the privileges stop, whatever sessions allow.
DENIED = (
    "SELECT set_config('tenancy.tenant', 'globex', false)",
    "UPDATE pg_settings SET setting = 'x' WHERE name = 'role'",
    "SELECT query_to_xml('SELECT 1', true, true, '')",
    "SELECT * FROM ts_stat('SELECT ''a''::tsvector')",
    "SELECT ts_rewrite('a'::tsquery, 'SELECT ''a''::tsquery, ''b''::tsquery')",
    "SELECT anything()",
    "CALL anyhow()",
    "CREATE TEMPORARY TABLE t (id integer)",
    "SELECT 1 AS id INTO TEMPORARY t",
)


def test_what_executes_text_is_denied(installed: Database) -> None:
    """As defence in depth, also what can only execute a query."""
    installed.execute(
        "CREATE LANGUAGE untrusted HANDLER plpgsql_call_handler;"
        "CREATE FUNCTION anything() RETURNS text LANGUAGE untrusted"
        " AS $$BEGIN RETURN 'done'; END$$;"
        "CREATE PROCEDURE anyhow() LANGUAGE untrusted AS $$BEGIN END$$"
    )
    try:
        harden(installed)
        with installed.server.connect(installed.name, "app_shared") as connection:
            connection.execute("SET ROLE tenants_shared")
            for statement in DENIED:
                with pytest.raises(InsufficientPrivilege):
                    connection.execute(statement)
            # only the overload that executes text
            row = connection.execute("SELECT ts_rewrite('a & b', 'a', 'c'::tsquery)")
            assert row.fetchone() == ("'b' & 'c'",)
        query = "SELECT bool_and(has_function_privilege(%s, f, 'EXECUTE')) FROM unnest"
        for role, expected in {"owner": True, "tenants_shared": False}.items():
            rows = installed.rows(f"{query}(%s::text[]) f", [role, list(EXECUTING)])
            assert rows == [(expected,)]
    finally:
        installed.execute("DROP LANGUAGE untrusted CASCADE")


TYPES = """
CREATE TYPE mood AS ENUM ('a', 'b');
CREATE DOMAIN word AS text;
"""


async def test_asyncpg_is_told_of_types(installed: Database) -> None:
    """It would ask for them with the help of set_config()."""
    harden(installed)
    installed.execute(TYPES)
    engine = create_async_engine(installed.url("app_shared", "asyncpg"))
    manager = AsyncManager.from_engine(
        engine, "public", isolation="shared", allow_statements=DML
    )
    queries = {
        "CAST(:value AS mood)": "a",
        "CAST(:value AS mood[])": ["a", "b"],
        "CAST(:value AS word)": "a",
        "CAST(:value AS word[])": ["a", "b"],
    }
    for query, value in queries.items():
        with pytest.raises(DBAPIError, match="set_config"):
            async with manager.new_session("acme") as session:
                await session.execute(text(f"SELECT {query}"), {"value": value})
    await engine.dispose()

    (grant,) = [block for block in security.blocks("sql") if "TO app;" in block]
    installed.execute(grant.replace("TO app;", "TO app_shared;"))
    exec(security.blocks("python")[1], {"engine": engine})
    for query, value in queries.items():
        async with manager.new_session("acme") as session:
            rows = await session.execute(text(f"SELECT {query}"), {"value": value})
            assert rows.scalar_one() == value
            with pytest.raises(DBAPIError, match="set_config"):
                await session.execute(text("SELECT set_config('role', 'app', true)"))
    await engine.dispose()
    assert check(installed) == []
    installed.execute(
        f"REVOKE EXECUTE ON FUNCTION {SET_CONFIG} FROM app_shared;"
        "DROP TYPE mood; DROP DOMAIN word"
    )


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
        "CREATE LANGUAGE untrusted HANDLER plpgsql_call_handler;"
        "CREATE FUNCTION f(text) RETURNS void LANGUAGE untrusted AS $$ BEGIN END $$",
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
        }
        assert found == ({("f(", "executes-text", severity)} if severity else set())
    finally:
        installed.execute(
            "DROP ROUTINE IF EXISTS f; DROP SCHEMA IF EXISTS s CASCADE;"
            "DROP ROLE IF EXISTS tenant_x;"
            "DROP LANGUAGE IF EXISTS untrusted CASCADE"
        )


#: A library, a function of it, and whether it executes any statement.
OF_LIBRARIES = (
    ("$libdir/dblink", "dblink", True),
    ("$libdir/dblink", "dblink_connect_u", True),
    ("/opt/pgsql/lib/dblink.so", "dblink_exec", True),
    ("dblink", "dblink_fdw_validator", False),
    ("$libdir/pg_background", "pg_background_launch", True),
    ("$libdir/pg_cron", "schedule_in_database", True),
    ("$libdir/timescaledb-2.21.0", "alter_job", False),
    ("$libdir/pgxml", "xpath_table", True),
    ("$libdir/pgxml", "xpath_string", False),
    ("$libdir/tablefunc", "crosstab", False),
)


def test_functions_of_libraries_are_found_and_taken_away(installed: Database) -> None:
    harden(installed)
    names = [name for _, name, _ in OF_LIBRARIES]
    for library, name, _ in OF_LIBRARIES:
        # the libraries need not be there
        installed.execute(
            f"CREATE FUNCTION {name}(oid) RETURNS void LANGUAGE c"
            " AS '$libdir/plpgsql', 'plpgsql_validator'"
        )
        update = "UPDATE pg_proc SET probin = %s WHERE proname = %s"
        installed.execute(update, [library, name])
    try:
        found = {(each.object, each.code, each.severity) for each in check(installed)}
        assert found == {
            (f"{name}(oid)", "executes-text", "error")
            for _, name, executes in OF_LIBRARIES
            if executes
        }
        harden(installed)
        assert check(installed) == []
        query = (
            "SELECT proname FROM pg_proc WHERE proname = ANY (%s)"
            " AND has_function_privilege(%s, oid, 'EXECUTE')"
        )
        assert installed.rows(query, [names, "tenants"]) == [("alter_job",)]
        assert len(installed.rows(query, [names, "owner"])) == len(names)
    finally:
        installed.execute(f"DROP FUNCTION {', '.join(names)}")


@pytest.fixture
def with_extensions(server: Server) -> Iterator[Database]:
    """A database on a server that has the extensions of PostgreSQL's own source.

    :param server: that of other tests, which has started before the version changes.
    """
    for version in dict.fromkeys((requested_version(), 15, 16, 17, 18)):
        programs = bin_dir(version)
        if programs and (programs.parent / "lib" / "pgxml.so").exists():
            break
    else:
        lacking("no PostgreSQL with its contrib extensions is installed")
    with (
        pytest.MonkeyPatch.context() as patch,
        Server(version) as own,
        fresh_database(own) as database,
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


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_manager_needs_nothing_that_was_taken_away(
    installed: Database, driver: str, tmp_path: Path
) -> None:
    harden(installed)
    engines = [
        create_async_engine(installed.url(e, driver)) for e in ("app", "manager")
    ]
    metadata = MetaData()
    for each in ("notes", "comments"):
        with_rls(Base.metadata.tables[each].to_metadata(metadata))
    manager = AsyncManager.from_engine(
        engines[0],
        "public",
        admin_engine=engines[1],
        metadata=metadata,
        allow_statements=DML,
    )
    assert await manager.create_tenants(["t1", "t2"]) == 2
    assert {"t1", "t2"} <= set(await manager.list_tenants())
    assert [each for each in await manager.check() if each.code in CODES] == []
    await manager.suspend_tenant("t1")
    await manager.resume_tenant("t1")
    await manager.export_rows("t1", tmp_path / "rows")
    await manager.import_rows("t1", tmp_path / "rows", as_tenant="t2")
    for tenant in ("t1", "t2"):
        await manager.delete_rows(tenant, dry_run=True)
        await manager.delete_tenant(tenant)
    for engine in engines:
        await engine.dispose()
