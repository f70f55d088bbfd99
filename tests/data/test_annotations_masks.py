"""Outlines against the COCO API's own decoder, bit for bit, and what no outline is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.data.annotations.masks import Polygons, Runs, filled, outline, uncompressed

# pycocotools hands arrays to numpy in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

coordinates = st.floats(-30, 70) | st.integers(-5, 45).map(float) | st.sampled_from([0.1, 19.9, 39.5, -0.5])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=12), st.integers(1, 40), st.integers(1, 40))
def test_polygons_are_filled_as_the_coco_api_fills_them(
    corners: list[tuple[float, float]], height: int, width: int
) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    flat = [number for corner in corners for number in corner]
    whole = coco.decode(coco.merge(coco.frPyObjects([flat], height, width))).astype(bool)
    assert np.array_equal(filled(np.array(corners), height, width), whole)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 6))
def test_run_lengths_are_read_whether_compressed_or_not(bits: list[bool], height: int) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    width = -(-len(bits) // height)
    mask = np.resize(np.array(bits), height * width).reshape(height, width)
    packed = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    plain = {"size": [height, width], "counts": packed["counts"].decode()}
    found = outline(plain, height, width)
    assert found is not None
    assert np.array_equal(found.mask(height, width), mask)
    again = outline(found.plain(), height, width)
    assert again is not None
    assert np.array_equal(again.mask(height, width), mask)


def test_masks_come_at_any_resolution() -> None:
    square = np.array([2.0, 2.0, 6.0, 2.0, 6.0, 6.0, 2.0, 6.0])
    runs = Runs(np.array([2 * 8 + 2, 4, 4, 4, 4, 4, 4, 4, 2 + 2 * 8]), 8, 8)
    for shape in (Polygons((square,), 8, 8), runs):
        assert [int(shape.mask(side, side).sum()) for side in (4, 8, 16)] == [4, 16, 64]
    assert runs.mask(8, 4)[:, 1:3].sum() == 8  # half as wide


def test_a_ring_that_would_fill_the_memory_encloses_nothing() -> None:
    zigzag = np.tile([[-60000.0, 0.0], [60000.0, 1.0]], (100, 1))
    assert not filled(zigzag, 4, 4).any()


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.sampled_from(["size", "counts", "x"]), inner),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(JUNK | st.fixed_dictionaries({"size": st.just([3, 2]), "counts": JUNK}))
def test_what_is_no_outline_is_none_or_can_be_drawn(plain: object) -> None:
    found = outline(plain, 3, 2)
    if found is not None:
        assert found.mask(3, 2).shape == (3, 2)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30))
def test_strings_of_runs_never_run_away(text: str) -> None:
    counts = uncompressed(text)
    assert counts is None or all(0 <= count < 1 << 40 for count in counts)
