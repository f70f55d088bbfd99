"""Entries, and the contract of whatever supplies them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lookalike.core.devices import wide

Precision = Literal["fp32", "bf16", "fp16"]
"""Of the rows that a dictionary stores; sums over them are never narrower than fp32."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Entries(NamedTuple):
    """What B queries are scored against; all rows have unit norm."""

    positive: Tensor  # (B, D): what each query should find
    negatives: Tensor  # (K, D) shared by all queries, or (B, K, D) drawn for each
    ignore: Tensor | None = None  # (B, K), True where a negative is none: itself, its own positive
    alike: Tensor | None = None  # (B, K), True where an entry is one more positive (labels say so)
    sharded: bool = False  # ``negatives`` are this rank's part of K, ``ignore`` is for the queries of all ranks
    asking: Tensor | None = None  # (B, D) who is scored in the queries' place, where they are the entries themselves

    def asked_by(self, query: Tensor) -> Tensor:
        """(B, D) who is scored against the entries: ``query``, unless others ask in its place."""
        return query if self.asking is None else self.asking

    def wide(self) -> Entries:
        """The same with positives in fp32 or better; negatives, which may be many, are widened in parts where used."""
        return self._replace(positive=wide(self.positive))


class Shard(NamedTuple):
    """Rows ``first`` to ``first + block`` of a tensor with ``total`` rows; the last rank's part may be shorter."""

    first: int
    block: int
    total: int


class Dictionary(nn.Module, ABC):
    """Supplies entries and, after the step, absorbs the keys that the step made."""

    one_view = False  # whether it absorbs the keys of one direction alone, the first

    @abstractmethod
    def look_up(self, query: Tensor, key: Tensor, index: Tensor) -> Entries:
        """The entries for queries (B, D) with keys (B, D) of the examples in rows ``index`` (B,); changes nothing.

        Each rank asks for its own share of the batch.
        """

    def side(self, direction: int) -> Dictionary:
        """What the queries of a direction ask: 0 where first views ask for second ones, 1 the other way round."""
        return self

    def absorb(self, query: Tensor, key: Tensor, index: Tensor) -> None:
        """Take in what a step made on all ranks, direction by direction in the global order, after the optimizer."""

    def shards(self) -> dict[str, Shard]:
        """Those tensors of the state of which this rank holds a part only."""
        return {}
