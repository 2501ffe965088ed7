"""Transactions per second, each with one query, near the server and far from it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from typing import Any

import plot
import psycopg
from measure import Aim, interleave, lacking, ratio, say, spread, table, times
from peers import ProgramError
from ways import DRIVERS, FLOORS, PLAIN, WAYS, Connected, Running, running

from proxy import Proxy
from servers import SUPERUSER, Server

#: Milliseconds that the network adds to a round trip; transactions that are timed
#: together; how many rounds.
DELAYS = {0.0: (30, 32), 0.5: (16, 14), 2.0: (8, 12)}

#: What a driver and kind of session may take on a slow machine.
SECONDS = 8

#: How the transactions are spread over sessions.
MODES = {"sessions": "a session for each transaction", "session": "one session"}

#: The aims, as a share of plain: without delay and with.
AIM, AIM_FAR = 0.90, 0.95


def run(options: Any) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for version in options.versions[-1:]:
        results[str(version)] = {}
        with running(version) as ways, ExitStack() as stack:
            for delay in DELAYS:
                say(f"PostgreSQL {version}, {delay:g} ms")
                proxies = {
                    server: stack.enter_context(Proxy(server))
                    for server in {way.database.server for way in ways}
                    if delay
                }
                results[str(version)][f"{delay:g}"] = {
                    "round_trip": round(_calibrate(proxies, delay), 3),
                    "drivers": {
                        driver: _run_driver(ways, proxies, driver, delay, options.full)
                        for driver in DRIVERS
                    },
                }
    return {"postgresql": results}


def report(results: dict[str, Any]) -> None:
    print("Transactions per second as a share of plain SQLAlchemy: more is better.\n")
    for version, delays in results["postgresql"].items():
        for delay, result in delays.items():
            for mode, described in MODES.items():
                print(
                    f"PostgreSQL {version}, {delay} ms of network delay, {described}\n"
                )
                rows = [
                    (
                        way,
                        *(
                            _cell(each[mode][way])
                            for each in result["drivers"].values()
                        ),
                    )
                    for way in WAYS
                    if way != PLAIN
                ]
                table(("", *result["drivers"]), rows)
                plain = [
                    f"{1e3 / each[mode][PLAIN]['wall']['median']:,.0f} ({driver})"
                    for driver, each in result["drivers"].items()
                ]
                print(f"\nPlain, per second: {', '.join(plain)}.\n")


def aims(results: dict[str, Any]) -> list[Aim]:
    """The worst of all drivers and kinds of sessions."""
    delays = list(results["postgresql"].values())[-1]
    found = []
    for delay, result in delays.items():
        aim = AIM_FAR if float(delay) else AIM
        ratios, floors = (
            {
                f"{way}, {driver}, {MODES[mode]}": each[mode][way]["ratio"]["median"]
                for driver, each in result["drivers"].items()
                for mode in MODES
                for way in ways
            }
            for ways in (FLOORS, FLOORS.values())
        )
        worst = min(ratios, key=ratios.__getitem__)
        text = (
            f"{_range(ratios.values())} (floor {_range(floors.values())}); "
            f"least: {worst}"
        )
        found.append(
            Aim(
                f"transactions per second, {delay} ms of network delay",
                "plain SQLAlchemy",
                f"at least {aim:.2f} of plain",
                text,
                ratios[worst] >= aim,
            )
        )
    return found


def plots(results: dict[str, Any]) -> dict[str, str]:
    """SVG texts by file name."""
    version, delays = list(results["postgresql"].items())[-1]
    return {
        "throughput.svg": plot.dots(
            f"Transactions per second, a session for each, PostgreSQL {version}",
            "share of plain SQLAlchemy, more is better",
            {
                (f"{delay} ms of network delay", driver): {
                    way: each["sessions"][way]["ratio"]
                    for way in WAYS
                    if way not in (PLAIN, *FLOORS.values())
                    and "ratio" in each["sessions"][way]
                }
                for delay, result in delays.items()
                for driver, each in result["drivers"].items()
            },
            aim=lambda group, way: (
                (AIM if group.startswith("0 ") else AIM_FAR)
                if way in ("role", "shared")
                else None
            ),
        )
    }


def _range(ratios: Collection[float]) -> str:
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def _run_driver(
    ways: list[Running],
    proxies: dict[Server, Proxy],
    driver: str,
    delay: float,
    full: bool,
) -> dict[str, Any]:
    transactions, rounds = DELAYS[delay]
    results: dict[str, Any] = {mode: {} for mode in MODES}
    connected: dict[str, Connected] = {}
    for way in ways:
        address = proxies[way.database.server].address if proxies else None
        found = way.connect(driver, address, warmup=1 if delay else 6)
        if isinstance(found, ProgramError):
            for mode in MODES:
                results[mode][way.name] = {"error": found.reason}
        else:
            connected[way.name] = found
    for mode, result in results.items():
        cpu: dict[str, list[float]] = {name: [] for name in connected}

        def timed(name: str, mode: str = mode, cpu: Any = cpu) -> Callable[[], float]:
            def call() -> float:
                seconds, processor = connected[name].run(
                    transactions, one_session=mode == "session"
                )
                cpu[name].append(processor / transactions)
                return seconds / transactions

            return call

        more = 3 if full else 1
        samples = interleave(
            {name: timed(name) for name in connected},
            rounds * more,
            seconds=SECONDS * more,
        )
        for name in connected:
            warmup = len(cpu[name]) - len(samples[name])
            result[name] = {
                "wall": spread(samples[name]),
                "ratio": ratio(samples[PLAIN], samples[name]),
                "cpu": ratio(cpu[name][warmup:], cpu[PLAIN][warmup:]),
            }
    return results


def _calibrate(proxies: dict[Server, Proxy], delay: float) -> float:
    """Let a round trip through the proxies take so much longer than one without.

    A proxy takes time itself, and systems let threads sleep longer than they asked for.

    :return: the milliseconds that it takes longer, on an average.
    """
    found = [0.0]
    for server, proxy in proxies.items():
        aimed = proxy.delay = delay / 1e3
        for _ in range(4):
            taken = _round_trip(proxy.address) - _round_trip((server.host, server.port))
            proxy.delay = max(0.0, proxy.delay + aimed - taken)
        found.append(taken * 1e3)
    return statistics.mean(found[1:] or found)


def _round_trip(address: tuple[str, int]) -> float:
    host, port = address
    with psycopg.connect(
        host=host, port=port, user=SUPERUSER, dbname="postgres", autocommit=True
    ) as connection:
        times = []
        for _ in range(100):
            started = time.perf_counter()
            connection.execute("SELECT 1")
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def _cell(result: dict[str, Any]) -> str:
    return lacking(result["error"]) if "error" in result else times(result["ratio"])
