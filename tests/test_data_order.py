"""The order of rows: a new bijection each epoch, of which ranks read contiguous shares."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.data.order import Order, permuted

seeds = st.integers(0, 2**63 - 1)


@given(length=st.integers(1, 5000), seed=seeds, epoch=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_permutes_every_length(length: int, seed: int, epoch: int) -> None:
    rows = permuted(torch.arange(length), length, seed, epoch)
    assert torch.equal(rows.sort().values, torch.arange(length))


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


@given(length=st.integers(1, 100), batch=st.integers(4, 64), seed=seeds)
@settings(max_examples=20, deadline=None)
def test_no_row_twice_in_an_epoch(length: int, batch: int, seed: int) -> None:
    order = Order(length, min(batch, length), seed)
    for epoch in range(2):
        first = epoch * order.steps_per_epoch
        rows = torch.cat([order.rows(first + i) for i in range(order.steps_per_epoch)])
        assert len(torch.unique(rows)) == len(rows) == order.steps_per_epoch * order.batch
        assert order.epoch(first) == epoch
