"""Two moments of one video belong together: two frames for an encoder of pictures, two clips for one of videos.

An example is a moment, which a row stands for. The other moment is drawn by counters, so the rows that a step reads are
a function of (seed, epoch, row) and of the times of the frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lookalike.core.errors import POSITIVE, Limit
from lookalike.core.seeding import uniforms
from lookalike.data.video.source import Timeline
from lookalike.pretext.image import TwoViews, ViewPair
from lookalike.types import Canvases, View

_MOMENT = 8  # the number of the draws that choose the other moment; 0 and 1 are those of the views


@dataclass(frozen=True)
class TwoMoments(ViewPair):
    """The query shows one moment of a video, the key another one of the same video.

    It lies ``near`` to ``far`` seconds before or after; equal numbers state the distance. Of a video that is too short
    the end is taken that is farther away.
    """

    near: Annotated[float, Limit(0)] = 0.0
    far: Annotated[float | None, Limit(0)] = 1.0  # None: anywhere in the video

    def __call__(self, canvases: Canvases, rows: Tensor, seed: int, epoch: int) -> tuple[View, View]:
        """Two views of the examples at ``rows`` (B,), from the canvases of their frames and then of the others."""
        query, key = (Canvases(*part) for part in zip(*(torch.tensor_split(part, 2) for part in canvases)))
        return self.first(query, rows, seed, epoch, 0), (self.second or self.first)(key, rows, seed, epoch, 1)

    def farthest(self) -> float:
        """Seconds that may lie between the two moments."""
        return math.inf if self.far is None else self.far

    def other_moments(self, timeline: Timeline, rows: Tensor, draws: Tensor, span: float = 0.0) -> Tensor:
        """(B,) the times of the other moments, after which ``span`` seconds of the video are left where it has them.

        Uniform over what lies ``near`` to ``far`` seconds away, on both sides. ``draws`` (B, 2): the side, the place.
        """
        far = self.farthest()
        here, begin = timeline.times[rows], timeline.times[timeline.first[rows]]
        end = torch.maximum(begin, timeline.times[timeline.last[rows]] - span)
        low = torch.stack([torch.maximum(begin, here - far), here + self.near])  # of the past, of the future
        high = torch.stack([here - self.near, torch.minimum(end, here + far)])
        room, open_ = (high - low).clamp_min(0), high >= low
        weight = torch.where(room.sum(0) > 0, room, open_.double())
        share = weight[0] / weight.sum(0)  # not a number where neither side is open
        side = (draws[:, 0].double() >= share).long()[None]
        drawn = (low + draws[:, 1].double() * room).gather(0, side)[0]
        farther = torch.where(here - begin > end - here, begin, end)
        return torch.where(open_.any(0), drawn, farther)


@dataclass(frozen=True)
class TwoFrames(TwoMoments, TwoViews):
    """Two frames, each for an encoder of pictures."""

    modality: ClassVar[str] = "frames"

    def training_rows(self, timeline: Timeline, rows: Tensor, seed: int, epoch: int) -> Tensor:
        """The frames at ``rows`` (B,), then the other frame of each: (2 B,)."""
        times = self.other_moments(timeline, rows, uniforms(seed, epoch, rows, _MOMENT, 2))
        return torch.cat([rows, timeline.nearest(rows, times)])


@dataclass(frozen=True)
class TwoClips(TwoMoments):
    """Two clips of ``frames`` frames, ``every`` seconds apart, which are cropped and coloured alike.

    A clip begins at its moment, or earlier where the video ends; a video that is shorter than a clip ends in its last
    frame, again and again. Encoders see (B, 3, frames, S, S).
    """

    modality: ClassVar[str] = "clips"

    far: Annotated[float | None, Limit(0)] = None
    frames: Annotated[int, Limit(2, 1024)] = 8
    every: Annotated[float, POSITIVE] = 0.08

    def __call__(self, canvases: Canvases, rows: Tensor, seed: int, epoch: int) -> tuple[View, View]:
        """Two clips of the examples at ``rows`` (B,), from the canvases of ``training_rows``."""
        pair = super().__call__(canvases, rows.repeat_interleave(self.frames), seed, epoch)
        return self._clips(pair[0]), self._clips(pair[1])

    def evaluation(self, canvases: Canvases, share: float = 1.0) -> View:
        """Clips of whole frames, from the canvases of ``whole_rows``; nothing is random."""
        return self._clips(super().evaluation(canvases, share))

    def training_rows(self, timeline: Timeline, rows: Tensor, seed: int, epoch: int) -> Tensor:
        """The frames of the clips at ``rows`` (B,), clip by clip, then those of the others: (2 B frames,)."""
        times = self.other_moments(timeline, rows, uniforms(seed, epoch, rows, _MOMENT, 2), self.span)
        return torch.cat([self.whole_rows(timeline, rows), self._clip(timeline, rows, times)])

    def whole_rows(self, timeline: Timeline, rows: Tensor) -> Tensor:
        """The frames of the clips at ``rows`` (B,), clip by clip: (B frames,)."""
        return self._clip(timeline, rows, timeline.times[rows])

    def examples(self, timeline: Timeline) -> Tensor:
        """The rows of moments from which clips follow each other without a gap; at least one of each video."""
        rows = torch.arange(len(timeline.times))
        part = (timeline.times / (self.span + self.every)).floor()
        begins = torch.ones(len(rows), dtype=torch.bool)
        begins[1:] = (part[1:] != part[:-1]) | (timeline.first[1:] != timeline.first[:-1])
        fits = timeline.times + self.span <= timeline.times[timeline.last]
        return (begins & (fits | (rows == timeline.first))).nonzero()[:, 0]

    def displayable(self, first: View, second: View) -> tuple[Tensor, Tensor]:
        """Both clips as uint8 (B, 3, n S, n S): their frames as the tiles of a square, line by line."""
        clips = ({"pixels": clip["pixels"].transpose(1, 2).flatten(0, 1)} for clip in (first, second))
        query, key = (_tiled(frames, self.frames) for frames in super().displayable(*clips))
        return query, key

    @property
    def span(self) -> float:
        """Seconds from the first to the last frame of a clip."""
        return (self.frames - 1) * self.every

    def _clip(self, timeline: Timeline, rows: Tensor, start: Tensor) -> Tensor:
        """(B frames,) the rows of clips in the videos of ``rows`` (B,) that begin at ``start``, or before it ends."""
        begin, end = timeline.times[timeline.first[rows]], timeline.times[timeline.last[rows]]
        start = torch.minimum(start, torch.maximum(begin, end - self.span))
        times = start[:, None] + self.every * torch.arange(self.frames)
        return timeline.nearest(rows[:, None].expand_as(times), times).flatten()

    def _clips(self, view: View) -> View:
        """(B frames, 3, S, S) as (B, 3, frames, S, S), colours last in memory as they are."""
        return {name: part.view(-1, self.frames, *part.shape[1:]).transpose(1, 2) for name, part in view.items()}


def _tiled(frames: Tensor, each: int) -> Tensor:
    """(B each, 3, S, S) as (B, 3, n S, n S): ``each`` tiles in lines of n, black where there are no more."""
    count = math.ceil(math.sqrt(each))
    clips = frames.view(-1, each, *frames.shape[1:])
    room = clips.new_zeros(len(clips), count * count, *clips.shape[2:])
    room[:, :each] = clips
    lines = room.view(len(room), count, count, *room.shape[2:]).permute(0, 3, 1, 4, 2, 5)
    return lines.flatten(4, 5).flatten(2, 3)
