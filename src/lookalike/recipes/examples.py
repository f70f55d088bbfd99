"""Which rows of the data an example is made of: its own, except where the rows are frames of videos."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from lookalike.data.loader import Loads
from lookalike.data.video.timeline import Timeline
from lookalike.pretext.video import TwoClips, TwoFrames
from lookalike.recipes.recipe import Recipe


class Examples:
    """The examples of a loader's data, each its own row alone."""

    def __init__(self, recipe: Recipe, loader: Loads) -> None:
        self._recipe, self._loader = recipe, loader

    def training(self, rows: Tensor, epoch: int) -> Tensor:
        """The rows (R,) that ``epoch`` reads for the examples at ``rows`` (B,)."""
        return rows

    def whole(self, rows: Tensor) -> Tensor:
        """The rows (R,) that evaluations read for the examples at ``rows`` (B,)."""
        return rows

    def evaluated(self) -> Tensor:
        """(N,) the rows of the examples that evaluations look at."""
        return torch.arange(len(self._loader))


class FramePairs(Examples):
    """Training reads another frame of the same video, too."""

    @cached_property
    def timeline(self) -> Timeline:
        """When the rows were filmed; raises UserError where they are no frames of videos."""
        return Timeline.of(self._loader.source.paths)

    def training(self, rows: Tensor, epoch: int) -> Tensor:
        """The rows (R,) of the frames, or the clips, at ``rows`` (B,), then of the others."""
        assert isinstance(self._recipe.pretext, TwoFrames)
        return self._recipe.pretext.training_rows(self.timeline, rows, self._recipe.seed, epoch)


class ClipPairs(FramePairs):
    """An example is a clip of several frames, and evaluations look at clips that follow each other."""

    @property
    def _clips(self) -> TwoClips:
        assert isinstance(self._recipe.pretext, TwoClips)
        return self._recipe.pretext

    def whole(self, rows: Tensor) -> Tensor:
        """The rows of the clips at ``rows`` (B,)."""
        return self._clips.whole_rows(self.timeline, rows)

    def evaluated(self) -> Tensor:
        """(N,) where clips begin that follow each other without a gap."""
        return self._clips.examples(self.timeline)
