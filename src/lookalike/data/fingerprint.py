"""What the data was when a run began: names, sizes and content of the files, so that a change can be told by name."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import opened
from lookalike.data.decode import one_line
from lookalike.data.formats.files import printable

Opens = Callable[[str], BinaryIO]
"""How a file of the data is opened by its name; raises OSError."""

UNREAD = 0
"""The token of a file whose content was not looked at."""

PIECE, LONG_PIECE = 1 << 12, 1 << 20  # bytes at the start, in the middle and at the end of a picture, of an archive
_MOST = 1 << 18  # files whose content is looked at; 30 µs each where they are in memory already
_CHUNK = 1024
_THREADS = 16  # they wait for the disk or the network, not for the processor


class Stamps(NamedTuple):
    """The files that rows come from, in the order of the rows; ``names`` are valid Unicode and unique."""

    names: list[str]
    sizes: npt.NDArray[np.int64]  # (N,) bytes, -1 where there is no such file
    tokens: npt.NDArray[np.uint64]  # (N,) of content, UNREAD where it was not looked at

    def digest(self) -> str:
        """One hash of all of it."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        digest.update(self.sizes.astype(np.int64).tobytes() + self.tokens.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Change:
    """What is different now; ``renamed`` holds (before, now)."""

    added: Sequence[str]
    removed: Sequence[str]
    renamed: Sequence[tuple[str, str]]
    replaced: Sequence[str]
    reordered: bool

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.renamed or self.replaced or self.reordered)

    def __str__(self) -> str:
        renamed = [f"{before} -> {now}" for before, now in self.renamed]
        kinds = {"added": self.added, "removed": self.removed, "renamed": renamed, "replaced": self.replaced}
        parts = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in kinds.items()
            if names
        ]
        return ", ".join([*parts, *(["the same files in another order"] if self.reordered and not parts else [])])


def stamps_of_values(names: Sequence[str], values: Sequence[bytes]) -> Stamps:
    """The stamps of rows that are in memory."""
    sizes = np.fromiter((len(value) for value in values), np.int64, len(values))
    return Stamps(list(names), sizes, np.fromiter(map(token_of, values), np.uint64, len(values)))


def stamps_of_files(open_file: Opens, files: Sequence[str], piece: int = PIECE, most: int = _MOST) -> Stamps:
    """The stamps of ``files``: the size of each, the content of ``most`` of them.

    A modification time says nothing: copies have new ones, and some tools keep the old. So content decides: a hash of
    three pieces of ``piece`` bytes, or of all of a file that is no longer than they are together. Of more than ``most``
    files those are looked into whose names have the lowest hashes; another that is replaced by a file of the very same
    size is not noticed.
    """
    names = [printable(name) for name in files]
    looked = _sampled(names, most)
    chunks = [range(i, min(i + _CHUNK, len(files))) for i in range(0, len(files), _CHUNK)]

    def stamps(rows: range) -> list[tuple[int, int]]:
        return [_stamp(open_file, files[i], piece if looked[i] else 0) for i in rows]

    with ThreadPoolExecutor(_THREADS) as pool:
        pairs = [pair for part in pool.map(stamps, chunks) for pair in part]
    sizes = np.fromiter((size for size, _ in pairs), np.int64, len(pairs))
    return Stamps(names, sizes, np.fromiter((token for _, token in pairs), np.uint64, len(pairs)))


