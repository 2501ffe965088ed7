"""A tenant's transaction takes no more round trips than an ordinary one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from proxy import Proxy
from sqlalchemy_tenants.managers import PostgresManager
from tenancy import (  # noqa: F401
    Note,
    World,
    driver_fixture,
    isolation_fixture,
    migrated_fixture,
    on_each_driver,
    world_fixture,
)


@pytest.fixture(name="proxy")
def proxy_fixture(world: World) -> Iterator[Proxy]:
    # so that an ordinary session can run the same statements
    world.database.execute(f"GRANT SELECT ON notes TO {world.login}")
    world.create("acme")
    with Proxy(world.database.server) as proxy:
        yield proxy


def through(proxy: Proxy, world: World, **kw: Any) -> Engine:
    name = world.driver.removesuffix("-async")
    url = proxy.url(world.database.url(world.login, name))
    return world.engine(url=url, **kw)


def transaction(session: Session) -> None:
    session.scalars(select(Note.id)).all()
    session.commit()


def counts(proxy: Proxy, *steps: Callable[[], object]) -> list[int]:
    """How many round trips each step takes."""
    result = []
    for step in steps:
        before = proxy.round_trips
        step()
        result.append(proxy.round_trips - before)
    return result


def several_sessions(proxy: Proxy, open_session: Callable[[], Session]) -> list[int]:
    """Each session has one transaction; the first opens the connection."""

    def use() -> None:
        with open_session() as session:
            transaction(session)

    # the sixth and seventh: psycopg prepares a statement that it has sent five times
    return counts(proxy, *[use] * 8)


def one_session(proxy: Proxy, open_session: Callable[[], Session]) -> list[int]:
    """One session has several transactions, with all that can happen in one."""
    with open_session() as session:

        def rolled_back() -> None:
            session.scalars(select(Note.id)).all()
            session.rollback()

        def with_savepoint() -> None:
            with session.begin_nested():
                session.scalars(select(Note.id)).all()
            session.commit()

        def serializable() -> None:
            options = {"isolation_level": "SERIALIZABLE"}
            session.connection(execution_options=options)
            transaction(session)

        def failing() -> None:
            with pytest.raises(Exception, match="zero"):
                session.execute(text("SELECT 1 / 0"))
            session.rollback()

        def use() -> None:
            transaction(session)

        steps = [use, use, rolled_back, with_savepoint, serializable, failing, use]
        return counts(proxy, *steps)


NO_VALUES: dict[str, Any] = {}
VALUES: dict[str, Any] = {
    "context": {"user_id": 7, "name": "Zoë", "is_staff": True, "none": None},
    "settings": {"statement_timeout": "5s", "lock_timeout": 1000},
}


@pytest.mark.parametrize("run", [several_sessions, one_session])
@pytest.mark.parametrize(
    ("pre_ping", "values"),
    [(False, NO_VALUES), (True, NO_VALUES), (False, VALUES)],
    ids=["", "pre-ping", "context"],
)
@on_each_driver
def test_a_session(
    run: Callable[..., list[int]],
    pre_ping: bool,
    values: dict[str, Any],
    proxy: Proxy,
    world: World,
) -> None:
    plain_engine, engine = (
        through(proxy, world, pool_pre_ping=pre_ping) for _ in range(2)
    )
    plain = run(proxy, lambda: Session(plain_engine))
    tenant = run(proxy, lambda: world.session("acme", engine, **values))
    assert tenant == plain
    # BEGIN, the query, COMMIT, and what comes with pre-ping
    assert min(plain) >= 3


@on_each_driver
def test_options_of_the_transaction(proxy: Proxy, world: World) -> None:
    kw: Any = {
        "execution_options": {
            "isolation_level": "SERIALIZABLE",
            "postgresql_readonly": True,
            "postgresql_deferrable": True,
        }
    }

    def show(session: Session) -> list[str]:
        names = ["isolation", "read_only", "deferrable"]
        shown = [session.scalar(text(f"SHOW transaction_{name}")) for name in names]
        session.commit()
        return shown

    def run(open_session: Callable[[], Session]) -> list[int]:
        def use() -> None:
            with open_session() as session:
                assert show(session) == ["serializable", "on", "on"]

        return counts(proxy, use, use, use)

    plain, tenant = (through(proxy, world, **kw) for _ in range(2))
    assert run(lambda: world.session("acme", tenant)) == run(lambda: Session(plain))


@pytest.mark.parametrize("values", [NO_VALUES, VALUES], ids=["", "context"])
@on_each_driver
def test_a_manager(values: dict[str, Any], proxy: Proxy, world: World) -> None:
    plain, engine = (through(proxy, world) for _ in range(2))
    manager = PostgresManager.from_engine(
        engine,
        "public",
        isolation=world.isolation,
        settings=(lambda tenant: {"application_name": tenant}) if values else None,
    )
    query = select(Note.id)

    def plain_session() -> None:
        with Session(plain) as session:
            session.execute(query)
            session.commit()

    def tenant_session() -> None:
        with manager.new_session("acme", **values) as session:
            session.execute(query)
            session.commit()

    def plain_begin() -> None:
        with plain.begin() as connection:
            connection.execute(query)

    def tenant_begin() -> None:
        with manager.begin("acme", **values) as connection:
            connection.execute(query)

    assert counts(
        proxy, tenant_session, tenant_session, tenant_begin, tenant_session
    ) == counts(proxy, plain_session, plain_session, plain_begin, plain_session)


@on_each_driver
def test_the_logins_search_path_is_asked_for_once_a_connection(
    proxy: Proxy, world: World
) -> None:
    plain, engine = (through(proxy, world) for _ in range(2))
    expected = several_sessions(proxy, lambda: Session(plain))
    found = several_sessions(proxy, lambda: world.session("acme", engine, schema=None))
    assert found[1:] == expected[1:]
    if world.database.server.version >= 18:
        assert found == expected  # the server has told it by itself


@on_each_driver
def test_a_session_in_a_transaction_of_the_application_needs_two_more(
    proxy: Proxy, world: World
) -> None:
    with through(proxy, world).connect() as connection:
        connection.execute(text("SELECT 1"))
        session = world.session("acme", connection)
        (count,) = counts(proxy, session.connection)
        statements = 3 if world.isolation == "shared" else 2
        # asyncpg prepares each statement, and takes one at a time
        each = 2 * statements if world.driver == "asyncpg" else 1
        read = 2 if world.driver == "asyncpg" else 1
        assert count == read + each
        # setting it back, which asyncpg has prepared in part
        (count,) = counts(proxy, session.close)
        assert statements <= count <= each if world.driver == "asyncpg" else count == 1
