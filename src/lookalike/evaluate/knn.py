"""Weighted k nearest neighbours (InstDisc, arXiv 1805.01978, section 3.4): nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Knn:
    """Each of the ``k`` nearest reference rows votes for its label with weight exp(cosine / temperature)."""

    k: int = 200
    temperature: float = 0.1

    def predict(self, reference: Tensor, labels: Tensor, queries: Tensor, chunk: int = 512) -> Tensor:
        """Labels (Q,) for unit rows ``queries`` (Q, F), from unit rows ``reference`` (N, F) with ``labels`` (N,).

        Classes are the values that occur in ``labels``, whatever numbers they are; of equal votes the smallest wins.
        """
        classes, votes_for = torch.unique(labels, return_inverse=True)
        k = min(self.k, len(reference))
        guesses = []
        for part in torch.split(queries, chunk):
            cosine, nearest = (part @ reference.T).topk(k, sorted=False)
            votes = torch.zeros(len(part), len(classes), dtype=torch.float64, device=part.device)
            above = cosine.double() - cosine.amax(1, keepdim=True)  # or a low temperature would overflow
            votes.scatter_add_(1, votes_for[nearest], (above / self.temperature).exp())
            guesses.append(classes[votes.argmax(1)])
        return torch.cat(guesses) if guesses else labels.new_empty(0)

    def accuracy(self, reference: Tensor, labels: Tensor, queries: Tensor, truth: Tensor) -> float:
        """The share of queries whose label is predicted."""
        return float((self.predict(reference, labels, queries) == truth).double().mean())
