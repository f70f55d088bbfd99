"""Videos as pictures: a row is one frame, a picture file that is made when it is read.

A video is a file, or a folder of pictures where the data is named ``frames:FOLDER``. Since frames are pictures,
everything that works on pictures works on them. The path of a row names a video and a time in it, and which frames
belong together is told by the paths alone: a prepared cache, or some rows of it, are still videos.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate, chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lookalike.core.errors import BAD_DATA, USAGE, UserError
from lookalike.core.files import write_atomically
from lookalike.data.decode import SUFFIXES, Unreadable, header
from lookalike.data.fingerprint import read_table, stamps_of_files
from lookalike.data.formats.archives import class_folders, rows_by_folder
from lookalike.data.formats.disk import Disk, Local
from lookalike.data.formats.encoded import Divided, Encoded, numbered
from lookalike.data.formats.files import Listing, printable
from lookalike.data.formats.lists import PathList
from lookalike.data.pool import cores, ordered
from lookalike.data.video.decoder import FrameIndex, VideoDecoders, VideoFile, frame_index, libav

_VERSION = {b"version": b"2"}  # of a cache of indexes
_Row = dict[str, Any]
_TIME = "#t="  # as in W3C's media fragments
_RATE = 25.0  # frames a second of folders, unless the data's name states another


class VideoList(NamedTuple):
    """Videos by name before any is opened: a label for each, -1 where there is none, and the videos of each split."""

    names: Sequence[str]
    labels: Sequence[int]
    classes: list[str]
    splits: Mapping[str, Sequence[int]]

    @classmethod
    def in_folders(cls, names: Sequence[str]) -> Self:
        """By folders, as pictures are: the first may name the split, the next one the class."""
        splits = rows_by_folder(names)
        labels, classes = numbered(class_folders(names, splits, 1 if splits else 0))
        return cls(names, labels, classes, splits)

    @classmethod
    def of(cls, paths: PathList) -> Self:
        """The videos that a list names."""
        return cls(paths.files, paths.labels, paths.classes, paths.splits)


class FrameStore:
    """The frames of videos, video by video in the order of time."""

    def __init__(self, videos: VideoList, open_video: Callable[[str], Video]) -> None:
        """A video for which ``open_video`` raises Unreadable is left out, and listed with the reason."""
        self.unlisted: dict[str, str] = {}
        self.paths: list[str] = []
        self.labels: list[int] = []
        self.classes = videos.classes
        self._videos: list[Video] = []
        rows: dict[int, range] = {}
        for number, (name, label) in enumerate(zip(videos.names, videos.labels)):
            shown = printable(name)
            try:
                video = open_video(name)
                if len(video.times) < 2:
                    raise Unreadable("a single frame is no video")
            except Unreadable as unreadable:
                self.unlisted[shown] = unreadable.reason
                continue
            rows[number] = range(len(self.paths), len(self.paths) + len(video.times))
            self._videos.append(video)
            self.paths += [frame_path(shown, time) for time in video.times]
            self.labels += [label] * len(video.times)
        self.starts: Sequence[int] = list(accumulate((len(video.times) for video in self._videos), initial=0))
        self.splits = {
            split: [row for number in numbers for row in rows.get(number, ())]
            for split, numbers in videos.splits.items()
        }

    def read(self, row: int) -> bytes:
        """A frame as a picture file; raises Unreadable."""
        video, frame = self._frame(row)
        return video.read(frame)

    def size(self, row: int) -> tuple[int, int]:
        """Upright (height, width) in pixels; raises Unreadable."""
        video, frame = self._frame(row)
        return video.size(frame)

    def _frame(self, row: int) -> tuple[Video, int]:
        number = bisect.bisect_right(self.starts, row) - 1
        return self._videos[number], row - self.starts[number]

    def divided(self, disk: Disk, files: Sequence[str]) -> Divided[Encoded]:
        """The frames by split, of videos that lie in ``files``; raises UserError where no video can be used."""
        if not self.paths:
            name, reason = next(iter(self.unlisted.items()))
            others = f", nor can {len(self.unlisted) - 1} others" if len(self.unlisted) > 1 else ""
            raise UserError(f"{disk.name(name)} cannot be used ({reason}){others}; try to play one", BAD_DATA)
        return Divided(Encoded(self, partial(stamps_of_files, disk.file, files), self.size), self.splits)


def video_files(disk: Disk, videos: VideoList) -> Divided[Encoded]:
    """Video files, by an index of their frames; raises UserError."""
    index_of, decoders = dict(zip(videos.names, indexes(disk, videos.names))), VideoDecoders(disk)

    def opened(name: str) -> VideoFile:
        index = index_of[name]
        if isinstance(index, str):
            raise Unreadable(index)
        return VideoFile(decoders, name, index)

    return FrameStore(videos, opened).divided(disk, videos.names)


class FrameFolder:
    """A folder of pictures as a video: frames in the order of their names."""

    def __init__(self, disk: Disk, files: Sequence[str], rate: float) -> None:
        self._disk, self._files = disk, sorted(files)
        self.times = [frame / rate for frame in range(len(files))]

    def size(self, frame: int) -> tuple[int, int]:
        """Upright (height, width) in pixels, from the header; raises Unreadable."""
        head = header(self.read(frame))
        return head.height, head.width

    def read(self, frame: int) -> bytes:
        """One picture; raises Unreadable."""
        return self._disk.whole(self._files[frame])


Video = VideoFile | FrameFolder
"""Frames by number; ``times`` (N,) are seconds from the first one, rising by a microsecond at least."""


class FrameFolders(NamedTuple):
    """``frames:FOLDER`` or ``frames@12.5:LIST.csv``: folders of pictures, each of which is a video."""

    where: str
    rate: float  # frames a second

    @classmethod
    def named(cls, data: str) -> Self | None:
        """None for a name of other data; raises UserError."""
        match = re.fullmatch(r"frames(?:@(\d+(?:\.\d+)?))?:(.+)", data, re.DOTALL)
        if match is None:
            return None
        rate = float(match[1] or _RATE)
        if not 1e-3 <= rate <= 1e6:
            raise UserError(f"{data}: frames a second must be from 0.001 to 1,000,000", USAGE)
        return cls(match[2], rate)

    def below(self, disk: Disk, listing: Listing) -> Divided[Encoded]:
        """The videos among the pictures that a disk lists; those beside all folders are the video ``.``."""
        files: dict[str, list[str]] = {}
        for path in listing.files:
            files.setdefault(str(PurePosixPath(path).parent), []).append(path)
        return self._divided(disk, VideoList.in_folders(list(files)), files).beside(listing.unreadable)

    def listed(self, root: Path, paths: PathList) -> Divided[Encoded]:
        """The videos of a list that lies in a folder."""
        return self._divided(Local(root), VideoList.of(paths), {name: _pictures_in(root, name) for name in paths.files})

    def _divided(self, disk: Disk, videos: VideoList, files: Mapping[str, Sequence[str]]) -> Divided[Encoded]:
        store = FrameStore(videos, lambda name: FrameFolder(disk, files[name], self.rate))
        return store.divided(disk, list(chain(*files.values())))


def _pictures_in(root: Path, folder: str) -> list[str]:
    pictures = Local(root / folder).listed(SUFFIXES).files if (root / folder).is_dir() else []
    return [f"{folder}/{path}" for path in pictures if "/" not in path]


def indexes(disk: Disk, names: Sequence[str]) -> list[FrameIndex | str]:
    """The index of each video, or why it has none; files that are new or have changed are read by all cores."""
    libav()  # its absence is no fault of the files
    stamps = stamps_of_files(disk.file, names)
    file = _cache_file(disk)
    cached, rows = _read(file), []
    for name, size, token in zip(stamps.names, stamps.sizes.tolist(), map(str, stamps.tokens)):
        row = cached.get(name, {})
        fresh = (row.get("bytes"), row.get("token")) == (size, token)
        rows.append(row if fresh else {"name": name, "bytes": size, "token": token})
    stale = [i for i, row in enumerate(rows) if "reason" not in row]
    workers = cores() if len(stale) > 1 else 0
    indexed = ordered(partial(_index_row, disk), [names[i] for i in stale], workers, part=lambda name, _: name)
    for i, (_, row) in zip(stale, indexed):
        rows[i] |= row
    if stale:
        with suppress(OSError):
            columns = ("name", "bytes", "token", "reason", *FrameIndex._fields)
            table = pa.table({name: [row.get(name) for row in rows] for name in columns}, metadata=_VERSION)
            file.parent.mkdir(parents=True, exist_ok=True)
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
            write_atomically(file, sink.getvalue().to_pybytes())
    return [_index(row) for row in rows]


def _cache_file(disk: Disk) -> Path:
    """A parquet file for each place in $XDG_CACHE_HOME, else ~/.cache, named whatever characters the place's name has.

    A row counts while name, size and content of its video are the same (see fingerprint.py). A cache that cannot be
    read is made again; where none can be written, there is none.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(cache) if os.path.isabs(cache) else Path(os.path.expanduser("~"), ".cache")
    name = hashlib.sha256(os.path.abspath(disk.name("")).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return folder / "lookalike" / "videos" / f"{name}.parquet"


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
    if row["reason"] is not None:
        return str(row["reason"])
    ticks, keys, seeks = (np.asarray(row[name], np.int64) for name in ("ticks", "keys", "seeks"))
    return FrameIndex(ticks, keys, seeks, row["unit"], row["height"], row["width"], row["counted"])


def _read(file: Path) -> dict[str, _Row]:
    """The rows of a cache by name; {} where it is missing, of another version, or damaged."""
    try:
        table = read_table(file)
    except (OSError, pa.ArrowException):
        return {}
    known = (table.schema.metadata or {}).items() >= _VERSION.items()
    return {row["name"]: row for row in table.to_pylist()} if known else {}


def frame_path(video: str, time: float) -> str:
    """``folder/name.mp4#t=1.240000``: one frame of a video."""
    return f"{video}{_TIME}{time:.6f}"


def video_of(path: str) -> str:
    """The video that a frame belongs to; the path itself where it names no frame."""
    return path.rpartition(_TIME)[0] or path


def in_videos(paths: Sequence[str]) -> Tensor | None:
    """(Q,) the number of each row's video, None where every row is of another."""
    videos = [video_of(path) for path in paths]
    numbers = {video: number for number, video in enumerate(dict.fromkeys(videos))}
    return torch.tensor([numbers[video] for video in videos]) if len(numbers) < len(videos) else None


class Timeline(NamedTuple):
    """When each of N rows was filmed; the frames of one video are consecutive rows, in the order of time."""

    times: Tensor  # (N,) float64 seconds from the start of its video
    first: Tensor  # (N,) int64 the first row of its video
    last: Tensor  # (N,) the last row of its video

    @classmethod
    def of(cls, paths: Sequence[str]) -> Self:
        """Of the rows at these paths, 1 µs a row; raises UserError where one of them is no frame of a video."""
        times, first = torch.empty(len(paths), dtype=torch.float64), torch.empty(len(paths), dtype=torch.int64)
        previous, last_time, start = None, 0.0, 0
        for row, path in enumerate(paths):
            video, time = _parted(path)
            if video != previous or time <= last_time:
                previous, start = video, row
            times[row], first[row], last_time = time, start, time
        counts = torch.unique_consecutive(first, return_counts=True)[1]
        return cls(times, first, first + counts.repeat_interleave(counts) - 1)

    def nearest(self, rows: Tensor, times: Tensor) -> Tensor:
        """The rows that are nearest to ``times`` in the videos of ``rows``, both of one shape; the earlier of two."""
        low, high = self.first[rows], self.last[rows]
        while bool((low < high).any()):
            middle = (low + high) // 2
            after = torch.minimum(middle + 1, high)
            past = self.times[middle] + self.times[after] < 2 * times  # nearer to the one after
            low, high = torch.where(past, after, low), torch.where(past, high, middle)
        return low


def _parted(path: str) -> tuple[str, float]:
    """Video and time of a frame; raises UserError."""
    video, mark, text = path.rpartition(_TIME)
    try:
        time = float(text) if mark else math.nan
    except ValueError:
        time = math.nan
    if not time >= 0:
        raise UserError(
            f"the recipe learns from videos, and {path} is a picture: name video files or frames:FOLDER, or take a "
            "recipe for pictures such as small",
            USAGE,
        )
    return video, time


def pieces(paths: Sequence[str], seconds: float) -> tuple[list[str], Tensor]:
    """Videos cut into pieces of so many seconds: their names, and for each path (N,) the number of its piece.

    A name is ``video#t=1.5,3``, or the video for an infinite length. A path that names no frame is a piece by itself.
    """
    numbers: dict[str, int] = {}
    piece_of_path = []
    for path in paths:
        video, mark, time = path.rpartition(_TIME)
        if not mark:
            name = path
        elif seconds == math.inf:
            name = video
        else:
            start = math.floor(float(time) / seconds + 1e-9) * seconds
            name = f"{video}{_TIME}{start:.10g},{start + seconds:.10g}"
        piece_of_path.append(numbers.setdefault(name, len(numbers)))
    return list(numbers), torch.tensor(piece_of_path, dtype=torch.int64)
