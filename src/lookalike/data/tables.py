"""Parquet files of pictures, as the Hugging Face Hub lays them out, as a source."""

from __future__ import annotations

import bisect
import copy
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lookalike.data.decode import Unreadable, decode, header
from lookalike.data.example import Example, broken, whole
from lookalike.trouble import BAD_DATA, Trouble

_KEEP = 512 << 20  # bytes of row groups kept in memory, per process
_LABELS = ("label", "labels", "fine_label", "class", "target", "category")


class Columns(NamedTuple):
    """Which columns hold what; ``names`` are the classes as Hugging Face's metadata states them."""

    image: str
    nested: bool  # struct{bytes, path}, not plain binary
    has_path: bool
    label: str | None
    names: list[str] | None


class Group(NamedTuple):
    """One row group: its file, and its number there."""

    file: int
    number: int


def columns_of(schema: Any) -> Columns | None:
    """The image and label columns of an Arrow schema; None where no column can hold pictures."""
    features = _features(schema)
    image = next((f for f in _preferred(schema, features, "Image", ("image", "img")) if _holds_bytes(f.type)), None)
    if image is None:
        return None
    label = next((f for f in _preferred(schema, features, "ClassLabel", _LABELS) if _labels(f, features)), None)
    stated = features.get(label.name, {}).get("names") if label is not None else None
    nested = pa.types.is_struct(image.type)
    has_path = nested and image.type.get_field_index("path") >= 0
    return Columns(image.name, nested, has_path, label.name if label is not None else None, stated)


