"""What a query is scored against: the dictionary, as one field of a recipe.

A value (``Queue(4096)``) says which; ``build`` makes the module that holds its state. ``look_up`` is pure;
``absorb`` moves the state, once, after the optimizer step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Entries(NamedTuple):
    """What B queries are scored against; all rows have unit norm."""

    positive: Tensor  # (B, D): the key of the same example
    negatives: Tensor  # (K, D), shared by all queries
    ignore: Tensor | None = None  # (B, K), True where a negative is none


class Dictionary(nn.Module, ABC):
    """Supplies entries and, after the step, absorbs the keys that the step made."""

    @abstractmethod
    def look_up(self, query: Tensor, key: Tensor, index: Tensor) -> Entries:
        """The entries for queries (B, D) with keys (B, D) of the examples in rows ``index`` (B,); changes nothing."""

    @abstractmethod
    def absorb(self, query: Tensor, key: Tensor, index: Tensor) -> None:
        """Take in what a step made; called once, after the optimizer step."""


@dataclass(frozen=True)
class Queue:
    """The newest ``size`` keys, first in first out (MoCo, arXiv 1911.05722, section 3.2)."""

    size: int = 65536

    def build(self, dim: int, examples: int) -> QueueOfKeys:
        """A queue of ``size`` random unit rows of width ``dim``."""
        return QueueOfKeys(self.size, dim)

    def fitted(self, examples: int) -> Queue:
        """No larger than half the data: a longer queue would hold an earlier key of the query's own example."""
        return replace(self, size=max(1, min(self.size, examples // 2)))


class QueueOfKeys(Dictionary):
    """``keys`` (K, D) holds unit rows from the first step on; ``oldest`` is the row to be overwritten next."""

    keys: Tensor
    oldest: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a queue needs room for at least one key, not {size}")
        # Zeros or unnormalised rows break the early steps. In place: a long queue exists once, not three times.
        keys = torch.randn(size, dim)
        self.register_buffer("keys", F.normalize(keys, dim=1, out=keys))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))

    def look_up(self, query: Tensor, key: Tensor, index: Tensor) -> Entries:
        """Every key of earlier steps is a negative; those of this step are not in the queue yet."""
        return Entries(key, self.keys)

    @torch.no_grad()
    def absorb(self, query: Tensor, key: Tensor, index: Tensor) -> None:
        """Overwrite the oldest rows, across the wrap; of a batch longer than the queue the newest keys stay."""
        size = len(self.keys)
        newest = key[-size:]
        first = self.oldest + len(key) - len(newest)
        at = (first + torch.arange(len(newest), device=key.device)) % size
        self.keys[at] = newest.to(self.keys.dtype)
        self.oldest.copy_((self.oldest + len(key)) % size)
