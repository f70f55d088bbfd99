"""Neighbours, by comparing every pair one by one; how even and how near rows are, by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from lookalike.metrics.unlabelled import alignment, neighbours, shared, uniformity


@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 1000))
def test_neighbours_are_the_nearest_others(count: int, k: int, seed: int) -> None:
    rows = F.normalize(torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), dim=1)
    found = neighbours(rows, k)
    assert found.shape == (count, min(k, count - 1))
    for row, near in enumerate(found.tolist()):
        others = sorted((-float(rows[row] @ rows[i]), i) for i in range(count) if i != row)
        assert set(near) == {i for _, i in others[: len(near)]}


def test_what_two_share() -> None:
    first, second = torch.tensor([[1, 2, 3], [0, 2, 3]]), torch.tensor([[3, 9, 1], [5, 6, 7]])
    assert shared(first, second).tolist() == [2 / 3, 0.0]
    assert shared(first, first).tolist() == [1.0, 1.0]


def test_uniformity_and_alignment_are_those_of_their_paper() -> None:
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(opposite) == pytest.approx(-8.0)
    assert uniformity(opposite[:1].repeat(5, 1)) == pytest.approx(0.0)
    assert uniformity(opposite[:1]) == 0.0
    assert alignment(opposite, opposite) == 0.0
    assert alignment(opposite, -opposite) == pytest.approx(4.0)
    even = torch.nn.functional.normalize(torch.randn(800, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    assert uniformity(even) == pytest.approx(-4.0, abs=0.15)
    assert alignment(even[:400], even[400:]) == pytest.approx(2.0, abs=0.05)
