"""The order of rows: a new bijection each epoch, of which ranks read contiguous shares."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.core.seeding import hashed
from lookalike.data.order import Order, permuted

seeds = st.integers(0, 2**63 - 1)


@given(length=st.integers(1, 5000), seed=seeds, epoch=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_permutes_every_length(length: int, seed: int, epoch: int) -> None:
    rows = permuted(torch.arange(length), length, seed, epoch)
    assert torch.equal(rows.sort().values, torch.arange(length))


@pytest.mark.parametrize("epoch", [0, 1, 2**40])
def test_permutes_every_small_length(epoch: int) -> None:
    for length in [*range(1, 100), 256, 257, 1024, 1025]:
        assert torch.equal(permuted(torch.arange(length), length, 7, epoch).sort().values, torch.arange(length))


@given(
    length=st.one_of(
        st.integers(1, 2**62), st.integers(0, 31).map(lambda n: 4**n), st.integers(0, 30).map(lambda n: 4**n + 1)
    ),
    seed=seeds,
    epoch=st.integers(0, 2**62),
)
@settings(max_examples=60, deadline=None)
def test_inverted_it_is_where_it_began(length: int, seed: int, epoch: int) -> None:
    """Every position comes back through the inverse, so no two share a row, at lengths beyond any memory."""
    positions = torch.unique(torch.tensor([i * (length - 1) // 50 for i in range(51)]))
    rows = permuted(positions, length, seed, epoch)
    assert 0 <= int(rows.min()) <= int(rows.max()) < length
    assert [inverse(row, length, seed, epoch) for row in rows.tolist()] == positions.tolist()


def inverse(row: int, length: int, seed: int, epoch: int) -> int:
    """The position of a row, in Python's unbounded integers: the network run backwards, walked as far as it was."""
    half = max(1, (max(length - 1, 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = row >> half, row & mask
        for i in reversed(range(6)):
            left, right = right ^ (mixed(left + hashed(seed, epoch, i)) & mask), left
        row = left << half | right
        if row < length:
            return row


def mixed(word: int) -> int:
    """SplitMix64's finaliser."""
    whole = (1 << 64) - 1
    word &= whole
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & whole
    word = (word ^ word >> 27) * 0x94D049BB133111EB & whole
    return word ^ word >> 31


@given(length=st.integers(10**9, 2**40), seed=seeds)
@settings(max_examples=20, deadline=None)
def test_permutes_lengths_that_no_memory_holds(length: int, seed: int) -> None:
    rows = permuted(torch.arange(length - 1000, length), length, seed, 0)
    assert len(torch.unique(rows)) == 1000
    assert 0 <= int(rows.min()) <= int(rows.max()) < length


@pytest.mark.parametrize("length", [100, 1024, 5000])
def test_epochs_and_seeds_differ(length: int) -> None:
    positions = torch.arange(length)
    orders = [permuted(positions, length, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).float().mean() < 0.1


def test_a_position_goes_anywhere() -> None:
    ends = torch.stack([permuted(torch.arange(64), 64, 0, epoch) for epoch in range(320)])
    for position in (0, 1, 63):
        counts = torch.bincount(ends[:, position], minlength=64)
        assert (counts > 0).sum() >= 60
        assert counts.max() < 20  # 5 are expected


@given(
    share=st.integers(1, 16), world=st.integers(1, 8), extra=st.integers(0, 200), seed=seeds, step=st.integers(0, 50)
)
@settings(max_examples=30, deadline=None)
def test_ranks_concatenate_to_the_whole(share: int, world: int, extra: int, seed: int, step: int) -> None:
    order = Order(share * world + extra, share * world, seed)
    parts = [order.rows(step, rank, world) for rank in range(world)]
    assert torch.equal(torch.cat(parts), order.rows(step))


def test_steps_are_the_shuffle_cut_into_pieces() -> None:
    order = Order(50_000, 3000, seed=5)  # a step begins and ends anywhere in the blocks that are computed at once
    rows = torch.cat([order.rows(step) for step in range(order.steps_per_epoch)])
    assert torch.equal(rows, permuted(torch.arange(48_000), 50_000, 5, 0))
    order.rows(0).zero_()
    assert torch.equal(order.rows(0), rows[:3000])


@given(length=st.integers(1, 100), batch=st.integers(4, 64), seed=seeds)
@settings(max_examples=20, deadline=None)
def test_no_row_twice_in_an_epoch(length: int, batch: int, seed: int) -> None:
    order = Order(length, min(batch, length), seed)
    for epoch in range(2):
        first = epoch * order.steps_per_epoch
        rows = torch.cat([order.rows(first + i) for i in range(order.steps_per_epoch)])
        assert len(torch.unique(rows)) == len(rows) == order.steps_per_epoch * order.batch
        assert order.epoch(first) == epoch
