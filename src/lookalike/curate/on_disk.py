"""The embeddings of a table of any size, by row: out of the file as it lies on the disk, where it lies plainly."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.core.files import opened
from lookalike.train.embeddings import opened_table, plain_places, refusing, vectors_in

Vectors = npt.NDArray[np.float32]
_GROUPS = 8  # row groups that are kept where the file has to be decoded


class OnDisk:
    """(N, F) float32 vectors of a parquet file that stays on the disk; N and F are ``len`` and ``width``."""

    def __init__(self, path: Path) -> None:
        """Raises UserError."""
        self._path = path
        self._open = ExitStack()  # until this is gone
        self._file = self._open.enter_context(opened_table(path))
        rows = [self._file.metadata.row_group(number).num_rows for number in range(self._file.num_row_groups)]
        self._places, self._checked = plain_places(self._file), 0
        self.starts = np.cumsum([0, *rows])
        self.width = self.group(0).shape[1] if rows else 0
        self._group = lru_cache(_GROUPS)(self.group)
        with opened(path) as whole:
            self._bytes = mmap.mmap(whole.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def group(self, number: int) -> Vectors:
        """All of a row group, decoded. Raises UserError."""
        with refusing(self._path):
            return vectors_in(self._file.read_row_group(number, columns=["embedding"])["embedding"].combine_chunks())

    def groups(self, after: int = 0) -> Iterator[tuple[int, Vectors]]:
        """The first row of each group that holds rows from ``after`` on, and the group.

        Each is decoded once, and what does not lie as it seemed to is decoded from then on.
        """
        for number, start in enumerate(self.starts[:-1].tolist()):
            if self.starts[number + 1] <= after:
                continue
            place, count = self._places[number], int(self.starts[number + 1]) - start
            if place is not None and number < self._checked:
                yield start, self._seen(place, count)
                continue
            rows = self.group(number)
            if place is not None and not np.array_equal(rows, self._seen(place, count)):
                self.decoded()
            self._checked += number == self._checked
            yield start, rows

    @property
    def plain(self) -> bool:
        """Whether no row has to be decoded, as far as is known."""
        return None not in self._places

    def decoded(self) -> OnDisk:
        """The same, every row of which is decoded when it is asked for."""
        self._places = [None] * len(self._places)
        return self

    def _seen(self, place: int, rows: int) -> Vectors:
        return np.frombuffer(self._bytes, np.float32, rows * self.width, place).reshape(rows, self.width)

    def rows(self, numbers: npt.NDArray[np.int64]) -> Vectors:
        """(K, F) of some rows, by their numbers (K,)."""
        found = np.empty((len(numbers), self.width), np.float32)
        groups = np.searchsorted(self.starts, numbers, "right") - 1
        for i, (group, row) in enumerate(zip(groups.tolist(), (numbers - self.starts[groups]).tolist())):
            place: Any = self._places[group]
            if place is None:
                found[i] = self._group(group)[row]
            else:
                found[i] = self._seen(place + 4 * row * self.width, 1)[0]
        return found
