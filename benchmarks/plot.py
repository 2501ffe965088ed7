"""Charts as SVG text, readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from xml.sax.saxutils import escape

_HEIGHT = 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 560, 50, 330
#: Of a character, on an average; a little too much is right.
_CHARACTER = 7.2

# Colours that keep a contrast of 3 to 1 on white and on GitHub's dark background.
_COLOURS = ("#cf5c00", "#0b84d8", "#2a9d52", "#a15bd6", "#c23b6b", "#7d7d00")
#: What is compared has the same colour in all charts.
_WAYS = (
    "role",
    "shared",
    "sqlalchemy-tenants 0.2.0",
    "rls 0.3.2",
    "schema per tenant",
    "SET LOCAL by hand",
)

_STYLE = """
    text { fill: #1f2328; font: 13px ui-sans-serif, system-ui, sans-serif }
    .title { font-weight: 600; font-size: 15px }
    .note { fill: #57606a }
    .grid { stroke: #d0d7de; stroke-width: 1 }
    .line { fill: none; stroke-width: 2 }
    .aim { stroke: #1f2328; stroke-width: 1.5 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 } .note { fill: #9198a1 } .grid { stroke: #30363d }
      .aim { stroke: #e6edf3 }
    }
"""


def log_log(
    title: str,
    x_label: str,
    y_label: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    dashed: Collection[str] = (),
) -> str:
    """Draw lines over two logarithmic axes.

    :param lines: points by the name of the line.
    :param dashed: names of those that are not solid.
    """
    points = [point for line in lines.values() for point in line]
    left, right = _decades(x for x, _ in points)
    low, high = _decades(y for _, y in points)

    def x_of(value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (math.log10(value) - left) / (right - left)

    def y_of(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (math.log10(value) - low) / (high - low)

    width = _RIGHT + 48 + round(_CHARACTER * max(map(len, lines)))
    parts = _head(title, width, _HEIGHT, _LEFT)
    for exponent in range(left, right + 1):
        x = x_of(10.0**exponent)
        parts += [
            f'<path class="grid" d="M{x:.1f} {_TOP}V{_BOTTOM}"/>',
            f'<text class="note" x="{x:.1f}" y="{_BOTTOM + 20}" text-anchor="middle">'
            f"{_number(10.0**exponent)}</text>",
        ]
    for exponent in range(low, high + 1):
        y = y_of(10.0**exponent)
        parts += [
            f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>',
            f'<text class="note" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{_number(10.0**exponent)}</text>",
        ]
    middle = (_TOP + _BOTTOM) / 2
    parts += [
        f'<text class="note" x="{(_LEFT + _RIGHT) / 2}" y="{_BOTTOM + 42}" '
        f'text-anchor="middle">{escape(x_label)}</text>',
        f'<text class="note" transform="translate(20 {middle}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>',
    ]
    # the names stand at the ends of the lines, moved apart where they would meet
    labels = []
    colours = _colours(list(lines))
    for name, line in lines.items():
        colour = colours[name]
        dash = ' stroke-dasharray="5 4"' if name in dashed else ""
        path = " ".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in line)
        parts.append(f'<path class="line" stroke="{colour}"{dash} d="M{path}"/>')
        parts += [
            f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3" fill="{colour}"/>'
            for x, y in line
        ]
        labels.append((y_of(line[-1][1]), name, colour, dash))
    labels.sort()
    previous = -math.inf
    placed = []
    for y, name, colour, dash in labels:
        previous = max(y, previous + 18)
        placed.append((previous, name, colour, dash))
    over = max(0.0, placed[-1][0] - _BOTTOM)
    for y, name, colour, dash in placed:
        y -= over
        parts += [
            f'<path class="line" stroke="{colour}"{dash} '
            f'd="M{_RIGHT + 12} {y:.1f}h22"/>',
            f'<text x="{_RIGHT + 40}" y="{y + 4:.1f}">{escape(name)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def dots(
    title: str,
    x_label: str,
    rows: Mapping[tuple[str, str], Mapping[str, Mapping[str, float]]],
    *,
    aim: Callable[[str, str], float | None],
    logarithmic: bool = False,
) -> str:
    """Draw medians as dots, each with a line from quartile to quartile.

    :param rows: results as :func:`measure.spread` returns them, by series, of each row.
        Rows have a group and a name; a group is named once.
    :param aim: of a group and a series; drawn as a stroke across.
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    colours = _colours(names)
    results = [result for row in rows.values() for result in row.values()]
    lowest = min(result["q1"] for result in results)
    highest = max(result["q3"] for result in results)
    ticks = _ticks(lowest, highest, logarithmic)
    scale: Callable[[float], float] = math.log10 if logarithmic else float

    left = 30 + round(_CHARACTER * max(len(group) + len(name) for group, name in rows))
    right = left + 520
    # where each group and row begins
    step = 5
    height = step * len(names) + 7
    top = 62

    def x_of(value: float) -> float:
        share = (scale(max(value, ticks[0])) - scale(ticks[0])) / (
            scale(ticks[-1]) - scale(ticks[0])
        )
        return left + (right - left) * share

    body: list[str] = []
    y = top + 4.0
    previous = None
    for (group, name), row in rows.items():
        if group != previous:
            if previous is not None:
                y += 3
                body.append(f'<path class="grid" d="M12 {y:.1f}H{right}"/>')
                y += 3
            body.append(
                f'<text x="12" y="{y + height / 2 + 4:.1f}">{escape(group)}</text>'
            )
            previous = group
        body.append(
            f'<text class="note" x="{left - 10}" y="{y + height / 2 + 4:.1f}" '
            f'text-anchor="end">{escape(name)}</text>'
        )
        for index, series in enumerate(names):
            result = row.get(series)
            if result is None:
                continue
            at = y + 6 + step * index
            wanted = aim(group, series)
            if wanted is not None:
                x = x_of(wanted)
                body.append(f'<path class="aim" d="M{x:.1f} {at - 4:.1f}v8"/>')
            body.append(
                f'<path class="line" stroke="{colours[series]}" '
                f'd="M{x_of(result["q1"]):.1f} {at:.1f}H{x_of(result["q3"]):.1f}"/>'
                f'<circle cx="{x_of(result["median"]):.1f}" cy="{at:.1f}" r="3.2" '
                f'fill="{colours[series]}"/>'
            )
        y += height
    bottom = y + 4
    grid = []
    for tick in ticks:
        x = x_of(tick)
        grid += [
            f'<path class="grid" d="M{x:.1f} {top}V{bottom:.1f}"/>',
            f'<text class="note" x="{x:.1f}" y="{bottom + 18:.1f}" '
            f'text-anchor="middle">{_number(tick)}</text>',
        ]
    legend, x = [], 12.0
    for name in names:
        legend.append(
            f'<circle cx="{x + 4:.1f}" cy="45" r="4" fill="{colours[name]}"/>'
            f'<text x="{x + 14:.1f}" y="49">{escape(name)}</text>'
        )
        x += 30 + _CHARACTER * len(name)
    legend.append(
        f'<path class="aim" d="M{x + 4:.1f} 40v10"/>'
        f'<text x="{x + 14:.1f}" y="49">aim</text>'
    )
    width = max(right + 30, round(x + 50))
    return "\n".join(
        [
            *_head(title, width, round(bottom + 46), 12),
            *legend,
            *grid,
            *body,
            f'<text class="note" x="{(left + right) / 2}" y="{bottom + 38:.1f}" '
            f'text-anchor="middle">{escape(x_label)}</text>',
            "</svg>",
            "",
        ]
    )


def _colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name: that of what stands before its comma, if that is what
    tells them apart."""
    ways = [name.split(", ")[0] for name in names]
    if len(set(ways)) == len(ways) and set(ways) <= set(_WAYS):
        return {
            name: _COLOURS[_WAYS.index(way)]
            for name, way in zip(names, ways, strict=True)
        }
    return {name: _COLOURS[index % 6] for index, name in enumerate(names)}


def _head(title: str, width: int, height: int, left: int) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'role="img" aria-labelledby="title">',
        f'<title id="title">{escape(title)}</title>',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="{left}" y="26">{escape(title)}</text>',
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 and value == round(value) else f"{value:g}"


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Round numbers from below ``low`` to above ``high``."""
    if logarithmic:
        first, last = _decades((low, high))
        steps = (1, 2, 5) if last - first <= 2 else (1,)
        ticks = [
            step * 10.0**exponent for exponent in range(first, last) for step in steps
        ]
        ticks.append(10.0**last)
        below = max((tick for tick in ticks if tick <= low), default=ticks[0])
        above = min((tick for tick in ticks if tick >= high), default=ticks[-1])
        return [tick for tick in ticks if below <= tick <= above]
    step = 10.0 ** math.floor(math.log10(high))
    if high / step < 4:
        step /= 5
    return [step * number for number in range(math.ceil(high / step) + 1)]


def _decades(values: Iterable[float]) -> tuple[int, int]:
    """The powers of ten around ``values``, at least one apart."""
    exponents = [math.log10(value) for value in values]
    low, high = math.floor(min(exponents)), math.ceil(max(exponents))
    return low, max(high, low + 1)
