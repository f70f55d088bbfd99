"""A prepared cache: canvases that were decoded once, in shards that are mapped into memory, as a source.

    canvases.json        side, coding, classes, and once it is whole every shard with its rows, bytes and sha256
    index/00000.parquet  of each row of a shard: path, split, label, height, width, offset, bytes, adler32, bad
    shards/00000.bin     uint8 (rows, 3, S, S), or JPEG files one after another
    data.parquet         the files that were read (data/fingerprint.py)
    bad_files.csv        what could not be read, and why

``prepare.py`` writes it. Rows are those of the data, bad ones too (black), so that a run from the cache and one from
the data are the same run.
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from lookalike.core.errors import BAD_DATA, USAGE, UserError
from lookalike.core.files import json_in, whole
from lookalike.data.decode import Unreadable, decode, one_line, planes_of, squash
from lookalike.data.example import Example, broken
from lookalike.data.fingerprint import Stamps, read_table
from lookalike.data.formats.files import Names
from lookalike.data.pool import cores
from lookalike.data.preprocessing import Preprocessing, Side, pixels_of

CANVASES, VERSION = "canvases.json", 1
RAW = "raw"
_BATCHES = 4  # how many are kept that nobody holds

_NUMBERS = ("label", "height", "width", "offset", "bytes", "adler32")
INDEX = pa.schema(
    {"path": pa.string(), "split": pa.string(), **dict.fromkeys(_NUMBERS, pa.int64()), "bad": pa.string()}
)


class CacheShard(NamedTuple):
    """One shard as canvases.json knows it."""

    rows: int
    bytes: int
    sha256: str


def shard_name(number: int) -> str:
    """The file of a shard below ``shards``."""
    return f"{number:05}.bin"


class _Room:
    """Memory for batches that is used again when nobody holds the batch that was in it.

    New memory costs its page faults, several times what copying the canvases does.
    """

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def of(self, rows: int, width: int) -> Tensor:
        """uint8 (rows, width) with anything in it.

        Each batch has an array of its own on the memory, which the tensor and all that is made of it hold, so that its
        end is that of the last of them.
        """
        self._free = [memory for memory in self._free if len(memory) == rows * width]
        memory = self._free.pop() if self._free else bytearray(rows * width)
        array = np.frombuffer(memory, np.uint8)
        weakref.finalize(array, self._take_back, memory).atexit = False
        return torch.from_numpy(array).view(rows, width)

    def _take_back(self, memory: bytearray) -> None:
        if len(self._free) < _BATCHES:
            self._free.append(memory)


class Prepared:
    """Some rows of a cache, on canvases of at most its own side."""

    texts = read = None

    def __init__(
        self, root: Path, description: dict[str, Any], rows: pa.Table, shard_of: npt.NDArray[np.int64]
    ) -> None:
        """``rows`` in the columns of INDEX, the shard of each; raises UserError where a shard has another length."""
        self._root, self.own, self._raw = root, int(description["side"]), description["coding"] == RAW
        self.classes = [str(name) for name in description["classes"]]
        self.unlisted: dict[str, str] = {}
        self.paths = Names(path for part in rows["path"].chunks for path in part.to_pylist())
        self.labels = torch.from_numpy(rows["label"].to_numpy().copy())
        self.sizes = torch.from_numpy(np.stack([rows["height"].to_numpy(), rows["width"].to_numpy()], axis=1))
        bad = np.flatnonzero(rows["bad"].is_valid().to_numpy())
        self.bad: dict[int, str] = dict(zip(bad.tolist(), rows["bad"].take(bad).to_pylist()))
        self._offsets, self._lengths = rows["offset"].to_numpy(), rows["bytes"].to_numpy()
        self._sums = rows["adler32"].to_numpy()
        self._checked = np.zeros(len(rows), np.bool_)
        self._shard_of, self._shards = shard_of, [CacheShard(*shard) for shard in description["shards"]]
        self._maps: dict[int, npt.NDArray[np.uint8]] = {}
        self._room = _Room()
        self.starts: list[int] = [*np.unique(shard_of, return_index=True)[1].tolist(), len(rows)]
        for number in np.unique(shard_of).tolist():
            self._check_length(number)
        if self._raw and bool((self._lengths != 3 * self.own**2).any()):
            raise UserError(
                f"{root / 'index'} is damaged (canvases of another length): prepare the data again", BAD_DATA
            )

    def __len__(self) -> int:
        return len(self.paths)

    def example(self, row: int, side: Side) -> Example:
        """One canvas, made smaller where ``side`` is; raises UserError for a larger one than the cache has.

        As a public model sees it only nearly: the picture was squashed, and is resized a second time.
        """
        self._refuse_larger(pixels_of(side))
        label, path = int(self.labels[row]), self.paths[row]
        if row in self.bad:
            return broken(side, label, path, self.bad[row])
        if isinstance(side, Preprocessing):
            own = self.example(row, self.own)
            seen = side.seen(Image.fromarray(own.pixels.permute(1, 2, 0).numpy()), (own.width, own.height))
            return own._replace(pixels=planes_of(seen))
        data, (height, width) = self._bytes(row), self.sizes[row].tolist()
        if not self._raw:
            return Example(decode(data.tobytes(), side).pixels, height, width, label, path)
        pixels = data.reshape(3, self.own, self.own)
        if side == self.own:
            return Example(torch.from_numpy(pixels.copy()), height, width, label, path)
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        return Example(squash(image, side).pixels, height, width, label, path)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}, "_room": _Room()}

    def size(self, row: int) -> tuple[int, int]:
        """Upright (height, width) of the picture in pixels, as it was before; raises Unreadable."""
        if row in self.bad:
            raise Unreadable(self.bad[row])
        height, width = self.sizes[row].tolist()
        return height, width

    def _refuse_larger(self, side: int) -> None:
        """Raise UserError for more pixels than the cache has, where the pictures had them.

        Canvases of pictures that were no larger than the cache are enlarged, as the pictures themselves would be.
        """
        if side > self.own and self._native > self.own:
            raise UserError(
                f"{self._root} holds {self.own} px, and {side} px are wanted: prepare the data again with "
                f"--size {side}, or choose --canvas {self.own}",
                USAGE,
            )

    @cached_property
    def _native(self) -> int:
        """The median short side in pixels of the pictures that could be read, 0 where there is none."""
        good = [row for row in range(len(self)) if row not in self.bad] if self.bad else slice(None)
        return int(self.sizes[good].amin(1).median()) if len(self) > len(self.bad) else 0

    def stamps(self) -> Stamps:
        """Every row by the checksum of its canvas."""
        return Stamps(list(self.paths), self._lengths, (self._sums + (1 << 32)).astype(np.uint64))

    def has_canvases(self, side: Side) -> bool:
        """Whether ``take`` gives these very canvases, raw; raises UserError where the cache has fewer pixels."""
        self._refuse_larger(pixels_of(side))
        return self._raw and side == self.own

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Canvases uint8 (B, 3, S, S) and sizes int64 (B, 2) of ``rows`` (B,), copied from the map.

        The first time that a process takes a row, its checksum is compared, at 0.3 µs a KB: three times what the copy
        costs, and nothing from the second epoch on. So all processors compare then; neither holds Python's lock.
        """
        pixels, numbers = self._room.of(len(rows), 3 * self.own**2), rows.tolist()
        into = pixels.numpy()

        def copy_some(places: range) -> None:
            for i in places:
                into[i] = self._bytes(numbers[i])

        if self._checked[numbers].all():
            copy_some(range(len(numbers)))
        else:
            with ThreadPoolExecutor(threads := cores()) as pool:
                list(pool.map(copy_some, (range(first, len(numbers), threads) for first in range(threads))))
        return pixels.view(len(rows), 3, self.own, self.own), self.sizes.index_select(0, rows)

    def _bytes(self, row: int) -> npt.NDArray[np.uint8]:
        """The bytes of one row in the map; raises UserError where they are not what was written."""
        number = int(self._shard_of[row])
        if number not in self._maps:
            self._maps[number] = np.memmap(self._file(number), np.uint8, "r").view(np.ndarray)
        start = int(self._offsets[row])
        data = self._maps[number][start : start + int(self._lengths[row])]
        if not self._checked[row]:
            if zlib.adler32(data.data) != self._sums[row]:
                raise self._damaged(number, f"the canvas of {self.paths[row]} has another checksum")
            self._checked[row] = True
        return data

    def _file(self, number: int) -> Path:
        return self._root / "shards" / shard_name(number)

    def _check_length(self, number: int) -> None:
        try:
            length = self._file(number).stat().st_size
        except OSError as error:
            raise self._damaged(number, error.strerror or type(error).__name__) from None
        if length != self._shards[number].bytes:
            raise self._damaged(number, f"{length} bytes instead of {self._shards[number].bytes}")

    def _damaged(self, number: int, reason: str) -> UserError:
        return UserError(
            f"{self._file(number)} is damaged ({reason}): the same lookalike prepare again makes it anew", BAD_DATA
        )


