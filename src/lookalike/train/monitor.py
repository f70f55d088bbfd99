"""The check-up of a run: how good its features are by now, on training examples alone."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.core.devices import placed
from lookalike.core.seeding import uniforms
from lookalike.data.loader import Loads
from lookalike.data.video.source import video_of
from lookalike.learn.learner import Learner
from lookalike.models.features import settle
from lookalike.recipes.examples import Examples
from lookalike.recipes.recipe import Recipe
from lookalike.train.trained import Trained


class Checkup(NamedTuple):
    """What is done a few times during a run: fit the whitening, and measure kNN where the training data has labels.

    It sees a fixed draw of training examples, a fifth of which are the queries: no test example is looked at.
    """

    loader: Loads
    recipe: Recipe
    rows: Tensor
    queries: int  # how many of them, the first, are the queries

    @classmethod
    def of(cls, loader: Loads, recipe: Recipe, most: int = 5000) -> Checkup:
        """A draw of at most ``most`` rows that the data alone decides; frames of a video stay on one side."""
        rows = Examples(recipe, loader).evaluated()
        drawn = rows[uniforms(0, 0, rows, 2, 1)[:, 0].argsort()][:most].tolist()
        videos: dict[str, list[int]] = {}
        for row in drawn:
            videos.setdefault(video_of(loader.source.paths[row]), []).append(row)
        sizes = list(accumulate(map(len, videos.values()), initial=0))
        queries = next(size for size in sizes if size >= len(drawn) // 5)
        return cls(loader, recipe, torch.tensor([row for part in videos.values() for row in part]), queries)

    def __call__(self, learner: Learner) -> dict[str, float]:
        """{"knn": accuracy} of the backbone's features; {} without labels, or where they were trained on."""
        trained = Trained(self.recipe, learner.encoder, 0)
        features = settle(learner.encoder, trained.views(self.loader, self.rows))
        labels, count = self.loader.source.labels[self.rows], self.queries
        if count in (0, len(labels)) or self.recipe.objective.supervised or bool((labels < 0).any()):
            return {}
        # As many neighbours of the whole data as the recipe's k would be of this part of it.
        k = max(1, round(self.recipe.monitor.k * (len(labels) - count) / len(self.loader)))
        knn = replace(self.recipe.monitor, k=k)
        return {"knn": knn.accuracy(features[count:], labels[count:], features[:count], labels[:count])}

    def seconds(self) -> float:
        """How long one call takes, by making one."""
        began = time.perf_counter()
        self(placed(self.recipe.build(len(self.loader))))
        return time.perf_counter() - began
