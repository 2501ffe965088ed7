"""Measures what tenants cost: ``python benchmarks [--full] [NAME ...]``.

Each module named in ``BENCHMARKS`` has ``run(options)``, which returns its results as
data that JSON can hold, and ``report(results)``, which prints them as tables;
``aims(results)``, if there is one, returns what they should be and are, and
``plots(results)`` SVG texts by file name. The results of all go to ``results.json``,
those of a benchmark that did not run this time stay as they were, and from there into
README.md and docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy

# the servers are those of the tests
sys.path.append(str(Path(__file__).parent.parent / "tests"))

import measure
from published import published, reached, unexplained

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
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="where the results go"
    )
    parser.add_argument(
        "--publish", action="store_true", help="write the pages, and measure nothing"
    )
    parser.add_argument(
        "--check", action="store_true", help="tell whether the pages are up to date"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    requested = arguments.pg or ([15, 16, 18] if arguments.full else [18])
    versions = tuple(version for version in requested if bin_dir(version) is not None)
    if not versions:
        parser.error(f"none of these PostgreSQL versions is installed: {requested}")
    options = Options(arguments.full, versions)

    modules = {name: importlib.import_module(name) for name in BENCHMARKS}
    output: Path = arguments.output
    results = json.loads(output.read_text()) if output.exists() else {}
    results = {name: results[name] for name in BENCHMARKS if name in results}
    if arguments.check:
        changed = [
            path
            for path, text in published(results, modules).items()
            if not path.exists() or path.read_text() != text
        ]
        parser.exit(
            bool(changed),
            "".join(f"{path} is not as the results are\n" for path in changed),
        )
    if not arguments.publish:
        for name in arguments.names or BENCHMARKS:
            _run(modules[name], name, results, options)
            # after each: an interrupted run keeps what it has
            ordered = {each: results[each] for each in BENCHMARKS if each in results}
            output.write_text(json.dumps(ordered, indent=1) + "\n")
    aims = reached(results, modules)
    measure.table(
        ("what", "beside", "aim", "measured", "met"),
        [
            (aim.what, aim.against, aim.aim, aim.found, "yes" if aim.met else "no")
            for aim in aims
        ],
        prose=True,
    )
    # what is not to be published stays out of the documentation
    if output == RESULTS:
        for path, text in published(results, modules).items():
            path.write_text(text)
            measure.say(f"wrote {path}")
        for what in unexplained(aims):
            measure.say(
                f"docs/benchmarks.md does not say why it misses its aim: {what}"
            )
    measure.say("done")


def _run(benchmark: Any, name: str, results: dict[str, Any], options: Options) -> None:
    measure.say(f"{name}: {(benchmark.__doc__ or '').strip()}")
    started = time.monotonic()
    found = {"environment": environment(options), **benchmark.run(options)}
    found["environment"]["seconds"] = round(time.monotonic() - started)
    results[name] = found
    print(f"\n{name}\n")
    benchmark.report(found)
    print(flush=True)


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
