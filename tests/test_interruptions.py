"""Exceptions out of a signal's handler, as of Ctrl-C, wherever a transaction begins."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import sqlalchemy.orm.session
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import InvalidRequestError, SQLAlchemyError
from sqlalchemy.orm import Session

import sqlalchemy_tenants
from resting import Watch
from servers import Database
from sqlalchemy_tenants import ScopeError
from tenancy import World, isolation_fixture, migrated_fixture  # noqa: F401

OURS = str(Path(sqlalchemy_tenants.__file__).parent)
SESSION = sqlalchemy.orm.session.__file__


def interrupted(function: Callable[[], object], point: int) -> bool:
    """Whether a function was interrupted before the n-th line that it ran of ours, or
    of SQLAlchemy where it has a connection that is not confined yet."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        ours = code.co_filename.startswith(OURS)
        return count if ours or is_between(code.co_filename, code.co_name) else None

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            if lines > point:
                sys.settrace(None)
                raise KeyboardInterrupt
        return count

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def is_between(file: str, function: str) -> bool:
    return file == SESSION and function == "_connection_for_bind"


WHO = text("SELECT current_user::text")


def connects(session: Session, engine: Engine) -> Callable[[], object]:
    session.bind = engine
    return session.connection


def executes(session: Session, engine: Engine) -> Callable[[], object]:
    session.bind = engine
    return lambda: session.scalar(WHO)


def connects_to_an_engine_that_it_names(
    session: Session, engine: Engine
) -> Callable[[], object]:
    return lambda: session.connection({"bind": engine})


@pytest.mark.parametrize("schema", ["public", None])
@pytest.mark.parametrize(
    "begins", [connects, executes, connects_to_an_engine_that_it_names]
)
def test_an_interrupted_session_does_not_go_on_unscoped(
    migrated: Database,
    isolation: str,
    begins: Callable[[Session, Engine], Callable[[], object]],
    schema: str | None,
) -> None:
    world = World(migrated, "psycopg", isolation)
    world.create("acme")
    role = "tenant_acme" if isolation == "role" else "tenants_shared"
    # as many connections as points: where SQLAlchemy itself is interrupted, it may
    # keep one
    engine = world.engine(pool_size=500)
    opened: list[Any] = []
    event.listen(engine, "connect", lambda connection, _: opened.append(connection))
    watch = Watch()
    watch.add(engine, "checkin")
    found = []
    points = 0
    while True:
        session = world.session("acme", None, schema=schema)
        if not interrupted(begins(session, engine), points):
            session.close()
            break
        with suppress(SQLAlchemyError, ScopeError):
            found.append(session.scalar(WHO, bind_arguments={"bind": engine}))
        # a session of SQLAlchemy may be out of order, and then says so
        with suppress(InvalidRequestError):
            session.close()
            found.append(session.scalar(WHO, bind_arguments={"bind": engine}))
            session.close()
        points += 1
    engine.dispose()
    for connection in opened:
        connection.close()
    # of _connection_for_bind() and _enter() at the least
    assert points > 50
    assert len(found) > points
    assert set(found) == {role}
    assert watch.violations == []
