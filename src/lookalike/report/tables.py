"""Tables of the page: accuracies with bars and intervals, and plain names and values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from lookalike.metrics.fewshot import Interval


class Accuracies(NamedTuple):
    """Rows of things compared, columns of conditions, in each cell a mean and its interval."""

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Interval]]
    caption: str


def shown(text: object) -> str:
    """Anything as HTML text; what cannot be printed, such as a stray byte of a file's name, becomes a mark."""
    plain = "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in str(text)
    )
    return escape(plain)


def percent(cell: Interval) -> str:
    """``71.2 ± 1.3 %``; a mean without an interval stands alone."""
    if not math.isfinite(cell.mean):
        return "–"
    return (
        f"{100 * cell.mean:.1f} ± {100 * cell.half:.1f} %" if math.isfinite(cell.half) else f"{100 * cell.mean:.1f} %"
    )


def bar(cell: Interval, best: bool) -> str:
    """The mean as a bar on 0 to 100 %, the interval as a whisker."""
    if not math.isfinite(cell.mean):
        return ""
    mean = _clamped(100 * cell.mean)
    parts = [
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">',
        '<rect class="track" width="100" height="8"/>',
        f'<rect class="{"best" if best else "fill"}" width="{mean:.2f}" height="8"/>',
    ]
    if math.isfinite(cell.half):
        low, high = (_clamped(100 * (cell.mean + sign * cell.half)) for sign in (-1, 1))
        parts.append(f'<rect class="whisker" x="{low:.2f}" y="2" width="{high - low:.2f}" height="4"/>')
    return "".join([*parts, "</svg>"])


def _clamped(share: float) -> float:
    return min(100.0, max(0.0, share))


def accuracies(table: Accuracies) -> str:
    """The table as HTML; the best of each column is marked."""
    cells = list(table.rows.values())
    best = [
        max((row[i].mean for row in cells if math.isfinite(row[i].mean)), default=math.nan)
        for i in range(len(table.columns))
    ]
    head = "".join(f'<th scope="col">{shown(column)}</th>' for column in table.columns)
    body = ""
    for name, row in table.rows.items():
        found = "".join(_cell(cell, cell.mean == top) for cell, top in zip(row, best))
        body += f'<tr><th scope="row">{shown(name)}</th>{found}</tr>\n'
    return (
        f'<div class="wide"><table class="accuracies"><thead><tr><td></td>{head}</tr></thead>\n'
        f'<tbody>{body}</tbody></table></div>\n<p class="quiet">{shown(table.caption)}</p>'
    )


def _cell(cell: Interval, best: bool) -> str:
    value = f"<strong>{percent(cell)}</strong>" if best else percent(cell)
    return f"<td>{value}{bar(cell, best)}</td>"


def facts(values: Mapping[str, Any]) -> str:
    """Names and values in two columns."""
    rows = "".join(
        f"<tr><th scope='row'>{shown(name)}</th><td>{shown(value)}</td></tr>" for name, value in values.items()
    )
    return f'<table class="facts"><tbody>{rows}</tbody></table>'
