"""Injected SQL reaches no other tenant where sessions allow DML only.

Attackers L1 and L2 of ``docs/security.md``; each of the three parts is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from attacks.injected import texts
from servers import Database
from sqlalchemy_tenants import DML, ScopeError, TenantSession
from sqlalchemy_tenants.database.hardening import hardening_sql
from sqlalchemy_tenants.statements import _KNOWN
from tenancy import (  # noqa: F401
    Note,
    World,
    driver_fixture,
    isolation_fixture,
    migrated_fixture,
    on_each_driver,
    world_fixture,
)

SECRET = "row of globex"
STATE = text(
    "SELECT current_user, coalesce(current_setting('tenancy.tenant', true), ''),"
    " current_setting('search_path'), current_setting('row_security')"
)


def harden(database: Database) -> None:
    for statement in hardening_sql(database.name, ["owner"]):
        database.execute(statement)


@pytest.fixture
def seeded(world: World) -> World:
    world.create("acme", "globex")
    world.fill(Note, "acme", "globex")
    return world


def by_text(connection: Connection, statement: str) -> Any:
    return connection.execute(text(statement.replace(":", "\\:")))


def by_driver(connection: Connection, statement: str) -> Any:
    return connection.exec_driver_sql(statement)


def attack(session: TenantSession, statement: str, way: Any) -> bool:
    """Whether a statement moves a session off its tenant, or leaks."""
    connection = session.connection()
    before = connection.execute(STATE).one()
    seen: Any = None
    try:
        result = way(connection, statement)
        seen = result.all() if result.returns_rows else None
    except (DBAPIError, ScopeError):
        pass
    except (TypeError, ValueError, KeyError):
        return False  # of a character or a placeholder that the driver refuses
    leaks = SECRET in str(seen)
    try:
        leaks |= before != connection.execute(STATE).one()
        return leaks or SECRET in str(connection.execute(text("TABLE notes")).all())
    except DBAPIError as error:
        # in an aborted transaction nothing is read; the login by itself may not
        return leaks or getattr(error.orig, "sqlstate", None) != "25P02"


def successes(
    engine: Engine, world: World, words: frozenset[str], prepare: Any = None
) -> Iterator[str]:
    """Yield what moves a session off its tenant, leaks, or leaves something."""
    manager = world.manager(engine, allow_statements=words)
    with engine.connect() as connection:
        fresh = connection.execute(STATE).one()
    for statement in texts(world.isolation):
        for way in (by_text, by_driver):
            with manager.new_session("acme", create_if_missing=False) as session:
                if prepare is not None:
                    prepare(session)
                succeeded = attack(session, statement, way)
                with suppress(DBAPIError):
                    session.commit()
            with engine.connect() as connection:
                succeeded |= connection.execute(STATE).one() != fresh
            if succeeded:
                yield f"{way.__name__}: {statement}"
                engine.dispose()


@on_each_driver
def test_no_attack_succeeds(seeded: World, world: World) -> None:
    harden(world.database)
    before = world.database.rows("SELECT * FROM notes WHERE tenant <> 'acme'")
    assert list(successes(world.engine(), seeded, DML)) == []
    after = world.database.rows("SELECT * FROM notes WHERE tenant <> 'acme'")
    assert after == before


def stacking(session: TenantSession) -> None:
    """Let the driver send several statements in one message again."""
    raw: Any = session.connection().connection.driver_connection
    plain = {"_execute_send": psycopg.Cursor._execute_send}
    raw.cursor_factory = type("Stacking", (raw.cursor_factory,), plain)


# What is left out, with what it leaves: the words, one statement in a message.
PARTS: dict[str, tuple[frozenset[str], Any]] = {
    "words": (_KNOWN, None),
    "one-statement": (DML, stacking),
    "set_config": (DML, None),
}


@pytest.mark.parametrize("driver", ["psycopg"])
@pytest.mark.parametrize("isolation", ["shared"])
@pytest.mark.parametrize("part", PARTS)
@on_each_driver
def test_each_part_is_needed(seeded: World, world: World, part: str) -> None:
    words, prepare = PARTS[part]
    if part != "set_config":
        harden(world.database)
    assert next(successes(world.engine(), seeded, words, prepare), None)
