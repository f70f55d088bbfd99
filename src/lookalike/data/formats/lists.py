"""Lists of pictures, and the labels that lists and tables hold, in the forms that tools write them.

A list is a .txt of one path a line, perhaps with a label behind it, or a .csv or .tsv with columns of paths, labels and
splits: in UTF-8 or UTF-16, with commas, semicolons, tabs or bars, with or without a head. Paths are relative to the
list's folder, or absolute: a list is its owner's own word, so they may lead anywhere.
"""

from __future__ import annotations

import csv
import math
import os
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import true_cell
from lookalike.data.annotations.pictures import Pictures, same_name
from lookalike.data.decode import SUFFIXES as PICTURES
from lookalike.data.formats.disk import Local
from lookalike.data.formats.encoded import FOR_TEXT, LABELS, FileStore, Value, numbered
from lookalike.data.formats.files import lines_in, on_disk, printable, split_of
from lookalike.data.video.decoder import SUFFIXES as VIDEOS

LISTS = (".txt", ".csv", ".tsv")
PATHS = ("path", "image", "file", "file_name", "filename", "filepath", "image_path", "img", "image_name", "img_path")
SPLITS = ("split", "subset", "partition", "set")
_IDS = ("id", "image_id", "img_id", "name", "key")
_MARKS = ",;\t|"
_LOOKS = 1000  # paths of which one must lead somewhere, or the text is no list of pictures
_FEW = 20  # lines that show how a table is written
SUFFIXES = (*PICTURES, *VIDEOS)
_NO_LABEL = {"", "nan", "na", "n/a", "null", "none", "<na>"}  # among numbers
_WHOLE = re.compile(r"(-?(?:0|[1-9]\d{0,17}))(?:\.0*)?", re.ASCII)
_DECIMAL = re.compile(r"-?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:e[-+]?\d{1,3})?", re.ASCII | re.I)


# Labels


def classified(
    values: Sequence[object], names: Sequence[str] | None = None, typed: bool = False
) -> tuple[list[int], list[str], str]:
    """(N,) labels, their classes, and why there are none, in words; ``names`` are those of numbers, if any are stated.

    Where some parts of the data hold words and others numbers with names, all of them are words.
    """
    read, none = labels_read(values, typed)
    if names is not None and any(isinstance(label, str) for label in read):
        read = [names[one] if isinstance(one, int) and 0 <= one < len(names) else one for one in read]
    labels, classes = numbered(read, names)
    if not classes and any(isinstance(label, int) and label >= 0 for label in read):
        none = "labels that count the rows are no classes: there are no labels"
    return labels, classes, none


def labels_read(values: Sequence[object], typed: bool = False) -> tuple[list[Value | None], str]:
    """Each label as a whole number or a word, None where there is none; and why none could be read, in words.

    Text, unless it is ``typed`` and so known to be text, is numbers where all of it is whole numbers as one writes
    them: 01 is a word, which is not 1. Numbers that are whole are classes, and fractions are none. A list of one label
    is that label.
    """
    values = [(one or [None])[0] if isinstance(one, list) and len(one) < 2 else one for one in values]
    if several := next((one for one in values if isinstance(one, list | dict)), None):
        return [None] * len(values), f"labels such as {str(several)[:40]} are several of a row, and none is read"
    if any(isinstance(one, str) for one in values):
        names = {one: class_name(str(one)) for one in set(values) if one is not None}
        words = ["" if one is None else names[one] for one in values]
        return ([word or None for word in words], "") if typed else _from_words(words)
    broken = next(
        (one for one in values if isinstance(one, float) and not one.is_integer() and not math.isnan(one)), None
    )
    if broken is not None:
        return [None] * len(values), _fraction(broken)
    return [_plain_label(one) for one in values], ""


def _plain_label(value: object) -> Value | None:
    if isinstance(value, bool):
        return str(value).lower()
    return int(value) if isinstance(value, int | float) and value == value else None


def _from_words(words: Sequence[str]) -> tuple[list[Value | None], str]:
    numbers = [_WHOLE.fullmatch(word) for word in words]
    present = [(word, number) for word, number in zip(words, numbers) if word.lower() not in _NO_LABEL]
    if present and all(number for _, number in present):
        return [int(number[1]) if number else None for number in numbers], ""
    other = next((word for word, number in present if not number), "")
    if all(number or _DECIMAL.fullmatch(word) for word, number in present) and other and not float(other).is_integer():
        return [None] * len(words), _fraction(other)
    return [word or None for word in words], ""


