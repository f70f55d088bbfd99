"""Accuracy with few labels: what a person gets who labels one, five or ten examples of each class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.core.devices import full_precision
from lookalike.core.seeding import uniforms
from lookalike.metrics.probe import LinearProbe

Count = Callable[[int], None]
"""Told how many more are done."""


class Interval(NamedTuple):
    """A mean and the half-width of its 95 % interval."""

    mean: float
    half: float  # NaN of a single draw

    def __format__(self, form: str) -> str:
        """``71.20% ± 1.30%``; a mean without an interval stands alone."""
        return f"{self.mean:{form}}" + ("" if math.isnan(self.half) else f" ± {self.half:{form}}")


def by_means(
    reference: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, counts: Sequence[int], draws: int, seed: int = 0
) -> dict[int, Interval]:
    """Accuracy by the nearest class mean (prototypes, arXiv 1703.05175) for each number of labels a class.

    From unit rows (N, F) with labels (N,) to queries (Q, F), over so many draws of the labels. The same seed draws the
    same examples, whatever the features: that pairs comparisons.
    """
    table = (reference, labels, queries, truth)
    return {n: interval([_by_mean(*table, n, draw, seed) for draw in range(draws)]) for n in counts}


@full_precision()
def _by_mean(reference: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, n: int, draw: int, seed: int) -> float:
    order = uniforms(seed, draw, torch.arange(len(labels)), n, 1)[:, 0].argsort()
    classes = torch.unique(labels)
    chosen = [order[labels[order] == c][:n] for c in classes]
    means = torch.stack([F.normalize(reference[rows].mean(0), dim=0) for rows in chosen])
    return float((classes[(queries @ means.T).argmax(1)] == truth).double().mean())


def by_draw(
    reference: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, amount: float, draw: int, seed: int = 0
) -> float:
    """Accuracy with the labels of one draw: a whole number of each class as ``by_means`` has it, or a share of them.

    To a share, at least one of each class, a linear probe is fitted, which chooses its decay in each draw.
    """
    if isinstance(amount, int):
        return _by_mean(reference, labels, queries, truth, amount, draw, seed)
    rows = drawn(labels, amount, seed + draw)
    return LinearProbe().fit(reference[rows], labels[rows]).accuracy(queries, truth)


def drawn(labels: Tensor, share: float, seed: int) -> Tensor:
    """Sorted rows: ``share`` of every class, rounded, but one at least; a function of the labels and the seed."""
    order = uniforms(seed, 0, torch.arange(len(labels)), 1, 1)[:, 0].argsort()
    of_class = (order[labels[order] == label] for label in torch.unique(labels))
    return torch.cat([rows[: max(1, round(share * len(rows)))] for rows in of_class]).sort().values


class LabelCount(NamedTuple):
    """How many labels a draw has."""

    labels: int
    of: int  # labelled examples in all
    classes: int
    fewer: int = 0  # classes with fewer examples than are wanted of each

    @classmethod
    def of_each(cls, labels: Tensor, n: float) -> LabelCount:
        """``n`` of each class, or all that it has; of a share that is no whole number as ``of_share``."""
        if not isinstance(n, int):
            return cls.of_share(labels, n)
        sizes = torch.unique(labels, return_counts=True)[1]
        return cls(int(sizes.clamp(max=n).sum()), len(labels), len(sizes), int((sizes < n).sum()))

    @classmethod
    def of_share(cls, labels: Tensor, share: float) -> LabelCount:
        """What ``drawn`` gives, which is more than the share where one of a class is more."""
        return cls(len(drawn(labels, share, 0)), len(labels), len(torch.unique(labels)))

    def facts(self) -> dict[str, int]:
        """For a record."""
        return {"labels": self.labels, "classes_with_fewer": self.fewer}

    def __str__(self) -> str:
        """``43 of 405, 10.6%, of 43 classes, 31 of which have fewer``."""
        fewer = f", {self.fewer} of which have fewer" if self.fewer else ""
        return f"{self.labels} of {self.of}, {self.labels / self.of:.1%}, of {self.classes} classes{fewer}"


def interval(values: list[float]) -> Interval:
    """Mean and 95 % interval of independent draws, by Student's t."""
    numbers = torch.tensor(values, dtype=torch.float64)
    if len(values) < 2:
        return Interval(float(numbers.mean()), math.nan)
    return Interval(float(numbers.mean()), _student(len(values) - 1) * float(numbers.std()) / math.sqrt(len(values)))


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, within 1 % (Abramowitz & Stegun 26.7.5 from three degrees on)."""
    if freedom < 3:
        return (12.7062, 4.3027)[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
