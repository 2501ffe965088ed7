"""Take out each guard, one at a time, and see a test fail: ``python -m mutants``, in
``tests``."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from mutants import ROOT, Mutant, copy_packages, read_tables

# seconds; the slowest takes a tenth of it on an idle machine
TIMEOUT = 300

# what pytest returns where tests were run, and all of them passed, or some failed
PASSED, FAILED = 0, 1

_FAILURE = re.compile(r"^(?:FAILED|SUBFAILED\S*) (.*?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What the tests said.

    :param failure: the test that failed, ``None`` if all passed.
    :param trouble: what pytest printed where it did neither, as where a mutant cannot
        be imported: that proves nothing.
    """

    seconds: float
    failure: str | None = None
    trouble: str | None = None


def run_tests(
    tests: Iterable[str], server: int, mutant: Mutant | None = None, *options: str
) -> Outcome:
    """Run tests on a copy of the packages, which has one mutation or none."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tenants-mutant-") as name:
        directory = Path(name)
        copy_packages(directory)
        if mutant is not None:
            (directory / mutant.path).write_text(mutant.apply(directory))
        command = [sys.executable, "-m", "pytest", "--tb", "short", "--exitfirst"]
        command += ["-p", "no:cacheprovider"]
        for plugin in ("mutants.plugin", "pytest_asyncio.plugin", "xdist.plugin"):
            command += ["-p", plugin]
        process = subprocess.Popen(
            [*command, *options, *tests],
            cwd=ROOT / "tests",
            env={
                **os.environ,
                # before the installed packages
                "PYTHONPATH": name,
                "MUTANT": name,
                # the others take half of the time, Hypothesis most of it
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "TENANTS_PG": str(server),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except BaseException as error:
            # not SIGKILL: it has a server to stop
            process.terminate()
            output, _ = process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            output += f"\nnot ready after {TIMEOUT} s"
    seconds = time.monotonic() - started
    if process.returncode == PASSED:
        return Outcome(seconds)
    failures = _FAILURE.findall(output)
    if process.returncode == FAILED and failures:
        return Outcome(seconds, failure=failures[0])
    return Outcome(seconds, trouble=output)


def try_all(mutants: Sequence[Mutant], jobs: int) -> dict[Mutant, Outcome]:
    """Try mutants, several at a time, and tell of each."""
    outcomes: dict[Mutant, Outcome] = {}
    with ThreadPoolExecutor(jobs) as executor:
        futures = {
            executor.submit(run_tests, mutant.tests, mutant.server, mutant): mutant
            for mutant in mutants
        }
        try:
            for future in as_completed(futures):
                mutant, outcome = futures[future], future.result()
                outcomes[mutant] = outcome
                verdict = "killed" if outcome.failure else "SURVIVED"
                if outcome.trouble is not None:
                    verdict = f"TROUBLE\n{outcome.trouble}"
                print(
                    f"{len(outcomes):3}/{len(mutants)} {outcome.seconds:5.1f} s  "
                    f"{mutant}: {verdict}",
                    flush=True,
                )
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
    return outcomes


def as_table(outcomes: dict[Mutant, Outcome], mutants: Sequence[Mutant]) -> str:
    """Return a table in Markdown."""
    lines = ["| file | taken out | noticed by | s |", "| --- | --- | --- | ---: |"]
    for mutant in mutants:
        outcome = outcomes[mutant]
        noticed = f"`{outcome.failure}`" if outcome.failure else "**nobody**"
        guard = mutant.guard.replace("|", "\\|")
        lines.append(
            f"| `{mutant.path}` | {guard} | {noticed.replace('|', chr(92) + '|')} "
            f"| {outcome.seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument(
        "words", nargs="*", help="only those whose file or guard has one of these"
    )
    parser.add_argument("-j", "--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("-l", "--list", action="store_true", help="only list them")
    options = parser.parse_args()
    mutants = [
        mutant
        for mutant in read_tables()
        if not options.words or any(word in str(mutant) for word in options.words)
    ]
    if options.list:
        print(*mutants, sep="\n")
        return 0
    if not mutants:
        parser.error("no such mutant")

    started = time.monotonic()
    for server in sorted({mutant.server for mutant in mutants}):
        tests = dict.fromkeys(
            test for m in mutants if m.server == server for test in m.tests
        )
        outcome = run_tests(tests, server, None, "--numprocesses", str(options.jobs))
        if outcome.failure or outcome.trouble:
            print(f"without a mutation: {outcome.failure}\n{outcome.trouble or ''}")
            return 1
        print(
            f"{outcome.seconds:13.1f} s  without a mutation, PostgreSQL {server}: "
            f"{len(tests)} tests pass",
            flush=True,
        )
    outcomes = try_all(mutants, options.jobs)
    print(f"\n{as_table(outcomes, mutants)}\n")
    unnoticed = [mutant for mutant in mutants if not outcomes[mutant].failure]
    print(
        f"{len(mutants) - len(unnoticed)} of {len(mutants)} mutants killed "
        f"in {time.monotonic() - started:.0f} s"
    )
    for mutant in unnoticed:
        trouble = outcomes[mutant].trouble is not None
        print(f"{'trouble' if trouble else 'survived'}: {mutant}")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
