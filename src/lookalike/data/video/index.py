"""The indexes of video files, made once: kept in a cache folder, never beside the data.

That folder is ``lookalike/videos`` in $XDG_CACHE_HOME, else in ~/.cache: one parquet file for each place that was
named, with a row for each video. A row holds for as long as name, size and content of its file do (see
data/fingerprint.py). A cache that cannot be read is made again; one that cannot be written is done without.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.data.fingerprint import stamps_of_files
from lookalike.data.formats.disk import Disk
from lookalike.data.image.decode import Unreadable
from lookalike.data.pool import cores, ordered
from lookalike.data.video.open import Index, index, libav

VERSION = 1
_SCHEMA = pa.schema(
    {
        "name": pa.string(),
        "bytes": pa.int64(),
        "token": pa.uint64(),
        "reason": pa.string(),  # why it cannot be used, else null
        "ticks": pa.list_(pa.int64()),
        "keys": pa.list_(pa.int64()),
        "seeks": pa.list_(pa.int64()),
        "unit": pa.float64(),
        "height": pa.int64(),
        "width": pa.int64(),
        "counted": pa.bool_(),
    },
    {"version": str(VERSION)},
)
_Row = dict[str, Any]


def indexes(disk: Disk, names: Sequence[str], progress: Callable[[int], None] = lambda _: None) -> list[Index | str]:
    """The index of each video, or why it has none; files that are new or have changed are read by all cores."""
    libav()  # its absence is no fault of the files
    stamps = stamps_of_files(disk.file, names)
    file = folder() / f"{_key(disk)}.parquet"
    known, rows = _kept(file), []
    missing = []
    for shown, size, token in zip(stamps.names, stamps.sizes.tolist(), stamps.tokens.tolist()):
        row = known.get(shown, {})
        rows.append(row if (row.get("bytes"), row.get("token")) == (size, token) else {})
        missing.append(not rows[-1])
    fresh = [i for i, wanted in enumerate(missing) if wanted]
    found = ordered(partial(_row, disk), [names[i] for i in fresh], cores() if len(fresh) > 1 else 0)
    for i, (_, row) in zip(fresh, found):
        rows[i] = {"name": stamps.names[i], "bytes": int(stamps.sizes[i]), "token": int(stamps.tokens[i])} | row
        progress(1)
    if fresh:
        with suppress(OSError):
            _keep(file, rows)
    return [_index(row) for row in rows]


def folder() -> Path:
    """Where indexes are kept."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path(os.path.expanduser("~"), ".cache")) / "lookalike" / "videos"


def _key(disk: Disk) -> str:
    """A name for the place, whatever characters its own has."""
    return hashlib.sha256(os.path.abspath(disk.name("")).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _row(disk: Disk, name: str) -> _Row:
    """What a row of the cache says of one video, in a worker."""
    try:
        with disk.file(name) as file:
            found = index(file)
    except Unreadable as unreadable:
        return {"reason": unreadable.reason}
    except OSError as error:
        return {"reason": error.strerror or type(error).__name__}
    return {"reason": None, **found._asdict()}


def _index(row: Mapping[str, Any]) -> Index | str:
    """The index that a row holds, or the reason."""
    if row["reason"] is not None:
        return str(row["reason"])
    ticks, keys, seeks = (np.asarray(row[name], np.int64) for name in ("ticks", "keys", "seeks"))
    return Index(ticks, keys, seeks, row["unit"], row["height"], row["width"], row["counted"])


def _kept(file: Path) -> dict[str, _Row]:
    """The rows of a cache by name; {} where it is missing, of another version, or damaged."""
    try:
        table = pq.read_table(file, partitioning=None)
    except (OSError, pa.ArrowException):
        return {}
    if not table.schema.equals(_SCHEMA, check_metadata=False) or (table.schema.metadata or {}).get(b"version") != (
        str(VERSION).encode()
    ):
        return {}
    return {row["name"]: row for row in table.to_pylist()}


def _keep(file: Path, rows: Sequence[_Row]) -> None:
    """Publish a cache by rename: a reader sees the old one or the new one, whole; raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows), schema=_SCHEMA)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".", suffix=".tmp", delete=False) as made:
        try:
            pq.write_table(table, made, compression="zstd")
            made.flush()
            os.fsync(made.fileno())
            os.replace(made.name, file)
        except BaseException:
            os.unlink(made.name)
            raise
