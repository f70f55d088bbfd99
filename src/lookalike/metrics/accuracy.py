"""What an accuracy means: its interval, and what guessing gives."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor


class Bounds(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float

    def __format__(self, form: str) -> str:
        """``40.38% to 59.62%``."""
        return f"{self.low:{form}} to {self.high:{form}}"


def wilson(share: float, count: int) -> Bounds:
    """The 95 % interval of a share of ``count`` independent queries (Wilson 1927); NaN of none."""
    if count == 0:
        return Bounds(math.nan, math.nan)
    z = NormalDist().inv_cdf(0.975)
    centre, scale = share + z * z / (2 * count), 1 + z * z / count
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return Bounds(max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def chance(truth: Tensor) -> float:
    """The accuracy of always answering the most common of the labels (Q,); NaN of none.

    With classes of equal size that is one over their number; with others no guess that ignores the query does better.
    """
    if len(truth) == 0:
        return math.nan
    return int(torch.unique(truth, return_counts=True)[1].max()) / len(truth)
