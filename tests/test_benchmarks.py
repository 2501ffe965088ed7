"""The README and the documentation show what the benchmarks have measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_pages_show_the_results() -> None:
    result = subprocess.run(
        [sys.executable, "benchmarks", "--check"],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert result.returncode == 0, f"{result.stdout}make bench ARGS=--publish"
