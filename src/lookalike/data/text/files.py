"""The texts in a file: lines, or cells of a table; what is no text is left out with a reason.

A blank line separates and is no row. A line that is no valid UTF-8 or holds a NUL is no row, and is noted. Of a text
longer than LONGEST bytes the beginning counts; the rest of the line is skipped, and never in memory.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from typing import Any, BinaryIO, NamedTuple, TypeAlias, cast

import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.core.errors import BAD_DATA, USAGE, UserError
from lookalike.core.files import json_in
from lookalike.data.formats.disk import Local
from lookalike.data.formats.encoded import LABELS
from lookalike.data.formats.files import encoding_of, limit_cells
from lookalike.data.formats.lists import SPLITS, labels_read, separator
from lookalike.data.formats.tables import BROKEN, is_simple, names_of_labels

SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
LONGEST = 1 << 13  # bytes
PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2"),
    ("question", "answer"), ("query", "positive"), ("anchor", "positive"), ("first", "second"),
)  # fmt: skip
TEXTS = ("text", "sentence", "content", "review", "question", "title", "line", "caption", "body")
SCORES = ("score", "similarity", "similarity_score", "relatedness", "relatedness_score")
_NO_TEXT = {*SCORES, *LABELS, *SPLITS, "id", "idx", "index"}
_KNOWN = {*chain(*PAIRS), *TEXTS, *_NO_TEXT}

Buffered: TypeAlias = "io.BufferedReader[Any]"
Cell = str | bytes | int | float | None
Cells = Generator[tuple[int, Sequence[Cell] | None], None, None]
"""The cells of each line, with its number; None for a line that is damaged."""


class Line(NamedTuple):
    """One line of a file; a blank one has no texts."""

    number: int  # from 1
    texts: tuple[str, ...]
    label: str | float | None = None  # as it is written
    score: float | None = None
    split: str = ""  # as it is written
    bad: str | None = None  # why it is no row


class TextColumns(NamedTuple):
    """Which columns of a table hold what, by number."""

    texts: tuple[int, ...]
    label: int | None
    score: int | None
    split: int | None


def lines_of(disk: Local, name: str, columns: Sequence[str] = ()) -> Iterator[Line]:
    """The lines of a file; ``columns`` of a table are names or numbers, from 1. Raises UserError."""
    where, suffix = disk.name(name), name.lower().rpartition(".")[2]
    try:
        with disk.file(name) as raw, io.BufferedReader(cast("io.RawIOBase", raw), 1 << 20) as file:
            if suffix in _TABLES:
                cells = _TABLES[suffix](file, where)
                with closing(cells):  # before the file that it reads
                    named = suffix in ("parquet", "jsonl")
                    yield from _without_numbering(list(_table_lines(cells, columns, where, named)))
            elif columns:
                raise UserError(f"{where} has lines, no columns: leave out :{','.join(columns)}", USAGE)
            else:
                yield from _text_lines(_in_utf8(file))
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or error}; check its permissions", BAD_DATA) from None


def _in_utf8(file: Buffered) -> BinaryIO:
    """The same text; that of UTF-16 and UTF-32 whole in memory."""
    encoding = encoding_of(file.peek(4))
    return file if encoding == "utf-8-sig" else io.BytesIO(file.read().decode(encoding, "replace").encode())


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
    head = [str(cell).strip().lower() for cell in first or ()]
    known = _KNOWN | {column.lower() for column in columns}
    named = named or not known.isdisjoint(head)
    second = next(lines, None) if named else (number, first)
    if second is None or not second[1]:
        return
    names = head if named else []
    places = _chosen(columns, names, second[1], name) if columns else _usual(names, second[1], name)
    for line, cells in chain([second], lines):
        if cells is None:
            yield Line(line, (), bad="no JSON object")
            continue
        texts = [_text(_at(cells, column)) for column in places.texts]
        bad = next((reason for text in texts if (reason := _reason(text))), None)
        label, score = _label(_at(cells, places.label)), _number(_at(cells, places.score))
        split = str(_label(_at(cells, places.split)) or "")
        yield Line(line, tuple(text or "" for text in texts) if any(texts) else (), label, score, split, bad)


def _at(cells: Sequence[Cell], column: int | None) -> Cell:
    return cells[column] if column is not None and column < len(cells) else None


def _text(cell: Cell) -> str | None:
    """The text of a cell, cut as a line is; a cell that is missing is blank, and one that is no UTF-8 none."""
    raw = cell if isinstance(cell, bytes) else str("" if cell is None else cell).encode("utf-8", "surrogateescape")
    return decoded(raw[:LONGEST])


def _label(cell: Cell) -> str | float | None:
    """What is in the cell, as text or a number."""
    return cell.decode("utf-8", "backslashreplace") if isinstance(cell, bytes) else cell


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
    score = places[2] if len(places) == 3 else _first(head, SCORES)
    return TextColumns(tuple(places[:2]), label, score, _first(head, SPLITS))


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
    free = [i for i in range(len(first)) if i not in numeric and (i >= len(head) or head[i] not in _NO_TEXT)]
    texts = tuple(head.index(word) for word in words) or tuple(free)
    if not texts:
        raise UserError(f"{name}: no column of text; name it as {name}:COLUMN", BAD_DATA)
    label, score = _first(head, LABELS), _first(head, SCORES)
    if not head and len(numeric) == 1:
        whole = len(texts) == 1 and str(first[numeric[0]]).strip().removeprefix("-").isdecimal()
        label, score = (numeric[0], None) if whole else (None, numeric[0])
    if score is None and label is not None and len(texts) == 2:
        score = label  # GLUE's name for it
    return TextColumns(texts, label, score, _first(head, SPLITS))


def _without_numbering(lines: Sequence[Line]) -> Sequence[Line]:
    """The same lines; whole numbers that differ on every one of three or more are an index, and no labels."""
    labels, _ = labels_read([line.label for line in lines if line.texts])
    if len(labels) > 2 and len(set(labels)) == len(labels) and all(isinstance(label, int) for label in labels):
        return [line._replace(label=None) for line in lines]
    return lines


def _first(head: Sequence[str], names: Sequence[str]) -> int | None:
    return next((head.index(name) for name in names if name in head), None)


def _table(file: Buffered, name: str, marks: str = ",;\t|") -> Cells:
    """Lines of cells. In a .tsv a tab separates whatever stands around it: quotes are letters there."""
    limit_cells(sys.maxsize)  # a longer cell is cut, as a line is
    encoding = encoding_of(file.peek(4))
    start = file.peek(1 << 16).decode(encoding, "replace").splitlines()
    text = io.TextIOWrapper(file, encoding, "surrogateescape", newline="")
    stated = re.fullmatch("sep=(.)", start[0].strip()) if start else None
    mark = stated[1] if stated else separator(start[:20], _KNOWN, marks)
    lines, number = csv.reader(text, delimiter=mark, quoting=csv.QUOTE_NONE if marks == "\t" else csv.QUOTE_MINIMAL), 1
    try:
        if stated:
            next(lines)
            number = 2
        for cells in lines:
            yield number, cells
            number = lines.line_num + 1
    except csv.Error as error:
        raise UserError(f"{name}: no table that can be read ({error}); mend it", BAD_DATA) from None
    finally:
        text.detach()  # whoever opened the file closes it


def _json_lines(file: Buffered, name: str) -> Cells:
    """The names of all objects, one a line, then their words and numbers; the lines are numbered from 1."""
    rows: dict[int, dict[str, Cell] | None] = {}
    for number, line in enumerate(_in_utf8(file), 1):
        try:
            content = json_in(line.decode("utf-8-sig")) if line.strip() else {}
        except ValueError:
            content = None
        rows[number] = content if isinstance(content, dict) else None
    names = list(dict.fromkeys(name for row in rows.values() for name in row or ()))
    yield 0, names
    for number, row in rows.items():
        cells = [row.get(name) for name in names] if row is not None else None
        yield number, cells and [cell if isinstance(cell, str | int | float) else None for cell in cells]


def _parquet(file: Buffered, name: str) -> Cells:
    """The names of the columns of words and numbers, then their rows, numbered from 1; words are bytes."""
    try:
        table = pq.ParquetFile(file)
        names = [field.name for field in table.schema_arrow if is_simple(field.type)]
        yield 0, names
        before = 0
        for batch in table.iter_batches(columns=names):
            yield from enumerate(zip(*(_plain_cells(batch[name]) for name in names)), before + 1)
            before += len(batch)
    except BROKEN as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"{name}: no parquet that can be read ({reason}); fetch it again", BAD_DATA) from None


def label_names(disk: Local, file: str) -> list[str] | None:
    """The names that the metadata of a .parquet states for its labels; None where there are none."""
    try:
        with disk.file(file) as raw:
            return names_of_labels(pq.read_schema(raw))
    except BROKEN:
        return None  # whoever reads its rows says what is wrong


def _plain_cells(column: Any) -> list[Cell]:
    """Words as bytes, which need not be UTF-8; numbers, yes and no as they are."""
    column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    words = is_simple(column.type) and not (pa.types.is_primitive(column.type) or pa.types.is_boolean(column.type))
    return (column.cast(pa.large_binary()) if words else column).to_pylist()  # type: ignore[no-any-return]


_TABLES: dict[str, Callable[[Buffered, str], Cells]] = {
    "parquet": _parquet,
    "jsonl": _json_lines,
    "csv": _table,
    "tsv": partial(_table, marks="\t"),
}
