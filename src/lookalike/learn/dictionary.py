"""What a query is scored against: entries, and the dictionary that supplies them, as one field of a recipe.

A value (``Queue(4096)``) says which; ``build`` makes the module that holds its state. ``look_up`` is pure;
``absorb`` moves the state, once, after the optimizer step. Every rank holds the same queue, and its share of a bank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookalike.core import dist
from lookalike.core.devices import full_precision, wide
from lookalike.core.errors import Bounded, Count, Limit, Probability
from lookalike.core.seeding import integers, uniforms
from lookalike.metrics.unlabelled import neighbours

Precision = Literal["fp32", "bf16", "fp16"]
"""Of the rows that a dictionary stores; sums over them are never narrower than fp32."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_ROWS, _DRAWS = 1, 2  # which of a bank's random streams: the initial rows, the negatives of a step
_CHUNK = 256  # keys whose neighbours are searched at a time: 100 MB of products with a queue of 98,304
_DENSE = 32  # rows of a bank for each draw, up to which products with all are quicker (57 on a Zen 4)


class Entries(NamedTuple):
    """What B queries are scored against; all rows have unit norm."""

    positive: Tensor  # (B, D): what each query should score highest
    negatives: Tensor  # (K, D) shared by all queries, or (B, K, D) drawn for each
    ignore: Tensor | None = None  # (B, K), True where a negative is none: itself, its own positive
    alike: Tensor | None = None  # (B, K), True where an entry is one more positive (labels say so)
    target: Tensor | None = None  # (B, D) the mean of several positives, which pulls in place of ``positive`` alone
    sharded: bool = False  # ``negatives`` are this rank's part of K, ``ignore`` is for the queries of all ranks
    anchors: Tensor | None = None  # (B, D) rows that are scored in the queries' place, which are the entries then
    drawn: Tensor | None = None  # (B, K) int64: which of the ``negatives`` (N, D) each query is scored against, not all

    @property
    def per_query(self) -> int:
        """K: how many negatives a query has."""
        return self.negatives.shape[-2] if self.drawn is None else self.drawn.shape[1]

    def scored(self, query: Tensor) -> Tensor:
        """(B, D) the rows that are scored against the entries: ``query``, unless there are ``anchors``."""
        return query if self.anchors is None else self.anchors

    def wide(self) -> Entries:
        """The same with positives in fp32 or better; negatives, which may be many, are widened in parts where used."""
        target = None if self.target is None else wide(self.target)
        return self._replace(positive=wide(self.positive), target=target)


class RowBlock(NamedTuple):
    """Rows ``first`` to ``first + block`` of a tensor with ``total`` rows; the last rank's part may be shorter."""

    first: int
    block: int
    total: int


class Dictionary(nn.Module, ABC):
    """Supplies entries and, after the step, absorbs the keys that the step made."""

    one_view = False  # whether it absorbs the keys of one direction alone, the first

    @abstractmethod
    def look_up(self, query: Tensor, key: Tensor, index: Tensor, direction: int = 0) -> Entries:
        """The entries for queries (B, D) with keys (B, D) of the examples in rows ``index`` (B,); changes nothing.

        Each rank passes its own share of the batch. In direction 0 first views are queries of second ones, in direction
        1 it is the other way round.
        """

    def absorb(self, query: Tensor, key: Tensor, index: Tensor) -> None:
        """Take in what a step made on all ranks, direction by direction in the global order, after the optimizer."""

    def shards(self) -> dict[str, RowBlock]:
        """Those tensors of the state of which this rank holds a part only."""
        return {}


# ---- the batch ----


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

    def look_up(self, query: Tensor, key: Tensor, index: Tensor, direction: int = 0) -> Entries:
        """Keys (and queries) of the whole batch, with gradient where they have one."""
        entries, rows = dist.gather(key), dist.gather(index)
        place = torch.arange(len(index), device=index.device) + dist.rank() * len(index)  # in the global batch
        own = torch.arange(len(rows), device=index.device) == place[:, None]
        if self.queries:
            entries = torch.cat([entries, dist.gather(query)])
            rows, own = torch.cat([rows, rows]), torch.cat([own, own], 1)
        same = index[:, None] == rows
        return Entries(key, entries, own | same, same & ~own)


# ---- queues ----


