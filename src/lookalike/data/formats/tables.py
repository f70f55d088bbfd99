"""Tables of pictures, as the Hugging Face Hub lays them out, as a store: parquet or Arrow files one after another."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, Protocol

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.formats.columns import BROKEN, FOR_TEXT, Columns, columns_of
from lookalike.data.formats.encoded import numbered
from lookalike.data.formats.files import printable
from lookalike.data.image.decode import Unreadable


class TableFile(Protocol):
    """One file of a table."""

    where: str  # for messages
    schema: Any
    rows: int

    @property
    def starts(self) -> list[int]:
        """The first row of each part that is read at once, and the number of rows."""

    def column(self, name: str) -> list[Any]:
        """All values of one small column, or of one field of a struct (``image.path``); raises UserError."""

    def picture(self, columns: Columns, row: int) -> bytes | None:
        """The bytes of one row, None where it has none; raises BROKEN."""


class Tables:
    """The rows of all files. Paths and labels are in memory, some 200 bytes a row; pictures are read by need."""

    def __init__(self, files: Mapping[str, TableFile]) -> None:
        """``files`` by name, of all splits, so that these share classes and naming; raises UserError."""
        self.unlisted: dict[str, str] = {}
        self._columns = _same_columns(files.values())
        self._names, self._files = list(files), list(files.values())
        self._starts = list(accumulate((file.rows for file in self._files), initial=0))
        parts = [[start + first for first in file.starts[:-1]] for start, file in zip(self._starts, self._files)]
        self.starts = [*chain(*parts), self._starts[-1]]
        self.paths = _paths(files, self._columns)
        self.labels, self.classes = _labelled(self._files, self._columns)

    def rows_of(self, names: Sequence[str]) -> list[int]:
        """The rows that the named files hold."""
        chosen = sorted(self._names.index(name) for name in names)
        return [row for file in chosen for row in range(self._starts[file], self._starts[file + 1])]

    def read(self, row: int) -> bytes:
        """The bytes of one picture; raises Unreadable."""
        file = bisect.bisect_right(self._starts, row) - 1
        try:
            found = self._files[file].picture(self._columns, row - self._starts[file])
        except BROKEN as error:
            raise Unreadable(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}") from None
        if found is None:
            raise Unreadable("the table holds no bytes for this row")
        return found


def _same_columns(files: Iterable[TableFile]) -> Columns:
    """The columns of the first file, which every other file must have too; raises UserError."""
    found: Columns | None = None
    for file in files:
        columns = columns_of(file.schema)
        if columns is None:
            raise UserError(
                f"{file.where}: no image column among {', '.join(file.schema.names) or 'no columns'}; "
                f"pictures are a binary column or a struct of bytes and path; {FOR_TEXT}",
                BAD_DATA,
            )
        if found is None:
            found = columns
        elif (columns.image, columns.nested) != (found.image, found.nested):
            raise UserError(f"{file.where}: its columns differ from its neighbours'; keep one table a folder", BAD_DATA)
        elif columns.label != found.label:
            found = found._replace(label=None)  # a split without labels; comparing classes across is then impossible
        if not columns.has_path:
            found = found._replace(has_path=False)
    if found is None:
        raise ValueError("no file")
    return found


def _paths(files: Mapping[str, TableFile], columns: Columns) -> list[str]:
    """The stored path of each row where all of these differ, else ``file#row``."""
    if columns.has_path:
        stored = [path for file in files.values() for path in file.column(f"{columns.image}.path")]
        if all(stored) and len(set(stored)) == len(stored):
            return stored
    return [f"{printable(name)}#{row}" for name, file in files.items() for row in range(file.rows)]


def _labelled(files: Sequence[TableFile], columns: Columns) -> tuple[list[int], list[str]]:
    """(N,) labels, and the classes of all files."""
    if columns.label is None:
        return [-1] * sum(file.rows for file in files), []
    values = [value for file in files for value in file.column(columns.label)]
    return numbered(values, columns.names)
