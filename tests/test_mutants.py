"""The tables of mutants follow the code: each can be applied, and its tests exist.

Whether the tests notice each of them takes some minutes: ``make mutants``.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mutants import ROOT, Mutant, copy_packages, read_tables
from mutants.__main__ import run_tests

MUTANTS = list(read_tables())


def test_each_mutant_can_be_applied() -> None:
    for mutant in MUTANTS:
        ast.parse(mutant.apply(ROOT))


def test_each_mutant_has_tests_and_a_name_of_its_own() -> None:
    assert all(mutant.tests for mutant in MUTANTS)
    names = Counter(map(str, MUTANTS))
    assert [name for name, count in names.items() if count > 1] == []


def test_the_tests_of_each_mutant_exist() -> None:
    tests = {test for mutant in MUTANTS for test in mutant.tests}
    files = sorted({test.partition("::")[0] for test in tests})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *files]
    result = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    found = {line.removeprefix("tests/") for line in result.stdout.splitlines()}
    # a test with all its parameters, too
    found |= {name.partition("[")[0] for name in found}
    assert tests - found == set()


def test_a_table_that_has_not_followed_the_code_is_an_error(tmp_path: Path) -> None:
    copy_packages(tmp_path)
    for old in ("no such text", "import"):
        mutant = Mutant("sqlalchemy_tenants/scope.py", "", old, "", ())
        with pytest.raises(ValueError, match="occurs"):
            mutant.apply(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ('"""Return the tenant of a tenant role', '"""Return the tenant of a role', ""),
        ("str.__str__(tenant)", "str.__str__(tenant).lower()", "failure"),
        ("import re\n", "import no_such_module\n", "trouble"),
    ],
    ids=["equivalent", "killed", "broken"],
)
def test_the_verdict_of_a_run(old: str, new: str, verdict: str) -> None:
    test = "test_declare.py::test_roles_of_tenants_are_distinct"
    mutant = Mutant("sqlalchemy_tenants/tenancy.py", verdict, old, new, (test,))
    outcome = run_tests(mutant.tests, mutant.server, mutant)
    assert outcome.failure == (test if verdict == "failure" else None)
    assert (outcome.trouble is not None) is (verdict == "trouble")
    assert "no_such_module" in (outcome.trouble or "no_such_module")
