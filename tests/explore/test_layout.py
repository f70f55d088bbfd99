"""The map: neighbours lie together, the same rows give the same bytes, and thumbnails follow it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lookalike.explore.atlas import in_order
from lookalike.explore.layout import layout, repulsion


def blobs(seed: int = 0, each: int = 60, kinds: int = 5, features: int = 16) -> np.ndarray:
    """Unit rows around a few directions."""
    noise = np.random.default_rng(seed)
    rows = np.repeat(noise.normal(size=(kinds, features)), each, 0) + 0.15 * noise.normal(size=(each * kinds, features))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_neighbours_lie_together_and_the_rows_decide_every_byte() -> None:
    places = layout(blobs())
    kind = np.repeat(np.arange(5), 60)
    apart = ((places[:, None] - places[None]) ** 2).sum(2) + np.diag(np.full(len(places), np.inf))
    assert (kind[apart.argmin(1)] == kind).mean() > 0.99
    np.testing.assert_array_equal(layout(blobs()), places)


def test_a_map_goes_on_from_the_last() -> None:
    places = layout(blobs())
    rows = blobs() + 0.01 * blobs(1)
    moved = layout((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), start=places)
    assert np.abs(moved - places).mean() < 0.2 * places.std()


def test_the_field_on_the_grid_is_the_sum_over_pairs() -> None:
    for spread in (0.01, 1.0, 8.0):
        places = torch.randn(400, 2, generator=torch.Generator().manual_seed(1)) * spread
        apart = places[:, None] - places[None]
        kernel = 1 / (1 + apart.square().sum(2))
        exact = (apart * kernel.square()[..., None]).sum(1) / (kernel.sum() - len(places))
        # A cell of 0.5 where the kernel is 1 wide: a tenth.
        wrong = float((repulsion(places) - exact).norm() / exact.norm())
        assert wrong < 0.15, spread


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 17])
def test_few_rows_and_equal_rows_have_places(rows: int) -> None:
    for vectors in (np.ones((rows, 8), np.float32) / np.sqrt(8).astype(np.float32), blobs(each=17)[:rows]):
        places = layout(vectors)
        assert places.shape == (rows, 2)
        assert np.isfinite(places).all()
        assert sorted(in_order(places).tolist()) == list(range(rows))


def test_pages_hold_what_lies_together() -> None:
    places = np.random.default_rng(0).uniform(size=(4096, 2)).astype(np.float32)
    pages = places[in_order(places)].reshape(64, 64, 2)
    assert (pages.max(1) - pages.min(1)).mean() < 0.3  # at random it would be nearly 1
