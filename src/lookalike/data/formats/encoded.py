"""Pictures as files in some store, as a source: a row's bytes are fetched and decoded when it is due."""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Generic, Protocol, Self, TypeVar

import torch

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.decode import Unreadable, decode, header
from lookalike.data.example import Example, Rows, Source, broken
from lookalike.data.fingerprint import Stamps, stamps_of_files
from lookalike.data.formats.disk import Disk, Local
from lookalike.data.formats.files import (
    TEST,
    TRAIN,
    VALIDATION,
    Names,
    beside_splits,
    lines_in,
    on_disk,
    one_form,
    printable,
    split_of,
)

LISTS = (".txt", ".csv")
PATHS = ("path", "image", "file", "file_name", "filename", "filepath", "image_path")
_LOOKS = 1000  # paths of which one must lead somewhere, or the text is no list of pictures
Value = int | str  # what a label is before it is numbered
LABELS = ("label", "labels", "fine_label", "class", "target", "category")
FOR_TEXT = "text wants a recipe for text, such as --recipe simcse"


class Store(Protocol):
    """Where the encoded pictures of N rows lie, and what is known of them before any is read."""

    classes: list[str]
    unlisted: dict[str, str]

    @property
    def paths(self) -> Sequence[str]:
        """(N,) unique, valid Unicode."""

    @property
    def labels(self) -> Sequence[int]:
        """(N,) -1 where there is none."""

    @property
    def starts(self) -> Sequence[int] | None:
        """(M + 1,) the first row of each of M shards, and N; None for rows that lie in no shards."""

    def read(self, row: int) -> bytes:
        """The bytes of one picture; raises Unreadable, or UserError where a remote disk cannot be reached."""


