"""A page of findings: pictures that a person should look at, beside those that say why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lookalike.curate.survey import largest, upright
from lookalike.curate.table import Finding, Table
from lookalike.report.page import picture, shown, write

_MOST, _BESIDE = 200, 3
_SIDE = 176  # pixels of the longer side


def write_findings(path: Path, title: str, lead: str, table: Table, found: Sequence[Finding]) -> None:
    """The first 200 findings, each with up to three rows that it names. Raises UserError where it cannot be written."""
    parts = [] if len(found) <= _MOST else [f'<p class="quiet">The first {_MOST} of {len(found):,}.</p>']
    sections = (_section(table, number, finding) for number, finding in enumerate(found[:_MOST], 1))
    write(path, title, lead, [*parts, '<div class="pairs">', *sections, "</div>"])


def _section(table: Table, number: int, finding: Finding) -> str:
    """One finding: which it is, why, how sure, and its pictures."""
    rows = [finding.row, *finding.others[:_BESIDE]]
    words = ["this", *["beside"] * (len(rows) - 1)]
    figures = "".join(_figure(table, row, word) for row, word in zip(rows, words))
    why = f"{number}. {finding.reason} ({finding.score:.3f})"
    return f'<section class="panel finding"><h2>{shown(why)}</h2><div class="hits">{figures}</div></section>'


def _figure(table: Table, row: int, words: str) -> str:
    label = int(table.rows.label[row])
    name = f"{table.rows.classes[label]}, " if 0 <= label < len(table.rows.classes) else ""
    about = f"<b>{shown(words)}</b> {shown(name + table.rows.path[row])}"
    return f"<figure>{_image(table, row)}<figcaption>{about}</figcaption></figure>"


def _image(table: Table, row: int) -> str:
    """The picture, or nothing of text and of what cannot be read any more."""
    if table.pictures is None:
        return ""
    example = table.pictures.example(row, largest(table.pictures, _SIDE))
    image: Image.Image = upright(example.pixels, example.height, example.width, _SIDE)
    return "" if example.bad is not None else picture(image, table.rows.path[row])
