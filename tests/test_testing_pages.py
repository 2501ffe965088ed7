"""docs/testing.md and the examples' tests: pytest runs what they show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from servers import Database
from sqlalchemy_tenants.managers import PostgresManager

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "testing.md").read_text()

MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy_tenants import TenantMixin, with_rls

class Base(DeclarativeBase):
    pass

@with_rls
class Order(TenantMixin, Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
"""

# What runs only where there is what it needs.
NEEDED = {
    "test_rolled_back.py": hasattr(PostgresManager, "bound_to"),
    # "make test-clients" has it
    "test_factories.py": find_spec("factory") is not None,
}


def run_pytest(folder: Path, environment: dict[str, str], *options: str) -> str:
    """Run the tests of a folder as its reader would, and return how many passed."""
    command = ["-m", "pytest", "--quiet", "-p", "no:cacheprovider", *options, folder]
    result = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=folder,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert result.returncode == 0, result.stdout
    found = re.search(r"^(.* passed)", result.stdout, re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_page(database: Database, tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    blocks = dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```$", PAGE, re.M | re.S))
    assert len(blocks) == len(re.findall(r"^```\w", PAGE, re.MULTILINE))
    count = 0
    for name, block in blocks.items():
        if NEEDED.get(name, True):
            (tmp_path / name).write_text(block)
            repeated = 2 if "parametrize" in block else 1
            count += repeated * len(re.findall(r"^def test_", block, re.MULTILINE))
    database.execute("ALTER ROLE owner CREATEDB")
    environment = {
        "OWNER_URL": database.owner_url,
        "APP_URL": database.app_url,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    passed = run_pytest(tmp_path, environment, "-p", "xdist.plugin", "-n", "2")
    assert passed == f"{count} passed"


@pytest.mark.parametrize("name", ["quickstart", "fastapi"])
def test_the_example(database: Database, name: str) -> None:
    driver = "asyncpg" if name == "fastapi" else "psycopg"
    urls = {
        "OWNER_DATABASE_URL": database.url("owner", driver),
        "ADMIN_DATABASE_URL": database.url("owner", driver),
        "DATABASE_URL": database.url("app", driver),
        "TOKEN_KEY": "",
    }
    assert run_pytest(ROOT / "examples" / name, urls) == "1 passed"
