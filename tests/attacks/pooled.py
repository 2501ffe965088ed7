"""What a transaction of acme leaves on a pooled connection, and who finds it there.

The scope of a transaction ends with it. What the application, or an attacker, does to
the whole session by statements such as ``SET`` without ``LOCAL`` does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from attacks import (
    OWN,
    SECRET,
    TRICKY,
    Leftover,
    Next,
    attempt,
    execute,
    execute_on,
    refused,
)
from sqlalchemy_tenants import TenantSession
from tenancy import World

ISOLATIONS = ("role", "shared")


def leave(world: World, engine: Engine, statements: Sequence[str]) -> None:
    role = '"tenant_acme"' if world.isolation == "role" else "tenants_shared"
    with world.session("acme", engine) as session:
        execute(session, *(each.replace("{role}", role) for each in statements))
        session.commit()


def victim(world: World, engine: Engine, **kw: Any) -> TenantSession:
    return world.session("globex", engine, **kw)


# --- who comes next ------------------------------------------------------------------


def sees_other_rows(world: World, engine: Engine) -> bool:
    """A session of globex, with and without a schema, which sees its rows only."""
    for kw in ({}, {"schema": None}):
        with victim(world, engine, **kw) as session:
            rows = execute(session, "SELECT body FROM notes", "SELECT body FROM notes")
            if rows != [(SECRET,), (SECRET,)]:
                return True
            if execute(session, "SELECT lower('A'::varchar)") != [("a",)]:
                return True
    return False


def reads(*statements: str) -> Next:
    """A session of globex that finds what acme has."""

    def affects(world: World, engine: Engine) -> bool:
        with victim(world, engine) as session:
            got = attempt(session, *statements)
        return OWN in str(got)

    return affects


def fails(statement: str, state: str) -> Next:
    """A session of globex that gets an error."""

    def affects(world: World, engine: Engine) -> bool:
        with victim(world, engine) as session:
            return attempt(session, statement) == state

    return affects


def finds(statement: str) -> Next:
    """A session of globex for which a query has rows."""

    def affects(world: World, engine: Engine) -> bool:
        with victim(world, engine) as session:
            return execute(session, statement) != []

    return affects


def unscoped(statement: str, expected: str) -> Next:
    """A connection without a session, that should get an error or a default."""

    def affects(world: World, engine: Engine) -> bool:
        try:
            with engine.connect() as connection:
                return expected in str(execute_on(connection, statement))
        except DBAPIError as error:
            return refused(error) != "42501"

    return affects


def is_another_tenant(world: World, engine: Engine) -> bool:
    """A session of a tenant whose name is quoted wrongly."""
    with world.session(TRICKY, engine) as session:
        return execute(session, "SELECT tenancy.current_tenant()") != [(TRICKY,)]


def narrows_the_admin(world: World, engine: Engine) -> bool:
    """An admin session after one that was narrowed, which must see the rows of all."""
    manager = world.manager(engine, admin_engine=world.engine("manager"))
    with manager.admin_session("acme") as session:
        execute(session, "SET tenancy.tenant = 'acme'", "SET ROLE tenants_admin")
        session.commit()
    with manager.admin_session() as session:
        rows = execute(session, "SELECT DISTINCT tenant FROM notes ORDER BY 1")
    return rows != [("acme",), ("globex",)]


_SHADOW = "CREATE TEMP TABLE notes AS SELECT * FROM public.notes"

HARMLESS = [
    Leftover(
        "nothing but an ordinary transaction: who uses the engine without a session",
        ["TABLE notes"],
        unscoped("SELECT body FROM public.notes", OWN),
    ),
    Leftover("the same: a session", ["TABLE notes"], sees_other_rows),
    Leftover(
        "the same: the search path",
        ["TABLE notes"],
        unscoped("SHOW search_path", "pg_temp"),
    ),
    Leftover(
        "the same: the setting of the tenant",
        ["TABLE notes"],
        unscoped("SELECT current_setting('tenancy.tenant', true)", "acme"),
    ),
    Leftover("`SET ROLE`", ["SET ROLE {role}"], sees_other_rows),
    Leftover(
        "`SET SESSION AUTHORIZATION DEFAULT`",
        ["SET SESSION AUTHORIZATION DEFAULT"],
        sees_other_rows,
    ),
    Leftover(
        "the setting of the tenant", ["SET tenancy.tenant = 'acme'"], sees_other_rows
    ),
    Leftover(
        "the same on the connection of admin sessions",
        ["SET tenancy.tenant = 'acme'"],
        narrows_the_admin,
    ),
    Leftover(
        "a temporary table in place of a real one, and a search path that finds it",
        [
            _SHADOW,
            "GRANT ALL ON pg_temp.notes TO PUBLIC",
            "SET search_path = pg_temp, public",
        ],
        sees_other_rows,
    ),
    Leftover(
        "a temporary function in place of another",
        [
            "CREATE FUNCTION pg_temp.lower(varchar) RETURNS text LANGUAGE sql"
            " RETURN 'x'",
            "SET search_path = pg_temp, public",
        ],
        sees_other_rows,
    ),
    Leftover(
        "a prepared statement of acme, executed by globex",
        ["PREPARE q AS TABLE notes", "EXECUTE q"],
        reads("EXECUTE q"),
    ),
    Leftover(
        "a cached plan of a function", ["SELECT bodies()"] * 6, reads("SELECT bodies()")
    ),
    Leftover(
        "a cursor without `HOLD`",
        ["DECLARE c CURSOR FOR TABLE notes"],
        reads("FETCH ALL FROM c"),
    ),
    Leftover(
        "a temporary table with rows",
        ["CREATE TEMP TABLE mine AS TABLE notes"],
        reads("TABLE pg_temp.mine"),
        isolations=("role",),
    ),
    Leftover(
        "`standard_conforming_strings`",
        ["SET standard_conforming_strings = off"],
        is_another_tenant,
    ),
    Leftover(
        "another client encoding",
        ["SET client_encoding = 'LATIN1'"],
        is_another_tenant,
        drivers=("psycopg", "psycopg-async"),
    ),
]

RESET = "[forget it on return](#a-connection-that-forgets)"

AFFECTED = [
    Leftover(
        "a cursor `WITH HOLD`: globex reads rows of acme",
        ["DECLARE c CURSOR WITH HOLD FOR TABLE notes"],
        reads("FETCH ALL FROM c"),
        RESET,
    ),
    Leftover(
        "a temporary table with rows: globex reads rows of acme",
        ["CREATE TEMP TABLE mine AS TABLE notes"],
        reads("TABLE pg_temp.mine"),
        f"`ON COMMIT DROP`; {RESET}",
        isolations=("shared",),
    ),
    Leftover(
        "`SET ROLE`: who uses the engine without a session acts as acme",
        ["SET ROLE {role}", "SET tenancy.tenant = 'acme'"],
        unscoped("SELECT body FROM public.notes", OWN),
        f"`SET LOCAL`; {RESET}",
    ),
    Leftover(
        "`SET search_path`: who uses the engine without a session",
        ["SET search_path = pg_temp, nowhere"],
        unscoped("SHOW search_path", "nowhere"),
        f"`SET LOCAL`; {RESET}",
    ),
    Leftover(
        "`SET row_security = off`: globex gets errors",
        ["SET row_security = off"],
        fails("SELECT * FROM notes", "42501"),
        f"`SET LOCAL`; {RESET}",
    ),
    Leftover(
        "`SET default_transaction_read_only`, `statement_timeout` and the like: globex"
        " gets errors",
        ["SET default_transaction_read_only = on"],
        fails("UPDATE notes SET body = body", "25006"),
        f"`SET LOCAL`; {RESET}",
    ),
    Leftover(
        "an advisory lock of the session: globex holds it, too",
        ["SELECT pg_advisory_lock(7)"],
        finds(
            "SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"
            " AND pid = pg_backend_pid()"
        ),
        f"`pg_advisory_xact_lock`; {RESET}",
    ),
    Leftover(
        "`LISTEN`: the connection of globex receives notifications",
        ["LISTEN news"],
        finds("SELECT pg_listening_channels()"),
        RESET,
    ),
    Leftover(
        "the text of statements that were prepared by `PREPARE`, in"
        " `pg_prepared_statements`",
        [f"PREPARE q AS SELECT '{OWN}'"],
        reads("SELECT statement FROM pg_prepared_statements"),
        "parameters instead of values",
        forgotten=False,
    ),
]

LEFTOVERS = [*HARMLESS, *AFFECTED]


def replaces_prepared(engine: Engine, world: World) -> bool:
    """Whether acme can put a statement of its own in place of one that the driver has
    prepared: globex executes it, and acme reads what it wrote."""
    query = "SELECT body FROM notes WHERE id > 0"
    with victim(world, engine) as session:
        for _ in range(7):  # psycopg prepares what it executes for the sixth time
            session.connection().exec_driver_sql(query)
        session.commit()
    with world.session("acme", engine) as session:
        rows = execute(
            session,
            "CREATE TEMP TABLE loot (body text)",
            "GRANT INSERT ON pg_temp.loot TO PUBLIC",
            "SELECT name FROM pg_prepared_statements WHERE statement ~ 'id > 0'",
        )
        for (name,) in rows:
            execute(
                session,
                f"DEALLOCATE {name}",
                f"PREPARE {name} AS WITH x AS (INSERT INTO pg_temp.loot"
                f" SELECT body FROM notes) {query}",
            )
        session.commit()
    with victim(world, engine) as session:
        session.connection().exec_driver_sql(query)
        session.commit()
    with world.session("acme", engine) as session:
        return SECRET in str(execute(session, "TABLE pg_temp.loot"))