def token_of(*parts: bytes | bytearray | memoryview) -> int:
    """64 bits of any bytes, never UNREAD."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest()[:8], "little") or 1


def changes(before: Stamps, now: Stamps) -> Change:
    """What happened to the files; a removed and an added one of equal size and content are one that was renamed."""
    if before.names == now.names:
        same = np.arange(len(now.names))
        return Change([], [], [], _replaced(before, now, same, same), False)
    old, new = ({name: i for i, name in enumerate(stamps.names)} for stamps in (before, now))
    kept = [name for name in before.names if name in new]
    places = np.array([(old[name], new[name]) for name in kept], dtype=np.int64).reshape(-1, 2)
    removed, added = [n for n in before.names if n not in new], [n for n in now.names if n not in old]
    renamed = _renamed(before, now, [old[name] for name in removed], [new[name] for name in added])
    gone, come = {one for one, _ in renamed}, {other for _, other in renamed}
    return Change(
        [name for name in added if name not in come],
        [name for name in removed if name not in gone],
        renamed,
        _replaced(before, now, places[:, 0], places[:, 1]),
        bool((np.diff(places[:, 1]) < 0).any()),
    )


def to_table(stamps: Stamps) -> bytes:
    """The stamps as a parquet file, about 20 bytes a file."""
    table = pa.table({"name": stamps.names, "bytes": stamps.sizes, "token": stamps.tokens})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_page_checksum=True)
    return bytes(sink.getvalue().to_pybytes())


def read_table(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """A parquet file, which pyarrow would not find where its name is no Unicode; raises OSError, ArrowException.

    Where its pages have checksums, a damaged one is OSError.
    """
    with opened(path) as file:
        return pq.read_table(file, schema=schema, partitioning=None, page_checksum_verification=True)


def from_table(path: Path) -> Stamps:
    """The stamps of a file that ``to_table`` made; raises UserError."""
    try:
        table = read_table(path, pa.schema({"name": pa.string(), "bytes": pa.int64(), "token": pa.uint64()}))
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path} does not say what the data was ({one_line(error)}): choose another --out", BAD_DATA
        ) from None
    return Stamps(table["name"].to_pylist(), table["bytes"].to_numpy(), table["token"].to_numpy())


def _sampled(names: Sequence[str], most: int) -> npt.NDArray[np.bool_]:
    """(N,) bool: which names are among the ``most`` of the lowest hash."""
    if len(names) <= most:
        return np.ones(len(names), np.bool_)
    hashes = np.fromiter((token_of(name.encode()) for name in names), np.uint64, len(names))
    return np.asarray(hashes <= np.partition(hashes, most - 1)[most - 1])


def _stamp(open_file: Opens, path: str, piece: int) -> tuple[int, int]:
    """Size and token of one file, without a token for ``piece`` 0; what cannot be read has size -1."""
    try:
        with open_file(path) as file:
            size = file.seek(0, os.SEEK_END)
            return size, token_of(*_pieces(file, size, piece)) if piece else UNREAD
    except (OSError, ValueError):
        return -1, UNREAD


def _pieces(file: BinaryIO, size: int, piece: int) -> Iterator[bytes]:
    """Start, middle and end of an open file, or all of a small one."""
    if size <= 3 * piece:
        file.seek(0)
        yield file.read(3 * piece)
        return
    for start in (0, (size - piece) // 2, size - piece):
        file.seek(start)
        yield file.read(piece)


def _replaced(before: Stamps, now: Stamps, old: npt.NDArray[np.int64], new: npt.NDArray[np.int64]) -> list[str]:
    """The names of files that hold something else: another size, or another token where both were looked at."""
    one, other = before.tokens[old], now.tokens[new]
    content = (one != other) & (one != UNREAD) & (other != UNREAD)
    return [before.names[i] for i in old[(before.sizes[old] != now.sizes[new]) | content].tolist()]


def _renamed(before: Stamps, now: Stamps, removed: Sequence[int], added: Sequence[int]) -> list[tuple[str, str]]:
    """(before, now) of each removed file whose size and content a file has that was added."""
    free: dict[tuple[int, int], deque[int]] = {}
    for i in added:
        free.setdefault((int(now.sizes[i]), int(now.tokens[i])), deque()).append(i)
    pairs = []
    for i in removed:
        same = free.get((int(before.sizes[i]), int(before.tokens[i])))
        if same and before.tokens[i] != UNREAD:
            pairs.append((before.names[i], now.names[same.popleft()]))
    return pairs
