"""The pages and pictures that show what ``results.json`` holds."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from measure import Aim, table

from pages import with_tables

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGE = DOCS / "benchmarks.md"

#: Pictures that the README shows, and what they show, by the benchmark that draws them.
PICTURES = {
    "throughput": (
        "throughput.svg",
        "Transactions per second, beside plain SQLAlchemy",
    ),
    "queries": ("queries-prepared.svg", "Time of a query, beside a WHERE by hand"),
}

_MISSING = "Not measured yet: `make bench`."


def published(
    results: Mapping[str, Any], benchmarks: Mapping[str, Any]
) -> dict[Path, str]:
    """Return what the files have to contain.

    :param results: by the name of the benchmark.
    :param benchmarks: their modules.
    """
    aims = reached(results, benchmarks)
    reports = {
        name: _printed(benchmark.report, results[name]) if name in results else _MISSING
        for name, benchmark in benchmarks.items()
    }
    headers = ("what", "beside", "aim", "measured", "aim met")
    rows = [(aim.what, aim.against, aim.aim, aim.found, _met(aim)) for aim in aims]
    tables = {"aims": _printed(table, headers, rows, prose=True), **reports}
    found = {
        README: with_tables(
            README.read_text(), {"benchmarks": _summary(results, aims)}
        ),
        PAGE: with_tables(PAGE.read_text(), tables),
    }
    for name, result in results.items():
        if hasattr(benchmarks[name], "plots"):
            for file, text in benchmarks[name].plots(result).items():
                found[DOCS / file] = text
    return found


def reached(results: Mapping[str, Any], benchmarks: Mapping[str, Any]) -> list[Aim]:
    """Return the aims of all benchmarks that have results."""
    return [
        aim
        for name, benchmark in benchmarks.items()
        if name in results and hasattr(benchmark, "aims")
        for aim in benchmark.aims(results[name])
    ]


def unexplained(aims: list[Aim]) -> list[str]:
    """Return what misses its aim without a word about it on the page."""
    _, _, text = PAGE.read_text().partition("\n## What misses its aim")
    return [aim.what for aim in aims if not aim.met and f"**{aim.what}**" not in text]


def _summary(results: Mapping[str, Any], aims: list[Aim]) -> str:
    if not aims:
        return _MISSING
    rows = [(aim.what, aim.aim, aim.found.partition(";")[0], _met(aim)) for aim in aims]
    summary = _printed(table, ("what", "aim", "measured", "aim met"), rows, prose=True)
    pictures = [
        f"![{shown}](docs/{file})"
        for name, (file, shown) in PICTURES.items()
        if name in results
    ]
    return "\n\n".join([summary, *pictures])


def _met(aim: Aim) -> str:
    return "yes" if aim.met else "**no**"


def _printed(function: Any, *arguments: Any, **options: Any) -> str:
    output = io.StringIO()
    with redirect_stdout(output):
        function(*arguments, **options)
    return output.getvalue().strip()
