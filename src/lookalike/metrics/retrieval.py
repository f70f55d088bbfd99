"""Retrieval: how early pictures of the query's class come when the reference is sorted by cosine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.metrics.knn import products

AT = (1, 5, 10)
_BLOCK = 8  # queries whose keys are sorted together: they stay in the cache


class Retrieved(NamedTuple):
    """Means over the ``queries`` whose class the reference has."""

    recall: dict[int, float]  # k: the share of queries with one of their class among the k nearest
    mean_average_precision: float
    queries: int

    def words(self) -> str:
        """Recall, as ``words_of`` has it."""
        return words_of(self.recall)


def words_of(recall: Mapping[int, float]) -> str:
    """``recall@1 82.17%, recall@5 96.93%``."""
    return ", ".join(f"recall@{k} {share:.2%}" for k, share in recall.items())


class Ranking(NamedTuple):
    """What each of Q queries finds, whose class the reference has."""

    first: Tensor  # (Q,) the place of the first of its class, from 0 on
    precision: Tensor  # (Q,) average precision

    def retrieved(self, at: Sequence[int] = AT) -> Retrieved:
        """The means; 0 of none."""
        if len(self.first) == 0:
            return Retrieved(dict.fromkeys(at, 0.0), 0.0, 0)
        recall = {k: float((self.first < k).double().mean()) for k in at}
        return Retrieved(recall, float(self.precision.mean()), len(self.first))


def by_luck(labels: Tensor, truth: Tensor, at: Sequence[int] = AT) -> Retrieved:
    """What is to be expected of ``labels`` (N,) in a random order, for the queries with ``truth`` (Q,)."""
    truth = truth[torch.isin(truth, labels)]
    total, (classes, which) = len(labels), torch.unique(truth, return_inverse=True)
    alike = (labels == classes[:, None]).sum(1).double()[which]
    if len(truth) == 0:
        return Retrieved(dict.fromkeys(at, 0.0), 0.0, 0)
    left = total - torch.arange(max(at), dtype=torch.float64)
    misses = ((left - alike[:, None]) / left.clamp_min(1)).clamp(min=0).cumprod(1).mean(0)  # (max(at),)
    harmonic = float((1 / torch.arange(1, total + 1, dtype=torch.float64)).sum())
    precision = (alike - 1 + (total - alike) * harmonic / total) / max(1, total - 1) if total > 1 else alike
    return Retrieved({k: 1 - float(misses[k - 1]) for k in at}, float(precision.mean()), len(truth))


def ranking(
    reference: Tensor,
    labels: Tensor,
    queries: Tensor,
    truth: Tensor,
    progress: Callable[[int], None] = lambda _: None,
) -> Ranking:
    """How early each query finds its class in the whole reference; the earlier of equal cosines leads.

    From unit rows ``queries`` (Q, F) with ``truth`` (Q,) in unit rows ``reference`` (N, F) with ``labels``.
    """
    known = torch.isin(truth, labels)
    queries, truth = queries[known], truth[known]
    firsts, precisions, done = [], [], 0
    for cosines in products(queries, reference):
        for part in torch.split(cosines, _BLOCK):
            alike = labels == truth[done : done + len(part), None]
            first, precision = ranked(sorted_hits(part, alike))
            firsts.append(first)
            precisions.append(precision)
            done += len(part)
            progress(len(part))
    if not firsts:
        return Ranking(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.float64))
    return Ranking(torch.cat(firsts), torch.cat(precisions))


def sorted_hits(cosines: Tensor, alike: Tensor) -> Tensor:
    """``alike`` (B, N) in the order of falling ``cosines`` (B, N); of equal ones the earlier column leads.

    Cosine, column and hit make one number of 64 bits, which numpy sorts with the processor's vectors: an eighth of the
    time of sorting indices by value.
    """
    bits = (cosines + 0.0).view(torch.int32)  # there is one zero only
    keys = torch.empty(*cosines.shape, 2, dtype=torch.int32)  # the low half first, as processors have it
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # floats of either sign in the order of whole numbers
    torch.bitwise_not(rising, out=keys[..., 1])
    torch.add(alike, torch.arange(0, 2 * cosines.shape[1], 2, dtype=torch.int32), out=keys[..., 0])
    keys.view(torch.int64).squeeze(2).numpy().sort(axis=1)
    return (keys[..., 0] & 1).bool()


def ranked(hits: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) the first column of (B, N) that is True, and the average precision; every row has one."""
    row, column = hits.nonzero(as_tuple=True)
    counts = hits.sum(1)
    starts = counts.cumsum(0) - counts
    so_far = torch.arange(1, len(row) + 1) - starts[row]  # True up to and with each of them
    shares = so_far.double() / (column + 1)
    return column[starts], torch.zeros(len(hits), dtype=torch.float64).index_add_(0, row, shares) / counts
