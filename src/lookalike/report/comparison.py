"""Models beside each other: a table in words, a plot, and a page that holds both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from lookalike.core.files import write_atomically, write_json
from lookalike.evaluation.compare import Comparison
from lookalike.evaluation.evaluation import plain
from lookalike.evaluation.settings import EVALUATIONS
from lookalike.metrics.fewshot import Interval
from lookalike.report.charts import Axis, number, ticks
from lookalike.report.page import CSS, facts, page, shown, table, wide

_LEFT, _PANEL, _GAP, _RIGHT, _TOP, _ROW, _BOTTOM = 190, 300, 40, 24, 30, 34, 44


def cells_of(comparison: Comparison) -> Iterator[tuple[str, str, str, str]]:
    """Head, then model, metric, difference and verdict of each row, as text."""
    yield "model", comparison.metric, f"difference from {comparison.baseline}, points", ""
    if comparison.chance is not None:
        yield "chance", f"{comparison.chance:.1%}", "–", ""
    for row in comparison.rows:
        among = f" ({row.bounds:.1%})" if row.bounds else ""
        yield row.name, f"{row.mean:.1%}{among}", "–" if row.against is None else points(row.against), row.verdict()


def points(cell: Interval) -> str:
    """``+3.1 ± 1.2`` points of a percent."""
    half = f" ± {100 * cell.half:.1f}" if math.isfinite(cell.half) else ""
    return f"{100 * cell.mean:+.1f}{half}".replace("-", "\N{MINUS SIGN}")


def markdown(comparison: Comparison) -> str:
    """The table for a document."""
    head, *rows = cells_of(comparison)
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in (head, ("---",) * 4, *rows)]
    settings = ", ".join(f"{name} {plain(value)}" for name, value in comparison.settings.items())
    return "\n".join([*lines, "", comparison.caption(), "", f"Settings: {settings}.", ""])


def comparison_page(comparison: Comparison) -> str:
    """One self-contained page."""
    title = f"{comparison.task} on {comparison.data}"
    parts = [
        f"<h1>{shown(title)}</h1>",
        _table("accuracies", comparison.metric, *cells_of(comparison)),
        f'<p class="quiet">{shown(comparison.caption())}</p>',
        f'<div class="panel plot">{wide(plot(comparison), "plot")}</div>',
        '<p class="quiet">Left: small dots are trials, the large one their mean with its interval. '
        "Right: the same of the differences, trial by trial; an interval that crosses the line is a tie.</p>",
        f"<h2>Settings</h2>{facts(comparison.settings)}",
    ]
    if names := list(dict.fromkeys(name for row in comparison.rows for name in row.others)):
        others = [[name, *(_either(row.others.get(name)) for row in comparison.rows)] for name in names]
        models = ["", *(row.name for row in comparison.rows)]
        parts += ["<h2>Other numbers</h2>", _table("numbers", "other numbers", models, *others)]
    return page(title, parts)


def _table(kind: str, name: str, *rows: Sequence[str]) -> str:
    """The first row is the head, the first cell of each other row names it."""
    head, *body = ([shown(cell) for cell in row] for row in rows)
    return table(kind, body, head[1:], name)


def _either(cell: Interval | None) -> str:
    return "–" if cell is None else f"{cell:.3g}"


def picture(comparison: Comparison) -> str:
    """The plot as a file of its own."""
    drawn = plot(comparison).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return drawn.replace(">", f"><style>{CSS}</style>", 1)


def plot(comparison: Comparison) -> str:
    """Models below each other: on the left their trials, on the right the differences from the baseline."""
    height = _TOP + _ROW * len(comparison.rows) + _BOTTOM
    width = _LEFT + 2 * _PANEL + _GAP + _RIGHT
    left, right = (_LEFT, _LEFT + _PANEL), (_LEFT + _PANEL + _GAP, _LEFT + 2 * _PANEL + _GAP)
    base = next(row for row in comparison.rows if row.name == comparison.baseline).values
    differences = [[a - b for a, b in zip(row.values, base)] for row in comparison.rows]
    at = f'class="name" x="{_LEFT - 14}" dy="4" text-anchor="end"'
    names = [f'<text {at} y="{_middle(i)}">{shown(_short(row.name))}</text>' for i, row in enumerate(comparison.rows)]
    trials = [(row.values, row.mean) for row in comparison.rows]
    paired = [(values, row.against) for values, row in zip(differences, comparison.rows)]
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{shown(comparison.metric)} of each model">',
        *names,
        *panel(f"{comparison.metric}, %", left, trials, height, None),
        *panel(f"difference from {_short(comparison.baseline)}, points", right, paired, height, 0.0),
        "</svg>",
    ]
    return "\n".join(parts)


def _middle(row: int) -> float:
    return _TOP + _ROW * (row + 0.5)


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]


def panel(
    title: str,
    place: tuple[float, float],
    rows: Sequence[tuple[Sequence[float], Interval | None]],
    height: int,
    line: float | None,
    top: int = _TOP,
) -> Iterator[str]:
    """Dots and whiskers on one axis, in percent."""
    ends = [100 * value for values, cell in rows for value in (*values, *_ends(cell))]
    ends += [] if line is None else [line]
    low, high = min(ends), max(ends)
    marks = ticks(low, high if high > low else low + 1)
    axis = Axis(marks[0], marks[-1], *place)
    bottom = height - _BOTTOM
    for mark in marks:
        at = f"{axis.at(mark):.2f}"
        kind = "guide" if mark == line else "grid"
        yield f'<line class="{kind}" x1="{at}" x2="{at}" y1="{top}" y2="{bottom}"/>'
        yield f'<text class="tick" x="{at}" y="{bottom + 17}" text-anchor="middle">{number(mark)}</text>'
    middle = (place[0] + place[1]) / 2
    yield f'<text class="tick" x="{middle}" y="{bottom + 37}" text-anchor="middle">{shown(title)}</text>'
    for i, (values, cell) in enumerate(rows):
        yield from dots(values, cell, axis, top + _ROW * (i + 0.5))


def _ends(cell: Interval | None) -> list[float]:
    return [] if cell is None or math.isnan(cell.half) else [cell.mean - cell.half, cell.mean + cell.half]


def dots(
    values: Sequence[float], cell: Interval | None, axis: Axis, across: float, upright: bool = False
) -> Iterator[str]:
    """Trials as small dots, their mean as a large one, its interval as a whisker; ``across`` the axis is one place."""
    if cell is None:
        return
    along, other = ("y", "x") if upright else ("x", "y")
    if ends := _ends(cell):
        low, high = (f"{axis.at(100 * end):.2f}" for end in ends)
        place = f'{along}1="{low}" {along}2="{high}" {other}1="{across:.2f}" {other}2="{across:.2f}"'
        yield f'<line class="whisker" {place}/>'
    for value in values:
        yield f'<circle class="trial" c{along}="{axis.at(100 * value):.2f}" c{other}="{across + 9}" r="2.5"/>'
    at = f'c{along}="{axis.at(100 * cell.mean):.2f}" c{other}="{across:.2f}"'
    yield f'<circle class="dot" {at} r="5"><title>{100 * cell.mean:.2f}</title></circle>'


def write(comparison: Comparison, out: Path) -> list[Path]:
    """The table as text and numbers, the plot, and a page with both; where they are."""
    task, metric = comparison.task, comparison.metric
    name = task if metric == EVALUATIONS[task].METRIC else f"{task}-{metric}"
    write_json(out / f"{name}.json", comparison.record())
    texts = {"md": markdown(comparison), "svg": picture(comparison), "html": comparison_page(comparison)}
    for suffix, text in texts.items():
        write_atomically(out / f"{name}.{suffix}", text.encode("utf-8", "replace"))
    return [out / f"{name}.{suffix}" for suffix in ("json", *texts)]