@dataclass(frozen=True)
class Queue(Bounded):
    """The newest ``size`` keys, first in first out (MoCo, arXiv 1911.05722, section 3.2).

    With ``wait``, a key is scored from when so many newer ones have come: as many keys, only older.
    """

    size: Count = 65536
    precision: Precision = "fp32"
    wait: Annotated[int, Limit(0)] = 0

    def build(self, dim: int, examples: int) -> Dictionary:
        """A queue of random unit rows of width ``dim``."""
        return QueueOfKeys(self.size, dim, DTYPES[self.precision], self.wait)

    def fitted(self, examples: int) -> Queue:
        """No longer than half the data: a longer queue would hold an earlier key of the query's own example."""
        size = max(1, min(self.size, examples // 2))
        return replace(self, size=size, wait=max(0, min(self.wait, examples // 2 - size)))

    def negatives(self, batch: int, examples: int) -> int:
        """How many a query is scored against."""
        return self.size

    def __str__(self) -> str:
        return f"queue of {self.size:,} keys" + (f" behind {self.wait:,} newer ones" if self.wait else "")


class QueueOfKeys(Dictionary):
    """``keys`` (K + wait, D) holds unit rows from the first step on; ``oldest`` is the row to be overwritten next."""

    keys: Tensor
    oldest: Tensor

    def __init__(self, size: int, dim: int, dtype: torch.dtype = torch.float32, wait: int = 0) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a queue needs room for at least one key, not {size}")
        self.wait = wait
        # Zeros or unnormalised rows break the early steps. In place: a long queue exists once, not three times.
        keys = torch.randn(size + wait, dim)
        self.register_buffer("keys", F.normalize(keys, dim=1, out=keys).to(dtype))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))

    def look_up(self, query: Tensor, key: Tensor, index: Tensor, direction: int = 0) -> Entries:
        """Every key of earlier steps is a negative; those of this step are not in the queue yet."""
        return Entries(key, self.scored())

    def scored(self) -> Tensor:
        """(K, D) the keys that have waited: all of them, and without a copy, where none must."""
        if not self.wait:
            return self.keys
        places = torch.arange(len(self.keys) - self.wait, device=self.keys.device)
        return self.keys[(self.oldest + places) % len(self.keys)]

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

    It is scored against the queries of the batch, over all ranks; they alone carry gradient.
    """

    def build(self, dim: int, examples: int) -> Dictionary:
        """A queue of ``size`` random unit rows of width ``dim``."""
        return QueueOfNeighbours(self.size, dim, DTYPES[self.precision], self.wait)

    def negatives(self, batch: int, examples: int) -> int:
        """How many a query is scored against."""
        return batch - 1


class QueueOfNeighbours(QueueOfKeys):
    """A queue that is searched, not contrasted with; of a symmetric step it holds one view of each example."""

    one_view = True

    def look_up(self, query: Tensor, key: Tensor, index: Tensor, direction: int = 0) -> Entries:
        """The key's neighbour is scored, its query the positive; equal ``index`` marks what is no negative."""
        same = index[:, None] == dist.gather(index)
        return Entries(query, dist.gather(query), same, anchors=self.nearest(key))

    @torch.no_grad()
    @full_precision()
    def nearest(self, key: Tensor) -> Tensor:
        """(B, D) for each key the row with the largest product, in the key's precision but at least fp32."""
        rows = self.scored().to(wide(key).dtype)
        return rows[torch.cat([(part @ rows.T).argmax(1) for part in torch.split(wide(key), _CHUNK)])]


@dataclass(frozen=True)
class QueueEach(Queue):
    """Two queues of ``size`` keys, one for each direction: pictures are contrasted with texts, texts with pictures.

    ALBEF, arXiv 2107.07651, section 3.2.
    """

    def build(self, dim: int, examples: int) -> Dictionary:
        """Two queues of random unit rows of width ``dim``."""
        return QueueOfEach(*(QueueOfKeys(self.size, dim, DTYPES[self.precision], self.wait) for _ in range(2)))

    def __str__(self) -> str:
        return f"two queues of {self.size:,} keys"


class QueueOfEach(Dictionary):
    """The first queue holds keys of second views, for queries of first views; the second the other way round."""

    def __init__(self, first: QueueOfKeys, second: QueueOfKeys) -> None:
        super().__init__()
        self.queues = nn.ModuleList([first, second])

    def look_up(self, query: Tensor, key: Tensor, index: Tensor, direction: int = 0) -> Entries:
        """Every key of earlier steps in the queue of the direction is a negative."""
        return Entries(key, self.queues[direction].scored())  # type: ignore[operator]

    def absorb(self, query: Tensor, key: Tensor, index: Tensor) -> None:
        """The keys of each direction go into its own queue."""
        for queue, *part in zip(self.queues, query.chunk(2), key.chunk(2), index.chunk(2)):
            queue.absorb(*part)  # type: ignore[operator]


# ---- the memory bank ----


@dataclass(frozen=True)
class MemoryBank(Bounded):
    """One row per example (InstDisc, arXiv 1805.01978, section 3.2); a rank holds its share of the rows.

    ``draws`` negatives are drawn for every query, its own row possibly among them, as published; None takes all rows.
    """

    draws: Count | None = None
    momentum: Probability = 0.5  # the weight of the old row
    precision: Precision = "fp32"
    filled: bool = False  # rows begin as the features that the start, or a teacher, has of whole examples
    neighbours: Annotated[int, Limit(0, 1000)] = 0  # of a row among those, as many further positives

    def build(self, dim: int, examples: int) -> BankOfKeys:
        """A bank of ``examples`` random unit rows of width ``dim``."""
        if examples < 1:
            raise ValueError("a memory bank has a row for every example: it cannot serve a stream without row numbers")
        return BankOfKeys(self, dim, examples)

    def fitted(self, examples: int) -> MemoryBank:
        """The same for any data: it grows with them."""
        return self

    def negatives(self, batch: int, examples: int) -> int:
        """How many a query is scored against."""
        return self.draws or examples - 1

    def __str__(self) -> str:
        return "stored rows of a teacher" if self.filled and self.momentum == 1 else "memory bank of all examples"


class BankOfKeys(Dictionary):
    """``rows`` (N / world, D): of the examples from ``first`` on."""

    rows: Tensor
    near: Tensor

    def __init__(self, spec: MemoryBank, dim: int, examples: int) -> None:
        super().__init__()
        self.spec, self.examples = spec, examples
        self.block = -(-examples // dist.world())
        self.first = self.block * dist.rank()
        numbers = torch.arange(self.first, min(self.first + self.block, examples))
        # Uniform, as published; of seed and row alone, so that any number of ranks begins with the same bank.
        rows = F.normalize(2 * uniforms(torch.initial_seed(), 0, numbers, _ROWS, dim) - 1, dim=1)
        self.register_buffer("rows", rows.to(DTYPES[spec.precision]))
        if spec.neighbours:  # of each row, after its own number
            self.register_buffer("near", numbers[:, None].repeat(1, 1 + min(spec.neighbours, examples - 1)))

    @torch.no_grad()
    def fill(self, rows: Tensor) -> None:
        """Begin with these rows (N, D) of all examples, of which each rank keeps its share; finds neighbours once."""
        mine = slice(self.first, self.first + len(self.rows))
        self.rows.copy_(rows[mine])
        if self.spec.neighbours:
            self.near[:, 1:] = neighbours(wide(rows), self.spec.neighbours)[mine]

    def stored(self, index: Tensor) -> Tensor:
        """(..., D) the rows of the examples ``index`` (...), wherever they are."""
        return dist.fetch(self.rows, index, self.block)

    def look_up(self, query: Tensor, key: Tensor, index: Tensor, direction: int = 0) -> Entries:
        """All rows but the query's own, or some drawn by (seed, step, row): any number of ranks draws the same."""
        if self.spec.draws is None:
            numbers = torch.arange(self.first, self.first + len(self.rows), device=index.device)
            own = dist.gather(index)[:, None] == numbers
            return Entries(key, self.rows, own, target=self._target(index), sharded=dist.world() > 1)
        drawn = integers(torch.initial_seed(), _DRAWS, index, self.spec.draws, self.examples)
        # Products with all rows are quicker then than rows gathered. (A GPU would add their gradient up in any order.)
        if self.rows.device.type == "cpu" and len(self.rows) == self.examples <= _DENSE * self.spec.draws:
            return Entries(key, self.rows, target=self._target(index), drawn=drawn)
        return Entries(key, self.stored(drawn), target=self._target(index))

    def _target(self, index: Tensor) -> Tensor | None:
        """(B, D) the mean of each example's row and of its neighbours' rows, as they are now."""
        if not self.spec.neighbours:
            return None
        return wide(self.stored(dist.fetch(self.near, index, self.block))).mean(1)

    @torch.no_grad()
    def absorb(self, query: Tensor, key: Tensor, index: Tensor) -> None:
        """Move the rows of ``index`` toward their keys and normalise; two keys of one row count as their mean."""
        if self.spec.momentum == 1:
            return
        mine = (index >= self.first) & (index < self.first + len(self.rows))
        rows, place = torch.unique(index[mine] - self.first, return_inverse=True)
        if len(rows) == 0:
            return
        old = self.rows[rows].to(key.dtype)
        new = F.normalize(torch.zeros_like(old).index_add_(0, place, key[mine]), dim=1)
        moved = F.normalize(old.lerp(new, 1 - self.spec.momentum), dim=1)
        self.rows[rows] = moved.to(self.rows.dtype)

    def shards(self) -> dict[str, RowBlock]:
        """The rows, and which others are near each."""
        names = ("rows", "near") if self.spec.neighbours else ("rows",)
        return dict.fromkeys(names, RowBlock(self.first, self.block, self.examples))
