"""Text as a place and a source: a row is a text, or a pair of texts, known as ``file:line``.

DATA is a .txt file of lines, a .csv, .tsv or .parquet table, a folder of them, or a list of strings in Python. Columns
are found by their usual names, or named behind a colon: ``reviews.csv:body``, ``pairs.tsv:question,answer``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.annotations.open import id_of, lists_of, one_meaning
from lookalike.data.annotations.pictures import Omissions, Pictures
from lookalike.data.decode import SUFFIXES as PICTURES
from lookalike.data.example import PictureSource
from lookalike.data.fingerprint import LONG_PIECE, Stamps, stamps_of_files, stamps_of_values
from lookalike.data.formats.archives import rows_by_folder
from lookalike.data.formats.disk import Local
from lookalike.data.formats.encoded import Divided, Encoded
from lookalike.data.formats.files import (
    Names,
    by_folder,
    by_split,
    listed,
    printable,
    split_of,
    table_split,
)
from lookalike.data.formats.lists import classified, one_naming, rows_by_split
from lookalike.data.formats.places import HUB, Place, folder_store, snapshot
from lookalike.data.source import Data, place_of
from lookalike.data.text.files import SUFFIXES, Line, decoded, label_names, lines_of

MOST_CAPTIONS = 8  # captions of a picture that are read
_ABOUT = re.compile(
    r"(read.?me|licen[cs]e|copying|notice|authors|citation|changelog|requirements|classes|class.?names|labels)"
    r"([-_.]\w{1,9})?\.txt",
    re.I,
)
_NOTED = 1000  # lines that are no rows and stand in bad_files.csv one by one; more of a file are counted


class TextRow(NamedTuple):
    """One text of a file, or a pair of them."""

    path: str
    texts: tuple[str, ...]
    label: str | float | None = None
    score: float | None = None
    split: str = ""


class Texts:
    """A source of text. All of it is kept in memory: a byte a letter and some 50 a row."""

    starts = None

    def __init__(
        self,
        rows: Sequence[TextRow],
        unlisted: dict[str, str],
        refused: int,
        stamps: Callable[[], Stamps],
        names: Sequence[str] | None = None,
    ) -> None:
        """``names`` are those of labels that are numbers."""
        self.paths = Names(row.path for row in rows)
        width = max((len(row.texts) for row in rows), default=1)
        self._texts = [Names(row.texts[i] for row in rows) for i in range(width)]
        labels, self.classes, none = classified([row.label for row in rows], names)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        # (N,) how alike the two texts of a pair are, NaN where the data does not say.
        self.scores = torch.tensor([np.nan if row.score is None else row.score for row in rows]).double()
        self.refused, self.stamps = refused, stamps
        self.unlisted = {**unlisted, **({"labels": none} if none and width == 1 else {})}  # those of pairs are scores

    def __len__(self) -> int:
        return len(self.paths)

    def texts(self, row: int) -> tuple[str, ...]:
        """One text, or the two of a pair."""
        return tuple(texts[row] for texts in self._texts)


def find_text(data: object, pairs: bool = False) -> Divided[Texts]:
    """The place of text that a path, a name on the Hub or a list of strings means; raises UserError.

    With ``pairs`` a row is two texts; without, every text is a row of its own.
    """
    if not isinstance(data, str | os.PathLike):
        return _in_memory(data, pairs)
    name, columns = _name_and_columns(os.fspath(data))
    if name.startswith(HUB):
        return _read(Local(snapshot(name, SUFFIXES)), None, columns, pairs, name)
    if "://" in name:
        raise UserError(f"{name}: text is read from this machine; copy it here", BAD_DATA)
    root = Path(name)
    if not root.exists():
        raise UserError(
            f"{root}: no such file or folder; name a .txt, .csv, .tsv, .jsonl or .parquet, or a folder", BAD_DATA
        )
    if root.is_file():
        return _read(Local(root.parent), root.name, columns, pairs, name)
    return _read(Local(root), None, columns, pairs, name)


def _name_and_columns(data: str) -> tuple[str, list[str]]:
    """Where the text lies, and the columns that are named behind a colon."""
    name, colon, columns = data.rpartition(":")
    if not colon or os.path.lexists(data) or "/" in columns or not name or name == HUB[:-1]:
        return data, []
    return name, [column.strip() for column in columns.split(",")]


def _read(disk: Local, file: str | None, columns: Sequence[str], pairs: bool, name: str) -> Divided[Texts]:
    if file is not None and file.lower().endswith((*PICTURES, ".tar", ".zip", ".arrow", ".gz", ".zst")):
        raise UserError(f"{name}: no file of text; text ends in .txt, .csv, .tsv, .jsonl or .parquet", BAD_DATA)
    listing = disk.listed(SUFFIXES)
    about = [path for path in listing.files if _ABOUT.fullmatch(path.rpartition("/")[2])]
    about = about if file is None and len(about) < len(listing.files) else []
    files = [file] if file is not None else [path for path in listing.files if path not in about]
    if not files:
        raise UserError(
            f"{name}: no text among its {listing.others.total()} files; text ends in .txt, .csv, .tsv, .jsonl or "
            ".parquet, and pictures want a recipe for pictures, such as --recipe small",
            BAD_DATA,
        )
    divided = {} if file is not None else by_split(files, table_split)
    split_of_file = {path: split for split, paths in divided.items() for path in paths}
    files = [path for path in files if path in split_of_file or not divided]
    reading = _Reading(disk, columns, pairs, _labels_by_name(files))
    rows = [row for path in files for row in reading.rows(path, split_of_file.get(path))]
    if not rows:
        where, reason = next(iter(reading.unlisted.items()), ("", ""))
        raise UserError(f"{name}: no line of text in it{f' ({where}: {reason})' if where else ''}", BAD_DATA)
    splits, outside = rows_by_split([row.split for row in rows], [row.path for row in rows])
    unlisted = {**({} if file is not None else listing.unreadable), **reading.unlisted}
    unlisted |= dict.fromkeys(about, "it says what the data is, and is no example")
    if outside:
        unlisted[printable(files[0])] = "; ".join(filter(None, (unlisted.get(printable(files[0])), outside)))
    stamps = partial(stamps_of_files, disk.file, files, LONG_PIECE)
    names = one_naming(
        {disk.name(path): label_names(disk, path) for path in files if path.lower().endswith(".parquet")}
    )
    return Divided(Texts(rows, unlisted, reading.refused, stamps, names), splits, said=True)


class _Reading:
    """Reads files one after the other, and keeps the reasons of lines that are no rows."""

    def __init__(self, disk: Local, columns: Sequence[str], pairs: bool, labels: dict[str, str]) -> None:
        self._disk, self._columns, self._pairs, self._labels = disk, columns, pairs, labels
        self.unlisted: dict[str, str] = {}
        self.refused = 0

    def rows(self, file: str, split: str | None) -> Iterator[TextRow]:
        """The rows of one file, each a text or a pair; raises UserError."""
        shown, refused, blank, half = printable(file), 0, 0, "one text of the pair is blank"
        for line in lines_of(self._disk, file, self._columns):
            path = f"{shown}:{line.number}"
            if not line.texts and line.bad is None:
                blank += 1
            elif reason := line.bad or (half if self._pairs and len(line.texts) == 2 and not all(line.texts) else None):
                refused += 1
                if refused <= _NOTED:
                    self.unlisted[path] = reason
            else:
                label = line.label if line.label is not None else self._labels.get(file)
                own = line.split if split is None or split_of(line.split) else split
                for where, texts in self._parts(line, path):
                    yield TextRow(where, texts, label, line.score, own)
        more = {"blank lines, which are no rows": blank, "more lines that are no text": max(0, refused - _NOTED)}
        if any(more.values()):
            self.unlisted[shown] = ", ".join(f"{count} {what}" for what, count in more.items() if count)
        self.refused += refused

    def _parts(self, line: Line, path: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """A pair, or each text by itself: those of several columns as file:line:column, from 1."""
        if self._pairs:
            if len(line.texts) != 2:
                what = f"{len(line.texts)} text where a pair is wanted"
                raise UserError(f"{path}: {what}; name the columns of two as FILE:first,second", BAD_DATA)
            yield path, line.texts
            return
        for number, text in enumerate(line.texts, 1):
            if text:
                yield (f"{path}:{number}" if len(line.texts) > 1 else path), (text,)


def _labels_by_name(files: Sequence[str]) -> dict[str, str]:
    """The label of each file by its folder, else by its name: pos/1.txt and pos.txt are pos.

    Names are labels where there are two to a hundred of them in files of lines.
    """
    labels = {}
    for file in files:
        *folders, last = file.split("/")
        words = [printable(word) for word in (*folders, last.rpartition(".")[0]) if split_of(word) is None]
        if words and file.lower().endswith(".txt"):
            labels[file] = words[-2] if len(words) > 1 else words[-1]
    return labels if 2 <= len(set(labels.values())) <= 100 else {}


def _in_memory(data: object, pairs: bool) -> Divided[Texts]:
    items = list(data) if isinstance(data, Sequence) else []
    rows = [tuple(item) if isinstance(item, tuple | list) else (item,) for item in items]
    if not rows or not all(len(row) == 1 + pairs and all(isinstance(text, str) for text in row) for row in rows):
        what = "pairs of strings" if pairs else "strings"
        raise UserError(f"a {type(data).__name__} is no text; give a path, or a list of {what}", BAD_DATA)
    texts = [TextRow(f"#{i}", tuple(text.strip() for text in row)) for i, row in enumerate(rows)]
    return Divided(Texts(texts, {}, 0, partial(_stamps, rows)), {})


def _stamps(rows: Sequence[tuple[str, ...]]) -> Stamps:
    values = ["\0".join(row).encode("utf-8", "surrogatepass") for row in rows]
    return stamps_of_values([f"#{i}" for i in range(len(rows))], values)


class CaptionedImages(Encoded):
    """The captioned pictures of a folder, with as many captions each as the picture that has most: few ones repeat."""

    def __init__(self, root: Path, captions: dict[str, list[str]], unlisted: dict[str, str], tables: list[str]) -> None:
        """``captions`` by path below ``root``; ``tables`` are the files that hold them, below ``root`` too."""
        files, disk = sorted(captions), Local(root)
        store = folder_store(disk, files, by_folder(files), unlisted)
        super().__init__(store, partial(stamps_of_files, disk.file, [*store.files, *tables]))
        self.files = store.files
        width = max(map(len, captions.values()))
        captions_of = [captions[path] for path in self.files]
        self._texts = [Names(texts[i % len(texts)] for texts in captions_of) for i in range(width)]

    def texts(self, row: int) -> tuple[str, ...]:
        """The captions of one picture."""
        return tuple(texts[row] for texts in self._texts)


def find_captioned(data: Data) -> Place[PictureSource]:
    """The captioned pictures of a folder; the pictures of whatever has no captions. Raises UserError.

    A file of captions has "caption" in its name: COCO's .json, or a .csv or .tsv with the columns ``image`` and
    ``caption``, a line for each caption. A name in it finds a picture of the folder or none, never one outside.
    """
    if not isinstance(data, str | os.PathLike) or not Path(data).is_dir():
        return place_of(data)
    root = Path(data)
    tables = [path for path in listed(root, (".json", ".csv", ".tsv")).files if "caption" in Path(path).name.lower()]
    if not tables:
        return place_of(data)
    images = _captioned(root, tables)
    return Divided(images, rows_by_folder(images.files))


def _captioned(root: Path, tables: list[str]) -> CaptionedImages:
    """The pictures that files of captions name; raises UserError where they name none."""
    pictures = Pictures(root)
    captions: dict[str, list[str]] = {}
    unlisted: dict[str, str] = {}
    for table in tables:
        pictures.omissions = Omissions()  # of this table
        read = (
            _coco_captions(root / table, pictures.omissions)
            if table.endswith(".json")
            else _table_captions(root, table, pictures.omissions)
        )
        _add_captions(captions, list(read), pictures, table)
        if notes := pictures.omissions.notes():
            unlisted[table] = "; ".join(notes)
    if not captions:
        reason = "; ".join(unlisted.values()) or "they hold no captions"
        raise UserError(
            f"{root}: no file of captions names a picture in it, of {', '.join(tables[:3])} ({reason})", BAD_DATA
        )
    unlisted |= {path: "no caption" for path in pictures.paths if path not in captions}
    return CaptionedImages(root, captions, listed(root, PICTURES).unreadable | unlisted, tables)


def _add_captions(captions: dict[str, list[str]], read: list[tuple[str, str]], pictures: Pictures, table: str) -> None:
    """Those of one table, to the pictures that it names; what is left out is counted."""
    for (name, text), path in zip(read, pictures.find_all((name for name, _ in read), table)):
        if path is None:
            pictures.omissions.add("captions whose picture is not in the folder", name)
        elif text in captions.get(path, ()):
            pictures.omissions.add("captions that repeat one of the same picture", name)
        elif len(captions.setdefault(path, [])) < MOST_CAPTIONS:
            captions[path].append(text)
        else:
            pictures.omissions.add(f"captions beyond the first {MOST_CAPTIONS} of a picture", name)


def _coco_captions(file: Path, omissions: Omissions) -> Iterator[tuple[str, str]]:
    """Those of COCO's captions_*.json; raises UserError."""
    images, annotations = lists_of(file, "images", "annotations")
    names = one_meaning(file, "image", ((id_of(one.get("id")), one.get("file_name")) for one in images), omissions)
    return _captions((names.get(id_of(one.get("image_id"))), one.get("caption")) for one in annotations)


def _table_captions(root: Path, table: str, omissions: Omissions) -> Iterator[tuple[str, str]]:
    """Those of a .csv or .tsv; raises UserError."""
    lines = [line for line in lines_of(Local(root), table, ("image", "caption")) if line.texts or line.bad]
    for line in lines:
        if line.bad is not None:
            omissions.add("lines that are no text", f"line {line.number} ({line.bad})")
    return _captions(line.texts for line in lines if len(line.texts) == 2 and line.bad is None)


def _captions(pairs: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Pairs of a name and a text; what is neither is left out, and a text is cut as a line of a file would be."""
    for name, text in pairs:
        if isinstance(name, str) and isinstance(text, str):
            caption = decoded(text.encode("utf-8", "replace")[: 1 << 14])
            if caption and "\0" not in caption:
                yield name, caption
