"""What a number means: its interval, chance, and how much was really used."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lookalike.evaluation.compare import compare
from lookalike.metrics.accuracy import chance, wilson
from lookalike.metrics.fewshot import LabelCount, drawn
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


SIZES = torch.tensor([1, 3, 10, 12]).repeat_interleave(torch.tensor([1, 3, 10, 12]))  # labels named by their number


def test_labels_that_are_drawn_are_counted() -> None:
    assert LabelCount.of_each(SIZES, 1) == (4, 26, 4, 0)
    assert LabelCount.of_each(SIZES, 10) == (1 + 3 + 10 + 10, 26, 4, 2)
    assert LabelCount.of_share(SIZES, 0.01) == (4, 26, 4, 0)
    assert [LabelCount.of_share(SIZES, share).labels for share in (0.5, 1.0)] == [1 + 2 + 5 + 6, 26]
    assert all(len(drawn(SIZES, 0.3, seed)) == LabelCount.of_share(SIZES, 0.3).labels for seed in range(5))
    assert str(LabelCount.of_each(SIZES, 10)) == "24 of 26, 92.3%, of 4 classes, 2 of which have fewer"


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
    assert f"95% interval {low:.2%} to {high:.2%}, chance 50.00%" in out


def test_few_labels_are_said_as_they_were_drawn(found: Callable[..., tuple[str, dict]]) -> None:
    out, record = found("fewshot", "--labels", 1, 17, "--shares", 0.01, "--draws", 2)
    assert "1 label a class (2 of 32, 6.2%, of 2 classes): accuracy" in out
    assert "17 labels a class (32 of 32, 100.0%, of 2 classes, 2 of which have fewer): accuracy" in out
    assert "1% of the labels (2 of 32, 6.2%, of 2 classes): accuracy" in out
    assert out.count("chance 50.00%") == 3
    assert (record["labels_1"], record["labels_17"], record["labels_1%"], record["chance"]) == (2, 32, 2, 0.5)
    assert [record[f"classes_with_fewer_{amount}"] for amount in ("1", "17", "1%")] == [0, 2, 0]
    tuned = ("--shares", 0.005, "--rates", 1e-3, "--steps", 1, "--draws", 1)
    out, record = found("finetune", *tuned)
    assert "0.5% of the labels (2 of 32, 6.2%, of 2 classes): accuracy" in out
    assert (record["labels_0.5%"], record["chance"]) == (2, 0.5)
    assert "chance 50.00%" in out


def test_compare_says_chance_and_how_many_vote(pictures: Path, runs: list[str], tmp_path: Path) -> None:  # noqa: F811
    for kept in ("", " (kept from before)"):
        lines: list[str] = []
        compare(runs[:1], pictures, "knn", trials=2, workers=0, out=tmp_path, say=lines.append)
        end = f", chance 50.00%, k 16, all of the reference, in place of 200{kept}"
        assert (
            len([line for line in lines if line.endswith(end)]) == 4
        )  # two trials each of the run and of the untrained network
    record = json.loads(next((tmp_path / "trials").iterdir()).read_text())
    assert (record["settings"]["k"], record["facts"]["k_used"], record["facts"]["reference"]) == (200, 16, 16)
