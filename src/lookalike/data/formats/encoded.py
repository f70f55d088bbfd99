"""Pictures as files in some store, as a source: a row's bytes are fetched and decoded when it is due."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from lookalike.data.decode import Unreadable, decode, header
from lookalike.data.example import Example, Rows, Source, broken, in_sequence, joined
from lookalike.data.fingerprint import Stamps, stamps_of_files
from lookalike.data.formats.disk import Disk
from lookalike.data.formats.files import TEST, TRAIN, VALIDATION, Names, beside_splits, one_form
from lookalike.data.preprocessing import Side

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
    def labels(self) -> Sequence[int] | Tensor:
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
        self.labels = torch.as_tensor(store.labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def example(self, row: int, side: Side) -> Example:
        """One picture as a canvas."""
        label, path = int(self.store.labels[row]), self.paths[row]
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
    """A place whose rows belong to splits; those that belong to none are left out where any do, and counted.

    ``said``: the source says by itself what belongs to none, as those do that have a column of splits.
    """

    def __init__(self, source: S, splits: Mapping[str, Sequence[int]], said: bool = False) -> None:
        self._source = source
        self.splits = [name for name in (TRAIN, VALIDATION, TEST) if name in splits]
        self._splits = {name: in_sequence(splits[name]) for name in self.splits}
        if self.splits and not said and len(source) > sum(map(len, self._splits.values())):
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
        return Rows(self._source, self._splits[split] if split else joined(self._splits.values()))


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
