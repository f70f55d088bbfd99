"""Retrieval: how early pictures of the query's class come when the reference is sorted by cosine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.evaluate.knn import products


class Retrieved(NamedTuple):
    """Means over the ``asked`` queries whose class the reference has."""

    recall: dict[int, float]  # k: the share of queries with one of their class among the k nearest
    mean_average_precision: float
    asked: int


@dataclass(frozen=True)
class Retrieval:
    """Recall at ``at``, and mean average precision over the whole reference; of equal cosines the earlier row leads."""

    at: tuple[int, ...] = (1, 5, 10)

    def measured(
        self,
        reference: Tensor,
        labels: Tensor,
        queries: Tensor,
        truth: Tensor,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Retrieved:
        """From unit rows ``queries`` (Q, F) with ``truth`` (Q,) in unit rows ``reference`` (N, F) with ``labels``."""
        known = torch.isin(truth, labels)
        queries, truth = queries[known], truth[known]
        firsts, precisions, done = [], [], 0
        for cosines in products(queries, reference):
            order = cosines.argsort(dim=1, descending=True, stable=True)
            alike = labels[order] == truth[done : done + len(order), None]
            firsts.append(alike.int().argmax(1))
            precisions.append(average_precision(alike))
            done += len(order)
            progress(len(order))
        if not firsts:
            return Retrieved(dict.fromkeys(self.at, 0.0), 0.0, 0)
        first = torch.cat(firsts)
        recall = {k: float((first < k).double().mean()) for k in self.at}
        return Retrieved(recall, float(torch.cat(precisions).mean()), len(first))


def average_precision(alike: Tensor) -> Tensor:
    """(B,) float64 the mean, over the True of each row of (B, N), of the share of True up to there."""
    so_far = alike.cumsum(1, dtype=torch.float64)
    shares = so_far / torch.arange(1, alike.shape[1] + 1, device=alike.device)
    return (shares * alike).sum(1) / alike.sum(1)
