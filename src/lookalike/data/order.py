"""Which rows make which step: a permutation that is computed, never stored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lookalike.core.seeding import hashed, scramble

_BLOCK = 1 << 14  # positions computed at once, 128 KB: far cheaper a row than a step of 256, which is all calls
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
