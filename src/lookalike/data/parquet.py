"""Parquet files: rows found by row group, and a row group read when one of its rows is asked for."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.data.columns import Columns, field
from lookalike.data.disk import Disk
from lookalike.trouble import BAD_DATA, Trouble

_KEEP = 512 << 20  # bytes of row groups kept in memory, per process


class Recent:
    """The Arrow columns that were asked for lately, of all files together; a copy in another process begins empty."""

    def __init__(self, keep: int = _KEEP) -> None:
        self.keep = keep
        self._held: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Recent], tuple[int]]:
        return Recent, (self.keep,)

    def get(self, key: tuple[str, int], make: Callable[[], Any]) -> Any:
        """The column of ``key``, made if it is not held."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            else:
                column = make()
                while self._held and sum(c.nbytes for c in self._held.values()) + column.nbytes > self.keep:
                    self._held.popitem(last=False)
                self._held[key] = column
            return self._held[key]


class ParquetFile:
    """One parquet file on any disk."""

    def __init__(self, disk: Disk, path: str, recent: Recent) -> None:
        """Reads the footer; raises Trouble."""
        self.where = disk.name(path)
        self._disk, self._path, self._recent = disk, path, recent
        try:
            with disk.file(path) as file:
                self._meta = pq.read_metadata(file)
            self.schema = self._meta.schema.to_arrow_schema()
        except (OSError, pa.ArrowException) as error:
            reason = (str(error).splitlines() or [""])[0][:200]
            raise Trouble(
                f"{self.where}: no parquet file that can be read ({reason}); fetch it again", BAD_DATA
            ) from None
        self.rows = self._meta.num_rows
        self._starts = [0]
        for number in range(self._meta.num_row_groups):
            self._starts.append(self._starts[-1] + self._meta.row_group(number).num_rows)

    def column(self, name: str) -> list[Any]:
        """All values of one small column, or of one field of a struct; raises Trouble."""
        try:
            with self._disk.file(self._path) as file, pq.ParquetFile(file, metadata=self._meta) as table:
                found = table.read(columns=[name], use_threads=False).column(0)
            return field(found, name).to_pylist()  # type: ignore[no-any-return]
        except (OSError, pa.ArrowException) as error:
            reason = (str(error).splitlines() or [""])[0][:200]
            raise Trouble(
                f"{self.where}: column {name} cannot be read ({reason}); fetch the file again", BAD_DATA
            ) from None

    def picture(self, columns: Columns, row: int) -> Any:
        """The bytes of one row as an Arrow scalar; raises OSError and pa.ArrowException."""
        group = bisect.bisect_right(self._starts, row) - 1
        name = f"{columns.image}.bytes" if columns.nested else columns.image
        column = self._recent.get((self._path, group), lambda: self._group(group, name))
        return column[row - self._starts[group]]

    def _group(self, number: int, name: str) -> Any:
        """One column of one row group. A fresh handle each time (80 ms per 5,000 rows in all): forks share none."""
        with (
            self._disk.file(self._path) as file,
            pq.ParquetFile(file, metadata=self._meta, pre_buffer=False) as table,
        ):
            return field(table.read_row_group(number, columns=[name], use_threads=False).column(0), name)
