"""The examples: they run, their migrations are right, and pgrls finds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytest_alembic import tests
from pytest_alembic.config import Config
from pytest_alembic.runner import runner

from servers import Database
from tenancy import migrate

EXAMPLES = Path(__file__).parent.parent / "examples"


# Where the programs of this environment are, activated or not.
BIN = Path(sys.executable).parent


def run(program: str, *arguments: str, cwd: Path, url: str = "") -> str:
    """Run a program of this environment, and return what it prints."""
    result = subprocess.run(
        [BIN / program, *arguments],
        cwd=cwd,
        env={**os.environ, "DATABASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_the_quickstart_demo() -> None:
    output = run("python", "demo.py", cwd=EXAMPLES / "quickstart")
    assert output.endswith("Done: everything above was true.\n")


@pytest.fixture(params=["quickstart", "fastapi"])
def example(
    request: pytest.FixtureRequest,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The folder of an Alembic project, whose env.py connects to a fresh database."""
    driver = "asyncpg" if request.param == "fastapi" else "psycopg"
    monkeypatch.setenv("DATABASE_URL", database.url("owner", driver))
    # each project has a module "models", and Alembic puts its folder on the path
    monkeypatch.delitem(sys.modules, "models", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder: Path = EXAMPLES / request.param
    return folder


@pytest.mark.parametrize(
    "check",
    [
        tests.test_single_head_revision,
        tests.test_upgrade,
        tests.test_up_down_consistency,
        tests.test_model_definitions_match_ddl,
    ],
    ids=lambda check: check.__name__.removeprefix("test_"),
)
def test_pytest_alembic(
    check: Callable[..., None], example: Path, make_engine: Any, database: Database
) -> None:
    config = Config.from_raw_config({"file": str(example / "alembic.ini")})
    with runner(config=config, engine=make_engine(database.owner_url)) as migrations:
        check(migrations)


def test_pgrls_finds_nothing(example: Path, database: Database) -> None:
    run("alembic", "upgrade", "head", cwd=example, url=os.environ["DATABASE_URL"])
    run_pgrls(database, "lint", "--schemas", "public,tenancy", "--fail-on", "info")
    for mode in ("anon", "cross-tenant", "write"):
        verify = ["verify", "--schemas", "public", "--strict", "--mode", mode]
        run_pgrls(database, *verify, "--auth-function", "tenancy.current_tenant")


def run_pgrls(database: Database, *arguments: str) -> None:
    # as superuser, so that it sees everything
    url = database.superuser_url.replace("+psycopg", "")
    run("pgrls", *arguments, "--database-url", url, cwd=Path(__file__).parent)


def test_pgrls_proves_tenants_of_each_type(database: Database) -> None:
    migrate(database)
    run_pgrls(database, "lint", "--schemas", "public,tenancy", "--fail-on", "info")
    for mode in ("anon", "cross-tenant", "write"):
        verify = ["verify", "--schemas", "public", "--strict", "--mode", mode]
        run_pgrls(database, *verify, "--auth-function", "tenancy.current_tenant")
