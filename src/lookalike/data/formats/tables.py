"""Tables of pictures, as the Hugging Face Hub lays them out, as a store: parquet or Arrow files one after another.

Of parquet a row group is read at once and kept for a while, so reading in order is fast, and in random order where
all fits into memory or groups are small. Arrow files, as ``save_to_disk`` of Hugging Face's datasets writes them, are
mapped into memory, so that any row is near.
"""

from __future__ import annotations

import bisect
import mmap
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import json_in, whole
from lookalike.data.decode import Unreadable, one_line
from lookalike.data.formats.disk import Disk, Local
from lookalike.data.formats.encoded import FOR_TEXT, LABELS
from lookalike.data.formats.files import printable
from lookalike.data.formats.lists import SPLITS, classified, one_naming, rows_by_split

BROKEN = (OSError, ValueError, LookupError, pa.ArrowException)  # what pyarrow raises for files that are damaged
_KEEP = 512 << 20  # bytes of row groups kept in memory, per process
_SLOW = 16 << 20  # bytes of a row group from which a random row costs more than its decoding


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
        self.labels, self.classes = self._numbered()

    def _numbered(self) -> tuple[list[int], list[str]]:
        """(N,) labels and their classes, of all files that have labels; what is not read is noted. Raises UserError."""
        columns = {file.where: columns_of(file.schema) for file in self._files}
        names = one_naming({where: one.names for where, one in columns.items() if one is not None})
        values: list[object] = []
        for name, file in zip(self._names, self._files):
            label = (found := columns[file.where]) and found.label
            values += file.column(label) if label else [None] * file.rows
            self._note(name, "" if label else _unread(file.schema, self._columns))
        labels, classes, none = classified(values, names, typed=True)
        self._note(self._names[0], none)
        for name, start, end in zip(self._names, self._starts, self._starts[1:]):
            missing = labels[start:end].count(-1)
            self._note(name, f"{missing} of {end - start} rows have no label" if 0 < missing < end - start else "")
        return labels, classes

    def _note(self, name: str, words: str) -> None:
        if words:
            shown = printable(name)
            self.unlisted[shown] = "; ".join(filter(None, (self.unlisted.get(shown), words)))

    def split_rows(self) -> dict[str, list[int]]:
        """The rows of each split that a column of words names, where all files have one; rows of none are noted."""
        column = next((name for name in self._files[0].schema.names if name.lower() in SPLITS), None)
        if column is None or not all(_holds(file.schema, column) for file in self._files):
            return {}
        words = [str(value or "") for file in self._files for value in file.column(column)]
        splits, outside = rows_by_split(words, self.paths)
        self._note(self._names[0], outside)
        return splits

    def rows_of(self, names: Sequence[str]) -> list[int]:
        """The rows that the named files hold."""
        chosen = sorted(self._names.index(name) for name in names)
        return [row for file in chosen for row in range(self._starts[file], self._starts[file + 1])]

    def read(self, row: int) -> bytes:
        """The bytes of one picture; raises Unreadable."""
        file = bisect.bisect_right(self._starts, row) - 1
        try:
            data = self._files[file].picture(self._columns, row - self._starts[file])
        except BROKEN as error:
            raise Unreadable(one_line(error)) from None
        if data is None:
            raise Unreadable("the table holds no bytes for this row")
        return data


def _same_columns(files: Iterable[TableFile]) -> PictureColumns:
    """The columns of the first file, which every other file must have too; raises UserError."""
    common: PictureColumns | None = None
    for file in files:
        columns = columns_of(file.schema)
        if columns is None:
            raise UserError(
                f"{file.where}: no image column among {', '.join(file.schema.names) or 'no columns'}; "
                f"pictures are a binary column or a struct of bytes and path; {FOR_TEXT}",
                BAD_DATA,
            )
        if common is None:
            common = columns
        elif (columns.image, columns.nested) != (common.image, common.nested):
            raise UserError(f"{file.where}: its columns differ from its neighbours'; keep one table a folder", BAD_DATA)
        if not columns.has_path:
            common = common._replace(has_path=False)
    if common is None:
        raise ValueError("no file")
    return common


def _unread(schema: Any, columns: PictureColumns) -> str:
    """In words, the columns of a file without labels that might be some."""
    others = [one.name for one in schema if one.name != columns.image and (is_simple(one.type) or _is_list(one.type))]
    return f"no column is called {', '.join(LABELS[:4])}, and {', '.join(others)[:100]} is not read" if others else ""


