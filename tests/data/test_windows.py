"""The order by windows of shards: every row once an epoch, few shards at a time, a function of counters."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.core.errors import USAGE, UserError
from lookalike.data.order import Order, Windowed, order_of
from lookalike.data.source import open_source

shards = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any)
seeds = st.integers(0, 2**63 - 1)


def starts(sizes: list[int]) -> tuple[int, ...]:
    return tuple(accumulate(sizes, initial=0))


def windowed(starts: tuple[int, ...], batch: int, seed: int, window: int) -> Windowed:
    return Windowed(starts[-1], batch, seed, starts, window)


@given(sizes=shards, window=st.integers(1, 40), seed=seeds, epoch=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_every_row_once_an_epoch(sizes: list[int], window: int, seed: int, epoch: int) -> None:
    order = windowed(starts(sizes), 1, seed, window)
    rows = order.at(0, order.length, epoch)
    assert torch.equal(rows.sort().values, torch.arange(order.length))


@given(sizes=shards, window=st.integers(1, 8), seed=seeds)
@settings(max_examples=40, deadline=None)
def test_a_window_reads_its_shards_to_the_end_and_no_other(sizes: list[int], window: int, seed: int) -> None:
    order = windowed(starts(sizes), 1, seed, window)
    bounds = torch.tensor(order.starts)
    shard = torch.searchsorted(bounds, order.at(0, order.length, 3), right=True) - 1
    met: list[int] = []
    for number in shard.tolist():
        if number not in met:
            met.append(number)
    # Empty shards take a place in a window without being read, so a window may hold fewer than W that are met.
    for number in met:
        places = (shard == number).nonzero()[:, 0]
        between = shard[int(places[0]) : int(places[-1]) + 1].unique()
        assert len(between) <= window


@given(
    sizes=shards.filter(lambda sizes: sum(sizes) >= 24),
    share=st.integers(1, 4),
    world=st.integers(1, 6),
    window=st.integers(1, 5),
    seed=seeds,
    step=st.integers(0, 60),
)
@settings(max_examples=30, deadline=None)
def test_ranks_concatenate_to_the_whole(
    sizes: list[int], share: int, world: int, window: int, seed: int, step: int
) -> None:
    order = windowed(starts(sizes), share * world, seed, window)
    parts = [order.rows(step, rank, world) for rank in range(world)]
    assert torch.equal(torch.cat(parts), order.rows(step))


def test_a_step_is_a_function_of_its_number() -> None:
    order = windowed(starts([37] * 50), 64, 0, 8)
    wanted = [order.rows(step) for step in range(80)]  # three epochs
    for step in (79, 0, 41, 28, 27):
        assert torch.equal(windowed(order.starts, 64, 0, 8).rows(step), wanted[step])
    epochs = [order.at(0, order.length, epoch) for epoch in (0, 1)]
    other = windowed(order.starts, 64, 1, 8).at(0, order.length, 0)
    assert (epochs[0] == epochs[1]).float().mean() < 0.01
    assert (epochs[0] == other).float().mean() < 0.01


def test_rows_of_a_window_are_mixed() -> None:
    order = windowed(starts([100] * 40), 100, 0, 10)
    shard = order.rows(1) // 100
    assert len(shard.unique()) == 10
    assert shard.bincount().max() < 25  # 10 are expected


def test_shards_of_a_billion_rows_cost_nothing_a_row() -> None:
    order = windowed(tuple(range(0, 10**9 + 1, 10**5)), 256, 0, 16)
    rows = torch.cat([order.rows(step) for step in (0, 1, 10**6, 10**7)])
    assert len(rows.unique()) > 1020
    assert 0 <= int(rows.min()) <= int(rows.max()) < 10**9


def test_which_order_a_run_has() -> None:
    source = open_source("digits")
    assert order_of(source, 16, 3, None) == Order(1797, 16, 3)
    for window in (0, 4):
        with pytest.raises(UserError, match="--window") as refused:
            order_of(source, 16, 3, window)
        assert refused.value.code == USAGE
    source.starts = [0, 1000, 1797]  # type: ignore[attr-defined]
    assert order_of(source, 16, 3, 4) == windowed((0, 1000, 1797), 16, 3, 4)
