"""The texts in a file: lines, or cells of a table; what is no text is left out with a reason.

A blank line separates and is no row. A line that is no valid UTF-8 or holds a NUL is no row, and is noted. Of a text
longer than LONGEST bytes the beginning counts; the rest of the line is skipped, and never in memory.
"""

from __future__ import annotations

import codecs
import csv
import io
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.core.errors import BAD_DATA, USAGE, UserError
from lookalike.data.formats.disk import Local
from lookalike.data.formats.encoded import LABELS, Value
from lookalike.data.formats.files import limit_cells, printable
from lookalike.data.formats.tables import BROKEN

SUFFIXES = (".txt", ".csv", ".tsv", ".parquet")
LONGEST = 1 << 13  # bytes
PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2"),
    ("question", "answer"), ("query", "positive"), ("anchor", "positive"), ("first", "second"),
)  # fmt: skip
TEXTS = ("text", "sentence", "content", "review", "question", "title", "line", "caption", "body")
SCORES = ("score", "similarity", "similarity_score", "relatedness", "relatedness_score")
_KNOWN = {*chain(*PAIRS), *TEXTS, *SCORES, *LABELS, "split", "id", "idx", "index"}

Cell = str | bytes | int | float | None
Cells = Generator[tuple[int, Sequence[Cell]], None, None]
"""The cells of each line, with its number."""


class Line(NamedTuple):
    """One line of a file; a blank one has no texts."""

    number: int  # from 1
    texts: tuple[str, ...]
    label: Value | None = None
    score: float | None = None
    bad: str | None = None  # why it is no row


class TextColumns(NamedTuple):
    """Which columns of a table hold what, by number."""

    texts: tuple[int, ...]
    label: int | None
    score: int | None


def lines_of(disk: Local, name: str, columns: Sequence[str] = ()) -> Iterator[Line]:
    """The lines of a file; ``columns`` of a table are names or numbers, from 1. Raises UserError."""
    where, suffix = disk.name(name), name.lower().rpartition(".")[2]
    try:
        with disk.file(name) as raw, io.BufferedReader(cast("io.RawIOBase", raw), 1 << 20) as file:
            if suffix in ("parquet", "csv", "tsv"):
                cells = _parquet(file, where) if suffix == "parquet" else _table(file, where, suffix)
                with closing(cells):  # before the file that it reads
                    yield from _without_numbering(list(_table_lines(cells, columns, where, named=suffix == "parquet")))
            elif columns:
                raise UserError(f"{where} has lines, no columns: leave out :{','.join(columns)}", USAGE)
            else:
                yield from _text_lines(file)
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or error}; check its permissions", BAD_DATA) from None


def _text_lines(file: BinaryIO) -> Iterator[Line]:
    """Those of a text file; a byte order mark is no text."""
    number = 0
    while raw := file.readline(LONGEST):
        number, whole = number + 1, raw.endswith(b"\n")
        text = decoded(raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw)
        while not whole and (rest := file.readline(LONGEST)):
            whole = rest.endswith(b"\n")
        yield Line(number, (text,) if text else (), bad=_reason(text))


def decoded(raw: bytes) -> str | None:
    """The text of at most LONGEST bytes, without the space around it; None where they are no UTF-8.

    A letter that the limit cuts in two is left out.
    """
    try:
        return codecs.utf_8_decode(raw[:LONGEST], "strict", len(raw) < LONGEST)[0].strip()
    except UnicodeDecodeError:
        return None


def _reason(text: str | None) -> str | None:
    if text is None:
        return "no valid UTF-8"
    return "holds a NUL: no text" if "\0" in text else None


def _table_lines(lines: Cells, columns: Sequence[str], name: str, named: bool = False) -> Iterator[Line]:
    """Those of a table; if not ``named``, its first line is a head where it holds a usual or a given name."""
    number, first = next(lines, (1, []))
    head = [str(cell).strip().lower() for cell in first]
    known = _KNOWN | {column.lower() for column in columns}
    named = named or not known.isdisjoint(head)
    second = next(lines, None) if named else (number, first)
    if second is None or not second[1]:
        return
    names = head if named else []
    places = _chosen(columns, names, second[1], name) if columns else _usual(names, second[1], name)
    for line, cells in chain([second], lines):
        texts = [_text(_at(cells, column)) for column in places.texts]
        bad = next((reason for text in texts if (reason := _reason(text))), None)
        label, score = _label(_at(cells, places.label)), _number(_at(cells, places.score))
        yield Line(line, tuple(text or "" for text in texts) if any(texts) else (), label, score, bad)


def _at(cells: Sequence[Cell], column: int | None) -> Cell:
    return cells[column] if column is not None and column < len(cells) else None


def _text(cell: Cell) -> str | None:
    """The text of a cell, cut as a line is; a cell that is missing is blank, and one that is no UTF-8 none."""
    raw = cell if isinstance(cell, bytes) else str("" if cell is None else cell).encode("utf-8", "surrogateescape")
    return decoded(raw[:LONGEST])


