"""Semantic textual similarity: do cosines order pairs of texts as people do? Nothing is trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lookalike.core.devices import full_precision


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