def _features(schema: Any) -> dict[str, Any]:
    """What Hugging Face's metadata says of each column; {} where there is none that can be read."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}


def _preferred(schema: Any, features: dict[str, Any], kind: str, names: Sequence[str]) -> list[Any]:
    """The columns: those of a usual name first, then those that the metadata calls ``kind``, then the rest."""

    def rank(field: Any) -> tuple[bool, int]:
        usual = names.index(field.name.lower()) if field.name.lower() in names else len(names)
        return features.get(field.name, {}).get("_type") != kind, usual

    return sorted(schema, key=rank)


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _labels(field: Any, features: dict[str, Any]) -> bool:
    """Whether a column may hold labels: by its stated kind, or by its name and type."""
    if features.get(field.name, {}).get("_type") == "ClassLabel":
        return True
    simple = pa.types.is_integer(field.type) or pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    return bool(simple and field.name.lower() in _LABELS)


class Tables:
    """Rows of parquet files, read by row groups: reading in order is cheap, at random it wants them all in memory."""

    def __init__(self, root: Path, files: Sequence[str], chosen: Sequence[str], side: int) -> None:
        """``files``: of all splits, so that they share classes and naming; ``chosen``: those whose rows these are."""
        self.root, self.side = root, side
        self.files = list(chosen)
        self.unlisted: dict[str, str] = {}
        metas = {name: _metadata(root / name) for name in files}
        self._metas = [metas[name] for name in self.files]
        self._columns = _same_columns(root, files, metas)
        self._groups, self._starts = _row_groups(self._metas)
        self.paths = _paths(root, files, self.files, self._columns, metas)
        self.labels, self.classes = _labelled(root, files, self.files, self._columns)
        self._labels: list[int] = self.labels.tolist()  # a tensor takes microseconds to index
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> Example:
        label, path = self._labels[row], self.paths[row]
        try:
            return whole(decode(self.read(row), self.side), label, path)
        except Unreadable as unreadable:
            return broken(self.side, label, path, unreadable.reason)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_cache", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _cache=OrderedDict(), _lock=threading.Lock())

    def size(self, row: int) -> tuple[int, int]:
        """Upright (height, width) in pixels, from the header; raises Unreadable."""
        found = header(self.read(row))
        return found.height, found.width

    def at(self, side: int) -> Self:
        """The same rows on canvases of another side."""
        other = copy.copy(self)
        other.side = side
        return other

    def read(self, row: int) -> bytes:
        """The bytes of one picture; raises Unreadable."""
        group = bisect.bisect_right(self._starts, row) - 1
        try:
            found = self._group(group)[row - self._starts[group]].as_py()
        except (OSError, pa.ArrowException) as error:
            raise Unreadable(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}") from None
        if found is None:
            raise Unreadable("the table holds no bytes for this row")
        return bytes(found)

    def _group(self, index: int) -> Any:
        """The image column of one row group, from memory if it was asked for lately."""
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
            group = self._groups[index]
            name = f"{self._columns.image}.bytes" if self._columns.nested else self._columns.image
            # A fresh handle each time (80 ms per 5,000 rows in all): a forked worker must not share one.
            with pq.ParquetFile(
                self.root / self.files[group.file], metadata=self._metas[group.file], pre_buffer=False
            ) as file:
                column = file.read_row_group(group.number, columns=[name], use_threads=False).column(0)
            if self._columns.nested:
                column = pc.struct_field(column, "bytes")
            while self._cache and sum(c.nbytes for c in self._cache.values()) + column.nbytes > _KEEP:
                self._cache.popitem(last=False)
            self._cache[index] = column
            return column


def _metadata(path: Path) -> Any:
    try:
        return pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0][:200]
        raise Trouble(f"{path}: no parquet file that can be read ({reason}); fetch it again", BAD_DATA) from None


def schema_of(path: Path) -> Any:
    """The Arrow schema of one file; raises Trouble."""
    return _metadata(path).schema.to_arrow_schema()


def _same_columns(root: Path, files: Sequence[str], metas: dict[str, Any]) -> Columns:
    """The columns of the first file, which every other file must have too; raises Trouble."""
    found: Columns | None = None
    for name in files:
        schema = metas[name].schema.to_arrow_schema()
        columns = columns_of(schema)
        if columns is None:
            raise Trouble(
                f"{root / name}: no image column among {', '.join(schema.names) or 'no columns'}; "
                "pictures are a binary column or a struct of bytes and path",
                BAD_DATA,
            )
        if found is None:
            found = columns
        elif (columns.image, columns.nested) != (found.image, found.nested):
            raise Trouble(
                f"{root / name}: its columns differ from those of {files[0]}; keep one table a folder", BAD_DATA
            )
        elif columns.label != found.label:
            found = found._replace(label=None)  # a split without labels; comparing classes across is then impossible
        if not columns.has_path:
            found = found._replace(has_path=False)
    if found is None:
        raise Trouble(f"{root}: no parquet file; name a folder that holds some", BAD_DATA)
    return found


def _row_groups(metas: Sequence[Any]) -> tuple[list[Group], list[int]]:
    """Every row group in order, and at which row of the source each starts; the last start is the length."""
    groups, starts = [], [0]
    for file, meta in enumerate(metas):
        for number in range(meta.num_row_groups):
            groups.append(Group(file, number))
            starts.append(starts[-1] + meta.row_group(number).num_rows)
    return groups, starts


def _column(path: Path, name: str) -> Any:
    """One column of one file, or of a struct in it; raises Trouble."""
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns=[name], use_threads=False).column(0)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0][:200]
        raise Trouble(f"{path}: column {name} cannot be read ({reason}); fetch the file again", BAD_DATA) from None


def _paths(
    root: Path, files: Sequence[str], chosen: Sequence[str], columns: Columns, metas: dict[str, Any]
) -> list[str]:
    """The stored path of each row where these differ over the whole data, else ``file#row``."""
    if columns.has_path:
        stored = {f: _stored_paths(root / f, columns.image) for f in files}
        every = [path for found in stored.values() for path in found]
        if all(every) and len(set(every)) == len(every):
            return [path for f in chosen for path in stored[f]]
    return [f"{f}#{row}" for f in chosen for row in range(metas[f].num_rows)]


def _stored_paths(path: Path, image: str) -> list[str]:
    """The path of each row of one file, empty where there is none."""
    return [found["path"] or "" if found else "" for found in _column(path, f"{image}.path").to_pylist()]


def _labelled(root: Path, files: Sequence[str], chosen: Sequence[str], columns: Columns) -> tuple[Tensor, list[str]]:
    """(N,) int64 labels of the chosen files, and the classes of all files; a null or negative label is none."""
    if columns.label is None:
        return torch.full((sum(_metadata(root / f).num_rows for f in chosen),), -1), []
    values = {f: np.array(_column(root / f, columns.label).to_pylist(), dtype=object) for f in files}
    every: list[Any] = sorted({v for found in values.values() for v in found if _is_label(v)})
    if columns.names is not None and all(isinstance(v, int) and v < len(columns.names) for v in every):
        number = {v: v for v in every}
        classes = columns.names
    else:
        number, classes = {v: i for i, v in enumerate(every)}, [str(v) for v in every]
    found: list[npt.NDArray[np.int64]] = [
        np.array([number.get(v, -1) for v in values[f]], dtype=np.int64) for f in chosen
    ]
    return torch.from_numpy(np.concatenate(found)), classes


def _is_label(value: Any) -> bool:
    return value is not None and not (isinstance(value, int) and value < 0)
