"""Whether features agree with people: clusters with classes, and cosines with scores. Nothing is trained."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from lookalike.core.devices import full_precision
from lookalike.metrics.fewshot import Count, Interval, interval


class Agreement(NamedTuple):
    """Between clusters and labels, over draws of the first centres; 1 is the same parts, 0 what chance gives."""

    nmi: Interval  # normalised mutual information, by the arithmetic mean of the entropies
    ari: Interval  # adjusted Rand index
    classes: int


def agreement(
    features: Tensor, labels: Tensor, draws: int = 5, starts: int = 3, seed: int = 0, progress: Count = lambda _: None
) -> Agreement:
    """Of unit rows (N, F) with labels (N,), which only count the classes and judge the result.

    k-means with k-means++ starts, the best of ``starts`` by its own loss, over ``draws`` seeds.
    """
    classes, names = len(torch.unique(labels)), labels.numpy()
    scores = []
    for draw in range(draws):
        model = KMeans(classes, n_init=starts, random_state=seed + draw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than classes: some are empty
            parts = model.fit_predict(features.numpy())
        scores.append((normalized_mutual_info_score(names, parts), adjusted_rand_score(names, parts)))
        progress(1)
    return Agreement(interval([nmi for nmi, _ in scores]), interval([ari for _, ari in scores]), classes)


@full_precision()
def spearman(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of (N,) and (N,); equal values share the mean of their ranks. NaN without order."""
    ranks = torch.stack([ranked(first), ranked(second)])
    return float(torch.corrcoef(ranks)[0, 1]) if len(first) > 1 else math.nan


def ranked(values: Tensor) -> Tensor:
    """(N,) float64 ranks from 0; equal values share their mean."""
    _, which, counts = torch.unique(values.double(), return_inverse=True, return_counts=True)
    means: Tensor = counts.cumsum(0).double() - (counts + 1) / 2
    return means[which]
