"""``lookalike prepare``: every picture decoded and reduced once, so that training reads canvases from a map."""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lookalike.core.devices import isolated
from lookalike.core.errors import BAD_DATA, USAGE, UserError
from lookalike.core.files import UNFINISHED, refuse_unwritable, sync_folder, write_atomically, write_csv, write_json
from lookalike.core.progress import Progress, counted, silent
from lookalike.data.example import Example, PictureSource, remarks
from lookalike.data.fingerprint import Stamps, changes, from_table, to_table
from lookalike.data.formats.files import split_of
from lookalike.data.pool import ordered, stopped
from lookalike.data.prepared import CANVASES, INDEX, RAW, VERSION, CacheShard, read_description, read_index, shard_name
from lookalike.data.source import EVERYTHING, Data, name_of, native_side, open_source, splits_of
from lookalike.train.run import Run

SIDE = 160  # px by default: crops of 128 px lose little, and a million take 77 GB
SHARD = 256_000_000  # bytes of raw canvases in one shard
_TASK = 64  # rows a worker encodes at a time


class CacheSummary(NamedTuple):
    """What a cache holds."""

    rows: int
    side: int
    shards: list[CacheShard]
    bad: dict[str, str]


class _Range(NamedTuple):
    """Rows of one split, which a worker encodes: part of shard ``shard``."""

    shard: int
    split: str
    rows: range


_Row = tuple[str, str | None, int, int, int, int, int, str | None]
"""Of the index, without the offset: path, split, label, height, width, bytes, adler32, bad."""
_Part = tuple[list[bytes], list[_Row]]
"""Canvases and their rows."""


@isolated()
def prepare(
    data: Data,
    out: Path,
    size: int | None = None,
    split: str | None = None,
    jpeg: int | None = None,
    workers: int | None = None,
    progress: Progress = silent,
    shard_bytes: int = SHARD,
    say: Callable[[str], None] = lambda _: None,
) -> CacheSummary:
    """Write the canvases of ``data`` into the folder ``out``, or go on where an earlier call was stopped.

    Shards that are whole by their hash are kept, so that the same call again mends a damaged cache. Raises UserError.
    """
    _refuse_foreign(out)
    sources = {split_of(split) or split: open_source(data, split)} if split else splits_of(data)
    for line in remarks(name_of(data), sources):
        say(line)
    first = next(iter(sources.values()))
    side = size or min(SIDE, native_side(first))
    coding = RAW if jpeg is None else f"jpeg {jpeg}"
    if not (out / CANVASES).exists():
        refuse_unwritable(out, folder=True, size=sum(map(len, sources.values())) * _row_bytes(side, coding))
    with Run(out):
        settings = {"version": VERSION, "side": side, "coding": coding, "classes": list(first.classes)}
        settings |= {"splits": [name for name in sources if name != EVERYTHING], "shard_bytes": shard_bytes}
        _begin(out, settings, _stamps(sources))
        for folder in ("index", "shards"):
            (out / folder).mkdir(exist_ok=True)
            for left in (out / folder).glob(f".*{UNFINISHED}"):  # by a call that was killed in a write
                left.unlink()
        plan = list(_plan(sources, side, coding, shard_bytes))
        _write_missing(out, plan, partial(_part, sources, side, jpeg), workers, progress)
        unlisted = {path: reason for source in sources.values() for path, reason in source.unlisted.items()}
        return _finish(out, settings, 1 + max(task.shard for task in plan), unlisted)


def _refuse_foreign(out: Path) -> None:
    """Never write into a folder that holds somebody's other files."""
    ours = {"run.lock", "data.parquet"}  # canvases.json comes last when a cache begins
    if os.path.isfile(out):
        raise UserError(f"{out} is a file: --out names the folder of the cache")
    refuse_unwritable(out, folder=True)
    names = {path.name for path in out.iterdir() if not path.name.endswith(UNFINISHED)} if out.is_dir() else set()
    if names - ours and CANVASES not in names:
        raise UserError(f"{out} holds other files: choose an empty or new folder for --out")


def _stamps(sources: dict[str, PictureSource]) -> Stamps:
    """The files of all splits, each once: splits may share an archive."""
    every = [source.stamps() for source in sources.values()]
    first = {name: (int(size), int(token)) for part in every for name, size, token in zip(*part)}
    sizes, tokens = (np.array(column) for column in zip(*first.values()))
    return Stamps(list(first), sizes.astype(np.int64), tokens.astype(np.uint64))


def _begin(out: Path, settings: dict[str, object], now: Stamps) -> None:
    """Record the settings and the files of a new cache, or check them against those of the one begun."""
    if not (out / CANVASES).exists():
        write_atomically(out / "data.parquet", to_table(now))
        write_json(out / CANVASES, settings | {"finished": False, "shards": []})
    recorded = read_description(out)
    differ = [
        f"{name}: {recorded.get(name)} -> {value}" for name, value in settings.items() if recorded.get(name) != value
    ]
    if differ:
        raise UserError(f"{out} holds a cache of other settings ({'; '.join(differ)}): choose another --out", USAGE)
    if changed := changes(from_table(out / "data.parquet"), now):
        raise UserError(f"{out} was prepared from other pictures: {changed}; choose another --out", BAD_DATA)


