"""A plugin of pytest: the tests see the copy of the packages, and no other."""

from __future__ import annotations

import os
from importlib import import_module

from mutants import PACKAGES


def pytest_sessionstart() -> None:
    copy = os.environ["MUTANT"] + os.sep
    for name in PACKAGES:
        module = import_module(name)
        assert str(module.__file__).startswith(copy), module
