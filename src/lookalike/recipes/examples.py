"""Which rows of the data an example is made of: its own, except where rows are frames of videos."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from lookalike.data.loader import Loads
from lookalike.data.video.source import Timeline
from lookalike.pretext.video import TwoClips, TwoFrames
from lookalike.recipes.recipe import Recipe


class Examples:
    """The examples of a loader's data, as a recipe sees them."""

    def __init__(self, recipe: Recipe, loader: Loads) -> None:
        self._pretext, self._seed, self._loader = recipe.pretext, recipe.seed, loader

    @cached_property
    def _timeline(self) -> Timeline:
        return Timeline.of(self._loader.source.paths)

    def training(self, rows: Tensor, epoch: int) -> Tensor:
        """The rows (R,) that ``epoch`` reads for the examples at ``rows`` (B,); raises UserError for no videos."""
        if isinstance(self._pretext, TwoFrames):
            return self._pretext.training_rows(self._timeline, rows, self._seed, epoch)
        return rows

    def whole(self, rows: Tensor) -> Tensor:
        """The rows (R,) that evaluations read for the examples at ``rows`` (B,); raises UserError for no videos."""
        return self._pretext.whole_rows(self._timeline, rows) if isinstance(self._pretext, TwoClips) else rows

    def evaluated(self) -> Tensor:
        """(N,) the rows of the examples that evaluations look at; raises UserError for no videos."""
        if isinstance(self._pretext, TwoClips):
            return self._pretext.examples(self._timeline)
        return torch.arange(len(self._loader))
