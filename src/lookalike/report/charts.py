"""Line charts as inline SVG, drawn by a little arithmetic; the page's style sheet colours them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import NamedTuple

from lookalike.train.history import Point

WIDTH, HEIGHT = 320, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 56, 12, 40  # around the plot; the last value stands in the right margin
_MANY = 60  # points from which a running mean is drawn over them


class Guide(NamedTuple):
    """A level to compare with."""

    name: str
    value: float


class Chart(NamedTuple):
    """One metric over the steps of a run."""

    title: str
    points: Sequence[Point]
    guide: Guide | None = None
    percent: bool = False  # values are shares, shown as percent, from zero


class Axis(NamedTuple):
    """A range of data on a range of the picture."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        """Where a value lies in the picture."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def nice_step(span: float, count: int) -> float:
    """The step 1, 2 or 5 times a power of ten that divides ``span`` into at most about ``count`` parts."""
    rough = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high``."""
    step = nice_step(high - low, count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def finite(points: Sequence[Point]) -> list[Point]:
    """The points that can be drawn."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def segments(points: Sequence[Point]) -> list[list[Point]]:
    """The points in runs without a gap: what is not finite ends a run."""
    drawable = groupby(points, lambda point: math.isfinite(point[0]) and math.isfinite(point[1]))
    return [list(run) for good, run in drawable if good]


def running_mean(points: Sequence[Point], share: float = 0.05) -> list[Point]:
    """Each point as the mean of the neighbours within ``share`` of all points, half on either side."""
    reach = max(1, round(len(points) * share / 2))
    found = []
    for i, (x, _) in enumerate(points):
        near = [y for _, y in points[max(0, i - reach) : i + reach + 1]]
        found.append((x, sum(near) / len(near)))
    return found


def number(value: float, percent: bool = False) -> str:
    """For people: ``1,200``, ``0.25`` or ``25 %``."""
    return f"{100 * value:.3g} %" if percent else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def axes(chart: Chart, points: Sequence[Point]) -> tuple[Axis, Axis, list[float], list[float]]:
    """Both axes and their ticks; the vertical one ends on ticks."""
    ys = [y for _, y in points] + ([chart.guide.value] if chart.guide else [])
    low, high = min(ys), max(ys)
    low = min(0.0, low) if chart.percent else low
    high = high if high > low else low + (abs(low) or 1.0)
    marks = ticks(low, high)
    right = max(x for x, _ in points)
    horizontal = [x for x in ticks(0, right or 1, 4) if x <= (right or 1)]
    x_axis = Axis(0, right or 1, _LEFT, WIDTH - _RIGHT)
    return x_axis, Axis(marks[0], marks[-1], HEIGHT - _BOTTOM, _TOP), horizontal, marks


def path(points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> str:
    """The ``d`` of a line through the points."""
    return "M" + "L".join(f"{x_axis.at(x):.2f},{y_axis.at(y):.2f}" for x, y in points)


def svg(chart: Chart) -> str:
    """The chart; a sentence in its place where nothing can be drawn."""
    points = finite(chart.points)
    if not points:
        return f'<p class="quiet">{escape(chart.title)}: nothing was logged.</p>'
    x_axis, y_axis, xs, ys = axes(chart, points)
    last = number(points[-1][1], chart.percent)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}, at the end {last}">',
        *_grid(x_axis, y_axis, xs, ys, chart.percent),
        *_guide(chart.guide, x_axis, y_axis),
        *_curve(chart.points, x_axis, y_axis),
        *_last(points[-1], last, x_axis, y_axis),
        "</svg>",
    ]
    return "\n".join(parts)


def _grid(x_axis: Axis, y_axis: Axis, xs: list[float], ys: list[float], percent: bool) -> list[str]:
    lines = []
    for y in ys:
        at = f"{y_axis.at(y):.2f}"
        lines.append(f'<line class="grid" x1="{x_axis.start}" x2="{x_axis.stop}" y1="{at}" y2="{at}"/>')
        lines.append(
            f'<text class="tick" x="{_LEFT - 7}" y="{at}" dy="4" text-anchor="end">{number(y, percent)}</text>'
        )
    for x in xs:
        label = number(x)
        lines.append(f'<text class="tick" x="{x_axis.at(x):.2f}" y="{HEIGHT - 21}" text-anchor="middle">{label}</text>')
    middle = (x_axis.start + x_axis.stop) / 2
    lines.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">step</text>')
    return lines


def _guide(guide: Guide | None, x_axis: Axis, y_axis: Axis) -> list[str]:
    if guide is None:
        return []
    at = y_axis.at(guide.value)
    # Below the line: above it the label could leave the picture.
    text = f'<text class="tick" x="{x_axis.stop}" y="{at + 14:.2f}" text-anchor="end">{escape(guide.name)}</text>'
    return [f'<line class="guide" x1="{x_axis.start}" x2="{x_axis.stop}" y1="{at:.2f}" y2="{at:.2f}"/>', text]


def _curve(points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> list[str]:
    many = len(points) > _MANY
    found = []
    for run in segments(points):
        found.append(f'<path class="{"faint" if many else "line"}" d="{path(run, x_axis, y_axis)}"/>')
        if many:
            found.append(f'<path class="line" d="{path(running_mean(run), x_axis, y_axis)}"/>')
        else:
            found += [
                f'<circle class="dot" cx="{x_axis.at(x):.2f}" cy="{y_axis.at(y):.2f}" r="2.5">'
                f"<title>step {number(x)}: {number(y)}</title></circle>"
                for x, y in run
            ]
    return found


def _last(point: Point, text: str, x_axis: Axis, y_axis: Axis) -> list[str]:
    x, y = x_axis.at(point[0]), y_axis.at(point[1])
    return [f'<text class="last" x="{x + 6:.2f}" y="{y:.2f}" dy="4">{text}</text>']
