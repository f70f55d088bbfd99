"""The embeddings of a table of any size, by row: out of the file as it lies on the disk, where it lies plainly."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from lookalike.core.files import opened
from lookalike.train.embeddings import opened_table, vectors_in

Vectors = npt.NDArray[np.float32]
_GROUPS = 8  # row groups that are kept where the file has to be decoded
_PLAIN = {"PLAIN", "RLE", "BIT_PACKED"}  # the last two are those of levels, which say that nothing is missing


class Mapped:
    """(N, F) float32 vectors of a parquet file that stays on the disk; N and F are ``len`` and ``width``."""

    def __init__(self, path: Path) -> None:
        """Raises UserError."""
        self._path = path
        with opened_table(path) as file:
            meta, names = file.metadata, [column.path for column in file.schema]
            groups = [meta.row_group(number) for number in range(meta.num_row_groups)]
            number = next(i for i, name in enumerate(names) if name.split(".")[0] == "embedding")
            self.starts = np.cumsum([0, *(group.num_rows for group in groups)])
            self.width = groups[0].column(number).num_values // groups[0].num_rows if groups else 0
            self._places = [self._place(group.column(number), group.num_rows) for group in groups]
        self._group = lru_cache(_GROUPS)(self.group)
        with opened(path) as whole:
            self._bytes = mmap.mmap(whole.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _place(self, column: pq.ColumnChunkMetaData, rows: int) -> int | None:
        """Where the numbers of a group begin, which end with it, if it can be one page of plain numbers."""
        plain = column.compression == "UNCOMPRESSED" and not column.has_dictionary_page
        if not plain or not set(column.encodings) <= _PLAIN or column.num_values != rows * self.width:
            return None
        return int(column.data_page_offset + column.total_compressed_size - 4 * column.num_values)

    def group(self, number: int) -> Vectors:
        """All of a row group, decoded. Raises UserError."""
        with opened_table(self._path) as file:
            return vectors_in(file.read_row_group(number, columns=["embedding"])["embedding"].combine_chunks())

    def groups(self, after: int = 0) -> Iterator[tuple[int, Vectors]]:
        """The first row of each group that holds rows from ``after`` on, and the group.

        What does not lie as it seemed to is decoded from now on.
        """
        for number, start in enumerate(self.starts[:-1].tolist()):
            if self.starts[number + 1] <= after:
                continue
            rows = self.group(number)
            if (place := self._places[number]) is not None and not np.array_equal(rows, self._seen(place, len(rows))):
                self._places = [None] * len(self._places)
            yield start, rows

    @property
    def plain(self) -> bool:
        """Whether no row has to be decoded, as far as is known."""
        return None not in self._places

    def decoded(self) -> Mapped:
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
