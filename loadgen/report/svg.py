"""Charts as SVG text: lines, areas, stacked areas, over time.

Our own and not pygal's: that one needs a script to show the values under the pointer, and a report
has none; and here one drawing serves light and dark.

Pure. Colours are classes (`line a`, `fill b`), which the page's style gives their values, so that
light and dark need one drawing. Labels stand inside the plot, so that a phone can show them larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import cycle, pairwise
from typing import NamedTuple

WIDTH, HEIGHT = 640, 280
TOP, BOTTOM = 24, 34  # above and below the plot
GRID_LINES = 4
TICKS_MAX = 6
PLOT_HEIGHT = HEIGHT - TOP - BOTTOM


class Series(NamedTuple):
    """One value per point, None for a gap; `style` is `a` to `e`; `how`: line, dashed or area."""

    name: str
    style: str
    how: str
    values: Sequence[float | None]


class Axis(NamedTuple):
    """Values from `least` to `most`, linear or logarithmic, and how they are written."""

    least: float
    most: float
    is_log: bool
    written: Callable[[float], str]

    def y(self, value: float) -> float:
        """Return where a value lies, from the top of the drawing."""
        if self.is_log:
            low, high = math.log10(self.least), math.log10(self.most)
            share = (math.log10(max(value, self.least)) - low) / (high - low)
        else:
            share = (value - self.least) / (self.most - self.least)
        return TOP + PLOT_HEIGHT * (1 - min(max(share, 0.0), 1.0))

    def marks(self) -> list[float]:
        """Return the values that get a grid line."""
        if self.is_log:
            low, high = round(math.log10(self.least)), round(math.log10(self.most))
            return [10.0**power for power in range(low, high + 1)]
        step = (self.most - self.least) / GRID_LINES
        return [self.least + step * number for number in range(GRID_LINES + 1)]


def linear_axis(values: Sequence[float], written: Callable[[float], str]) -> Axis:
    """Return an axis from 0 to a round number that holds all values."""
    most = max(values, default=0.0)
    if most <= 0:
        return Axis(0.0, 1.0, False, written)
    power = 10.0 ** math.floor(math.log10(most))
    top = next(
        power * each
        for each in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10)
        if power * each >= most * 0.999
    )
    return Axis(0.0, top, False, written)


def log_axis(values: Sequence[float], written: Callable[[float], str]) -> Axis:
    """Return an axis of whole powers of ten that holds all values above 0."""
    above = [value for value in values if value > 0]
    low = math.floor(math.log10(min(above, default=1.0)))
    high = math.ceil(math.log10(max(above, default=1.0)))
    return Axis(10.0**low, 10.0 ** max(high, low + 1), True, written)


def chart(
    title: str,
    at_s: Sequence[float],
    end_s: float,
    series: Sequence[Series],
    axis: Axis,
    *,
    stacked: bool = False,
) -> str:
    """Draw values beside each other, or on top of each other, the first one at the bottom.

    `at_s` is the middle of each point.
    """
    parts = [_grid(axis)]
    below: Sequence[float] = [0.0] * len(at_s)
    for each in series:
        if stacked:
            above = [low + (value or 0.0) for low, value in zip(below, each.values, strict=True)]
            parts.append(_band(each, at_s, end_s, (below, above), axis))
            below = above
        else:
            parts.append(_drawn(each, at_s, end_s, axis))
    parts.append(_labels(axis, end_s))
    tips = [
        ", ".join(
            f"{each.name} {axis.written(value)}"
            for each in series
            if (value := each.values[index]) is not None and (value or not stacked)
        )
        for index in range(len(at_s))
    ]
    return _svg(title, parts, at_s, end_s, tips)


def _svg(
    title: str, parts: Sequence[str], at_s: Sequence[float], end_s: float, tips: Sequence[str]
) -> str:
    """Return the drawing; what lies over each point tells its values to the pointer."""
    bars = []
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(at_s)), end_s]
    for index, tip in enumerate(tips):
        left, right = _x(edges[index], end_s), _x(edges[index + 1], end_s)
        bars.append(
            f'<rect class="tip" x="{left:.1f}" y="{TOP}" width="{max(right - left, 0.5):.1f}" '
            f'height="{PLOT_HEIGHT}"><title>{at_s[index]:.1f} s: {escape(tip or "nothing")}'
            "</title></rect>"
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}{''.join(bars)}</svg>"
    )


def _x(at_s: float, end_s: float) -> float:
    return WIDTH * min(max(at_s / end_s, 0.0), 1.0) if end_s > 0 else 0.0


def _grid(axis: Axis) -> str:
    ys = [axis.y(value) for value in axis.marks()]
    return "".join(
        f'<line class="grid" x1="0" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>' for y in ys
    )


def _labels(axis: Axis, end_s: float) -> str:
    parts = [
        f'<text x="2" y="{axis.y(value) - 4:.1f}">{escape(axis.written(value))}</text>'
        for value in axis.marks()
        if value or axis.is_log
    ]
    step_s = _tick_step_s(end_s)
    at_s = 0.0
    while at_s <= end_s:
        x = _x(at_s, end_s)
        anchor = "start" if at_s == 0 else "end" if x > WIDTH - 30 else "middle"
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="{anchor}">{at_s:g} s</text>'
        )
        at_s += step_s
    return "".join(parts)


def _tick_step_s(end_s: float) -> float:
    """Return a round step that gives few enough ticks."""
    step_s = 0.1
    for factor in cycle((2, 2.5, 2)):  # 0.1, 0.2, 0.5, 1, ..
        if end_s / step_s < TICKS_MAX:
            break
        step_s *= factor
    return round(step_s, 1)


def _drawn(each: Series, at_s: Sequence[float], end_s: float, axis: Axis) -> str:
    if each.how == "area":
        return _band(each, at_s, end_s, ([axis.least] * len(at_s), each.values), axis)
    parts = []
    for run in _runs(at_s, each.values):
        points = [f"{_x(moment_s, end_s):.1f},{axis.y(value):.1f}" for moment_s, value in run]
        if len(points) == 1:
            x, y = points[0].split(",")
            parts.append(f'<circle class="dot {each.style}" cx="{x}" cy="{y}" r="4"/>')
        else:
            dashed = " dashed" if each.how == "dashed" else ""
            parts.append(
                f'<polyline class="line{dashed} {each.style}" points="{" ".join(points)}"/>'
            )
    return "".join(parts)


def _runs(at_s: Sequence[float], values: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    """Return the stretches without gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for moment_s, value in zip(at_s, values, strict=True):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((moment_s, value))
    return [run for run in runs if run]


def _band(
    each: Series,
    at_s: Sequence[float],
    end_s: float,
    edges: tuple[Sequence[float], Sequence[float | None]],
    axis: Axis,
) -> str:
    """Fill between two edges; its ends go on level to the sides."""
    if not at_s:
        return ""
    xs = [0.0, *(_x(moment_s, end_s) for moment_s in at_s), float(WIDTH)]
    low, high = ([axis.y(value or 0.0) for value in edge] for edge in edges)
    low, high = ([ys[0], *ys, ys[-1]] for ys in (low, high))
    points = [f"{x:.1f},{y:.1f}" for x, y in zip(xs, high, strict=True)]
    points += [f"{x:.1f},{y:.1f}" for x, y in reversed(list(zip(xs, low, strict=True)))]
    return f'<polygon class="fill {each.style}" points="{" ".join(points)}"/>'
