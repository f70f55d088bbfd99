"""An order that reads a few shards at a time: for data that is read best in sequence, such as archives far away."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.core.errors import USAGE, UserError
from lookalike.data.example import Source
from lookalike.data.order import Order, permuted


class _Epoch(NamedTuple):
    """One epoch's order of the shards: where each of them begins, in the source and in the epoch."""

    rows: Tensor  # (M,) first row in the source
    places: Tensor  # (M + 1,) first place in the epoch
    windows: Tensor  # (ceil(M / W) + 1,) the same of every W-th shard


@dataclass(frozen=True)
class Windowed(Order):
    """The rows of every step, with the shuffle kept within ``window`` shards at a time.

    Each epoch shuffles the shards, cuts them into windows of ``window``, and shuffles the rows of each window. So every
    row comes once an epoch, a step reads from one window (two where one ends and the next begins), and which rows make
    a step is a function of (seed, epoch, step). It costs 24 bytes of memory a shard, none a row.
    """

    starts: tuple[int, ...]
    window: int

    def at(self, start: int, stop: int, epoch: int) -> Tensor:
        """(stop - start,) the rows at these places of an epoch."""
        places = torch.arange(start, stop)
        shards = _arranged(self.starts, self.seed, epoch, self.window)
        windows = torch.searchsorted(shards.windows, places, right=True) - 1
        shuffled = torch.empty_like(places)
        for number in sorted(set(windows.tolist())):
            begin, end = shards.windows[number : number + 2].tolist()
            here = windows == number
            shuffled[here] = begin + permuted(places[here] - begin, end - begin, self.seed, _counter(epoch, number))
        shard = torch.searchsorted(shards.places, shuffled, right=True) - 1
        return shards.rows[shard] + shuffled - shards.places[shard]


def order_of(source: Source, batch: int, seed: int, window: int | None) -> Order:
    """The order of a run: a shuffle of everything, or of ``window`` shards at a time. Raises UserError."""
    if window is None:
        return Order(len(source), batch, seed)
    if window < 1:
        raise UserError("--window must be at least 1", USAGE)
    if source.starts is None:
        raise UserError("--window is for data in shards (tar, zip, parquet, a prepared cache); leave it out", USAGE)
    return Windowed(len(source), batch, seed, tuple(source.starts), window)


def _counter(epoch: int, window: int) -> int:
    """A number of its own for each window of each epoch; -1 is the epoch's shards."""
    return (epoch << 32) + window + 1


@lru_cache(maxsize=2)  # a run reads two epochs at most at a time
def _arranged(starts: tuple[int, ...], seed: int, epoch: int, window: int) -> _Epoch:
    """The shards of an epoch in their order."""
    bounds = torch.tensor(starts)
    count = len(starts) - 1
    order = permuted(torch.arange(count), count, seed, _counter(epoch, -1))
    places = torch.zeros(count + 1, dtype=torch.int64)
    places[1:] = bounds.diff()[order].cumsum(0)
    windows = torch.cat([places[:-1][::window], places[-1:]])
    return _Epoch(bounds[:-1][order], places, windows)
