"""Commands of ``sqlalchemy-tenants`` in this process, and what psql does with them.

A test module imports the fixture ``run``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from servers import SUPERUSER, Database, bin_dir
from sqlalchemy_tenants.command_line import cli

#: The models of the module "tenancy", beside this one.
MODELS = "tenancy:Base"

Run = Callable[..., Result]


@pytest.fixture(name="run")
def run_fixture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command in this process, in a directory of its own, which may fail only in
    the way of a command: no traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in os.environ if name.startswith("SQLALCHEMY_TENANTS")]:
        monkeypatch.delenv(name)

    def run(*arguments: str, status: int = 0, **kw: Any) -> Result:
        result = CliRunner().invoke(cli, arguments, **kw)
        assert result.exception is None or isinstance(result.exception, SystemExit), (
            result.exc_info
        )
        assert result.exit_code == status, result.output
        return result

    return run


def psql(database: Database, script: str) -> subprocess.CompletedProcess[str]:
    directory = bin_dir(database.server.version)
    assert directory is not None
    return subprocess.run(
        [
            *(directory / "psql", "--no-psqlrc", "--quiet", "-d", "postgres"),
            *("-h", database.server.host, "-p", str(database.server.port)),
            *("-U", SUPERUSER, "-f", "-"),
        ],
        input=script,
        text=True,
        capture_output=True,
        env={**os.environ, "PGOPTIONS": "-c client_min_messages=warning"},
    )