def one_naming(names: Mapping[str, Sequence[str] | None]) -> list[str] | None:
    """The names of numbers that the parts of a table state; raises UserError where a number has two."""
    longest: list[str] = []
    first = ""
    for where, stated in names.items():
        plain = [class_name(str(name)) for name in (stated if isinstance(stated, list) else ())]
        number = next((n for n, (one, other) in enumerate(zip(longest, plain)) if one != other), None)
        if number is not None:
            said = f"its label {number} is {plain[number]}, which is {longest[number]} in {first}"
            raise UserError(f"{where}: {said}; number the classes alike in all parts", BAD_DATA)
        if len(plain) > len(longest):
            longest, first = plain, where
    return longest or None


def _fraction(number: object) -> str:
    return f"numbers such as {number} are no classes: there are no labels"


def class_name(text: str) -> str:
    """The name of a class in the one form that is compared: without space around it, accents composed."""
    return unicodedata.normalize("NFC", printable(decoded(text.strip())))


def decoded(text: str) -> str:
    """Text whose bytes were kept, where they are no UTF-8, as that of Windows' western code page."""
    if text.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in text):
        return text
    raw = text.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("cp1252")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


# Tables


def table_in(file: Path, known: Set[str]) -> list[list[str]]:
    """The cells of every line that is not blank, whatever separates them; raises UserError.

    ``known`` are usual names of columns, in small letters. Bytes that are no UTF-8 are kept, as in names of files.
    """
    with lines_in(file, "surrogateescape") as text:
        lines = list(text)
        start, mark = _start(lines, known)
        mark = mark or separator(
            lines[start : start + _FEW], known, "\t,;|" if file.suffix.lower() == ".tsv" else _MARKS
        )
        rows = list(csv.reader(lines[start:], delimiter=mark, skipinitialspace=True))
    rows = [cells for cells in rows if any(cell.strip() for cell in cells)]
    return [cells for cells in rows if not (cells[0].startswith("#") and len(cells) < len(rows[0]))]


def _start(lines: list[str], known: Set[str]) -> tuple[int, str]:
    """Where the table begins, after comments, and the separator that Excel's first line states, if any."""
    for i, line in enumerate(lines):
        words = line.strip().lstrip("#").strip()
        if stated := re.fullmatch(r"sep=(.)", words, re.I):
            return i + 1, stated[1]
        if words and (
            not line.lstrip().startswith("#") or known & {w.strip().lower() for w in re.split(r"[,;\t|]", words)}
        ):
            lines[i] = line.lstrip().lstrip("#")
            return i, ""
    return 0, ""


def separator(lines: Sequence[str], known: Set[str], marks: str = _MARKS) -> str:
    """The one that makes most usual names of the first line, else most cells, as many in every line."""

    def fit(mark: str) -> tuple[int, int]:
        rows = [cells for cells in csv.reader(lines, delimiter=mark, skipinitialspace=True) if cells]
        widths = {len(cells) for cells in (rows[:-1] or rows)}  # the last may be cut in a cell of several lines
        names = sum(cell.strip().lower() in known for cell in rows[0]) if rows else 0
        return names, widths.pop() if len(widths) == 1 else 1

    return max(marks, key=fit)


class ListColumns(NamedTuple):
    """Which cells of a row are its path, its label and its split; ``first`` is the first row behind the head."""

    first: int
    path: int
    label: int | None
    split: int | None
    note: str = ""


def columns_in(file: Path, rows: Sequence[Sequence[str]]) -> ListColumns:
    """By the usual names, else the column of paths by what is in it; raises UserError."""
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    paths = [i for i in range(len(head)) if _all_pictures(rows[1 : 1 + _FEW] or rows, i)]
    if len(paths) == 1 and head[paths[0]].endswith(SUFFIXES):
        return _headless(paths[0], rows)
    path = next((head.index(name) for name in PATHS if name in head), None)
    path = paths[0] if path is None and len(paths) == 1 else path
    path = next((head.index(name) for name in _IDS if name in head), None) if path is None else path
    if path is None:
        raise UserError(f"{file}: its first line names no column {', '.join(PATHS[:4])}; add one; {FOR_TEXT}", BAD_DATA)
    label, split = (
        next((head.index(name) for name in names if name in head and head.index(name) != path), None)
        for names in (LABELS, SPLITS)
    )
    others = [name for i, name in enumerate(head) if i not in (path, split) and name]
    unread = f"no column is called {', '.join(LABELS[:4])}, and {', '.join(others)[:100]} is not read"
    return ListColumns(1, path, label, split, unread if label is None and others else "")


