"""TenantFilter: log records that say which tenant was at work."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import Engine, event, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from servers import Database
from sqlalchemy_tenants import TenantFilter
from sqlalchemy_tenants import claims as claims_module
from sqlalchemy_tenants import tenant_filter as filter_module
from sqlalchemy_tenants.aio import managers as aio
from sqlalchemy_tenants.managers import PostgresManager
from tenancy import (  # noqa: F401
    Note,
    World,
    driver_fixture,
    isolation_fixture,
    migrated_fixture,
    on_each_driver,
    role_world_fixture,
    world_fixture,
)

log = logging.getLogger("shop")


class Records(logging.Handler):
    """Keeps tenant, logger and message of each record."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[str, str, str]] = []
        self.addFilter(TenantFilter())

    def emit(self, record: logging.LogRecord) -> None:
        line = " ".join(record.getMessage().split())
        self.kept.append((vars(record)["tenant"], record.name, line))

    def take(self, name: str) -> list[tuple[str, str]]:
        """Take what a logger has said, and forget the rest."""
        kept, self.kept = self.kept, []
        return [(tenant, line) for tenant, each, line in kept if each == name]


@pytest.fixture(name="records")
def records_fixture() -> Iterator[Records]:
    records = Records()
    root = logging.getLogger()
    engine = logging.getLogger("sqlalchemy.engine")
    before = (root.level, engine.level)
    root.addHandler(records)
    root.setLevel(logging.INFO)
    engine.setLevel(logging.INFO)
    yield records
    root.removeHandler(records)
    root.setLevel(before[0])
    engine.setLevel(before[1])
    # other tests in this process go on without
    claims_module.watchers.clear()
    for each in ("before_cursor_execute", "commit", "rollback"):
        event.remove(Engine, each, filter_module._note_statement)


def said(records: Records) -> str:
    log.info("x")
    ((tenant, _),) = records.take("shop")
    return tenant


@on_each_driver
def test_the_session_at_work(records: Records, world: World) -> None:
    engine = world.engine(pool_size=3)
    manager = world.manager(engine)
    manager.create_tenants(["acme", "globex"])
    assert said(records) == "-"
    with manager.new_session("acme") as one:
        assert said(records) == "acme"
        with manager.new_session("globex") as two:
            assert said(records) == "globex"
            one.execute(text("SELECT 1"))  # used last
            assert said(records) == "acme"
            two.add(Note())
            two.flush()
            assert said(records) == "globex"
            with manager.connect("acme") as connection:
                assert said(records) == "acme"
                connection.commit()
            assert said(records) == "globex"
            with manager.admin_session() as admin:
                admin.execute(text("SELECT 1"))
                assert said(records) == "-"
        assert said(records) == "acme"
        one.commit()
        assert said(records) == "-"  # between its transactions
        one.execute(text("SELECT 1"))
        assert said(records) == "acme"
        log.info("x", extra={"tenant": "given"})
        assert records.take("shop")[0][0] == "given"
    assert said(records) == "-"


@on_each_driver
def test_records_of_the_engine(records: Records, world: World) -> None:
    """Each has the tenant whose statement it shows, however sessions alternate."""
    engine = world.engine(pool_size=2)
    manager = world.manager(engine)
    manager.create_tenants(["acme", "globex"])
    with manager.new_session("acme") as one, manager.new_session("globex") as two:
        records.kept.clear()
        for _ in range(2):
            for session in (one, two):
                session.execute(text(f"SELECT '{session.tenant}'"))
        with world.engine("owner").connect() as other:
            other.execute(text("SELECT 'nobody'"))
        one.commit()
        one.execute(text("SELECT 'acme'"))
        one.rollback()
        taken = records.take("sqlalchemy.engine.Engine")
    for tenant, line in taken:
        if line.startswith("SELECT 'nobody'") or line.startswith("BEGIN"):
            assert tenant == "-"
        elif line.startswith("SELECT '"):
            assert line == f"SELECT '{tenant}'"
    ends = [(t, line) for t, line in taken if line in ("COMMIT", "ROLLBACK")]
    assert ends == [("-", "ROLLBACK"), ("acme", "COMMIT"), ("acme", "ROLLBACK")]


def test_threads(
    records: Records, migrated: Database, make_engine: Callable[..., Engine]
) -> None:
    manager = PostgresManager.from_engine(
        make_engine(migrated.app_url),
        "public",
        admin_engine=make_engine(migrated.admin_url),
    )
    manager.create_tenants(["acme", "globex"])
    together = Barrier(2)

    def work(tenant: str) -> None:
        with manager.new_session(tenant) as session:
            for _ in range(5):
                together.wait()
                session.execute(text(f"SELECT '{tenant}'"))
                together.wait()
                log.info(tenant)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, ["acme", "globex"]))
    kept = list(records.kept)
    taken = records.take("shop")
    assert len(taken) == 10
    assert all(tenant == line for tenant, line in taken)
    selected = [(t, line) for t, _, line in kept if line.startswith("SELECT '")]
    assert len(selected) == 10
    assert all(line == f"SELECT '{tenant}'" for tenant, line in selected)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_tasks(
    records: Records,
    migrated: Database,
    driver: str,
    make_async_engine: Callable[..., AsyncEngine],
) -> None:
    manager = aio.PostgresManager.from_engine(
        make_async_engine(migrated.url("app", driver)),
        "public",
        admin_engine=make_async_engine(migrated.url("manager", driver)),
    )
    await manager.create_tenants(["acme", "globex"])
    together = asyncio.Barrier(2)

    async def work(tenant: str) -> None:
        async with manager.new_session(tenant) as session:
            log.info(tenant)
            for _ in range(5):
                await together.wait()
                await session.execute(text(f"SELECT '{tenant}'"))
                await session.scalars(select(Note))
                await together.wait()
                log.info(tenant)
        log.info("-")

    await asyncio.gather(work("acme"), work("globex"))
    log.info("-")
    kept = list(records.kept)
    taken = records.take("shop")
    assert len(taken) == 15
    assert all(tenant == line for tenant, line in taken), taken
    selected = [(t, line) for t, _, line in kept if line.startswith("SELECT '")]
    assert len(selected) == 10
    assert all(line == f"SELECT '{tenant}'" for tenant, line in selected)


def test_who_makes_none_pays_nothing() -> None:
    """Importing it listens to nothing; other tests may have made one here."""
    code = (
        "import sqlalchemy_tenants, sqlalchemy_tenants.aio.managers, sys\n"
        "assert 'sqlalchemy_tenants.tenant_filter' not in sys.modules\n"
        "from sqlalchemy_tenants import TenantFilter, claims\n"
        "assert not claims.watchers\n"
        "TenantFilter(); TenantFilter('shop')\n"
        "assert len(claims.watchers) == 1\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
