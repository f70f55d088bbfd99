"""What a query is scored against: the dictionary, as one field of a recipe.

A value (``Queue(4096)``) says which; ``build`` makes the module that holds its state. ``look_up`` is pure;
``absorb`` moves the state, once, after the optimizer step. Every rank holds the same queue, and its share of a bank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.core import dist
from lookalike.core.devices import full_precision, wide
from lookalike.learn.bank import MemoryBank
from lookalike.learn.entries import DTYPES, Dictionary, Entries, Precision

__all__ = ["Dictionary", "Entries", "InBatch", "MemoryBank", "Neighbours", "Queue"]

_SEARCHED = 256  # keys whose neighbours are searched at a time: 100 MB of products with a queue of 98,304


@dataclass(frozen=True)
class InBatch:
    """The keys of the step, over all ranks: end-to-end's dictionary, as large as the batch.

    ``queries`` adds the other queries (SimCLR's NT-Xent, arXiv 2002.05709, equation 1).
    """

    queries: bool = False

    def build(self, dim: int, examples: int) -> KeysOfBatch:
        """Nothing is stored."""
        return KeysOfBatch(self.queries)

    def fitted(self, examples: int) -> InBatch:
        """The same for any data."""
        return self

    def negatives(self, batch: int, examples: int) -> int:
        """How many a query is scored against."""
        return (2 if self.queries else 1) * (batch - 1)

    def __str__(self) -> str:
        return "keys of the batch"


class KeysOfBatch(Dictionary):
    """Entries of equal ``index`` are alike: a query's own key, itself, or whatever shares its label."""

    def __init__(self, queries: bool) -> None:
        super().__init__()
        self.queries = queries

    def look_up(self, query: Tensor, key: Tensor, index: Tensor) -> Entries:
        """Keys (and queries) of the whole batch, with gradient where they have one."""
        everything, rows = dist.gather(key), dist.gather(index)
        own = torch.arange(len(rows), device=index.device) == _positions(index)[:, None]
        if self.queries:
            everything = torch.cat([everything, dist.gather(query)])
            rows, own = torch.cat([rows, rows]), torch.cat([own, own], 1)
        same = index[:, None] == rows
        return Entries(key, everything, own | same, same & ~own)


def _positions(index: Tensor) -> Tensor:
    """(B,) where this rank's rows stand in the global batch."""
    return torch.arange(len(index), device=index.device) + dist.rank() * len(index)


@dataclass(frozen=True)
class Queue:
    """The newest ``size`` keys, first in first out (MoCo, arXiv 1911.05722, section 3.2)."""

    size: int = 65536
    precision: Precision = "fp32"

    def build(self, dim: int, examples: int) -> QueueOfKeys:
        """A queue of ``size`` random unit rows of width ``dim``."""
        return QueueOfKeys(self.size, dim, DTYPES[self.precision])

    def fitted(self, examples: int) -> Queue:
        """No larger than half the data: a longer queue would hold an earlier key of the query's own example."""
        return replace(self, size=max(1, min(self.size, examples // 2)))

    def negatives(self, batch: int, examples: int) -> int:
        """How many a query is scored against."""
        return self.size

    def __str__(self) -> str:
        return f"queue of {self.size:,} keys"


class QueueOfKeys(Dictionary):
    """``keys`` (K, D) holds unit rows from the first step on; ``oldest`` is the row to be overwritten next."""

    keys: Tensor
    oldest: Tensor

    def __init__(self, size: int, dim: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a queue needs room for at least one key, not {size}")
        # Zeros or unnormalised rows break the early steps. In place: a long queue exists once, not three times.
        keys = torch.randn(size, dim)
        self.register_buffer("keys", F.normalize(keys, dim=1, out=keys).to(dtype))
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


@dataclass(frozen=True)
class Neighbours(Queue):
    """The entry of a queue that is nearest to the key stands in its place (NNCLR, arXiv 2104.14548, equations 2 and 3).

    It asks for the query among the queries of the batch, over all ranks; they alone carry gradient.
    """

    def build(self, dim: int, examples: int) -> QueueOfNeighbours:
        """A queue of ``size`` random unit rows of width ``dim``."""
        return QueueOfNeighbours(self.size, dim, DTYPES[self.precision])

    def negatives(self, batch: int, examples: int) -> int:
        """How many a query is scored against."""
        return batch - 1


class QueueOfNeighbours(QueueOfKeys):
    """A queue that is searched, not contrasted with; of a symmetric step it holds one view of each example."""

    one_view = True

    def look_up(self, query: Tensor, key: Tensor, index: Tensor) -> Entries:
        """The key's neighbour asks for its query; equal ``index`` marks what is no negative."""
        same = index[:, None] == dist.gather(index)
        return Entries(query, dist.gather(query), same, asking=self.nearest(key))

    @torch.no_grad()
    @full_precision()
    def nearest(self, key: Tensor) -> Tensor:
        """(B, D) for each key the row with the largest product, in the key's precision but at least fp32."""
        rows = self.keys.to(wide(key).dtype)
        return rows[torch.cat([(part @ rows.T).argmax(1) for part in torch.split(wide(key), _SEARCHED)])]