def _headless(path: int, rows: Sequence[Sequence[str]]) -> ListColumns:
    """Without a head a column of nothing but words of splits is the split; what is left, if it is one, the label."""
    others = [i for i in range(len(rows[0])) if i != path]
    split = next((i for i in others if all(split_of(_cell(cells, i)) is not None for cells in rows)), None)
    rest = [i for i in others if i != split]
    unread = f"of {len(rest)} columns without a name none is read: give the one of labels the name label"
    return ListColumns(0, path, rest[0] if len(rest) == 1 else None, split, unread if len(rest) > 1 else "")


def _cell(cells: Sequence[str], column: int | None) -> str:
    return cells[column].strip() if column is not None and column < len(cells) else ""


def _all_pictures(rows: Sequence[Sequence[str]], column: int) -> bool:
    return bool(rows) and all(_cell(cells, column).lower().endswith(SUFFIXES) for cells in rows)


# Lists


class ListRow(NamedTuple):
    """One line of a list."""

    path: str
    label: str = ""
    split: str = ""


class PathList(FileStore):
    """The pictures of a list, in its order; a path that stands there twice is one row, one to nowhere a bad row."""

    def __init__(self, file: Path) -> None:
        """Raises UserError where the list cannot be read, holds no path, or none of its first leads anywhere."""
        rows, notes = _rows(file)
        if not rows:
            raise UserError(f"{file}: no path in it; write one path a line", BAD_DATA)
        found, more = _found(file, [row.path for row in rows])
        merged, repeats = _merged(file, [row._replace(path=path) for row, path in zip(rows, found)])
        labels, classes, none = classified([row.label for row in merged])
        self.splits, outside = rows_by_split([row.split for row in merged], [row.path for row in merged])
        unlabelled = [row.path for row, label in zip(merged, labels) if label < 0]
        if unlabelled and len(unlabelled) < len(merged):
            none = f"{len(unlabelled)} of {len(merged)} rows have no label, first {printable(unlabelled[0])}"
        notes = [note for note in (*notes, *more, repeats, none, outside, _code_page(rows)) if note]
        unlisted = {file.name: "; ".join(notes)} if notes else {}
        super().__init__(Local(file.parent), (row.path for row in merged), labels, classes, unlisted)


def _rows(file: Path) -> tuple[list[ListRow], list[str]]:
    """The lines of a list, and what of it is not read."""
    if file.suffix.lower() == ".txt":
        return _lines(file), []
    rows = table_in(file, {*PATHS, *LABELS, *SPLITS, *_IDS})
    first, *columns, note = columns_in(file, rows)
    cells = [ListRow(*(true_cell(_cell(cells, column)) for column in columns)) for cells in rows[first:]]
    return [row for row in cells if row.path], [note]


def _lines(file: Path) -> list[ListRow]:
    """One path a line; where no line is one as it stands, a label may follow behind a space or a separator."""
    with lines_in(file, "surrogateescape") as text:
        lines = [line.rstrip("\r\n") for line in text]
    lines = [line for line in lines if line.strip() and (not line.startswith("#") or _there(file.parent, line))]
    if any(_there(file.parent, line) for line in lines[:_LOOKS]):
        return [ListRow(line) for line in lines]
    pairs = [re.fullmatch(r"\s*(.*?\S)\s*[\s,;|]\s*(\S+)\s*", line) for line in lines]
    if pairs and all(pair and pair[1].lower().endswith(SUFFIXES) for pair in pairs[:_LOOKS]):
        return [ListRow(pair[1], pair[2]) if pair else ListRow(line) for pair, line in zip(pairs, lines)]
    return [ListRow(line) for line in lines]


def _there(folder: Path, path: str) -> bool:
    return os.path.lexists(on_disk(Path(folder), path))


