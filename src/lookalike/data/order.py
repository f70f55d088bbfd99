"""Which rows make which step: a permutation that is computed, never stored.

Data that is read best in sequence, such as archives far away, has an order that reads a few shards at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.core.errors import USAGE, UserError
from lookalike.core.seeding import hashed, scramble, uniforms
from lookalike.data.example import Source

_BLOCK = 1 << 14  # positions computed at once, 128 KB: far cheaper a row than a step of 256, which is all calls
_MANY = 1 << 20  # rows of which each has a draw of its own, 40 bytes in passing
_ROUNDS = 6  # four make a Feistel network pseudo-random (Luby & Rackoff 1988); two more are free here


def permuted(positions: Tensor, length: int, seed: int, epoch: int) -> Tensor:
    """Where a seeded shuffle of ``range(length)`` puts each position: O(1) memory at any length.

    A Feistel network permutes the smallest even number of bits that covers ``length``; what falls
    outside is walked through it again until it falls inside (Black & Rogaway 2002), at most four times on average.
    """
    half = max(1, ((max(length - 1, 1)).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    rounds = [hashed(seed, epoch, i) for i in range(_ROUNDS)]

    def once(x: Tensor) -> Tensor:
        left, right = x >> half, x & mask
        for key in rounds:
            left, right = right, left ^ (scramble(right + key) & mask)
        return left << half | right

    rows = once(positions)
    while bool((outside := rows >= length).any()):
        rows[outside] = once(rows[outside])
    return rows


def some_rows(length: int, most: int, draw: int) -> Tensor:
    """At most ``most`` of ``length`` rows in an order that is random and always the same, another for each ``draw``.

    Of very many rows it is computed, and nothing is made for each; a ``draw`` is positive.
    """
    if length > _MANY:
        return permuted(torch.arange(min(most, length)), length, 0, -draw)  # which is no epoch of a run
    return drawn(torch.arange(length), most, draw)


def drawn(rows: Tensor, most: int, draw: int) -> Tensor:
    """At most ``most`` of ``rows`` (N,), in an order that they and ``draw`` decide."""
    return rows[uniforms(0, 0, rows, draw, 1)[:, 0].argsort()][:most]


@lru_cache(maxsize=4)  # consecutive steps ask for the same block
def _block(number: int, length: int, seed: int, epoch: int) -> Tensor:
    """The rows at ``_BLOCK`` positions, fewer at the end."""
    start = number * _BLOCK
    return permuted(torch.arange(start, min(start + _BLOCK, length)), length, seed, epoch)


@dataclass(frozen=True)
class Order:
    """The rows of every step: each epoch is a new shuffle, and a last batch that is not full is dropped."""

    length: int
    batch: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one epoch."""
        return self.length // self.batch

    def epoch(self, step: int) -> int:
        """The epoch of a step; both count from 0."""
        return step // self.steps_per_epoch

    def rows(self, step: int, rank: int = 0, world: int = 1) -> Tensor:
        """(batch / world,) rows of one step: the contiguous share of one rank, so that gathering restores the whole."""
        share = self.batch // world
        start = step % self.steps_per_epoch * self.batch + rank * share
        return self.at(start, start + share, self.epoch(step))

    def at(self, start: int, stop: int, epoch: int) -> Tensor:
        """(stop - start,) the rows at these places of an epoch."""
        blocks = [
            _block(number, self.length, self.seed, epoch) for number in range(start // _BLOCK, (stop - 1) // _BLOCK + 1)
        ]
        skipped = start % _BLOCK
        return (blocks[0] if len(blocks) == 1 else torch.cat(blocks))[skipped : skipped + stop - start].clone()


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
            inside = windows == number
            shuffled[inside] = begin + permuted(places[inside] - begin, end - begin, self.seed, _counter(epoch, number))
        shard = torch.searchsorted(shards.places, shuffled, right=True) - 1
        return shards.rows[shard] + shuffled - shards.places[shard]


def order_of(source: Source, batch: int, seed: int, window: int | None) -> Order:
    """The order of a run: a shuffle of everything, or of ``window`` shards at a time. Raises UserError."""
    if window is None:
        return Order(len(source), batch, seed)
    if source.starts is None:
        raise UserError("--window is for data in shards (tar, zip, parquet, a prepared cache); leave it out", USAGE)
    return Windowed(len(source), batch, seed, tuple(source.starts), window)


def _counter(epoch: int, window: int) -> int:
    """A number of its own for each window of each epoch; -1 is the epoch's shards."""
    return (epoch << 32) + window + 1


@lru_cache(maxsize=2)  # a run reads two epochs at most at a time
def _arranged(starts: tuple[int, ...], seed: int, epoch: int, window: int) -> _Epoch:
    bounds = torch.tensor(starts)
    count = len(starts) - 1
    order = permuted(torch.arange(count), count, seed, _counter(epoch, -1))
    places = torch.zeros(count + 1, dtype=torch.int64)
    places[1:] = bounds.diff()[order].cumsum(0)
    windows = torch.cat([places[:-1][::window], places[-1:]])
    return _Epoch(bounds[:-1][order], places, windows)
