"""Supervised training as one more recipe: queries are logits, and the dictionary holds the axes of the classes.

So the usual classifier has the loop, the batches and the checkpoints of everything that it is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.core.errors import Bounded, Count
from lookalike.learn.dictionary import Dictionary, Entries
from lookalike.learn.keys import Keys, Pair, QueryEncoder
from lookalike.learn.objective import InfoNCE, Objective
from lookalike.types import Batch


@dataclass(frozen=True)
class Labelled(Keys):
    """No keys: a label says what the one view of a step should score highest.

    Queries are the head's output as it is: a norm would bind the logits.
    """

    def pairs(self, encoder: QueryEncoder, batch: Batch, keys: tuple[Tensor, ...] = ()) -> list[Pair]:
        """The logits (B, C) of the first view."""
        logits = encoder.project(batch.first)
        return [(logits, logits.detach())]


@dataclass(frozen=True)
class Classes(Bounded):
    """The axes of ``count`` classes, one of which is a query's positive; the head ends in that many numbers."""

    count: Count = 10

    def build(self, dim: int, examples: int) -> AxesOfClasses:
        """Nothing is stored."""
        return AxesOfClasses(dim)

    def fitted(self, examples: int) -> Classes:
        """The same for any number of examples."""
        return self

    def negatives(self, batch: int, examples: int) -> int:
        """How many a query is scored against."""
        return self.count - 1

    def __str__(self) -> str:
        return f"{self.count} classes"


class AxesOfClasses(Dictionary):
    """Looked up by the number of the class, from 0."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def look_up(self, query: Tensor, key: Tensor, index: Tensor, direction: int = 0) -> Entries:
        """The axis of each query's class, and all axes but that."""
        axes = torch.eye(self.count, dtype=query.dtype, device=query.device)
        own = F.one_hot(index, self.count)
        return Entries(own.to(query.dtype), axes, own.bool())


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """−log softmax of the class's logit: InfoNCE at temperature 1, whose negatives are the other classes."""

    supervised = True

    def chance_loss(self, negatives: int) -> float:
        """The logarithm of the number of classes."""
        return InfoNCE(1.0).chance_loss(negatives)

    def score(self, query: Tensor, entries: Entries) -> Tensor:
        """The mean over B queries."""
        return InfoNCE(1.0)(query, entries)