class FileStore:
    """Pictures that are files of a disk, one a row: 8 bytes a row beside its name, and no object."""

    starts = None

    def __init__(
        self,
        disk: Disk,
        files: Iterable[str],
        labels: Sequence[int] = (),
        classes: Sequence[str] = (),
        unlisted: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """``files`` as the disk names them; no ``labels`` are a -1 for each."""
        self.disk, self.files = disk, Names(files)
        self.paths = self.files.shown()
        self.labels = array("q", labels or [-1] * len(self.files))
        self.classes, self.unlisted = list(classes), dict(unlisted)

    def read(self, row: int) -> bytes:
        """The bytes of one file; raises Unreadable, and UserError where a remote disk cannot be reached."""
        return self.disk.whole(self.files[row])

    def source(self) -> Encoded:
        """The same as a source."""
        return Encoded(self, partial(stamps_of_files, self.disk.file, self.files))


class Encoded:
    """The rows of a store."""

    texts: Callable[[int], tuple[str, ...]] | None = None

    def __init__(
        self, store: Store, stamps: Callable[[], Stamps], size: Callable[[int], tuple[int, int]] | None = None
    ) -> None:
        """``stamps`` are those of the files that hold the store; ``size`` is that of a row, where it is known."""
        self.store, self.stamps, self._size = store, stamps, size
        self.starts = store.starts
        self.paths, self.classes, self.unlisted = store.paths, store.classes, store.unlisted
        self.labels = torch.tensor(store.labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def example(self, row: int, side: int) -> Example:
        """One picture on a canvas of ``side`` pixels."""
        label, path = self.store.labels[row], self.paths[row]
        try:
            return Example(*decode(self.store.read(row), side), label, path)
        except Unreadable as unreadable:
            return broken(side, label, path, unreadable.reason)

    def size(self, row: int) -> tuple[int, int]:
        """Upright (height, width) in pixels, without decoding where that can be; raises Unreadable."""
        if self._size is not None:
            return self._size(row)
        head = header(self.store.read(row))
        return head.height, head.width

    def read(self, row: int) -> bytes:
        """The bytes of one picture; raises Unreadable."""
        return self.store.read(row)


S = TypeVar("S", bound=Source, covariant=True)


class Divided(Generic[S]):
    """A place whose rows belong to splits; those that belong to none are left out where any do."""

    def __init__(self, source: S, splits: Mapping[str, Sequence[int]]) -> None:
        self._source = source
        self.splits = [name for name in (TRAIN, VALIDATION, TEST) if name in splits]
        self._splits = {name: torch.tensor(splits[name]) for name in self.splits}
        if self.splits and len(source) > sum(map(len, self._splits.values())):
            chosen = set(chain.from_iterable(splits.values()))
            left = [path for row, path in enumerate(source.paths) if row not in chosen]
            source.unlisted = {**source.unlisted, **beside_splits(left, self.splits)}

    def beside(self, unreadable: Mapping[str, str]) -> Self:
        """The same place, where the listing met folders that could not be read."""
        self._source.unlisted = {**unreadable, **self._source.unlisted}
        return self

    def rows(self, split: str | None) -> S | Rows:
        """One split, or everything."""
        if not self._splits:
            return self._source
        every = torch.cat(list(self._splits.values())).sort().values
        return Rows(self._source, self._splits[split] if split else every)


def numbered(values: Sequence[Value | None], names: Sequence[str] | None = None) -> tuple[list[int], list[str]]:
    """(N,) labels and their classes; None, negative numbers and an index are no label.

    Numbers that index the stated ``names`` stay as they are; all else is numbered in its sorted order.
    """
    values = [one_form(value) if isinstance(value, str) else value for value in values]
    names = None if names is None else [one_form(name) for name in names]
    if names is None and is_numbering(values):
        return [-1] * len(values), []
    classes = sorted(
        {v for v in values if isinstance(v, str) or (v is not None and v >= 0)}, key=lambda v: (isinstance(v, str), v)
    )
    if names is not None and all(isinstance(v, int) and v < len(names) for v in classes):
        return [v if isinstance(v, int) and v >= 0 else -1 for v in values], list(names)
    number: dict[Value | None, int] = {v: i for i, v in enumerate(classes)}
    return [number.get(v, -1) for v in values], [str(v) for v in classes]


def label_of(value: Any) -> Value | None:
    """What any value is as a label: text, a whole number in any form, yes or no; None for all else."""
    if isinstance(value, str):
        return one_form(value.encode("utf-8", "backslashreplace").decode().strip()[:200]) or None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) else None


def is_numbering(values: Sequence[Value | None]) -> bool:
    """Whether what passes for labels numbers the rows, from 0 or 1 on, as the index of a table does."""
    first = values[0] if len(values) > 2 else None
    return first in (0, 1) and all(value == row for row, value in enumerate(values, first))


class PathList(FileStore):
    """The pictures of a list, in its order; a path that stands there twice is one row, and said; to nowhere a bad row.

    A .txt holds one path a line. A .csv has a head with one of ``PATHS``, and optionally label and split. Paths are
    relative to the list's folder, or absolute: a list is its owner's own word, so they may lead anywhere.
    """

    def __init__(self, file: Path) -> None:
        """Raises UserError where the list cannot be read, holds no path, or none of its first leads anywhere."""
        rows, repeats = _merged(file, _rows(file))
        if not rows:
            raise UserError(f"{file}: no path in it; write one path a line", BAD_DATA)
        paths, labels, splits = zip(*rows.values())
        if not any(os.path.lexists(on_disk(file.parent, path)) for path in paths[:_LOOKS]):
            first = next(iter(rows))[:100]
            what = f"a list of paths, but none leads to a file, as {first}; see the paths"
            raise UserError(f"{file}: {what}; {FOR_TEXT}", BAD_DATA)
        super().__init__(Local(file.parent), paths, *numbered(_values(labels)), {file.name: repeats} if repeats else {})
        self.splits: dict[str, list[int]] = {}
        for i, name in enumerate(splits):
            if (split := split_of(name)) is not None:
                self.splits.setdefault(split, []).append(i)


def _merged(file: Path, rows: Iterable[tuple[str, str, str]]) -> tuple[dict[str, tuple[str, str, str]], str]:
    """One row a path, the first, with what repeats in words; two labels of one path raise UserError."""
    merged: dict[str, tuple[str, str, str]] = {}
    repeated: list[str] = []
    shared: list[str] = []
    for path, label, split in rows:
        if not path:
            continue
        key = printable(str(PurePosixPath(path)))  # ./a.png is a.png
        known_path, known, known_split = merged.get(key, (path, label, split))
        if label and known and label != known:
            labels = f"{printable(known)} first and {printable(label)} in a later row"
            raise UserError(f"{file}: {key[:200]} is {labels}; keep one of them", BAD_DATA)
        repeated += [key] if key in merged else []
        shared += [key] if None not in (one := {split_of(split), split_of(known_split)}) and len(one) > 1 else []
        merged[key] = known_path, known or label, known_split if split_of(known_split) else split
    parts = [f"{len(repeated)} rows repeat an earlier path, first {repeated[0]}"] if repeated else []
    parts += [f"{len(shared)} of them in another split, of which the first counts: {shared[0]}"] if shared else []
    return merged, "; ".join(parts)


def _rows(file: Path) -> list[tuple[str, str, str]]:
    """Path, label and split of each line; bytes that are no UTF-8 are kept, since a file's name may hold them."""
    with lines_in(file, "surrogateescape") as lines:
        if file.suffix.lower() == ".csv":
            return list(_table(file, csv.reader(lines)))
        return [(line.rstrip("\r\n"), "", "") for line in lines]


def _table(file: Path, lines: Iterator[list[str]]) -> Iterator[tuple[str, str, str]]:
    """The rows of a .csv; raises UserError where its head names no column of paths."""
    head = {name.strip().lower(): i for i, name in enumerate(next(lines, []))}
    path, label, split = (
        next((head[name] for name in names if name in head), None) for names in (PATHS, LABELS, ("split",))
    )
    if path is None:
        raise UserError(f"{file}: its first line names no column {', '.join(PATHS[:4])}; add one; {FOR_TEXT}", BAD_DATA)
    for cells in lines:
        cell = [cells[i] if i is not None and i < len(cells) else "" for i in (path, label, split)]
        yield cell[0], cell[1].strip(), cell[2].strip()


def _values(labels: Sequence[str]) -> list[Value | None]:
    """Labels as whole numbers if all of them are, else as words; an empty one is none."""
    present = [label for label in labels if label]
    if all(label.removeprefix("-").isdecimal() and len(label) < 20 for label in present):
        return [int(label) if label else None for label in labels]
    return [printable(label) if label else None for label in labels]
