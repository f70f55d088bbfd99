"""What a step sees is a function of recipe, data and step alone: not of workers, cache, or where a run went on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.data.example import Source
from lookalike.data.loader import GIB, Loader
from lookalike.data.order import Order
from lookalike.data.source import open_source
from lookalike.pretext.image import MOCO_V2, MOCO_V3_SECOND, TwoViews
from lookalike.recipes import tiny
from lookalike.recipes.recipe import Recipe
from lookalike.train.loop import batches
from lookalike.types import Batch

COUNT, STEPS = 40, 6  # of 16: three epochs


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Pictures of many sizes, one of which is broken."""
    folder, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(COUNT):
        Image.fromarray(noise.integers(0, 256, (20 + i, 33, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    (folder / "07.png").write_bytes(b"nothing")
    return open_source(folder)


def recipe(seed: int = 0) -> Recipe:
    both = TwoViews(replace(MOCO_V2, size=16), replace(MOCO_V3_SECOND, size=16))
    return replace(tiny.fitted(COUNT, 16), pretext=both, canvas=24, seed=seed)


def seen(source: Source, spec: Recipe, memory: int, workers: int, start: int = 0) -> Iterator[Batch]:
    loader = Loader(source, spec.canvas, memory, workers, max_bad=0.1)
    assert loader.cached == (memory > 0)
    return batches(loader, spec, Order(COUNT, spec.batch, spec.seed), start, STEPS)


def same(one: Batch, other: Batch) -> bool:
    pairs = zip(
        (one.index, *one.first.values(), *one.second.values()),
        (other.index, *other.first.values(), *other.second.values()),
        strict=True,
    )
    return all(torch.equal(a, b) and a.stride() == b.stride() for a, b in pairs)


@pytest.fixture(scope="module")
def reference(photos: Source) -> list[Batch]:
    return list(seen(photos, recipe(), GIB, 0))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("memory", [GIB, 0], ids=["cached", "streamed"])
def test_for_any_workers_cached_or_streamed(photos: Source, reference: list[Batch], memory: int, workers: int) -> None:
    found = list(seen(photos, recipe(), memory, workers))
    assert len(found) == STEPS
    assert all(same(one, other) for one, other in zip(found, reference, strict=True))


@pytest.mark.parametrize("start", range(1, STEPS))
def test_from_any_step_on(photos: Source, reference: list[Batch], start: int) -> None:
    found = list(seen(photos, recipe(), GIB, 0, start))
    assert all(same(one, other) for one, other in zip(found, reference[start:], strict=True))


def test_views_differ_between_epochs_between_the_two_and_between_seeds(photos: Source, reference: list[Batch]) -> None:
    first: dict[int, torch.Tensor] = {}
    again = 0
    for batch in reference:
        assert not torch.equal(batch.first["pixels"], batch.second["pixels"])
        for row, view in zip(batch.index.tolist(), batch.first["pixels"], strict=True):
            if row in first:
                again += 1
                assert not torch.equal(view, first[row])
            first[row] = view
    assert again > 20
    other = next(iter(seen(photos, recipe(seed=1), GIB, 0)))
    assert not torch.equal(other.index, reference[0].index)


def test_each_epoch_has_no_row_twice_and_each_its_own_order(reference: list[Batch]) -> None:
    epochs = [torch.cat([b.index for b in reference[i : i + 2]]).tolist() for i in range(0, STEPS, 2)]
    assert all(len(set(rows)) == 32 for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 3
