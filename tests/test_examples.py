"""The examples: they run, and their migrations are right."""

from __future__ import annotations

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

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_quickstart_demo() -> None:
    result = subprocess.run(
        [sys.executable, "demo.py"],
        cwd=EXAMPLES / "quickstart",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    assert result.stdout.endswith("Done: everything above was true.\n")


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
