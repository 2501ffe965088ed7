"""Timing side by side, and tables of what came out."""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

#: Does something once. It may return the seconds that it took, if it knows better than
#: the caller: a peer in a process of its own, or one that has to prepare something.
Candidate: TypeAlias = Callable[[], float | None]

_STARTED = time.monotonic()


def say(message: str) -> None:
    """Print progress."""
    print(f"[{time.monotonic() - _STARTED:6.1f} s] {message}", file=sys.stderr)


def interleave(
    candidates: Mapping[str, Candidate],
    rounds: int,
    *,
    warmup: int = 2,
    seconds: float = math.inf,
    least: int = 5,
) -> dict[str, list[float]]:
    """Run all candidates once a round, in random order, so that whatever else the
    machine does hits all alike.

    :param warmup: rounds that do not count.
    :param seconds: after which no further round begins, on a slow or busy machine.
    :param least: rounds that count in any case.
    :return: milliseconds, one list a candidate, aligned by round.
    """
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    deadline = time.monotonic() + seconds
    for number in range(warmup + rounds):
        if number >= warmup + least and time.monotonic() > deadline:
            break
        for name in random.sample(list(candidates), len(candidates)):
            started = time.perf_counter()
            own = candidates[name]()
            taken = time.perf_counter() - started if own is None else own
            if number >= warmup:
                samples[name].append(taken * 1e3)
    return samples


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = (
        statistics.quantiles(samples, n=4) if len(samples) > 1 else [samples[0]] * 3
    )
    return {
        "median": round(middle, 5),
        "q1": round(low, 5),
        "q3": round(high, 5),
        "n": len(samples),
    }


def ratio(samples: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratio to ``base`` in the same round."""
    return spread([one / other for one, other in zip(samples, base, strict=True)])


def table(
    headers: Sequence[str], rows: Sequence[Sequence[Any]], *, prose: bool = False
) -> None:
    """Print a table, in Markdown.

    :param prose: the columns after the first one are no numbers.
    """
    cells = [list(map(str, row)) for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if prose or index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join([first, *rest])} |"

    print(line(cells[0]))
    rules = ["-" * (width + 1) for width in widths]
    mark = "-" if prose else ":"
    print(f"|{rules[0]}-|{'|'.join(f'{rule}{mark}' for rule in rules[1:])}|")
    for row in cells[1:]:
        print(line(row))


def lacking(reason: str) -> str:
    """What a table has where a peer cannot do something."""
    return f"\N{EN DASH} ({reason})"


def milliseconds(result: Mapping[str, float]) -> str:
    """A median, with as many digits as make sense."""
    value = result["median"]
    return f"{value:.0f} ms" if value >= 20 else f"{value:.2g} ms"


def times(result: Mapping[str, float]) -> str:
    """A ratio and its quartiles."""
    digits = 0 if result["median"] >= 20 else 2
    middle, low, high = (f"{result[key]:.{digits}f}" for key in ("median", "q1", "q3"))
    return f"{middle}x ({low} to {high})"


@dataclass(frozen=True)
class Aim:
    """A line of the summary.

    :param what: what was measured.
    :param against: beside what.
    :param aim: what it should be.
    :param found: what it was.
    :param met: whether that is the aim.
    """

    what: str
    against: str
    aim: str
    found: str
    met: bool
