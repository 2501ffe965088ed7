"""Mutants: the package with one guard taken out, which a test has to notice.

The tables, ``*.toml`` beside this file, say for each guard how it is taken out, and
which tests are expected to fail. ``python -m mutants`` in the directory ``tests`` tries
it; ``test_mutants.py`` makes sure that the tables follow the code.
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("sqlalchemy_tenants", "alembic_ext")


@dataclass(frozen=True)
class Mutant:
    """A way to take out one guard.

    :param path: the file that has the guard.
    :param guard: what is taken out.
    :param old: text of the file, which occurs in it exactly once.
    :param new: what replaces it.
    :param tests: pytest's names of tests of which at least one fails; few, and quick.
    :param server: major version of PostgreSQL, where it matters.
    """

    path: str
    guard: str
    old: str
    new: str
    tests: tuple[str, ...]
    server: int = 18

    def __str__(self) -> str:
        return f"{self.path}: {self.guard}"

    def apply(self, root: Path) -> str:
        """Return the text of the mutated file.

        :param root: directory of the packages.
        :raises ValueError: the table has not followed the code.
        """
        text = (root / self.path).read_text()
        count = text.count(self.old)
        if count != 1 or self.old == self.new:
            raise ValueError(f"{self}: occurs {count} times: {self.old!r}")
        return text.replace(self.old, self.new)


def read_tables() -> Iterator[Mutant]:
    """Yield all mutants, in the order of the tables."""
    for table in sorted(Path(__file__).parent.glob("*.toml")):
        for path, rows in tomllib.loads(table.read_text()).items():
            for row in rows:
                yield Mutant(path, **{**row, "tests": tuple(row["tests"])})


def copy_packages(directory: Path) -> None:
    """Copy the packages from the checkout."""
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, directory / name, ignore=ignored)
