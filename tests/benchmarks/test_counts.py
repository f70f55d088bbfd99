"""How much a step asks of a processor, in operators and new memory, not in seconds: no part of it may grow again."""

from __future__ import annotations

import os

import pytest

from benchmarks.counts import EXAMPLES, Work, count
from lookalike.core.devices import PRECISION
from lookalike.recipes import recipe_named

MOST = {  # operators, allocations, MiB; the largest of fp32, fp32 by Winograd (AVX2), bf16, and bf16 unfolded (AMX)
    "views": (539, 292, 20.1),
    "encoder": (283, 182, 58.5),
    "keys": (315, 216, 59.5),
    "objective": (30, 27, 2.5),
    "backward": (473, 364, 117.5),
    "optimizer": (710, 666, 50.6),
    "advance": (13, 10, 0.2),
    "loop": (19, 55, 0.1),
}
"""The most that each part of a step of ``small`` at batch 128 may ask for; 50,000 pictures of 32 pixels.

Convolutions without a border ask for more than torch's, for windows and matrices that are used up at once.
"""


@pytest.fixture(scope="module")
def work() -> Work:
    return count(recipe_named("small", EXAMPLES, 32), os.environ.get(PRECISION) or "fp32")


def test_no_part_of_a_step_asks_for_more_than_it_did(work: Work) -> None:
    asked = {part: (work.operators[part], work.allocations[part], work.bytes[part] / 2**20) for part in MOST}
    more = {part: numbers for part, numbers in asked.items() if any(a > b for a, b in zip(numbers, MOST[part]))}
    assert not more, work.table()


def test_every_part_is_met_so_none_has_changed_its_name(work: Work) -> None:
    assert set(work.operators) == set(MOST)
