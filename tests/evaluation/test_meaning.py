"""What a number means: its interval, chance, and how much was really used."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lookalike.metrics.accuracy import chance, wilson
from lookalike.metrics.knn import Knn
from tests.conftest import Said
from tests.evaluation.test_compare import pictures, runs  # noqa: F401  (fixtures)


def test_the_interval_of_a_share_is_wilsons() -> None:
    # Brown, Cai and DasGupta (2001); and by hand: of 10 out of 10 the low end is 10 / (10 + z²).
    assert wilson(0.5, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert wilson(0.1, 50) == pytest.approx((0.04348, 0.21360), abs=1e-5)
    assert wilson(1.0, 10) == pytest.approx((10 / (10 + 1.959964**2), 1.0))
    assert wilson(0.0, 10) == pytest.approx((0.0, 1.959964**2 / (10 + 1.959964**2)))
    assert all(math.isnan(end) for end in wilson(math.nan, 0))


def test_chance_is_the_share_of_the_most_common_class() -> None:
    assert chance(torch.tensor([7, -2, 7, 7, 10**12])) == 0.6
    assert chance(torch.arange(40) % 4) == 0.25
    assert math.isnan(chance(torch.empty(0, dtype=torch.long)))


def test_no_more_neighbours_vote_than_there_are() -> None:
    assert [Knn(200).neighbours(rows) for rows in (0, 150, 200, 201)] == [0, 150, 200, 200]


@pytest.fixture
def found(say: Callable[..., Said], pictures: Path, runs: list[str], tmp_path: Path) -> Callable[..., tuple[str, dict]]:  # noqa: F811
    """What an evaluation prints, and its record: 32 pictures in train and 16 in test, two classes of equal size."""

    def evaluated(task: str, *flags: object) -> tuple[str, dict]:
        file = tmp_path / "found.json"
        code, out, err = say("evaluate", task, runs[0], pictures, *flags, "--workers", 0, "--json", file)
        assert (code, err) == (0, "")
        return out, json.loads(file.read_text())

    return evaluated


def test_a_k_beyond_the_reference_is_all_of_it_and_said(found: Callable[..., tuple[str, dict]]) -> None:
    out, record = found("knn")
    assert (record["k"], record["k_used"]) == (200, 32)
    assert "k 32, all of the reference, in place of 200" in out
    out, record = found("knn", "--k", 32)
    assert (record["k"], record["k_used"]) == (32, 32)
    assert "k 32, temperature" in out


@pytest.mark.parametrize("task", ["knn", "probe", "probe --protocol paper --epochs 1"])
def test_an_accuracy_has_chance_and_an_interval(found: Callable[..., tuple[str, dict]], task: str) -> None:
    out, record = found(*task.split())
    low, high = wilson(record["accuracy"], 16)
    assert (record["accuracy_low"], record["accuracy_high"]) == (low, high)
    assert (record["chance"], record["queries"]) == (0.5, 16)
    assert f"95% interval {low:.2%} to {high:.2%}, chance 50.00% (always the most common class)" in out
