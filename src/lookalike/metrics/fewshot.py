"""Accuracy with few labels: what a person gets who labels one, five or ten examples of each class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.core.devices import full_precision
from lookalike.core.seeding import uniforms
from lookalike.metrics.probe import LinearProbe


class Interval(NamedTuple):
    """A mean and the half-width of its 95 % interval."""

    mean: float
    half: float


@dataclass(frozen=True)
class Fewshot:
    """Nearest class mean on unit features (prototypes, arXiv 1703.05175), over ``draws`` draws of the labels."""

    labels: tuple[int, ...] = (1, 5, 10)  # a class
    draws: int = 20
    seed: int = 0

    def accuracies(self, reference: Tensor, labels: Tensor, queries: Tensor, truth: Tensor) -> dict[int, Interval]:
        """For each number of labels, from unit rows (N, F) with labels (N,) to queries (Q, F).

        The same seed draws the same examples, whatever the features: that pairs comparisons.
        """
        return {n: self._repeated(n, reference, labels, queries, truth) for n in self.labels}

    def _repeated(self, n: int, reference: Tensor, labels: Tensor, queries: Tensor, truth: Tensor) -> Interval:
        found = [self._one(n, draw, reference, labels, queries, truth) for draw in range(self.draws)]
        return interval(found)

    @full_precision()
    def _one(self, n: int, draw: int, reference: Tensor, labels: Tensor, queries: Tensor, truth: Tensor) -> float:
        order = uniforms(self.seed, draw, torch.arange(len(labels)), n, 1)[:, 0].argsort()
        classes = torch.unique(labels)
        chosen = [order[labels[order] == c][:n] for c in classes]
        means = torch.stack([F.normalize(reference[rows].mean(0), dim=0) for rows in chosen])
        return float((classes[(queries @ means.T).argmax(1)] == truth).double().mean())


@dataclass(frozen=True)
class Shares:
    """A linear probe fitted to a share of the labels of each class, at least one, over ``draws`` draws of them."""

    shares: tuple[float, ...] = (0.01, 0.1)
    draws: int = 5
    probe: LinearProbe = LinearProbe()  # noqa: RUF009  (frozen)
    seed: int = 0

    def accuracies(
        self,
        reference: Tensor,
        labels: Tensor,
        queries: Tensor,
        truth: Tensor,
        progress: Callable[[int], None] = lambda _: None,
    ) -> dict[float, Interval]:
        """For each share, from rows (N, F) with labels (N,) to queries (Q, F); the decay is chosen in each draw."""
        found: dict[float, Interval] = {}
        for share in self.shares:
            right = []
            for draw in range(self.draws):
                rows = drawn(labels, share, self.seed + draw)
                right.append(self.probe.fit(reference[rows], labels[rows]).accuracy(queries, truth))
                progress(1)
            found[share] = interval(right)
        return found


def drawn(labels: Tensor, share: float, seed: int) -> Tensor:
    """Sorted rows: ``share`` of every class, rounded, but one at least; a function of the labels and the seed."""
    order = uniforms(seed, 0, torch.arange(len(labels)), 1, 1)[:, 0].argsort()
    of_class = (order[labels[order] == label] for label in torch.unique(labels))
    return torch.cat([rows[: max(1, round(share * len(rows)))] for rows in of_class]).sort().values


def interval(values: list[float]) -> Interval:
    """Mean and 95 % interval of independent draws, by Student's t."""
    found = torch.tensor(values, dtype=torch.float64)
    if len(values) < 2:
        return Interval(float(found.mean()), math.nan)
    return Interval(float(found.mean()), _student(len(values) - 1) * float(found.std()) / math.sqrt(len(values)))


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, within 1 % (Abramowitz & Stegun 26.7.5 from three degrees on)."""
    if freedom < 3:
        return (12.7062, 4.3027)[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
