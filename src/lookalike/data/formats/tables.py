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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import json_in, whole
from lookalike.data.decode import Unreadable, one_line
from lookalike.data.example import in_sequence, joined
from lookalike.data.formats.disk import Disk, Local
from lookalike.data.formats.encoded import FOR_TEXT, LABELS
from lookalike.data.formats.files import Chosen, Names, Numbered, printable
from lookalike.data.formats.lists import SPLITS, classified, one_naming, rows_by_split

BROKEN = (OSError, ValueError, LookupError, pa.ArrowException)  # what pyarrow raises for files that are damaged
_MOST = 1 << 22  # rows of which stored paths are looked at, since to know that all differ takes memory
_TEXT = pa.large_string()
_PART = 1 << 16  # rows of a column that are read at once
_KEEP = 512 << 20  # bytes of row groups kept in memory, per process
_SLOW = 16 << 20  # bytes of a row group from which a random row costs more than its decoding


class Tables:
    """The rows of all files: 8 bytes a row of memory for labels, and the paths where some are stored and few."""

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

    def _numbered(self) -> tuple[Tensor, list[str]]:
        """(N,) int64 and their classes, of all files that have labels; what is not read is noted. Raises UserError."""
        columns = {file.where: columns_of(file.schema) for file in self._files}
        names = one_naming({where: one.names for where, one in columns.items() if one is not None})
        chosen = [(found := columns[file.where]) and found.label for file in self._files]
        for name, file, label in zip(self._names, self._files, chosen):
            self._note(name, "" if label else _unread(file.schema, self._columns))
        if not any(chosen):
            return torch.tensor(-1).expand(self._starts[-1]), []
        values, numbers = self._distinct(chosen)
        # The first once more where any repeats: labels that are all different may be no classes, but number the rows.
        known, classes, none = classified([*values, *values[: len(values) < len(numbers)]], names, typed=True)
        self._note(self._names[0], none)
        for part in np.array_split(numbers, -(-len(numbers) // _PART)):
            part[:] = np.array(known)[part]
        for name, start, end in zip(self._names, self._starts, self._starts[1:]):
            missing = int((numbers[start:end] == -1).sum())
            self._note(name, f"{missing} of {end - start} rows have no label" if 0 < missing < end - start else "")
        return torch.from_numpy(numbers), classes

    def _distinct(self, columns: Sequence[str | None]) -> tuple[list[object], npt.NDArray[np.int64]]:
        """The values in a column of each file, None where there is none, and (N,) which of them each row has."""
        values, numbers, end = _Distinct(), np.empty(self._starts[-1], np.int64), 0
        for file, column in zip(self._files, columns):
            for part in _column(file, column) if column else [pa.nulls(file.rows, pa.int64())]:
                numbers[end : end + len(part)] = values.numbers(part)
                end += len(part)
                if len(values.values) > _MOST:
                    self._note(self._names[0], f"more than {_MOST:,} different values of {column} are no classes")
                    return [None], np.zeros_like(numbers)
        return values.values, numbers

    def _note(self, name: str, words: str) -> None:
        if words:
            shown = printable(name)
            self.unlisted[shown] = "; ".join(filter(None, (self.unlisted.get(shown), words)))

    def split_rows(self) -> Mapping[str, Sequence[int]]:
        """The rows of each split that a column of words names, where all files have one; rows of none are noted."""
        column = next((name for name in self._files[0].schema.names if name.lower() in SPLITS), None)
        if column is None or not all(_holds(file.schema, column) for file in self._files):
            return {}
        values, numbers = self._distinct([column] * len(self._files))
        splits, outside = rows_by_split(
            Chosen([str(value or "") for value in values], in_sequence(numbers)), self.paths
        )
        self._note(self._names[0], outside)
        return splits

    def rows_of(self, names: Sequence[str]) -> Sequence[int]:
        """The rows that the named files hold."""
        return joined(range(*self._starts[self._names.index(name) :][:2]) for name in names)

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


def _column(file: TableFile, name: str) -> Iterator[Any]:
    """The parts of one small column, or of one field of a struct, as Arrow arrays; raises UserError."""
    try:
        for part in file.column(name):
            part.validate(full=True)
            yield part
    except BROKEN as error:
        raise UserError(
            f"{file.where}: column {name} cannot be read ({one_line(error)}); fetch the file again", BAD_DATA
        ) from None


class _Distinct:
    """The different values that were seen, in the order in which they came."""

    def __init__(self) -> None:
        self.values: list[object] = []
        self._numbers: dict[object, int] = {}

    def numbers(self, part: Any) -> npt.NDArray[np.int64]:
        """(P,) the number of each value of an Arrow array, new ones after all others."""
        try:
            plain = part.dictionary_decode() if pa.types.is_dictionary(part.type) else part
            coded = plain.dictionary_encode("encode")
            values, places = coded.dictionary.to_pylist(), coded.indices.to_numpy()
        except pa.ArrowNotImplementedError:  # of lists
            values, places = part.to_pylist(), np.arange(len(part))
        keys = [value if type(value) in (int, str) else (type(value), repr(value)) for value in values]
        for key, value in zip(keys, values):
            if key not in self._numbers:
                self._numbers[key] = len(self.values)
                self.values.append(value)
        numbers: npt.NDArray[np.int64] = np.array([self._numbers[key] for key in keys], np.int64)[places]
        return numbers


def _paths(files: Mapping[str, TableFile], columns: PictureColumns) -> Sequence[str]:
    """The stored path of each row where all of these differ and are not very many, else ``file#row``."""
    rows = [file.rows for file in files.values()]
    if columns.has_path and sum(rows) <= _MOST:
        parts = [part.cast(_TEXT) for file in files.values() for part in _column(file, f"{columns.image}.path")]
        stored = pa.chunked_array(parts, _TEXT)
        lengths = pc.binary_length(stored)
        if (
            pc.all(pc.greater(lengths, 0), skip_nulls=False).as_py()
            and len(stored) == pc.count_distinct(stored, "all").as_py()
        ):
            return Names(chain.from_iterable(part.to_pylist() for part in parts))
    return Numbered(map(printable, files), rows)


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

    def column(self, name: str) -> Iterator[Any]:
        """The parts of one column, or of one field of a struct; raises BROKEN."""
        with self._disk.file(self.path) as file, pq.ParquetFile(file, metadata=self._meta) as table:
            for batch in table.iter_batches(_PART, columns=[name], use_threads=False):
                yield field(batch.column(0), name)

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

    def column(self, name: str) -> Iterator[Any]:
        """The parts of one column, or of one field of a struct."""
        yield from field(self._table.column(name.partition(".")[0]), name).chunks

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
    has_path = nested and (place := image.type.get_field_index("path")) >= 0 and _is_text(image.type.field(place).type)
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


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_simple(kind: Any) -> bool:
    """Whether a column holds numbers, words or yes and no."""
    kind, types = kind.value_type if pa.types.is_dictionary(kind) else kind, pa.types
    return bool(_is_text(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def field(column: Any, name: str) -> Any:
    """The column itself, or the field of its struct that ``name`` (``column.field``) ends in."""
    return pc.struct_field(column, name.rpartition(".")[2]) if pa.types.is_struct(column.type) else column