def _found(file: Path, paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files that the paths mean, and in words which are written otherwise and which are not there."""
    root = file.parent
    found = [path if _there(root, path) else _plain(root, path) for path in paths]
    notes: list[str] = []
    if not any(_there(root, path) for path in found[:_LOOKS]):
        found, notes = _moved(file, found)
    forms = cache(_forms)
    known, found = found, [path if _there(root, path) else _otherwise(root, path, forms) for path in found]
    if other := [(one, two) for one, two in zip(known, found) if one != two]:
        first = " is ".join(map(printable, other[0]))
        notes.append(f"{len(other)} paths are written otherwise (capitals, %20, accents), first {first}")
    gone = [path for path in found if not _there(root, path)]
    where = (
        f"{len(gone)} of {len(paths)} rows name a file that is not there, first {printable(gone[0])}" if gone else ""
    )
    notes.append(where)
    return found, notes


def _plain(root: Path, path: str) -> str:
    """The path without space and quotes around it, with slashes for backslashes, in a code page where that helps."""
    plain = path.strip().strip("\"'")
    plain = plain.replace("\\", "/") if "\\" in plain and not _there(root, plain) else plain
    return plain if _there(root, plain) or not _there(root, decoded(plain)) else decoded(plain)


def _moved(file: Path, paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths of which none leads anywhere: those of a list below the pictures' folder, of another machine, or ids."""
    root = file.parent
    if any(_there(root.parent, path) for path in paths[:_LOOKS]):
        return [f"../{path}" for path in paths], [f"paths begin in {printable(root.parent.name)}, not beside the list"]
    pictures = Pictures(root)
    ids = not any(path.lower().endswith(SUFFIXES) for path in paths[:_LOOKS])
    known = [pictures.beside(f"{path}.id") for path in paths] if ids else pictures.find_all(paths, file.name)
    if not any(known):
        first, lie = printable(paths[0])[:100], ", ".join(pictures.paths[:1])
        below = f"{len(pictures.paths)} pictures lie below the list's folder, first {lie}" if lie else "see the paths"
        what = f"a list of paths, but none leads to a file, as {first}; {below}"
        raise UserError(f"{file}: {what}; {FOR_TEXT}", BAD_DATA)
    one = next(i for i, path in enumerate(known) if path)
    where = f"no path leads anywhere as it stands: {printable(paths[one])} is taken to be {printable(known[one] or '')}"
    return [path or old for path, old in zip(known, paths)], [where, *pictures.omissions.notes()]


def _otherwise(root: Path, path: str, forms: Callable[[str], Mapping[str, list[str]]]) -> str:
    """The one file of the same folder of the same name in another form (capitals, accents, %20), else ``path``."""
    folder, _, name = path.rpartition("/")
    alike = forms(os.path.join(root, folder)).get(same_name(name), [])
    return os.path.join(folder, alike[0]) if len(alike) == 1 else path


def _forms(folder: str) -> Mapping[str, list[str]]:
    forms: dict[str, list[str]] = {}
    try:
        for name in os.listdir(folder):
            forms.setdefault(same_name(name), []).append(name)
    except (OSError, ValueError):
        pass
    return forms


def _merged(file: Path, rows: Iterable[ListRow]) -> tuple[list[ListRow], str]:
    """One row a path, the first, with what repeats in words; two labels of one path raise UserError."""
    merged: dict[str, ListRow] = {}
    repeated: list[str] = []
    shared: list[str] = []
    for path, label, split in rows:
        key = printable(str(PurePosixPath(path)))  # ./a.png is a.png
        known_path, known, known_split = merged.get(key, ListRow(path, label, split))
        if label and known and label != known:
            labels = f"{class_name(known)} first and {class_name(label)} in a later row"
            raise UserError(f"{file}: {key[:200]} is {labels}; keep one of them", BAD_DATA)
        repeated += [key] if key in merged else []
        shared += [key] if None not in (one := {split_of(split), split_of(known_split)}) and len(one) > 1 else []
        merged[key] = ListRow(known_path, known or label, known_split if split_of(known_split) else split)
    parts = [f"{len(repeated)} rows repeat an earlier path, first {repeated[0]}"] if repeated else []
    parts += [f"{len(shared)} of them in another split, of which the first counts: {shared[0]}"] if shared else []
    return list(merged.values()), "; ".join(parts)


def rows_by_split(words: Sequence[str], paths: Sequence[str]) -> tuple[dict[str, array[int]], str]:
    """The rows of each split that a column names, and in words those that it puts into none."""
    splits: dict[str, array[int]] = {}
    known = cache(split_of)
    outside: Counter[str] = Counter()
    first = ""
    for row, word in enumerate(words):
        if (split := known(word)) is not None:
            splits.setdefault(split, array("q")).append(row)
        else:
            outside[printable(word)[:40] or "nothing"] += 1
            first = first or printable(paths[row])
    others = ", ".join(word for word, _ in outside.most_common(3))
    if splits and outside:
        return splits, f"{outside.total()} rows of no split ({others}) are left out, first {first}"
    return splits, f"the column of splits names none ({others})" if set(outside) - {"nothing"} else ""


def _code_page(rows: Sequence[ListRow]) -> str:
    first = next((row.label for row in rows if decoded(row.label) != row.label), None)
    return f"labels that are no UTF-8 are read as Windows-1252, first {decoded(first)}" if first is not None else ""
