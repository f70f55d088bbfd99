"""Whether features agree with people: clusters with classes, and cosines with scores. Nothing is trained."""

from __future__ import annotations

import math
import warnings
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.core.devices import full_precision
from lookalike.core.seeding import uniforms
from lookalike.metrics.fewshot import Count, Interval, interval


class Agreement(NamedTuple):
    """Between clusters and labels, over draws of the first centres; 1 is the same parts, 0 what chance gives."""

    nmi: Interval  # normalised mutual information, by the arithmetic mean of the entropies
    ari: Interval  # adjusted Rand index
    classes: int
    each: tuple[float, ...]  # NMI of each draw
    chance: float  # NMI of the same clusters with the labels in another order


def agreement(
    features: Tensor, labels: Tensor, draws: int = 5, starts: int = 3, seed: int = 0, progress: Count = lambda _: None
) -> Agreement:
    """Of unit rows (N, F) with labels (N,), which only count the classes and judge the result.

    k-means with k-means++ starts, the best of ``starts`` by its own loss, over ``draws`` seeds.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    classes, names = len(torch.unique(labels)), labels.numpy()
    shuffled = names[uniforms(seed, 0, torch.arange(len(labels)), 3, 1)[:, 0].argsort().numpy()]
    scores, chances = [], []
    for draw in range(draws):
        model = KMeans(classes, n_init=starts, random_state=seed + draw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than classes: some are empty
            parts = model.fit_predict(features.numpy())
        scores.append((float(normalized_mutual_info_score(names, parts)), adjusted_rand_score(names, parts)))
        chances.append(float(normalized_mutual_info_score(shuffled, parts)))
        progress(1)
    each = [nmi for nmi, _ in scores]
    return Agreement(interval(each), interval([ari for _, ari in scores]), classes, tuple(each), fmean(chances))


@full_precision()
def spearman(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of (N,) and (N,); equal values share the mean of their ranks. NaN without order."""
    ranks = torch.stack([ranked(first), ranked(second)])
    return float(torch.corrcoef(ranks)[0, 1]) if len(first) > 1 else math.nan


def influences(first: Tensor, second: Tensor) -> Tensor:
    """(N,) what each pair says of Spearman's correlation, of which their mean is: as if ranks were given numbers."""
    one, two = ((ranks - ranks.mean()) / ranks.std(correction=0) for ranks in map(ranked, (first, second)))
    correlation = (one * two).mean()
    return correlation + one * two - correlation * (one.square() + two.square()) / 2


def ranked(values: Tensor) -> Tensor:
    """(N,) float64 ranks from 0; equal values share their mean."""
    _, which, counts = torch.unique(values.double(), return_inverse=True, return_counts=True)
    means: Tensor = counts.cumsum(0).double() - (counts + 1) / 2
    return means[which]
