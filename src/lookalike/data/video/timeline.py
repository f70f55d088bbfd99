"""Rows that are frames of videos: the path of a row names a video and a time in it.

Which frames belong together is told by the paths alone: a prepared cache, or some rows of it, are still videos.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from lookalike.core.errors import USAGE, UserError

_TIME = "#t="  # as in W3C's media fragments


def frame_path(video: str, time: float) -> str:
    """``folder/name.mp4#t=1.240000``: one frame of a video."""
    return f"{video}{_TIME}{time:.6f}"


def video_of(path: str) -> str:
    """The video that a frame belongs to; the path itself where it names no frame."""
    return path.rpartition(_TIME)[0] or path


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
