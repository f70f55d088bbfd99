"""How much a step asks of a GPU, in operators, not in seconds: no part of it may grow again."""

from __future__ import annotations

import pytest

from benchmarks.launches import Tally, count
from lookalike.recipes.images import moco_v2
from tests.support.ranks import ranks

pytestmark = pytest.mark.any_precision

LAUNCHES = {
    "views": 5,
    "encoder": 223,
    "keys": 255,
    "objective": 135,
    "backward": 278,
    "optimizer": 3,
    "advance": 15,
    "loop": 18,  # three of them to see whether features collapse
}
"""The most that each part of a step of ``moco_v2`` at batch 256 may launch."""


@pytest.fixture(scope="module")
def tally() -> Tally:
    """Counted in a process of its own: autograd keeps threads for a device, beside which no other test could fork."""
    return ranks(1, count, moco_v2)[0]


def test_no_part_of_a_step_launches_more_than_it_did(tally: Tally) -> None:
    pytest.importorskip("triton", reason="views and BatchNorm in groups launch its kernels")
    more = {part: many for part, many in tally.launches.items() if many > LAUNCHES[part]}
    assert not more, f"{tally.table()}\n{tally.operators}"


def test_the_host_waits_for_nothing_within_a_step(tally: Tally) -> None:
    assert not tally.waits, tally.causes


def test_every_part_is_met_so_none_has_changed_its_name(tally: Tally) -> None:
    assert set(tally.launches) == set(LAUNCHES)