def _holds(schema: Any, column: str) -> bool:
    return any(one.name == column and is_simple(one.type) for one in schema)


def _paths(files: Mapping[str, TableFile], columns: PictureColumns) -> list[str]:
    """The stored path of each row where all of these differ, else ``file#row``."""
    if columns.has_path:
        stored = [path for file in files.values() for path in file.column(f"{columns.image}.path")]
        if all(stored) and len(set(stored)) == len(stored):
            return stored
    return [f"{printable(name)}#{row}" for name, file in files.items() for row in range(file.rows)]


class RowGroups:
    """The row groups that were read lately, of all files together; a copy in another process begins empty."""

    def __init__(self, keep: int = _KEEP) -> None:
        self.keep = keep
        self.nbytes = 0  # in memory now
        self._kept: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[RowGroups], tuple[int]]:
        return RowGroups, (self.keep,)

    def column(self, file: ParquetFile, group: int, name: str) -> Any:
        """One column of a row group, an Arrow array in chunks; raises BROKEN."""
        key = (file.path, group)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            column = file.read_group(group, name)
            self.nbytes += column.nbytes
            while self._kept and self.nbytes > self.keep:
                self.nbytes -= self._kept.popitem(last=False)[1].nbytes
            self._kept[key] = column
            return column


class ParquetFile:
    """One parquet file on any disk."""

    def __init__(self, disk: Disk, path: str, groups: RowGroups) -> None:
        self.where, self.path = disk.name(path), path
        self._disk, self._groups = disk, groups
        try:
            with disk.file(path) as file:
                self._meta = pq.read_metadata(file)
            self.schema = self._meta.schema.to_arrow_schema()
        except BROKEN as error:
            raise UserError(
                f"{self.where}: no parquet file that can be read ({one_line(error)}); fetch it again", BAD_DATA
            ) from None
        self.rows = self._meta.num_rows
        groups_meta = [self._meta.row_group(number) for number in range(self._meta.num_row_groups)]
        self.starts = list(accumulate((group.num_rows for group in groups_meta), initial=0))
        self.group_bytes = [group.total_byte_size for group in groups_meta]  # when decompressed

    def column(self, name: str) -> list[Any]:
        """All values of one small column, or of one field of a struct; raises UserError."""
        try:
            with self._disk.file(self.path) as file, pq.ParquetFile(file, metadata=self._meta) as table:
                column = table.read(columns=[name], use_threads=False).column(0)
            return field(column, name).to_pylist()  # type: ignore[no-any-return]
        except BROKEN as error:
            raise UserError(
                f"{self.where}: column {name} cannot be read ({one_line(error)}); fetch the file again", BAD_DATA
            ) from None

    def picture(self, columns: PictureColumns, row: int) -> bytes | None:
        """The bytes of one row; raises BROKEN."""
        group = bisect.bisect_right(self.starts, row) - 1
        name = f"{columns.image}.bytes" if columns.nested else columns.image
        column = self._groups.column(self, group, name)
        return column[row - self.starts[group]].as_py()  # type: ignore[no-any-return]

    def read_group(self, number: int, name: str) -> Any:
        """One column of one row group, by a handle of its own, so that forks share none; raises BROKEN."""
        with self._disk.file(self.path) as file, pq.ParquetFile(file, metadata=self._meta, pre_buffer=False) as table:
            return field(table.read_row_group(number, columns=[name], use_threads=False).column(0), name)


def advise(files: Iterable[ParquetFile]) -> None:
    """Warn, in one line, where pictures in random order would each cost the reading of a large row group."""
    sizes = [size for file in files for size in file.group_bytes]
    if sum(sizes) > _KEEP and max(sizes) > _SLOW:
        warnings.warn(
            f"row groups of {max(sizes) >> 20} MiB are read whole for each picture in random order: lookalike prepare "
            "makes a cache that is fast, --window reads a few at a time",
            stacklevel=2,
        )


