"""Line charts as inline SVG, drawn by a little arithmetic; the page's style sheet colours them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import NamedTuple

from lookalike.train.history import Point

WIDTH, HEIGHT = 320, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 56, 12, 40  # around the plot; the last value stands in the right margin
_MANY = 60  # points from which a running mean is drawn over them
COLOURS = 6  # of curves, in the style sheet


class Chart(NamedTuple):
    """One metric over the steps of a run, or of several."""

    title: str
    points: Sequence[Point]
    guide: tuple[str, float] | None = None  # name and value of a level to compare with
    percent: bool = False  # values are shares, shown as percent, from zero
    beside: Sequence[Sequence[Point]] = ()  # the same of other runs


class Axis(NamedTuple):
    """A range of data on a range of the picture."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        """Where a value lies in the picture."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high``: about ``count`` steps of 1, 2 or 5 times 10ⁿ."""
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def running_mean(points: Sequence[Point], share: float = 0.05) -> list[Point]:
    """Each point as the mean of the neighbours within ``share`` of all points, half on either side."""
    reach = max(1, round(len(points) * share / 2))
    windows = ([y for _, y in points[max(0, i - reach) : i + reach + 1]] for i in range(len(points)))
    return [(x, sum(window) / len(window)) for (x, _), window in zip(points, windows)]


def number(value: float, percent: bool = False) -> str:
    """For people: ``1,200``, ``0.25`` or ``25 %``."""
    return f"{100 * value:.3g} %" if percent else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def axes(chart: Chart, points: Sequence[Point]) -> tuple[Axis, Axis, list[float], list[float]]:
    """Both axes and their ticks; the vertical one ends on ticks."""
    ys = [y for _, y in points] + ([chart.guide[1]] if chart.guide else [])
    low, high = min(ys), max(ys)
    low = min(0.0, low) if chart.percent else low
    high = high if high > low else low + (abs(low) or 1.0)
    marks = ticks(low, high)
    right = max(x for x, _ in points) or 1
    horizontal = [x for x in ticks(0, right, 4) if x <= right]
    return Axis(0, right, _LEFT, WIDTH - _RIGHT), Axis(marks[0], marks[-1], HEIGHT - _BOTTOM, _TOP), horizontal, marks


def svg(chart: Chart) -> str:
    """The chart; a sentence in its place where nothing can be drawn."""
    curves = [list(pieces(points)) for points in (chart.points, *chart.beside)]
    if not (points := [point for curve in curves for piece in curve for point in piece]):
        return f'<p class="quiet">{escape(chart.title)}: nothing was logged.</p>'
    x_axis, y_axis, xs, ys = axes(chart, points)
    last = number(points[-1][1], chart.percent)
    said = f"of {len(curves)} runs" if chart.beside else f"at the end {last}"
    parts = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}, {said}">',
        *_grid(x_axis, y_axis, xs, ys, chart.percent),
        *_guide(chart.guide, x_axis, y_axis),
        *(part for part in _curves(curves, x_axis, y_axis, len(chart.points) > _MANY)),
        "" if chart.beside else _text(x_axis.at(points[-1][0]) + 6, y_axis.at(points[-1][1]), last, "start", "last"),
        "</svg>",
    )
    return "\n".join(parts)


def pieces(points: Sequence[Point]) -> Iterator[list[Point]]:
    """The points between those that are not finite, which leave a gap."""
    by_finite = groupby(points, lambda point: all(map(math.isfinite, point)))
    return (list(piece) for finite, piece in by_finite if finite)


def dash(number: int) -> str:
    """A piece of the line of a run, for a legend."""
    line = f'<path class="line c{number % COLOURS}" d="M0,5L30,5"/>'
    return f'<svg width="30" height="10" viewBox="0 0 30 10" aria-hidden="true">{line}</svg>'


def _text(x: float, y: float, words: str, anchor: str = "middle", kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.2f}" y="{y:.2f}" dy="4" text-anchor="{anchor}">{escape(words)}</text>'


def _level(axis: Axis, y: float, kind: str = "grid") -> str:
    return f'<line class="{kind}" x1="{axis.start}" x2="{axis.stop}" y1="{y:.2f}" y2="{y:.2f}"/>'


def _grid(x_axis: Axis, y_axis: Axis, xs: list[float], ys: list[float], percent: bool) -> Iterator[str]:
    for y in ys:
        yield _level(x_axis, y_axis.at(y))
        yield _text(_LEFT - 7, y_axis.at(y), number(y, percent), "end")
    for x in xs:
        yield _text(x_axis.at(x), HEIGHT - 25, number(x))
    yield _text((x_axis.start + x_axis.stop) / 2, HEIGHT - 8, "step")


def _guide(guide: tuple[str, float] | None, x_axis: Axis, y_axis: Axis) -> Iterator[str]:
    if guide:
        y = y_axis.at(guide[1])
        yield _level(x_axis, y, "guide")
        yield _text(x_axis.stop, y + 10, guide[0], "end")  # above the line it could leave the picture


def _curves(curves: Sequence[Sequence[Sequence[Point]]], x_axis: Axis, y_axis: Axis, many: bool) -> Iterator[str]:
    """One curve with its points, or the smooth lines of several."""

    def line(points: Sequence[Point], kind: str) -> str:
        corners = "L".join(f"{x_axis.at(x):.2f},{y_axis.at(y):.2f}" for x, y in points)
        return f'<path class="{kind}" d="M{corners}"/>'

    if len(curves) > 1:
        for i, curve in enumerate(curves):
            for piece in curve:
                yield line(running_mean(piece) if len(piece) > _MANY else piece, f"line c{i % COLOURS}")
        return
    for piece in curves[0]:
        yield line(piece, "faint" if many else "line")
        if many:
            yield line(running_mean(piece), "line")
        for x, y in () if many else piece:
            at = f'cx="{x_axis.at(x):.2f}" cy="{y_axis.at(y):.2f}"'
            yield f'<circle class="dot" {at} r="2.5"><title>step {number(x)}: {number(y)}</title></circle>'
