"""Starts beside each other: a table in words, a plot, and a page that holds both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from lookalike.core.files import write_atomically, write_json
from lookalike.evaluation.compare import Comparison
from lookalike.evaluation.tasks import TASKS
from lookalike.metrics.fewshot import Interval
from lookalike.report.charts import Axis, number, ticks
from lookalike.report.page import CSS, facts, page, percent, shown

_LEFT, _PANEL, _GAP, _RIGHT, _TOP, _ROW, _BOTTOM = 190, 300, 40, 24, 30, 34, 44


def cells_of(found: Comparison) -> Iterator[tuple[str, str, str, str]]:
    """Start, metric, difference and verdict of each row, as text."""
    for row in found.rows:
        yield row.name, percent(row.mean), "–" if row.against is None else points(row.against), row.verdict()


def points(cell: Interval) -> str:
    """``+3.1 ± 1.2`` points of a percent."""
    half = f" ± {100 * cell.half:.1f}" if math.isfinite(cell.half) else ""
    return f"{100 * cell.mean:+.1f}{half}".replace("-", "\N{MINUS SIGN}")


def markdown(found: Comparison) -> str:
    """The table for a document."""
    rows = [("start", found.metric, f"from {found.baseline}, points", ""), ("---",) * 4, *cells_of(found)]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([*lines, "", found.caption(), "", f"Settings: {found.settings_line()}.", ""])


def comparison_page(found: Comparison) -> str:
    """One self-contained page."""
    head = ("", found.metric, f"from {found.baseline}, points", "")
    body = "".join(
        f'<tr><th scope="row">{shown(name)}</th>{"".join(f"<td>{shown(cell)}</td>" for cell in cells)}</tr>\n'
        for name, *cells in cells_of(found)
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


def write(found: Comparison, out: Path) -> list[Path]:
    """The table as text and numbers, the plot, and a page with both; where they are."""
    name = found.task if found.metric == TASKS[found.task].metric else f"{found.task}-{found.metric}"
    write_json(out / f"{name}.json", found.plain())
    texts = {"md": markdown(found), "svg": picture(found), "html": comparison_page(found)}
    for suffix, text in texts.items():
        write_atomically(out / f"{name}.{suffix}", text.encode("utf-8", "replace"))
    return [out / f"{name}.{suffix}" for suffix in ("json", *texts)]
