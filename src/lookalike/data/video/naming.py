"""Videos as a store of pictures: a row is one frame, at an address of a video and a time.

A frame is a picture file that is made when it is asked for, so everything that is done with pictures is done with
frames. What belongs together is told by the addresses alone: a prepared cache or some rows of it are still videos.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lookalike.core.errors import USAGE, UserError
from lookalike.data.example import Source
from lookalike.data.formats.archives import class_folders, rows_by_folder
from lookalike.data.formats.encoded import numbered
from lookalike.data.formats.files import printable
from lookalike.data.image.decode import Unreadable
from lookalike.types import Film

_TIME = "#t="  # of W3C's media fragments
FEWEST = 2  # frames of a video


class Reel(Protocol):
    """One video: frames by number."""

    @property
    def times(self) -> Sequence[float]:
        """(N,) seconds from the first frame, rising by a microsecond at least."""

    def size(self, frame: int) -> tuple[int, int]:
        """Upright (height, width) in pixels, without decoding; raises Unreadable."""

    def read(self, frame: int) -> bytes:
        """A frame as a picture file; raises Unreadable."""


class Titles(NamedTuple):
    """Videos by name before any is opened: a label for each, -1 where there is none, and the videos of each split."""

    names: Sequence[str]
    labels: Sequence[int]
    classes: list[str]
    splits: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, names: Sequence[str]) -> Titles:
        """By folders, as pictures are: the first may name the split, the next one the class."""
        splits = rows_by_folder(names)
        labels, classes = numbered(class_folders(names, 1 if splits else 0))
        return cls(names, labels, classes, splits)


class Footage:
    """The frames of videos, video by video in the order of time."""

    def __init__(self, titles: Titles, open_one: Callable[[str], Reel]) -> None:
        """``open_one`` raises Unreadable for a video that is left out; it is listed with the reason."""
        self.unlisted: dict[str, str] = {}
        self._reels: list[Reel] = []
        self.paths: list[str] = []
        self.labels: list[int] = []
        self.classes = titles.classes
        places: dict[int, range] = {}
        for video, (name, label) in enumerate(zip(titles.names, titles.labels)):
            shown = printable(name)
            try:
                reel = _whole(open_one(name))
            except Unreadable as unreadable:
                self.unlisted[shown] = unreadable.reason
                continue
            places[video] = range(len(self.paths), len(self.paths) + len(reel.times))
            self._reels.append(reel)
            self.paths += [address(shown, time) for time in reel.times]
            self.labels += [label] * len(reel.times)
        self.starts = list(accumulate((len(reel.times) for reel in self._reels), initial=0))
        self.splits = {
            name: [row for video in videos for row in places.get(video, ())] for name, videos in titles.splits.items()
        }

    def read(self, row: int) -> bytes:
        """A frame as a picture file; raises Unreadable."""
        reel, frame = self._place(row)
        return reel.read(frame)

    def size(self, row: int) -> tuple[int, int]:
        """Upright (height, width) in pixels; raises Unreadable."""
        reel, frame = self._place(row)
        return reel.size(frame)

    def _place(self, row: int) -> tuple[Reel, int]:
        video = bisect.bisect_right(self.starts, row) - 1
        return self._reels[video], row - self.starts[video]


def _whole(reel: Reel) -> Reel:
    """The reel, if it is a video; raises Unreadable."""
    if len(reel.times) < FEWEST:
        raise Unreadable("a single frame is no video")
    return reel


def address(video: str, time: float) -> str:
    """``folder/name.mp4#t=1.240000``: one frame of a video."""
    return f"{video}{_TIME}{time:.6f}"


def video_of(path: str) -> str:
    """The video that a frame belongs to; the path itself where it names no frame."""
    return path.rpartition(_TIME)[0] or path


def filmed(source: Source) -> Callable[[], Film]:
    """Gives when the rows were filmed, worked out once; raises UserError where they are no frames of videos."""

    def found() -> Film:
        if (film := film_of(source.paths)) is None:
            raise UserError(
                f"the recipe learns from videos, and {source.paths[0]} is a picture: name video files "
                "or frames:FOLDER, or take a recipe for pictures such as small",
                USAGE,
            )
        return film

    return cache(found)


def pieces(paths: Sequence[str], seconds: float) -> tuple[list[str], Tensor]:
    """Videos cut into pieces of so many seconds: their names, and for each path (N,) the number of its piece.

    A name is ``video#t=1.5,3``, or the video for an infinite length. A path that names no frame is a piece by itself.
    """
    numbers: dict[str, int] = {}
    found = []
    for path in paths:
        video, mark, time = path.rpartition(_TIME)
        if not mark:
            name = path
        elif seconds == math.inf:
            name = video
        else:
            start = math.floor(float(time) / seconds + 1e-9) * seconds
            name = f"{video}{_TIME}{start:.10g},{start + seconds:.10g}"
        found.append(numbers.setdefault(name, len(numbers)))
    return list(numbers), torch.tensor(found, dtype=torch.int64)


def film_of(paths: Sequence[str]) -> Film | None:
    """When the rows at these paths were filmed, 1 µs a row; None where any of them is no frame of a video."""
    times, first = torch.empty(len(paths), dtype=torch.float64), torch.empty(len(paths), dtype=torch.int64)
    before, last_time, start = None, 0.0, 0
    for row, path in enumerate(paths):
        video, mark, text = path.rpartition(_TIME)
        try:
            time = float(text) if mark else torch.nan
        except ValueError:
            return None
        if not time >= 0:
            return None
        if video != before or time <= last_time:
            before, start = video, row
        times[row], first[row], last_time = time, start, time
    counts = torch.unique_consecutive(first, return_counts=True)[1]
    return Film(times, first, first + counts.repeat_interleave(counts) - 1)
