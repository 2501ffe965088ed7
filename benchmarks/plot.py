"""Line charts as SVG text, readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 760, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 560, 50, 330

# Colours that keep a contrast of 3 to 1 on white and on GitHub's dark background.
_COLOURS = ("#cf5c00", "#0b84d8", "#2a9d52", "#a15bd6", "#c23b6b", "#7d7d00")

_STYLE = """
    text { fill: #1f2328; font: 13px ui-sans-serif, system-ui, sans-serif }
    .title { font-weight: 600; font-size: 15px }
    .note { fill: #57606a }
    .grid { stroke: #d0d7de; stroke-width: 1 }
    .line { fill: none; stroke-width: 2 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 } .note { fill: #9198a1 } .grid { stroke: #30363d }
    }
"""


def log_log(
    title: str,
    x_label: str,
    y_label: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
) -> str:
    """Draw lines over two logarithmic axes.

    :param lines: points by the name of the line; lines whose name begins with the same
        word as the first one's are solid, others are dashed.
    """
    points = [point for line in lines.values() for point in line]
    left, right = _decades(x for x, _ in points)
    low, high = _decades(y for _, y in points)

    def x_of(value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (math.log10(value) - left) / (right - left)

    def y_of(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (math.log10(value) - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'role="img" aria-labelledby="title">',
        f'<title id="title">{escape(title)}</title>',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="{_LEFT}" y="26">{escape(title)}</text>',
    ]
    for exponent in range(left, right + 1):
        x = x_of(10.0**exponent)
        parts += [
            f'<path class="grid" d="M{x:.1f} {_TOP}V{_BOTTOM}"/>',
            f'<text class="note" x="{x:.1f}" y="{_BOTTOM + 20}" text-anchor="middle">'
            f"{10**exponent:,}</text>",
        ]
    for exponent in range(low, high + 1):
        y = y_of(10.0**exponent)
        parts += [
            f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>',
            f'<text class="note" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{10.0**exponent:g}</text>",
        ]
    middle = (_TOP + _BOTTOM) / 2
    parts += [
        f'<text class="note" x="{(_LEFT + _RIGHT) / 2}" y="{_BOTTOM + 42}" '
        f'text-anchor="middle">{escape(x_label)}</text>',
        f'<text class="note" transform="translate(20 {middle}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>',
    ]
    solid = next(iter(lines)).split()[0]
    # the names stand at the ends of the lines, moved apart where they would meet
    labels = []
    for index, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        dash = "" if name.split()[0] == solid else ' stroke-dasharray="5 4"'
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


def _decades(values: Iterable[float]) -> tuple[int, int]:
    """The powers of ten around ``values``, at least one apart."""
    exponents = [math.log10(value) for value in values]
    low, high = math.floor(min(exponents)), math.ceil(max(exponents))
    return low, max(high, low + 1)
