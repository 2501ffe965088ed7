"""Fixtures: a server for the whole run, and for each test a database of its own."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from servers import Database, Server, fresh_database, requested_version


def pytest_configure() -> None:
    # Stop the server also when the run is terminated, as CI does on a timeout.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Ignored, where the tests run in the background of a shell; some send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seed()  # before workers of pytest-xdist start, which inherit it


def pytest_report_header() -> str:
    return (
        f"PostgreSQL {requested_version()} (TENANTS_PG), "
        f"SQLAlchemy {sqlalchemy.__version__}, seed {seed()} (TENANTS_SEED)"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what random tests counted: their property ``counts``."""
    lines = [
        f"{report.nodeid.rpartition('/')[2]}: {value}"
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        for name, value in report.user_properties
        if name == "counts"
    ]
    if lines:
        terminalreporter.section(f"random tests, TENANTS_SEED={seed()}")
    for line in sorted(lines):
        terminalreporter.write_line(line)


def seed() -> int:
    """What random tests start from: 1, ``TENANTS_SEED``, or another one each time.

    By default it is the same for each run, so that a test that fails does so because of
    a change. ``TENANTS_SEED=random`` finds out more, in long runs.
    """
    value = os.environ.get("TENANTS_SEED", "1")
    if value == "random":
        value = os.environ["TENANTS_SEED"] = str(random.randrange(1 << 32))
    return int(value)


@pytest.fixture(scope="session")
def run_seed() -> int:
    """See :func:`seed`."""
    return seed()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The running server, of the version that ``TENANTS_PG`` asks for."""
    with Server(requested_version()) as server:
        yield server


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    """An empty database with fresh logins; see :class:`.Database`."""
    with fresh_database(server) as database:
        yield database


@pytest.fixture
def make_engine(database: Database) -> Iterator[Callable[..., Engine]]:
    """``create_engine()``, whose engines are disposed of after the test."""
    engines: list[Engine] = []

    def make(url: str, **kw: Any) -> Engine:
        engines.append(create_engine(url, **kw))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture
async def make_async_engine(
    database: Database,
) -> AsyncIterator[Callable[..., AsyncEngine]]:
    """``create_async_engine()``, whose engines are disposed of after the test."""
    engines: list[AsyncEngine] = []

    def make(url: str, **kw: Any) -> AsyncEngine:
        engines.append(create_async_engine(url, **kw))
        return engines[-1]

    yield make
    for engine in engines:
        await engine.dispose()
