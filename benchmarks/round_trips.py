"""Network round trips of a transaction with one query, counted by a proxy."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from measure import Aim, lacking, say, table
from peers import ProgramError
from ways import DRIVERS, PLAIN, Connected, running

from proxy import Proxy

#: Transactions that are counted together.
COUNTED = 10


def run(options: Any) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for version in options.versions[-1:]:
        results[str(version)] = {}
        with running(version) as ways, ExitStack() as stack:
            for way in ways:
                say(f"PostgreSQL {version}, {way.name}")
                proxy = stack.enter_context(Proxy(way.database.server))
                results[str(version)][way.name] = {
                    driver: _count(way.connect(driver, proxy.address, warmup=6), proxy)
                    for driver in DRIVERS
                }
    return {"postgresql": results}


def report(results: dict[str, Any]) -> None:
    print("Round trips of a transaction with one query: the only one of its session,")
    print("and a further one of the same session.\n")
    rows = []
    for version, ways in results["postgresql"].items():
        for way, drivers in ways.items():
            cells = (_cell(drivers[driver]) for driver in DRIVERS)
            rows.append((f"{version}, {way}", *cells))
    table(("", *DRIVERS), rows)


def aims(results: dict[str, Any]) -> list[Aim]:
    """Equal to plain, in each driver and kind of session."""
    ways = list(results["postgresql"].values())[-1]
    ours = [ways["role"], ways["shared"]]
    others = {
        count["first"]
        for name, drivers in ways.items()
        if drivers not in [*ours, ways[PLAIN]]
        for count in drivers.values()
        if "first" in count
    }
    counts = {each["first"] for drivers in ours for each in drivers.values()}
    plain = {each["first"] for each in ways[PLAIN].values()}
    return [
        Aim(
            "round trips of a transaction with one query",
            "plain SQLAlchemy",
            "equal",
            f"{_numbers(counts)}, plain {_numbers(plain)}; others {_numbers(others)}",
            all(each == ways[PLAIN] for each in ours),
        )
    ]


def _count(connected: Connected | ProgramError, proxy: Proxy) -> dict[str, Any]:
    if isinstance(connected, ProgramError):
        return {"error": connected.reason}

    def counted(transactions: int, *, one_session: bool) -> int:
        before = proxy.round_trips
        connected.run(transactions, one_session=one_session)
        return proxy.round_trips - before

    first = counted(COUNTED, one_session=False)
    one = counted(1, one_session=True)
    more = counted(1 + COUNTED, one_session=True)
    return {"first": first / COUNTED, "further": (more - one) / COUNTED}


def _cell(count: dict[str, Any]) -> str:
    if "error" in count:
        return lacking(count["error"])
    return f"{count['first']:g}, {count['further']:g}"


def _numbers(values: set[float]) -> str:
    return " to ".join(f"{value:g}" for value in sorted({min(values), max(values)}))
