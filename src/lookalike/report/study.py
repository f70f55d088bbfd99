"""A study as a table in words, a plot, and a page that holds both; as far as it is done."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from lookalike.core.files import write_atomically, write_json
from lookalike.evaluation.study import UNTRAINED, StudyResult
from lookalike.metrics.fewshot import Interval
from lookalike.report.charts import Axis, number, ticks
from lookalike.report.comparison import dots, panel
from lookalike.report.page import CSS, page, percent, shown, table

_LEFT, _WIDTH, _RIGHT, _TOP, _HEIGHT, _BOTTOM, _ROW = 56, 520, 130, 20, 260, 50, 34
_NAMES = 220  # px for the names of cells that lie on no axis


def cells_of(outcome: StudyResult) -> Iterator[list[str]]:
    """Head, then the name, each evaluation, seeds, steps and minutes of each cell, as text."""
    yield ["run", *outcome.tasks, "seeds", "steps", "minutes each"]
    for cell in [UNTRAINED, *(cell.name for cell in outcome.study.cells)]:
        rows = [row for row in outcome.rows if row.cell == cell]
        if not rows:
            yield [cell, *("–" for _ in outcome.tasks), "0", "–", "–"]
            continue
        means = [outcome.mean(cell, task) for task in outcome.tasks]
        failed = len(outcome.failures(cell))
        count = f"{len(rows)}, {failed} failed" if failed else str(len(rows))
        minutes = sum(row.minutes for row in rows) / len(rows)
        found = ["failed" if mean is None else percent(mean) for mean in means]
        yield [cell, *found, count, f"{rows[0].steps:,}", f"{minutes:.1f}" if minutes else "–"]


def caption(outcome: StudyResult) -> str:
    """What the numbers are."""
    machines = outcome.machines()
    of = (
        f"{name} (seed {', '.join(map(str, seeds))})" if len(machines) > 1 else name for name, seeds in machines.items()
    )
    return (
        f"{outcome.data}; mean and 95 % interval (Student's t) over seeds, which decide weights, order and views; "
        f"differences are taken seed by seed. {'; '.join(of)}."
    )


def markdown(outcome: StudyResult) -> str:
    """The question, what the runs say of it, and the table, for a document."""
    study = outcome.study
    head, *rows = cells_of(outcome)
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    said = [f"- {sentence}" for sentence in outcome.sentences()]
    return "\n".join([f"**{study.question}** {study.source}.", "", *said, "", *lines, "", caption(outcome), ""])


def study_page(outcome: StudyResult) -> str:
    """One self-contained page."""
    study = outcome.study
    head, *rows = ([shown(cell) for cell in row] for row in cells_of(outcome))
    said = "".join(f"<li>{shown(sentence)}</li>" for sentence in outcome.sentences())
    parts = [
        f"<h1>{shown(study.question)}</h1>",
        f'<p class="lead">{shown(study.source)}</p>',
        f"<ul>{said}</ul>",
        *(f'<div class="panel">{plot(outcome, task)}</div>' for task in outcome.tasks if outcome.rows),
        table("numbers", rows, head[1:]),
        f'<p class="quiet">{shown(caption(outcome))}</p>',
    ]
    return page(study.name, parts)


def plot(outcome: StudyResult, task: str) -> str:
    """Lines over the axis of the study; of one without an axis, cells below each other."""
    return _lines(outcome, task) if outcome.study.axis else _names(outcome, task)


def _names(outcome: StudyResult, task: str) -> str:
    names = [name for name in (UNTRAINED, *(c.name for c in outcome.study.cells)) if outcome.mean(name, task)]
    height, place = _TOP + _ROW * len(names) + _BOTTOM, (_NAMES, _NAMES + _WIDTH - 100)
    rows = [(list(outcome.values(name, task).values()), outcome.mean(name, task)) for name in names]
    at = f'class="name" x="{_NAMES - 14}" dy="4" text-anchor="end"'
    words = [f'<text {at} y="{_TOP + _ROW * (i + 0.5)}">{shown(name)}</text>' for i, name in enumerate(names)]
    inside = [*words, *panel(f"{task}, %", place, rows, height, None, _TOP)]
    return _drawing(_NAMES + _WIDTH, height, f"{task} of each run", inside)


def _lines(outcome: StudyResult, task: str) -> str:
    cells = [cell for cell in outcome.study.cells if outcome.mean(cell.name, task)]
    xs = sorted({cell.x for cell in outcome.study.cells if cell.x is not None})
    means = {cell.name: outcome.mean(cell.name, task) for cell in cells}
    base = outcome.mean(UNTRAINED, task)
    ends = [100 * end for mean in (*means.values(), base) if mean for end in _ends(mean)]
    if not ends:
        return ""
    marks = ticks(min(ends), max(ends) if max(ends) > min(ends) else min(ends) + 1)
    across = Axis(0, max(1, len(xs) - 1), _LEFT + 20, _LEFT + _WIDTH)
    up = Axis(marks[0], marks[-1], _TOP + _HEIGHT, _TOP)
    inside = [*_grid(outcome.study.axis, xs, marks, across, up)]
    if base is not None:
        inside.append(_level(across, up.at(100 * base.mean), "guide"))
        inside.append(_word(across.stop + 8, up.at(100 * base.mean), UNTRAINED))
    for number_, series in enumerate(dict.fromkeys(cell.series for cell in cells)):
        points = [
            (xs.index(cell.x), means[cell.name]) for cell in cells if cell.series == series and cell.x is not None
        ]
        inside += _series(series, number_, [(x, mean) for x, mean in points if mean], across, up)
    return _drawing(_LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _BOTTOM, f"{task} over {outcome.study.axis}", inside)


def _ends(mean: Interval) -> tuple[float, ...]:
    return (mean.mean,) if math.isnan(mean.half) else (mean.mean - mean.half, mean.mean + mean.half)


def _grid(axis: str, xs: Sequence[float], marks: Sequence[float], across: Axis, up: Axis) -> Iterator[str]:
    for mark in marks:
        yield _level(across, up.at(mark), "grid")
        yield _word(_LEFT - 4, up.at(mark), f"{number(mark)} %", "end")
    for i, x in enumerate(xs):
        yield _word(across.at(i), up.start + 18, f"{x:,.10g}", "middle")
    yield _word((across.start + across.stop) / 2, up.start + 40, axis, "middle")


def _series(name: str, which: int, points: Sequence[tuple[int, Interval]], across: Axis, up: Axis) -> Iterator[str]:
    corners = "L".join(f"{across.at(x):.1f},{up.at(100 * mean.mean):.1f}" for x, mean in points)
    dashes = ("", "6 4", "2 4", "12 4 2 4")[which % 4]  # told apart without colours, too
    yield f'<path class="line" stroke-dasharray="{dashes}" d="M{corners}"/>'
    for x, mean in points:
        yield from dots((), mean, up, across.at(x), upright=True)
    x, mean = points[-1]
    yield _word(across.at(x) + 10, up.at(100 * mean.mean), name)


def _level(across: Axis, y: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{across.start}" x2="{across.stop}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _word(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" dy="4" text-anchor="{anchor}">{shown(words)}</text>'


def _drawing(width: float, height: float, words: str, inside: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{shown(words)}">'
    return "\n".join([head, *inside, "</svg>"])


def write(outcome: StudyResult, out: Path) -> list[Path]:
    """The table as text and numbers, a plot for each evaluation, and a page with all; where they are."""
    name = outcome.study.name
    write_json(out / f"{name}.json", outcome.record())
    texts = {f"{name}.md": markdown(outcome), f"{name}.html": study_page(outcome)}
    for task in outcome.tasks if outcome.rows else ():
        drawn = plot(outcome, task).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        texts[f"{name}-{task}.svg"] = drawn.replace(">", f"><style>{CSS}</style>", 1)
    for file, text in texts.items():
        write_atomically(out / file, text.encode("utf-8", "replace"))
    return [out / f"{name}.json", *(out / file for file in texts)]
