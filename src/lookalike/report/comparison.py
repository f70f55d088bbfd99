"""Starts beside each other: a table in words, a plot, and a page that holds both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lookalike.evaluate.fewshot import Interval
from lookalike.report.charts import Axis, number, ticks
from lookalike.report.page import page
from lookalike.report.style import CSS
from lookalike.report.tables import facts, percent, shown

_LEFT, _PANEL, _GAP, _RIGHT, _TOP, _ROW, _BOTTOM = 190, 300, 40, 24, 30, 34, 44


class Row(NamedTuple):
    """One start."""

    name: str
    values: Sequence[float]  # of the metric, by trial
    mean: Interval
    against: Interval | None  # the mean of the differences from the baseline, trial by trial; None for the baseline
    others: Mapping[str, Interval]  # of the other numbers

    def verdict(self) -> str:
        """Win, tie or loss: a tie is a difference whose interval holds 0."""
        if self.against is None:
            return "baseline"
        if math.isnan(self.against.half):
            return "one trial: no verdict"
        if abs(self.against.mean) <= self.against.half:
            return "tie"
        return "win" if self.against.mean > 0 else "loss"


class Comparison(NamedTuple):
    """All starts on one task."""

    task: str
    data: str
    metric: str
    rows: Sequence[Row]
    baseline: str
    supervised: bool  # whether the baseline was trained with labels; else it is the untrained network
    trials: int
    draws: str | None  # what a trial draws; None where nothing is drawn
    settings: Mapping[str, Any]

    def caption(self) -> str:
        """What the numbers are, so that they can be read without this program."""
        if self.draws is None:
            drawn = "one trial, since with these settings nothing is drawn: no interval, and no verdict"
        elif self.trials == 1:
            drawn = f"one trial, which draws {self.draws}: no interval, and no verdict"
        else:
            drawn = (
                f"mean and 95 % interval (Student's t) over {self.trials} trials, which draw {self.draws}; every start "
                "has the same draws and the same settings, and differences are taken trial by trial"
            )
        base = (
            f"Differences are from {self.baseline}, which labels trained."
            if self.supervised
            else "Supervised: missing, since none of the runs was made by lookalike supervised; "
            "differences are from the untrained network."
        )
        return (
            f"{self.metric} of {self.task} on {self.data}: {drawn}. {base} "
            "Each start is one network: intervals do not say how much another pretraining would differ."
        )

    def settings_line(self) -> str:
        """``k 200, share 0.5``."""
        return ", ".join(f"{name} {value}" for name, value in self.settings.items())

    def cells(self) -> Iterator[tuple[str, str, str, str]]:
        """Start, metric, difference and verdict of each row, as text."""
        for row in self.rows:
            yield row.name, percent(row.mean), "–" if row.against is None else points(row.against), row.verdict()

    def plain(self) -> dict[str, Any]:
        """All numbers, for JSON, which has no NaN."""
        return {
            **{name: getattr(self, name) for name in ("task", "data", "metric", "baseline", "supervised", "trials")},
            "settings": dict(self.settings),
            "starts": [
                {
                    "name": row.name,
                    "values": list(row.values),
                    "mean": row.mean.mean,
                    "interval": finite(row.mean.half),
                    "difference": None if row.against is None else row.against.mean,
                    "difference_interval": None if row.against is None else finite(row.against.half),
                    "verdict": row.verdict(),
                    "others": {name: [finite(cell.mean), finite(cell.half)] for name, cell in row.others.items()},
                }
                for row in self.rows
            ],
        }


def finite(value: float) -> float | None:
    """None for what JSON cannot say."""
    return value if math.isfinite(value) else None


def points(cell: Interval) -> str:
    """``+3.1 ± 1.2`` points of a percent."""
    half = f" ± {100 * cell.half:.1f}" if math.isfinite(cell.half) else ""
    return f"{100 * cell.mean:+.1f}{half}".replace("-", "\N{MINUS SIGN}")


def markdown(found: Comparison) -> str:
    """The table for a document."""
    rows = [("start", found.metric, f"from {found.baseline}, points", ""), ("---",) * 4, *found.cells()]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([*lines, "", found.caption(), "", f"Settings: {found.settings_line()}.", ""])


def comparison_page(found: Comparison) -> str:
    """One self-contained page."""
    head = ("", found.metric, f"from {found.baseline}, points", "")
    body = "".join(
        f'<tr><th scope="row">{shown(name)}</th>{"".join(f"<td>{shown(cell)}</td>" for cell in cells)}</tr>\n'
        for name, *cells in found.cells()
    )
    columns = "".join(f'<th scope="col">{shown(cell)}</th>' for cell in head)
    table = f'<table class="accuracies"><thead><tr>{columns}</tr></thead>\n<tbody>{body}</tbody></table>'
    title = f"{found.task} on {found.data}"
    parts = [
        f"<h1>{shown(title)}</h1>",
        f'<div class="wide">{table}</div>',
        f'<p class="quiet">{shown(found.caption())}</p>',
        f'<div class="panel">{plot(found)}</div>',
        '<p class="quiet">Left: small dots are trials, the large one their mean with its interval. '
        "Right: the same of the differences, trial by trial; an interval that crosses the line is a tie.</p>",
        f"<h2>Settings</h2>{facts(found.settings)}",
        *others(found),
    ]
    return page(title, parts)


def others(found: Comparison) -> Iterator[str]:
    """The other numbers, where there are any."""
    names = list(dict.fromkeys(name for row in found.rows for name in row.others))
    if not names:
        return
    yield "<h2>Other numbers</h2>"
    head = "".join(f'<th scope="col">{shown(row.name)}</th>' for row in found.rows)
    body = ""
    for name in names:
        cells = (row.others.get(name) for row in found.rows)
        shown_cells = "".join(f"<td>{'–' if cell is None else either(cell)}</td>" for cell in cells)
        body += f'<tr><th scope="row">{shown(name)}</th>{shown_cells}</tr>\n'
    table = f'<table class="facts"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>'
    yield f'<div class="wide">{table}</div>'


def either(cell: Interval) -> str:
    """A mean and its interval as they are."""
    half = f" ± {cell.half:.2g}" if math.isfinite(cell.half) else ""
    return f"{cell.mean:.3g}{half}"


def picture(found: Comparison) -> str:
    """The plot as a file of its own."""
    drawn = plot(found).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return drawn.replace(">", f"><style>{CSS}</style>", 1)


def plot(found: Comparison) -> str:
    """Starts below each other: on the left their trials, on the right the differences from the baseline."""
    height = _TOP + _ROW * len(found.rows) + _BOTTOM
    width = _LEFT + 2 * _PANEL + _GAP + _RIGHT
    left, right = (_LEFT, _LEFT + _PANEL), (_LEFT + _PANEL + _GAP, _LEFT + 2 * _PANEL + _GAP)
    base = next(row for row in found.rows if row.name == found.baseline).values
    differences = [[a - b for a, b in zip(row.values, base)] for row in found.rows]
    at = f'class="name" x="{_LEFT - 14}" dy="4" text-anchor="end"'
    names = [f'<text {at} y="{_middle(i)}">{shown(_short(row.name))}</text>' for i, row in enumerate(found.rows)]
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{shown(found.metric)} of each start">',
        *names,
        *_panel(f"{found.metric}, %", left, [(row.values, row.mean) for row in found.rows], height, None),
        *_panel(
            f"difference from {_short(found.baseline)}, points",
            right,
            [(some, row.against) for some, row in zip(differences, found.rows)],
            height,
            0.0,
        ),
        "</svg>",
    ]
    return "\n".join(parts)


def _middle(row: int) -> float:
    return _TOP + _ROW * (row + 0.5)


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]


def _panel(
    title: str,
    place: tuple[float, float],
    rows: Sequence[tuple[Sequence[float], Interval | None]],
    height: int,
    line: float | None,
) -> Iterator[str]:
    """Dots and whiskers on one axis, in percent."""
    ends = [100 * value for values, cell in rows for value in (*values, *_ends(cell))] + (
        [line] if line is not None else []
    )
    low, high = min(ends), max(ends)
    marks = ticks(low, high if high > low else low + 1)
    axis = Axis(marks[0], marks[-1], *place)
    bottom = height - _BOTTOM
    for mark in marks:
        at = f"{axis.at(mark):.2f}"
        kind = "guide" if mark == line else "grid"
        yield f'<line class="{kind}" x1="{at}" x2="{at}" y1="{_TOP}" y2="{bottom}"/>'
        yield f'<text class="tick" x="{at}" y="{bottom + 17}" text-anchor="middle">{number(mark)}</text>'
    middle = (place[0] + place[1]) / 2
    yield f'<text class="tick" x="{middle}" y="{bottom + 37}" text-anchor="middle">{shown(title)}</text>'
    for i, (values, cell) in enumerate(rows):
        yield from _dots(values, cell, axis, _middle(i))


def _ends(cell: Interval | None) -> list[float]:
    return [] if cell is None or math.isnan(cell.half) else [cell.mean - cell.half, cell.mean + cell.half]


def _dots(values: Sequence[float], cell: Interval | None, axis: Axis, y: float) -> Iterator[str]:
    if cell is None:
        return
    if ends := _ends(cell):
        low, high = (f"{axis.at(100 * end):.2f}" for end in ends)
        yield f'<line class="whisker" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>'
    for value in values:
        yield f'<circle class="trial" cx="{axis.at(100 * value):.2f}" cy="{y + 9}" r="2.5"/>'
    at = f"{axis.at(100 * cell.mean):.2f}"
    yield f'<circle class="dot" cx="{at}" cy="{y}" r="5"><title>{100 * cell.mean:.2f}</title></circle>'
