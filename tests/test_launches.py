"""How much a step asks of a GPU, in operators, not in seconds: no part of it may grow again."""

from __future__ import annotations

import pytest

from benchmarks.launches import Tally, count
from lookalike.recipes.images import moco_v2

LAUNCHES = {
    "views": 517,
    "encoder": 1083,
    "keys": 1115,
    "objective": 135,
    "backward": 2126,
    "optimizer": 11,
    "advance": 15,
    "loop": 19,
}
"""The most that each part of a step of ``moco_v2`` at batch 256 may launch; 78 % are BatchNorm in groups."""

WAITS = {"views": 16, "loop": 5}
"""How often the host may wait for the GPU meanwhile; in no other part at all."""


@pytest.fixture(scope="module")
def tally() -> Tally:
    return count(moco_v2())


def test_no_part_of_a_step_launches_more_than_it_did(tally: Tally) -> None:
    more = {part: many for part, many in tally.launches.items() if many > LAUNCHES[part]}
    assert not more, f"{tally.table()}\n{tally.operators}"


def test_the_host_waits_no_more_often_than_it_did(tally: Tally) -> None:
    more = {part: many for part, many in tally.waits.items() if many > WAITS.get(part, 0)}
    assert not more, f"{tally.table()}\n{tally.causes}"


def test_every_part_is_met_so_none_has_changed_its_name(tally: Tally) -> None:
    assert set(tally.launches) == set(LAUNCHES)
