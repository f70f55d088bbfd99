"""What a number means: its interval, chance, and how much was really used."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lookalike.evaluation.compare import compare
from lookalike.metrics.accuracy import Evidence, chance, wilson
from lookalike.metrics.agreement import influences, spearman
from lookalike.metrics.fewshot import LabelCount, drawn, interval
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
    for sizes, k in (([10] * 10, 10), ([1, 29, 3], 11), ([5000] * 10, 200), ([400, 1], 200), ([1, 1, 0], 1)):
        labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        assert Knn.suited(labels, 0.5) == Knn(k, 0.5)


# Against a baseline


def right(*answers: int, **more: object) -> Evidence:
    return Evidence(torch.tensor(answers), "pictures", 0.5, **more)


def test_a_difference_is_mcnemars_with_a_query_added_that_each_side_wins() -> None:
    mine, other = right(*[1] * 60, *[0] * 40), right(*[1] * 30, *[0] * 60, *[1] * 10)
    gain = mine.gain(other)
    assert gain.mean == pytest.approx(0.2)
    won, lost, n = 31, 11, 102  # Bonett and Price 2012
    squares = won + lost - (won - lost) ** 2 / n
    assert gain.half == pytest.approx(1.959964 * math.sqrt(squares) / 100, rel=0.01)
    assert mine.verdict(other, "nothing").startswith("better than nothing: 60.00% against 40.00%, +20.0 ± 12.")
    assert other.verdict(mine, "it").startswith("no better than it: 40.00% against 60.00%, -20.0 ± 12.")
    assert other.verdict(mine, "it").endswith(" points (same 100 pictures), chance 50.00%")
    same = mine.gain(mine)
    assert (same.mean, same.half > 0) == (0, True)  # that they agree on a hundred is not certain of all
    assert right(*[1] * 3).verdict(right(*[0] * 3), "it").startswith("no better than it")  # of three, nothing is
    assert right(*[1] * 6).verdict(right(*[0] * 6), "it").startswith("better than it")


def test_frames_of_one_video_count_as_one() -> None:
    answers = torch.tensor([1, 0, 1, 1, 0]).repeat_interleave(20).tolist()
    videos = torch.arange(5).repeat_interleave(20)
    alone, together = right(*answers), right(*answers, videos=videos)
    assert alone.independent() == 100
    assert together.independent() == pytest.approx(4)  # five, less one for the mean
    assert together.half() == pytest.approx(alone.half() * 5, rel=0.01)
    assert right(*[1] * 100, videos=videos).independent() == 5
    other = right(*[0] * 100, videos=videos)
    assert together.gain(other).half > 3 * alone.gain(right(*[0] * 100)).half
    one_each = right(*answers, videos=torch.arange(100))
    assert one_each.gain(right(*[0] * 100)) == pytest.approx(alone.gain(right(*[0] * 100)))


def test_draws_are_paired_by_students_t_and_one_decides_nothing() -> None:
    mine, other = (Evidence(torch.tensor(values), "draws", 0.1) for values in ([0.5, 0.6, 0.7], [0.4, 0.5, 0.5]))
    assert mine.gain(other) == pytest.approx(interval([0.1, 0.1, 0.2]), abs=1e-6)
    single = Evidence(mine.each[:1], "draws", 0.1), Evidence(other.each[:1], "draws", 0.1)
    assert (
        single[0].verdict(single[1], "it")
        == "one of the draws decides nothing against it: 50.00% against 40.00%, +10.0 points"
    )


def test_influences_say_what_each_pair_does_to_the_correlation() -> None:
    first, second = torch.rand(40, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 7
    assert float(influences(first, second).mean()) == pytest.approx(spearman(first, second))


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


def test_no_more_vote_than_an_average_class_has_unless_they_are_asked_for(
    found: Callable[..., tuple[str, dict]],
) -> None:
    out, record = found("knn", "--baselines", "none")
    assert (record["k"], record["k_used"]) == (None, 16)
    assert "k 16, the size of an average class, in place of 200" in out
    out, record = found("knn", "--k", 200)
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
    assert out.count("draws, chance 50.00%") == 3
    assert (record["labels_1"], record["labels_17"], record["labels_1%"], record["chance"]) == (2, 32, 2, 0.5)
    assert [record[f"classes_with_fewer_{amount}"] for amount in ("1", "17", "1%")] == [0, 2, 0]
    tuned = ("--shares", 0.005, "--rates", 1e-3, "--steps", 1, "--draws", 1)
    out, record = found("finetune", *tuned)
    assert "0.5% of the labels (2 of 32, 6.2%, of 2 classes): accuracy" in out
    assert (record["labels_0.5%"], record["chance"]) == (2, 0.5)
    assert "chance 50.00%" in out


NUMBERS = {
    "knn": "accuracy",
    "probe": "accuracy",
    "retrieve": "mean_average_precision",
    "clusters": "nmi",
    "fewshot --labels 1 --shares 0.5 --draws 3": "accuracy_1",
}


@pytest.mark.parametrize("task", NUMBERS)
def test_a_number_stands_beside_the_untrained_network_and_raw_pixels(
    found: Callable[..., tuple[str, dict]], task: str
) -> None:
    metric = NUMBERS[task]
    out, record = found(*task.split())
    for name, words in (("untrained", "the untrained network"), ("pixels", "raw pixels")):
        gain, half = record[f"over_{name}_{metric}"], record[f"over_{name}_{metric}_interval"]
        assert record[f"{name}_{metric}"] + gain == pytest.approx(record[metric])
        assert f"{'better' if gain > half else 'no better'} than {words}: " in out
    start, start_record = found(*task.split(), "--untrained")
    assert start_record[metric] == pytest.approx(record[f"untrained_{metric}"])
    assert "than raw pixels" in start
    assert "than the untrained network" not in start
    alone, alone_record = found(*task.split(), "--baselines", "none")
    said, *lines = alone.splitlines()
    assert (said, len(lines)) == ("tested on test", 2 if "fewshot" in task else 1)
    assert lines[0] in out
    assert not [name for name in alone_record if name.startswith(("over_", "untrained_", "pixels", "raw"))]


def test_few_labels_are_judged_without_the_whitening_too(found: Callable[..., tuple[str, dict]]) -> None:
    few = ("fewshot", "--labels", 2, "--shares", 0.5, "--draws", 3)
    out, record = found(*few)
    assert "than the same network without its whitening: " in out
    assert record["raw_accuracy_2"] + record["over_raw_accuracy_2"] == pytest.approx(record["accuracy_2"])
    assert record["raw_accuracy_2"] != record["accuracy_2"]
    assert "whitening" not in found("knn")[0] + found(*few, "--layer", "head")[0]


def test_where_a_baseline_costs_a_fit_compare_is_named(
    found: Callable[..., tuple[str, dict]],
    runs: list[str],  # noqa: F811
) -> None:
    out, _ = found("finetune", "--shares", 0.5, "--rates", 1e-3, "--steps", 1, "--draws", 1)
    assert f"in repeated trials: lookalike compare {runs[0]} --on " in out.splitlines()[-1]
    assert out.splitlines()[-1].endswith("--task finetune")


def test_compare_says_chance_and_how_many_vote(pictures: Path, runs: list[str], tmp_path: Path) -> None:  # noqa: F811
    for kept in ("", " (kept from before)"):
        lines: list[str] = []
        compare(runs[:1], pictures, "knn", trials=2, workers=0, out=tmp_path, say=lines.append)
        end = f", chance 50.00%, k 8, the size of an average class, in place of 200{kept}"
        assert (
            len([line for line in lines if line.endswith(end)]) == 4
        )  # two trials each of the run and of the untrained network
    record = json.loads(next((tmp_path / "trials").iterdir()).read_text())
    assert (record["settings"]["k"], record["facts"]["k_used"], record["facts"]["reference"]) == (None, 8, 16)
