"""What a number means: its interval, what guessing gives, and how it stands against a baseline's."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.metrics.fewshot import Interval, interval

_Z = NormalDist().inv_cdf(0.975)


class Bounds(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float

    def __format__(self, form: str) -> str:
        """``40.38% to 59.62%``."""
        return f"{self.low:{form}} to {self.high:{form}}"


def wilson(share: float, count: float) -> Bounds:
    """The 95 % interval of a share of ``count`` independent queries (Wilson 1927); NaN of none."""
    if count == 0:
        return Bounds(math.nan, math.nan)
    centre, scale = share + _Z * _Z / (2 * count), 1 + _Z * _Z / count
    half = _Z * math.sqrt(share * (1 - share) / count + (_Z / (2 * count)) ** 2)
    return Bounds(max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def chance(truth: Tensor) -> float:
    """The accuracy of always answering the most common of the labels (Q,); NaN of none.

    With classes of equal size that is one over their number; with others no guess that ignores the query does better.
    """
    if len(truth) == 0:
        return math.nan
    return int(torch.unique(truth, return_counts=True)[1].max()) / len(truth)


DRAWS = "draws"


class Evidence(NamedTuple):
    """What a number is the mean of: a score for each query, or one for each draw."""

    each: Tensor  # (Q,)
    unit: str  # what they are of, in the plural
    chance: float | None = None  # what guessing gives
    videos: Tensor | None = None  # (Q,) the number of the video that a frame is of: frames of one are much alike
    form: str = ".2%"

    @property
    def mean(self) -> float:
        """The number."""
        return float(self.each.double().mean())

    def half(self) -> float:
        """Half the 95 % interval of the mean over other queries."""
        return _Z * math.sqrt(self._squares(self.each, self.mean)) / len(self.each)

    def independent(self) -> float:
        """As many queries of videos of their own as would say so much of a share."""
        if self.videos is None:
            return len(self.each)
        squares, alone = self._squares(self.each, self.mean), len(self.each) ** 2 * self.mean * (1 - self.mean)
        return min(len(self.each), alone / squares) if squares else len(torch.unique(self.videos))

    def gain(self, other: Evidence) -> Interval:
        """How much higher it is than the mean of ``other``, of the same queries or draws, and the 95 % interval.

        Draws are paired by Student's t. Of right and wrong answers it is McNemar's interval with a query added that
        each side wins (Bonett and Price 2012), so that a few queries that all agree are not certain.
        """
        differences = self.each.double() - other.each.double()
        if self.unit == DRAWS:
            return interval(differences.tolist())
        count, mean = len(differences), float(differences.sum()) / (len(differences) + 2)
        squares = self._squares(differences, mean) + (1 - mean) ** 2 + (1 + mean) ** 2
        return Interval(float(differences.sum()) / count, _Z * math.sqrt(squares) / count)

    def _squares(self, values: Tensor, mean: float) -> float:
        """The sum of squared deviations of (Q,), summed over a video first."""
        deviations = values.double() - mean
        if self.videos is not None:
            deviations = torch.bincount(self.videos, deviations)
        return float(deviations.square().sum()) * len(deviations) / max(1, len(deviations) - 1)

    def verdict(self, other: Evidence, name: str) -> str:
        """``better than NAME: 71.20% against 48.30%, +22.9 ± 1.4 points (same 10,000 pictures)``."""
        gain, form = self.gain(other), self.form
        times, unit, digits = (100, " points", ".1f") if form.endswith("%") else (1, "", form)
        numbers = f"{self.mean:{form}} against {other.mean:{form}}, {times * gain.mean:+{digits}}"
        if math.isnan(gain.half):
            return f"one of the {self.unit} decides nothing against {name}: {numbers}{unit}"
        numbers += f" ± {times * gain.half:{digits}}{unit} (same {len(self.each):,} {self.unit})"
        if gain.mean > gain.half:
            return f"better than {name}: {numbers}"
        return f"no better than {name}: {numbers}" + ("" if self.chance is None else f", chance {self.chance:{form}}")
