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

    positive: Tensor  # (B, D): what each query should score highest
    negatives: Tensor  # (K, D) shared by all queries, or (B, K, D) drawn for each
    ignore: Tensor | None = None  # (B, K), True where a negative is none: itself, its own positive
    alike: Tensor | None = None  # (B, K), True where an entry is one more positive (labels say so)
    sharded: bool = False  # ``negatives`` are this rank's part of K, ``ignore`` is for the queries of all ranks
    anchors: Tensor | None = None  # (B, D) rows that are scored in the queries' place, which are the entries then

    def scored(self, query: Tensor) -> Tensor:
        """(B, D) the rows that are scored against the entries: ``query``, unless there are ``anchors``."""
        return query if self.anchors is None else self.anchors

    def wide(self) -> Entries:
        """The same with positives in fp32 or better; negatives, which may be many, are widened in parts where used."""
        return self._replace(positive=wide(self.positive))


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
