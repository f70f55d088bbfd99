"""The indexes of video files, kept in a cache folder, never beside the data.

The folder is ``lookalike/videos`` in $XDG_CACHE_HOME, else in ~/.cache. It holds a parquet file for each place of
videos, with a row for each video, which counts while name, size and content of the file are the same (see
data/fingerprint.py). A cache that cannot be read is made again; where none can be written, there is none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.core.files import write_atomically
from lookalike.data.fingerprint import stamps_of_files
from lookalike.data.formats.disk import Disk
from lookalike.data.image.decode import Unreadable
from lookalike.data.pool import cores, ordered
from lookalike.data.video.container import FrameIndex, frame_index, libav

_VERSION = {b"version": b"2"}
_Row = dict[str, Any]


def indexes(disk: Disk, names: Sequence[str]) -> list[FrameIndex | str]:
    """The index of each video, or why it has none; files that are new or have changed are read by all cores."""
    libav()  # its absence is no fault of the files
    stamps = stamps_of_files(disk.file, names)
    file = _folder() / f"{_key(disk)}.parquet"
    cached, rows = _read(file), []
    for name, size, token in zip(stamps.names, stamps.sizes.tolist(), map(str, stamps.tokens)):
        row = cached.get(name, {})
        fresh = (row.get("bytes"), row.get("token")) == (size, token)
        rows.append(row if fresh else {"name": name, "bytes": size, "token": token})
    stale = [i for i, row in enumerate(rows) if "reason" not in row]
    indexed = ordered(partial(_index_row, disk), [names[i] for i in stale], cores() if len(stale) > 1 else 0)
    for i, (_, row) in zip(stale, indexed):
        rows[i] |= row
    if stale:
        with suppress(OSError):
            _write(file, rows)
    return [_index(row) for row in rows]


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path(os.path.expanduser("~"), ".cache")) / "lookalike" / "videos"


def _key(disk: Disk) -> str:
    """A name for the place, whatever characters its own has."""
    return hashlib.sha256(os.path.abspath(disk.name("")).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _index_row(disk: Disk, name: str) -> _Row:
    """The index of one video as columns of the cache, made by a worker."""
    try:
        with disk.file(name) as file:
            return {"reason": None, **frame_index(file)._asdict()}
    except Unreadable as unreadable:
        return {"reason": unreadable.reason}
    except OSError as error:
        return {"reason": error.strerror or type(error).__name__}


def _index(row: Mapping[str, Any]) -> FrameIndex | str:
    """The index that a row holds, or the reason."""
    if row["reason"] is not None:
        return str(row["reason"])
    ticks, keys, seeks = (np.asarray(row[name], np.int64) for name in ("ticks", "keys", "seeks"))
    return FrameIndex(ticks, keys, seeks, row["unit"], row["height"], row["width"], row["counted"])


def _read(file: Path) -> dict[str, _Row]:
    """The rows of a cache by name; {} where it is missing, of another version, or damaged."""
    try:
        table = pq.read_table(file, partitioning=None)
    except (OSError, pa.ArrowException):
        return {}
    known = (table.schema.metadata or {}).items() >= _VERSION.items()
    return {row["name"]: row for row in table.to_pylist()} if known else {}


def _write(file: Path, rows: Sequence[_Row]) -> None:
    """Replace the cache; raises OSError."""
    columns = ("name", "bytes", "token", "reason", *FrameIndex._fields)
    table = pa.table({name: [row.get(name) for row in rows] for name in columns}, metadata=_VERSION)
    file.parent.mkdir(parents=True, exist_ok=True)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(file, sink.getvalue().to_pybytes())