class ArrowFile:
    """One Arrow IPC file, streaming or not. It maps the file, and maps it anew in each process."""

    def __init__(self, path: Path) -> None:
        self.where, self._path = printable(str(path)), path
        try:
            self.schema = self._table.schema
            if (columns := columns_of(self.schema)) is not None:  # offsets of a hostile file would read out of bounds
                self._table.column(columns.image).validate(full=True)
        except BROKEN as error:
            raise UserError(
                f"{self.where}: no Arrow file that can be read ({one_line(error)}); write it again", BAD_DATA
            ) from None
        self.rows = self._table.num_rows

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_table", "starts")}

    def column(self, name: str) -> list[Any]:
        """All values of one column, or of one field of a struct."""
        return field(self._table.column(name.partition(".")[0]), name).to_pylist()  # type: ignore[no-any-return]

    def picture(self, columns: PictureColumns, row: int) -> bytes | None:
        """The bytes of one row."""
        column = self._table.column(columns.image)
        chunk = bisect.bisect_right(self.starts, row) - 1  # an index into the whole column walks over its chunks
        value = column.chunk(chunk)[row - self.starts[chunk]]
        return (value["bytes"] if columns.nested and value.is_valid else value).as_py()  # type: ignore[no-any-return]

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


TableFile = ParquetFile | ArrowFile
"""One file of a table; ``starts`` are the first row of each part that is read at once, and the number of rows."""


def saved(root: Path, files: list[str]) -> list[str]:
    """Those of the Arrow files that hold rows: where ``state.json`` stands beside them, the ones that it names."""
    states = {folder: _state(root / folder) for folder in {os.path.dirname(path) for path in files}}
    return [
        path for path in files if (named := states[os.path.dirname(path)]) is None or os.path.basename(path) in named
    ]


def _state(folder: Path) -> set[str] | None:
    """The file names in ``state.json``; None where there is no such file. Raises UserError."""
    try:
        state = json_in(whole(folder / "state.json"))
        return {str(file["filename"]) for file in state["_data_files"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / 'state.json'} cannot be read; save the dataset again", BAD_DATA) from None


class PictureColumns(NamedTuple):
    """Which columns hold what; ``names`` are the classes as Hugging Face's metadata states them."""

    image: str
    nested: bool  # struct{bytes, path}, not plain binary
    has_path: bool
    label: str | None
    names: list[str] | None


def columns_of(schema: Any) -> PictureColumns | None:
    """The image and label columns of an Arrow schema; None where no column can hold pictures."""
    features = _features(schema)
    image = next((f for f in _preferred(schema, features, "Image", ("image", "img")) if _holds_bytes(f.type)), None)
    if image is None:
        return None
    label = next((f for f in _preferred(schema, features, "ClassLabel", LABELS) if _labels(f, features)), None)
    names = features.get(label.name, {}).get("names") if label is not None else None
    nested = pa.types.is_struct(image.type)
    has_path = nested and image.type.get_field_index("path") >= 0
    return PictureColumns(image.name, nested, has_path, label.name if label is not None else None, names)


def _features(schema: Any) -> dict[str, Any]:
    """What Hugging Face's metadata says of each column; {} where there is none that can be read."""
    try:
        features = json_in((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {k: v for k, v in features.items() if isinstance(v, dict)} if isinstance(features, dict) else {}


def names_of_labels(schema: Any) -> list[str] | None:
    """The names of the numbers in a column of labels, as the metadata states them; None where it states none."""
    features = _features(schema)
    label = next((one.name for one in _preferred(schema, features, "ClassLabel", LABELS) if _labels(one, features)), "")
    names = features.get(label, {}).get("names")
    return names if isinstance(names, list) else None


def _preferred(schema: Any, features: dict[str, Any], kind: str, names: Sequence[str]) -> list[Any]:
    """The columns that the metadata calls ``kind`` first, then those of a usual name, then the rest, masks last."""

    def rank(field: Any) -> tuple[bool, int, bool]:
        usual = names.index(field.name.lower()) if field.name.lower() in names else len(names)
        return features.get(field.name, {}).get("_type") != kind, usual, "mask" in field.name.lower()

    return sorted(schema, key=rank)


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _labels(field: Any, features: dict[str, Any]) -> bool:
    """Whether a column may hold labels: by its stated kind, or by its name and type."""
    if features.get(field.name, {}).get("_type") == "ClassLabel":
        return True
    return field.name.lower() in LABELS and (is_simple(field.type) or _is_list(field.type))


def _is_list(kind: Any) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and is_simple(kind.value_type))


def is_simple(kind: Any) -> bool:
    """Whether a column holds numbers, words or yes and no."""
    kind, types = kind.value_type if pa.types.is_dictionary(kind) else kind, pa.types
    words = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(words or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def field(column: Any, name: str) -> Any:
    """The column itself, or the field of its struct that ``name`` (``column.field``) ends in."""
    return pc.struct_field(column, name.rpartition(".")[2]) if pa.types.is_struct(column.type) else column
