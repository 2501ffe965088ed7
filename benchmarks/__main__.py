"""Measures what tenants cost: ``python benchmarks [--full] [NAME ...]``.

Each module named in ``BENCHMARKS`` has ``run(options)``, which returns its results as
data that JSON can hold, and ``report(results)``, which prints them as tables;
``plots(results)``, if there is one, returns them as SVG texts by file name. The
results of all go to ``results.json``, those of a benchmark that did not run this time
stay as they were.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy

# the servers are those of the tests
sys.path.append(str(Path(__file__).parent.parent / "tests"))

import measure

from servers import bin_dir

BENCHMARKS = (
    "round_trips",
    "throughput",
    "autogenerate",
    "imports",
    "queries",
    "tenants",
    "overhead",
    "bulk_load",
)
RESULTS = Path(__file__).parent / "results.json"
DOCS = Path(__file__).parent.parent / "docs"


@dataclass(frozen=True)
class Options:
    """What is measured.

    :param full: the numbers of the documentation, which take about 20 minutes.
    :param versions: PostgreSQL versions, the newest one last.
    """

    full: bool
    versions: tuple[int, ...]


def main() -> None:
    # stop the servers also when the run is terminated
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="python benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--full", action="store_true", help="large, takes 20 minutes")
    parser.add_argument(
        "--pg", type=int, action="append", help="PostgreSQL version, repeatable"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    requested = arguments.pg or ([15, 16, 18] if arguments.full else [18])
    versions = tuple(version for version in requested if bin_dir(version) is not None)
    if not versions:
        parser.error(f"none of these PostgreSQL versions is installed: {requested}")
    options = Options(arguments.full, versions)

    output: Path = arguments.output
    # what is not to be published stays out of the documentation
    folder = DOCS if output == RESULTS else output.parent
    results = json.loads(output.read_text()) if output.exists() else {}
    for name in arguments.names or BENCHMARKS:
        benchmark = importlib.import_module(name)
        measure.say(f"{name}: {(benchmark.__doc__ or '').strip()}")
        results[name] = {"environment": environment(options), **benchmark.run(options)}
        # after each: an interrupted run keeps what it has
        output.write_text(json.dumps(results, indent=1) + "\n")
        print()
        benchmark.report(results[name])
        print(flush=True)
        if hasattr(benchmark, "plots"):
            for file, text in benchmark.plots(results[name]).items():
                (folder / file).write_text(text)
                measure.say(f"wrote {folder / file}")


def environment(options: Options) -> dict[str, Any]:
    """What the absolute times depend on."""
    return {
        "full": options.full,
        "python": platform.python_version(),
        "sqlalchemy": sqlalchemy.__version__,
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    main()
