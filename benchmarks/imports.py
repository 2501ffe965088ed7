"""What importing the package costs beside what an application imports anyway."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

from cores import CLIENT, on
from measure import Aim, interleave, milliseconds, ratio, say, spread, table, times
from peers import OURS, PEERS, environment, prepare, python

#: The aim, for time and memory, and the cases that it is about: an application creates
#: an engine in any case.
AIM = 1.05
AIMED_AT = ("with an engine", "with an engine, asyncio")

#: Rounds that do not count.
WARMUP = 2

_SYNC = "import sqlalchemy, sqlalchemy.orm"
_ASYNC = f"{_SYNC}, sqlalchemy.ext.asyncio"
_MANAGER = "import sqlalchemy_tenants, sqlalchemy_tenants.managers"
_ASYNC_MANAGER = "import sqlalchemy_tenants, sqlalchemy_tenants.aio.managers"
# what an engine needs: the dialect and the driver
_ENGINE = "sqlalchemy.create_engine('postgresql+psycopg://')"
_ALEMBIC = f"{_SYNC}, alembic.command"

PLAIN, OURS_NAME = "plain SQLAlchemy", "sqlalchemy-tenants"
EARLIER, RLS = PEERS["earlier"].name, PEERS["rls"].name

#: Whose environment, and what runs there, by case and package. Plain is measured in
#: ours, but where Alembic would load the plugin.
CASES: dict[str, dict[str, tuple[str, str]]] = {
    "with an engine": {
        PLAIN: (OURS, f"{_SYNC}; {_ENGINE}"),
        OURS_NAME: (OURS, f"{_SYNC}; {_ENGINE}; {_MANAGER}"),
        EARLIER: ("earlier", f"{_SYNC}; {_ENGINE}; {_MANAGER}"),
        RLS: ("rls", f"{_SYNC}; {_ENGINE}; import rls.rls_session"),
    },
    "with an engine, asyncio": {
        PLAIN: (OURS, f"{_ASYNC}; {_ENGINE}"),
        OURS_NAME: (OURS, f"{_ASYNC}; {_ENGINE}; {_ASYNC_MANAGER}"),
    },
    "without": {
        PLAIN: (OURS, _SYNC),
        OURS_NAME: (OURS, f"{_SYNC}; {_MANAGER}"),
    },
    "Alembic, which loads the plugin": {
        PLAIN: ("plain", _ALEMBIC),
        OURS_NAME: (OURS, _ALEMBIC),
    },
}

_MEASURED = """
import time
started, cpu = time.perf_counter(), time.process_time()
{code}
taken, cpu = time.perf_counter() - started, time.process_time() - cpu
with open("/proc/self/status") as lines:
    memory = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
print(taken, cpu, memory)
"""


def run(options: Any) -> dict[str, Any]:
    prepare("plain", "earlier", "rls")
    results: dict[str, Any] = {}
    for case, packages in CASES.items():
        say(case)
        found: dict[str, list[list[float]]] = {name: [] for name in packages}
        with on(CLIENT):
            walls = interleave(
                {
                    name: _timed(peer, code, found[name])
                    for name, (peer, code) in packages.items()
                },
                100 if options.full else 20,
                warmup=WARMUP,
                seconds=60 if options.full else 8,
            )
        cpu, memory = (
            {name: [each[index] for each in found[name][WARMUP:]] for name in packages}
            for index in (1, 2)
        )
        results[case] = {
            name: {
                "wall": spread(walls[name]),
                "ratio": ratio(walls[name], walls[PLAIN]),
                "cpu": ratio(cpu[name], cpu[PLAIN]),
                "kilobytes": spread(memory[name]),
                "memory": ratio(memory[name], memory[PLAIN]),
            }
            for name in packages
        }
    return {"cases": results}


def report(results: dict[str, Any]) -> None:
    print("Fresh processes that import SQLAlchemy, create an engine where it says so,")
    print("and import the package; memory is what is resident then.\n")
    rows = [
        (
            f"{case}: {name}",
            milliseconds(result["wall"]),
            times(result["ratio"]),
            times(result["cpu"]),
            f"{result['kilobytes']['median'] / 1024:.1f} MB",
            times(result["memory"]),
        )
        for case, packages in results["cases"].items()
        for name, result in packages.items()
    ]
    table(("", "time", "ratio", "CPU", "memory", "ratio"), rows)


def aims(results: dict[str, Any]) -> list[Aim]:
    """Time and memory where an engine is created, as each application does."""
    found = []
    for measure, what in (("cpu", "import, CPU time"), ("memory", "import, memory")):
        ratios = {
            case: results["cases"][case][OURS_NAME][measure]["median"]
            for case in AIMED_AT
        }
        found.append(
            Aim(
                what,
                "plain SQLAlchemy",
                f"at most {AIM:.2f}x",
                " and ".join(
                    f"{value:.2f}x ({case})" for case, value in ratios.items()
                ),
                max(ratios.values()) <= AIM,
            )
        )
    return found


def _timed(peer: str, code: str, found: list[list[float]]) -> Callable[[], float]:
    command = [str(python(peer)), "-c", _MEASURED.format(code=code)]

    def call() -> float:
        printed = subprocess.run(
            command, check=True, capture_output=True, text=True, env=environment()
        ).stdout
        values = [float(value) for value in printed.split()]
        found.append(values)
        return values[0]

    return call
