"""Lists of pictures: the rows that somebody wrote down, in their order.

A .txt holds one path a line. A .csv has a head with a column path, image, file or file_name, and optionally label and
split. Paths are relative to the list's folder, or absolute: a list is its owner's own word, so they may lead anywhere.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.formats.columns import FOR_TEXT, LABELS
from lookalike.data.formats.disk import Local
from lookalike.data.formats.encoded import FileStore, Value, numbered
from lookalike.data.formats.files import limit_cells, printable, split_of

SUFFIXES = (".txt", ".csv")
_PATHS = ("path", "image", "file", "file_name", "filename", "filepath", "image_path")
_LOOKS = 1000  # paths of which one must be there: a text that is no list of pictures is said to be none


class ListedPicture(NamedTuple):
    """One line."""

    path: str
    label: str = ""
    split: str = ""


class PathList(FileStore):
    """The pictures of a list; a path that stands there twice is one row, and one that leads nowhere a bad row."""

    def __init__(self, file: Path) -> None:
        """Raises UserError where the list cannot be read, holds no path, or none of its first leads anywhere."""
        rows: dict[str, ListedPicture] = {}
        for row in _rows(file):
            if row.path:
                rows.setdefault(printable(row.path), row)
        if not rows:
            raise UserError(f"{file}: no path in it; write one path a line", BAD_DATA)
        if not any(os.path.lexists(file.parent / row.path) for row in islice(rows.values(), _LOOKS)):
            first = next(iter(rows))[:100]
            what = f"a list of paths, but none leads to a file, as {first}; see the paths"
            raise UserError(f"{file}: {what}; {FOR_TEXT}", BAD_DATA)
        labels, classes = numbered(_values([row.label for row in rows.values()]))
        super().__init__(Local(file.parent), (row.path for row in rows.values()), labels, classes)
        self.splits: dict[str, list[int]] = {}
        for i, row in enumerate(rows.values()):
            if (split := split_of(row.split)) is not None:
                self.splits.setdefault(split, []).append(i)


def _rows(file: Path) -> list[ListedPicture]:
    """The lines of a list; raises UserError. Bytes that are no UTF-8 are kept, since a file's name may hold them."""
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            if file.suffix.lower() == ".csv":
                limit_cells()
                return list(_table(file, csv.reader(lines)))
            return [ListedPicture(line.rstrip("\r\n")) for line in lines]
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; check its permissions", BAD_DATA) from None
    except csv.Error as error:
        raise UserError(f"{file}: no table that can be read ({error}); mend it", BAD_DATA) from None


def _table(file: Path, lines: Iterator[list[str]]) -> Iterator[ListedPicture]:
    """The rows of a .csv; raises UserError where its head names no column of paths."""
    head = {name.strip().lower(): i for i, name in enumerate(next(lines, []))}
    path, label, split = (_column(head, names) for names in (_PATHS, LABELS, ("split",)))
    if path is None:
        raise UserError(
            f"{file}: its first line names no column {', '.join(_PATHS[:4])}; add one; {FOR_TEXT}", BAD_DATA
        )
    for cells in lines:
        cell = [cells[i] if i is not None and i < len(cells) else "" for i in (path, label, split)]
        yield ListedPicture(cell[0], cell[1].strip(), cell[2].strip())


def _column(head: Mapping[str, int], names: Sequence[str]) -> int | None:
    return next((head[name] for name in names if name in head), None)


def _values(labels: Sequence[str]) -> list[Value | None]:
    """Labels as whole numbers if all of them are, else as words; an empty one is none."""
    present = [label for label in labels if label]
    if all(label.removeprefix("-").isdecimal() and len(label) < 20 for label in present):
        return [int(label) if label else None for label in labels]
    return [printable(label) if label else None for label in labels]
