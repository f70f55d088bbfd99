"""Whether classes are clusters: k-means with as many centres as there are classes, compared with the labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from lookalike.metrics.fewshot import Interval, interval


class Agreement(NamedTuple):
    """Between clusters and labels, over draws of the first centres; 1 is the same parts, 0 what chance gives."""

    nmi: Interval  # normalised mutual information, by the arithmetic mean of the entropies
    ari: Interval  # adjusted Rand index
    classes: int


@dataclass(frozen=True)
class Clusters:
    """k-means (k-means++ starts, the best of ``starts`` by its own loss) over ``draws`` seeds."""

    draws: int = 5
    starts: int = 3
    seed: int = 0

    def agreement(
        self, features: Tensor, labels: Tensor, progress: Callable[[int], None] = lambda _: None
    ) -> Agreement:
        """Of unit rows (N, F) with labels (N,); labels only count the classes and judge the result."""
        classes = len(torch.unique(labels))
        found = []
        for draw in range(self.draws):
            model = KMeans(classes, n_init=self.starts, random_state=self.seed + draw)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than classes: some are empty
                parts = model.fit_predict(features.numpy())
            names = labels.numpy()
            found.append((normalized_mutual_info_score(names, parts), adjusted_rand_score(names, parts)))
            progress(1)
        return Agreement(interval([nmi for nmi, _ in found]), interval([ari for _, ari in found]), classes)