def _plan(sources: dict[str, PictureSource], side: int, coding: str, shard_bytes: int) -> Iterator[_Range]:
    """Every shard's tasks, in order: whole splits one after another, so that no shard holds two."""
    each, shard = max(1, shard_bytes // _row_bytes(side, coding)), 0
    for name, source in sources.items():
        for start in range(0, len(source), each):
            stop = min(start + each, len(source))
            for i in range(start, stop, _TASK):
                yield _Range(shard, name, range(i, min(i + _TASK, stop)))
            shard += 1


def _row_bytes(side: int, coding: str) -> int:
    """Of a canvas, in JPEG about."""
    return 3 * side**2 if coding == RAW else max(1, 3 * side**2 // 8)


def _part(sources: dict[str, PictureSource], side: int, jpeg: int | None, task: _Range) -> _Part:
    """The canvases of some rows, in a worker."""
    examples = [sources[task.split].example(row, side) for row in task.rows if not stopped()]
    canvases = [_encoded(example, jpeg) for example in examples]
    split = None if task.split == EVERYTHING else task.split
    rows: list[_Row] = [
        (one.path, split, one.label, one.height, one.width, len(data), zlib.adler32(data), one.bad)
        for one, data in zip(examples, canvases)
    ]
    return canvases, rows


def _encoded(example: Example, jpeg: int | None) -> bytes:
    """The canvas as bytes; of a bad row black ones where each has its place, none in a shard of JPEGs."""
    if jpeg is None:
        return example.pixels.contiguous().numpy().tobytes()
    if example.bad is not None:
        return b""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(example.pixels.permute(1, 2, 0).numpy())).save(file, "JPEG", quality=jpeg)
    return file.getvalue()


def _write_missing(
    out: Path, plan: list[_Range], work: partial[_Part], workers: int | None, progress: Progress
) -> None:
    """Write every shard that is missing or damaged."""
    whole = {number for number in {task.shard for task in plan} if _is_whole(out, number)}
    remaining = [task for task in plan if task.shard not in whole]
    total = sum(len(task.rows) for task in plan)
    more = counted(progress, "preparing", total, total - sum(len(task.rows) for task in remaining))

    def advancing(parts: Iterable[tuple[_Range, _Part]]) -> Iterator[_Part]:
        for task, part in parts:
            yield part
            more(len(task.rows))

    def path(task: _Range, number: int) -> str:
        return str(work.args[0][task.split].paths[task.rows[number]])

    with closing(ordered(work, remaining, workers, part=path)) as parts:
        for shard, shard_parts in groupby(parts, lambda pair: pair[0].shard):
            _write_shard(out, shard, advancing(shard_parts))


def _is_whole(out: Path, number: int) -> bool:
    """Whether a shard has the hash in its index."""
    try:
        _, beside = read_index(out, number)
        with (out / "shards" / shard_name(number)).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == beside["sha256"]
    except (UserError, OSError, KeyError):
        return False


def _write_shard(out: Path, number: int, parts: Iterable[_Part]) -> None:
    """Publish one shard by rename, then its index, with which it counts as whole."""
    name, digest, length = shard_name(number), hashlib.sha256(), 0
    index: list[tuple[object, ...]] = []
    temporary = out / f".{name}{UNFINISHED}"
    try:
        with temporary.open("wb") as file:
            for data, (*head, size, check, bad) in (pair for part in parts for pair in zip(*part)):
                file.write(data)
                digest.update(data)
                index.append((*head, length, size, check, bad))
                length += size
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(out / "shards" / name)
    sync_folder(out / "shards")
    beside = {"bytes": str(length), "sha256": digest.hexdigest()}
    sink = pa.BufferOutputStream()
    table = pa.table(list(map(list, zip(*index))), schema=INDEX.with_metadata(beside))
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    write_atomically(out / "index" / f"{number:05}.parquet", sink.getvalue().to_pybytes())


def _finish(out: Path, settings: dict[str, object], count: int, unlisted: dict[str, str]) -> CacheSummary:
    """Publish the list of shards, which makes the cache whole, after the list of bad files."""
    shards: list[CacheShard] = []
    bad: dict[str, str] = {}
    for number in range(count):
        table, beside = read_index(out, number)
        shards.append(CacheShard(len(table), int(beside["bytes"]), beside["sha256"]))
        broken = table.filter(table["bad"].is_valid())
        bad |= dict(zip(broken["path"].to_pylist(), broken["bad"].to_pylist()))
    write_csv(out / "bad_files.csv", ("path", "reason"), sorted((unlisted | bad).items()))
    write_json(out / CANVASES, settings | {"finished": True, "shards": [list(shard) for shard in shards]})
    return CacheSummary(sum(shard.rows for shard in shards), int(str(settings["side"])), shards, bad)
