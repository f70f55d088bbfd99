"""The memory bank: one stored row for every example."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.core import dist
from lookalike.core.seeding import integers, uniforms
from lookalike.learn.entries import DTYPES, Dictionary, Entries, Precision, Shard

_ROWS, _DRAWS = 1, 2  # which of the counter's streams: the initial rows, the negatives of a step


@dataclass(frozen=True)
class MemoryBank:
    """One row per example (InstDisc, arXiv 1805.01978, section 3.2); a rank holds its share of the rows.

    ``draws`` negatives are drawn for every query, its own row possibly among them, as published; None takes all rows.
    """

    draws: int | None = None
    momentum: float = 0.5  # the weight of the old row
    precision: Precision = "fp32"

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
        return "memory bank of all examples"


class BankOfKeys(Dictionary):
    """``rows`` (N / world, D): of the examples from ``first`` on."""

    rows: Tensor

    def __init__(self, spec: MemoryBank, dim: int, examples: int) -> None:
        super().__init__()
        self.spec, self.examples = spec, examples
        self.block = -(-examples // dist.world())
        self.first = self.block * dist.rank()
        numbers = torch.arange(self.first, min(self.first + self.block, examples))
        # Uniform, as published; of seed and row alone, so that any number of ranks begins with the same bank.
        rows = F.normalize(2 * uniforms(torch.initial_seed(), 0, numbers, _ROWS, dim) - 1, dim=1)
        self.register_buffer("rows", rows.to(DTYPES[spec.precision]))

    def stored(self, index: Tensor) -> Tensor:
        """(..., D) the rows of the examples ``index`` (...), wherever they are."""
        return dist.fetch(self.rows, index, self.block)

    def look_up(self, query: Tensor, key: Tensor, index: Tensor) -> Entries:
        """All rows but the query's own, or some drawn by (seed, step, row): any number of ranks draws the same."""
        if self.spec.draws is None:
            everybody = dist.gather(index)
            numbers = torch.arange(self.first, self.first + len(self.rows), device=index.device)
            return Entries(key, self.rows, everybody[:, None] == numbers, sharded=dist.world() > 1)
        drawn = integers(torch.initial_seed(), _DRAWS, index, self.spec.draws, self.examples)
        return Entries(key, self.stored(drawn))

    @torch.no_grad()
    def absorb(self, query: Tensor, key: Tensor, index: Tensor) -> None:
        """Move the rows of ``index`` toward their keys and normalise; two keys of one row count as their mean."""
        mine = (index >= self.first) & (index < self.first + len(self.rows))
        rows, place = torch.unique(index[mine] - self.first, return_inverse=True)
        if len(rows) == 0:
            return
        old = self.rows[rows].to(key.dtype)
        new = F.normalize(torch.zeros_like(old).index_add_(0, place, key[mine]), dim=1)
        moved = F.normalize(old.lerp(new, 1 - self.spec.momentum), dim=1)
        self.rows[rows] = moved.to(self.rows.dtype)

    def shards(self) -> dict[str, Shard]:
        """The rows."""
        return {"rows": Shard(self.first, self.block, self.examples)}
