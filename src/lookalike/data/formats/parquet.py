"""Parquet files: a row is found by its row group and page, and that page is read when it is asked for."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.formats.columns import BROKEN, Columns, field
from lookalike.data.formats.disk import Disk
from lookalike.data.formats.pages import Chunk, Page, Unknown, pages, values
from lookalike.data.formats.tar import Window

_KEEP = 512 << 20  # bytes of pictures kept in memory, per process
_HEADER = 4096  # bytes that are read to find the next page


class Held(NamedTuple):
    """The pictures of one page or row group, None where the table holds none."""

    rows: list[bytes | None]

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return sum(len(row) + 40 for row in self.rows if row is not None) + 8 * len(self.rows)


class Recent:
    """The pages that were asked for lately, of all files together; a copy in another process begins empty."""

    def __init__(self, keep: int = _KEEP) -> None:
        self.keep = keep
        self._held: OrderedDict[tuple[str, int, int], Held] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Recent], tuple[int]]:
        return Recent, (self.keep,)

    @property
    def held(self) -> int:
        """Bytes in memory now."""
        return self._bytes

    def get(self, key: tuple[str, int, int], make: Callable[[], Held]) -> Held:
        """The rows of ``key``, made if they are not held."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            found = make()
            self._bytes += found.nbytes
            while self._held and self._bytes > self.keep:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
            self._held[key] = found
            return found


class ParquetFile:
    """One parquet file on any disk."""

    def __init__(self, disk: Disk, path: str, recent: Recent) -> None:
        """Reads the footer; raises UserError."""
        self.where = disk.name(path)
        self._disk, self._path, self._recent = disk, path, recent
        try:
            with disk.file(path) as file:
                self._meta = pq.read_metadata(file)
            self.schema = self._meta.schema.to_arrow_schema()
        except BROKEN as error:
            reason = (str(error).splitlines() or [""])[0][:200]
            raise UserError(
                f"{self.where}: no parquet file that can be read ({reason}); fetch it again", BAD_DATA
            ) from None
        self.rows = self._meta.num_rows
        self._pages: dict[int, tuple[Chunk | None, list[Page]]] = {}
        self.starts = [0]
        for number in range(self._meta.num_row_groups):
            self.starts.append(self.starts[-1] + self._meta.row_group(number).num_rows)

    def column(self, name: str) -> list[Any]:
        """All values of one small column, or of one field of a struct; raises UserError."""
        try:
            with self._disk.file(self._path) as file, pq.ParquetFile(file, metadata=self._meta) as table:
                found = table.read(columns=[name], use_threads=False).column(0)
            return field(found, name).to_pylist()  # type: ignore[no-any-return]
        except BROKEN as error:
            reason = (str(error).splitlines() or [""])[0][:200]
            raise UserError(
                f"{self.where}: column {name} cannot be read ({reason}); fetch the file again", BAD_DATA
            ) from None

    def picture(self, columns: Columns, row: int) -> bytes | None:
        """The bytes of one row; raises BROKEN."""
        group = bisect.bisect_right(self.starts, row) - 1
        row -= self.starts[group]
        name = f"{columns.image}.bytes" if columns.nested else columns.image
        if group not in self._pages:
            self._pages[group] = self._paged(group, name)
        chunk, found = self._pages[group]
        if chunk is None:
            return self._recent.get((self._path, group, 0), lambda: self._group(group, name)).rows[row]
        number = bisect.bisect_right(found, row, key=lambda page: page.first) - 1
        return self._page(group, number).rows[row - found[number].first]

    def _paged(self, group: int, name: str) -> tuple[Chunk | None, list[Page]]:
        """Where the pages of one row group lie; None where only the whole group can be read."""
        column = next(i for i in range(self._meta.num_columns) if self._meta.schema.column(i).path == name)
        try:
            chunk = Chunk.of(self._meta, group, column)
            with self._disk.file(self._path) as file:
                return chunk, pages(Window(file, _HEADER), chunk)
        except Unknown:
            return None, []

    def _page(self, group: int, number: int) -> Held:
        """One page, with the dictionary of its group if that is needed: from memory if it was asked for lately."""
        chunk, found = self._pages[group]
        assert chunk is not None
        page, dictionary = found[number], list[Any]()
        if page.encoding and found[0].first < 0:
            dictionary = self._page(group, 0).rows

        def make() -> Held:
            return Held(values(self._disk.span(self._path, page.start, page.size), page, chunk, dictionary))

        return self._recent.get((self._path, group, number), make)

    def _group(self, number: int, name: str) -> Held:
        """One column of one row group. A fresh handle each time (80 ms per 5,000 rows in all): forks share none."""
        with (
            self._disk.file(self._path) as file,
            pq.ParquetFile(file, metadata=self._meta, pre_buffer=False) as table,
        ):
            return Held(
                field(table.read_row_group(number, columns=[name], use_threads=False).column(0), name).to_pylist()
            )
