"""Weighted k nearest neighbours (InstDisc, arXiv 1805.01978, section 3.4): nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lookalike.core.devices import full_precision
from lookalike.core.errors import Bounded, Count, Temperature

PUBLISHED = 200
"""Neighbours that vote in InstDisc and since."""

_SCORES = 1 << 25  # cosines held at a time: 128 MiB
_GROUP = 8  # columns of which the largest is compared first


@dataclass(frozen=True)
class Knn(Bounded):
    """Each of the ``k`` nearest reference rows, or of all where there are fewer, votes for its label.

    A vote weighs exp(cosine / temperature).
    """

    k: Count = PUBLISHED
    temperature: Temperature = 0.1

    @classmethod
    def suited(cls, labels: Tensor, temperature: float) -> Knn:
        """For a reference with ``labels`` (N,): as published, but of little data as many as an average class has.

        Where more vote, most of them must be of other classes, and where nearly all do, every query gets one answer.
        """
        classes = torch.unique(
            torch.cat([torch.unique(part) for part in torch.split(labels, 1 << 20)])
        )  # no copy of all
        return cls(max(1, min(PUBLISHED, len(labels) // max(1, len(classes)))), temperature)

    def neighbours(self, rows: int) -> int:
        """How many of so many reference rows vote."""
        return min(self.k, rows)

    def predict(self, reference: Tensor, labels: Tensor, queries: Tensor, chunk: int | None = None) -> Tensor:
        """Labels (Q,) for unit rows ``queries`` (Q, F), from unit rows ``reference`` (N, F) with ``labels`` (N,).

        Classes are the values that occur in ``labels``, whatever numbers they are; of equal votes the smallest wins.
        The answers are on the device of ``labels``, which may be another than that of the rows.
        """
        classes, votes_for = torch.unique(labels, return_inverse=True)
        votes_for = votes_for.to(reference.device)
        guesses = []
        for cosines in products(queries, reference, chunk):
            cosine, nearest = largest(cosines, self.neighbours(len(reference)))
            votes = torch.zeros(len(cosine), len(classes), dtype=torch.float64, device=cosine.device)
            above = cosine.double() - cosine.amax(1, keepdim=True)  # or a low temperature would overflow
            votes.scatter_add_(1, votes_for[nearest], (above / self.temperature).exp())
            guesses.append(classes[votes.argmax(1).to(classes.device)])
        return torch.cat(guesses) if guesses else labels.new_empty(0)

    def accuracy(self, reference: Tensor, labels: Tensor, queries: Tensor, truth: Tensor) -> float:
        """The share of queries whose label is predicted."""
        return float((self.predict(reference, labels, queries) == truth).double().mean())


@torch.no_grad()
def products(queries: Tensor, reference: Tensor, chunk: int | None = None) -> Iterator[Tensor]:
    """(B, N) products of some queries with all of ``reference``, one after the other; each overwrites the last.

    Memory that is written again costs a fifth less time than new memory, whose pages must be found first.
    """
    chunk = chunk or max(16, min(512, _SCORES // max(1, len(reference))))
    room = queries.new_empty(min(chunk, len(queries)), len(reference))
    for part in torch.split(queries, chunk) if len(queries) else ():
        with full_precision():
            product = torch.mm(part, reference.T, out=room[: len(part)])
        yield product


def largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest of each row of (B, N), in no order, and their columns: a third of the time of ``topk``.

    They all lie in the k groups of columns whose maxima are largest, since a group beyond those has k numbers above
    its own; so the maxima are compared first, in the same way, and then what the k groups hold.
    """
    rows, count = scores.shape
    groups = count // _GROUP
    if groups < 2 * k:
        values, columns = scores.topk(k, sorted=False)
        return values, columns
    maxima = scores[:, : groups * _GROUP].view(rows, _GROUP, groups).amax(1)
    groups_of_best = largest(maxima, k)[1]
    inside = (groups_of_best[:, None] + groups * torch.arange(_GROUP, device=scores.device)[:, None]).flatten(1)
    left = torch.arange(groups * _GROUP, count, device=scores.device).expand(rows, -1)
    columns = torch.cat([inside, left], 1)
    values, chosen = scores.gather(1, columns).topk(k, sorted=False)
    return values, columns.gather(1, chosen)


def leading(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest of each row of (B, N), the largest first, and their columns; of equal ones the first leads."""
    values, columns = largest(scores, k)
    columns, order = columns.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    columns, least = columns.gather(1, order), values[:, -1:]
    for row in ((scores == least).sum(1) > (values == least).sum(1)).nonzero()[:, 0].tolist():
        every = (scores[row] >= least[row]).nonzero()[:, 0]
        values[row], order = (part[:k] for part in scores[row, every].sort(descending=True, stable=True))
        columns[row] = every[order]
    return values, columns