class Cache:
    """A cache as a place: its splits, opened together."""

    def __init__(self, root: Path) -> None:
        self._root, self._description = root, read_description(root)
        if not self._description["finished"]:
            raise UserError(f"{root} is not finished: the same lookalike prepare again goes on with it", BAD_DATA)
        tables = [read_index(root, number)[0] for number in range(len(self._description["shards"]))]
        self._rows = pa.concat_tables(tables)
        self._shard_of = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        self.splits: Sequence[str] = list(self._description["splits"])

    def rows(self, split: str | None) -> Prepared:
        """One split, or everything, split by split."""
        if split is None:
            return Prepared(self._root, self._description, self._rows, self._shard_of)
        chosen = pc.equal(self._rows["split"], split)
        return Prepared(self._root, self._description, self._rows.filter(chosen), self._shard_of[chosen.to_numpy()])


def read_description(root: Path) -> dict[str, Any]:
    """canvases.json; raises UserError."""
    kinds = {"version": int, "side": int, "coding": str, "classes": list, "splits": list, "finished": bool}
    try:
        description = json_in(whole(root / CANVASES))
        right = all(isinstance(description[name], kind) for name, kind in kinds.items())
        [CacheShard(*shard) for shard in description["shards"]]
    except (OSError, ValueError, KeyError, TypeError):
        right = False
    if not right or description["version"] != VERSION:
        raise UserError(f"{root / CANVASES} cannot be read: prepare the data again into another folder", BAD_DATA)
    return dict(description)


def read_index(root: Path, number: int) -> tuple[pa.Table, dict[str, str]]:
    """The rows of one shard, and what was written beside them; raises UserError."""
    path = root / "index" / f"{number:05}.parquet"
    try:
        table = read_table(path)
        if not table.schema.equals(INDEX):
            raise pa.ArrowInvalid("other columns")
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}): the same lookalike prepare again mends it", BAD_DATA
        ) from None
    return table, {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