def _label(cell: Cell) -> Value | None:
    """A whole number or a word; a fraction is no label."""
    if isinstance(cell, bytes):
        cell = cell.decode("utf-8", "backslashreplace")
    if isinstance(cell, str):
        cell = cell.strip()
        return int(cell) if cell.removeprefix("-").isdecimal() and len(cell) < 19 else printable(cell) or None
    return cell if isinstance(cell, int) else None


def _number(cell: Cell) -> float | None:
    try:
        return None if cell is None else float(cell)
    except ValueError:
        return None


def _chosen(columns: Sequence[str], head: Sequence[str], first: Sequence[Cell], name: str) -> TextColumns:
    """The columns of these names or numbers: one or two texts, then perhaps a score; the label by its usual name."""
    places = [_place(column, head, len(first), name) for column in columns]
    if not 1 <= len(places) <= 3:
        raise UserError(f"{name}: name one column of text, or two, or two and a score, not {len(places)}", USAGE)
    label = next((i for i, word in enumerate(head) if word in LABELS and i not in places), None)
    return TextColumns(tuple(places[:2]), label, places[2] if len(places) == 3 else _first(head, SCORES))


def _place(column: str, head: Sequence[str], width: int, name: str) -> int:
    if column.lower() in head:
        return head.index(column.lower())
    if column.isdecimal() and 1 <= int(column) <= width:
        return int(column) - 1
    raise UserError(
        f"{name} has no column {column!r}: there are {', '.join(head)}, or numbers from 1 to {width}", USAGE
    )


def _usual(head: Sequence[str], first: Sequence[Cell], name: str) -> TextColumns:
    """The columns of a usual name; else texts are those whose first cell is no number, and the score the one that is.

    Without names a whole number beside one text is its label, if texts share it: see ``_without_numbering``.
    """
    numeric = [i for i, cell in enumerate(first) if _number(cell) is not None]
    pair = next((pair for pair in PAIRS if all(word in head for word in pair)), ())
    single = next((word for word in TEXTS if word in head), None)
    words = pair or ((single,) if single else ())
    others = {*LABELS, *SCORES, "split", "id", "idx", "index"}
    free = [i for i in range(len(first)) if i not in numeric and (i >= len(head) or head[i] not in others)]
    texts = tuple(head.index(word) for word in words) or tuple(free)
    if not texts:
        raise UserError(f"{name}: no column of text; name it as {name}:COLUMN", BAD_DATA)
    label, score = _first(head, LABELS), _first(head, SCORES)
    if not head and len(numeric) == 1:
        whole = len(texts) == 1 and _label(first[numeric[0]]) == _number(first[numeric[0]])
        label, score = (numeric[0], None) if whole else (None, numeric[0])
    if score is None and label is not None and len(texts) == 2:
        score = label  # GLUE's name for it
    return TextColumns(texts, label, score)


def _without_numbering(lines: Sequence[Line]) -> Sequence[Line]:
    """The same lines; whole numbers that differ on every one of three or more are an index, and no labels."""
    labels = {line.label for line in lines if line.texts}
    count = sum(bool(line.texts) for line in lines)
    if count > 2 and len(labels) == count and all(isinstance(label, int) for label in labels):
        return [line._replace(label=None) for line in lines]
    return lines


def _first(head: Sequence[str], names: Sequence[str]) -> int | None:
    return next((head.index(name) for name in names if name in head), None)


def _table(file: BinaryIO, name: str, suffix: str) -> Cells:
    """Lines of cells. A tab separates whatever stands around it: quotes are letters there."""
    limit_cells(sys.maxsize)  # a longer cell is cut, as a line is
    text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
    tabs = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    lines, number = tabs if suffix == "tsv" else csv.reader(text), 1
    try:
        for cells in lines:
            yield number, cells
            number = lines.line_num + 1
    except csv.Error as error:
        raise UserError(f"{name}: no table that can be read ({error}); mend it", BAD_DATA) from None
    finally:
        text.detach()  # whoever opened the file closes it


def _parquet(file: BinaryIO, name: str) -> Cells:
    """The names of the columns of words and numbers, then their rows, numbered from 1; words are bytes."""
    types = pa.types
    try:
        table = pq.ParquetFile(file)
        fields = list(table.schema_arrow)
        words = [field.name for field in fields if types.is_string(field.type) or types.is_large_string(field.type)]
        numbers = [field.name for field in fields if types.is_integer(field.type) or types.is_floating(field.type)]
        names = [field.name for field in fields if field.name in words or field.name in numbers]
        yield 0, names
        before = 0
        for batch in table.iter_batches(columns=names):
            columns = (batch[n].cast(pa.large_binary()) if n in words else batch[n] for n in names)
            yield from enumerate(zip(*(column.to_pylist() for column in columns)), before + 1)
            before += len(batch)
    except BROKEN as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"{name}: no parquet that can be read ({reason}); fetch it again", BAD_DATA) from None
