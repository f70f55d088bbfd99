"""From what a person names to a source: a folder, parquet, ``digits``, a tensor, a dataset."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike.data.arrays import Arrays, Mapped, MapStyle, digits
from lookalike.data.decode import SUFFIXES, Unreadable
from lookalike.data.example import Example, Source
from lookalike.data.files import TEST, TRAIN, VALIDATION, Listing, by_split, folder_split, listed, split_of, table_split
from lookalike.data.images import Images
from lookalike.data.tables import Tables, columns_of, schema_of
from lookalike.trouble import BAD_DATA, USAGE, Trouble

__all__ = [
    "Data",
    "Example",
    "Rows",
    "Source",
    "native_side",
    "open_source",
    "reference_and_query",
    "split_by_hash",
    "splits",
    "splits_of",
]

Data = str | os.PathLike[str] | Tensor | npt.NDArray[np.generic] | MapStyle
EVERYTHING = "all"  # the name of no split: every row of every split


class Rows:
    """Some rows of a source, as a source."""

    def __init__(self, source: Source, rows: Tensor) -> None:
        self._source, self._rows = source, rows
        self.side, self.classes, self.unlisted = source.side, source.classes, source.unlisted
        self.paths = [source.paths[row] for row in rows.tolist()]

    @property
    def labels(self) -> Tensor:
        """(N,) int64, -1 where there is none."""
        return self._source.labels[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Example:
        return self._source[int(self._rows[row])]

    def size(self, row: int) -> tuple[int, int]:
        """Upright (height, width) in pixels; raises Unreadable."""
        return self._source.size(int(self._rows[row]))

    def at(self, side: int) -> Self:
        """The same rows on canvases of another side."""
        other = copy.copy(self)
        other._source, other.side = self._source.at(side), side
        return other


def open_source(data: Data, split: str | None = None, side: int = 32) -> Source:
    """The rows of one split on canvases of ``side`` pixels; None is train where it exists, else everything.

    ``split`` takes the Hub's words (val, dev, test, ...) and ``all``. The word ``digits`` is always scikit-learn's
    digits; a folder of that name is ``./digits``. Raises Trouble.
    """
    if isinstance(data, Tensor | np.ndarray):
        _refuse_split(split, [])
        return Arrays(torch.as_tensor(data), None, [], side)
    if not isinstance(data, str | os.PathLike):
        _refuse_split(split, [])
        return Mapped(_not_empty(data), side)
    if data == "digits":
        _refuse_split(split, [])
        return digits(side)
    return _Place(Path(data)).open(split, side)


def splits(data: Data) -> list[str]:
    """Which of train, validation and test exist, in this order; [] where the data is not divided. Raises Trouble."""
    return list(_Place(Path(data)).splits) if isinstance(data, str | os.PathLike) and data != "digits" else []


def splits_of(data: Data, side: int = 32) -> dict[str, Source]:
    """Every split that exists, listed once; {"all": everything} where the data is not divided. Raises Trouble."""
    if isinstance(data, str | os.PathLike) and data != "digits":
        place = _Place(Path(data))
        return {name: place.open(name, side) for name in place.splits} or {EVERYTHING: place.open(None, side)}
    return {EVERYTHING: open_source(data, None, side)}


def reference_and_query(data: Data, side: int = 32) -> tuple[Source, Source]:
    """What an evaluation compares with, and what it asks: train and test (else validation), else 80 and 20 percent."""
    found = splits_of(data, side)
    query = TEST if TEST in found else VALIDATION
    if TRAIN in found and query in found:
        return found[TRAIN], found[query]
    source = next(iter(found.values())) if len(found) == 1 else open_source(data, EVERYTHING, side)
    reference_rows, query_rows = split_by_hash(source.paths, source.labels)
    return Rows(source, reference_rows), Rows(source, query_rows)


def split_by_hash(paths: Sequence[str], labels: Tensor, share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Sorted rows (reference, query): of every label ``share`` are queries, those whose paths have the lowest hashes.

    A function of paths and labels alone, on any machine; a label of two rows or more has one of each at least.
    """
    digests = [blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest() for path in paths]
    strata: dict[int, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        strata.setdefault(label, []).append(row)
    query: list[int] = []
    for rows in strata.values():
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        query += sorted(rows, key=lambda row: (digests[row], paths[row]))[:count]
    chosen = torch.zeros(len(paths), dtype=torch.bool)
    chosen[query] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def native_side(source: Source, looks: int = 256) -> int:
    """The median short side in pixels of up to ``looks`` evenly spaced pictures, by their headers; raises Trouble."""
    count = min(looks, len(source))
    sides: list[int] = []
    for i in range(count):
        try:
            sides.append(min(source.size(i * len(source) // count)))
        except Unreadable:
            continue
    if not sides:
        raise Trouble(
            f"none of {count} pictures can be read, the first is {source.paths[0]}; open one by hand", BAD_DATA
        )
    return sorted(sides)[len(sides) // 2]


class _Place:
    """A file or folder, listed once; raises Trouble where it holds nothing to learn from."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            if root.is_dir():
                os.scandir(root).close()
            elif not root.exists():
                raise Trouble(f"{root}: no such file or folder; name pictures, a parquet file, or digits", BAD_DATA)
        except OSError as error:
            raise Trouble(f"{root}: {error.strerror}; check its permissions", BAD_DATA) from None
        if root.is_dir():
            self._list_folder()
        else:
            self._list_file()

    def _list_folder(self) -> None:
        """Parquet with pictures goes before picture files, a few of which a dataset's repository often holds too."""
        found = listed(self.root, (*SUFFIXES, ".parquet"))
        tables = [path for path in found.files if path.lower().endswith(".parquet")]
        pictures = [path for path in found.files if not path.lower().endswith(".parquet")]
        with_pictures = [path for path in tables if columns_of(schema_of(self.root / path)) is not None]
        if with_pictures or (tables and not pictures):
            tables = with_pictures or tables
            self.tables, self.splits = tables, by_split(tables, table_split)
        elif pictures:
            self.tables, self.splits = [], by_split(pictures, folder_split)
        else:
            raise Trouble(_nothing(self.root, found), BAD_DATA)
        self.listing = found._replace(files=pictures)

    def _list_file(self) -> None:
        if self.root.suffix.lower() != ".parquet":
            raise Trouble(f"{self.root}: a file that is no .parquet; name the folder that holds the pictures", BAD_DATA)
        self.tables, self.splits = [self.root.name], {}
        self.root = self.root.parent

    def open(self, split: str | None, side: int) -> Source:
        """One split, as open_source describes it."""
        name = self._chosen(split)
        if not self.tables:
            return Images(self.root, self.listing, name, side)
        every = [path for files in self.splits.values() for path in files] or self.tables
        source = Tables(self.root, sorted(every), self.splits[name] if name else sorted(every), side)
        if not len(source):
            raise Trouble(f"{self.root / source.files[0]}: a table without a row; fetch it again", BAD_DATA)
        return source

    def _chosen(self, split: str | None) -> str | None:
        """The split's own name, None for everything; raises Trouble."""
        if split is None:
            return TRAIN if TRAIN in self.splits else None
        if split == EVERYTHING:
            return None
        name = split_of(split)
        if name is None or name not in self.splits:
            _refuse_split(split, list(self.splits))
        return name


def _refuse_split(split: str | None, existing: Sequence[str]) -> None:
    """Raise Trouble for a split that does not exist."""
    if split not in (None, EVERYTHING):
        there = f"there are {', '.join(existing)} and {EVERYTHING}" if existing else "the data is not divided"
        raise Trouble(f"no split {split!r}: {there}; choose with --split, or leave it out", USAGE)


def _nothing(root: Path, found: Listing) -> str:
    """The message for a folder without a picture."""
    if found.unreadable:
        folder, reason = next(iter(found.unreadable.items()))
        count = len(found.unreadable)
        return f"{root}: no picture, and {count} entries cannot be read, first {folder} ({reason}); check permissions"
    if not found.others:
        return f"{root}: the folder is empty; name one that holds pictures (.jpg, .png, .webp, ...) or .parquet files"
    return (
        f"{root}: no picture among its {found.others} files; pictures end in .jpg, .png, .webp, ..., tables in .parquet"
    )


def _not_empty(dataset: MapStyle) -> MapStyle:
    """The dataset if it is map-style and holds anything; raises Trouble."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise Trouble(f"a {type(dataset).__name__} is no data; give a path, a tensor or a map-style dataset", USAGE)
    if not len(dataset):
        raise Trouble(f"the {type(dataset).__name__} is empty; give one that holds pictures", BAD_DATA)
    return dataset
