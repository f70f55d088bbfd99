"""Arrow files, as ``save_to_disk`` of Hugging Face's datasets writes them: memory-mapped, so that any row is near."""

from __future__ import annotations

import bisect
import json
import mmap
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.formats.columns import BROKEN, Columns, columns_of, field
from lookalike.data.formats.disk import Local
from lookalike.data.formats.files import printable


class ArrowFile:
    """One Arrow IPC file, streaming or not. It maps the file, and maps it anew in each process."""

    def __init__(self, path: Path) -> None:
        """Maps the file; raises UserError."""
        self.where, self._path = printable(str(path)), path
        try:
            self.schema = self._table.schema
            if (columns := columns_of(self.schema)) is not None:  # offsets of a hostile file would read out of bounds
                self._table.column(columns.image).validate(full=True)
        except BROKEN as error:
            reason = (str(error).splitlines() or [""])[0][:200]
            raise UserError(
                f"{self.where}: no Arrow file that can be read ({reason}); write it again", BAD_DATA
            ) from None
        self.rows = self._table.num_rows

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_table", "starts")}

    def column(self, name: str) -> list[Any]:
        """All values of one column, or of one field of a struct."""
        return field(self._table.column(name.partition(".")[0]), name).to_pylist()  # type: ignore[no-any-return]

    def picture(self, columns: Columns, row: int) -> bytes | None:
        """The bytes of one row."""
        column = self._table.column(columns.image)
        chunk = bisect.bisect_right(self.starts, row) - 1  # an index into the whole column walks over its chunks
        found = column.chunk(chunk)[row - self.starts[chunk]]
        return (found["bytes"] if columns.nested and found.is_valid else found).as_py()  # type: ignore[no-any-return]

    @cached_property
    def _table(self) -> Any:
        with Local(self._path.parent).file(self._path.name) as file:  # pa.memory_map wants names that are Unicode
            mapped = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        try:
            return pa.ipc.open_stream(mapped).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(mapped).read_all()

    @cached_property
    def starts(self) -> list[int]:
        """The first row of each record batch, and the number of rows."""
        starts = [0]
        for batch in self._table.column(0).chunks:
            starts.append(starts[-1] + len(batch))
        return starts


def saved(root: Path, files: list[str]) -> list[str]:
    """Those of the Arrow files that hold rows: where ``state.json`` stands beside them, the ones that it names."""
    states = {folder: _state(root / folder) for folder in {os.path.dirname(path) for path in files}}
    return [
        path for path in files if (named := states[os.path.dirname(path)]) is None or os.path.basename(path) in named
    ]


def _state(folder: Path) -> set[str] | None:
    """The file names in ``state.json``; None where there is no such file. Raises UserError."""
    try:
        found = json.loads((folder / "state.json").read_bytes())
        return {str(file["filename"]) for file in found["_data_files"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / 'state.json'} cannot be read; save the dataset again", BAD_DATA) from None
