"""Starts compared: paired trial by trial, judged in words, kept when interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lookalike.cli.main import main
from lookalike.data.source import Data
from lookalike.evaluation.compare import Comparison, ModelScores, compare, names, starts
from lookalike.evaluation.evaluate import evaluate
from lookalike.evaluation.evaluation import Resources, Result
from lookalike.evaluation.settings import EVALUATIONS, Evaluation, Probe
from lookalike.metrics.accuracy import wilson
from lookalike.metrics.fewshot import interval
from lookalike.report.comparison import comparison_page, markdown, picture
from lookalike.train.trained import PartFeatures, Trained
from tests.cli.test_cli import refused
from tests.conftest import Said
from tests.report.test_report import HOSTILE, Checked
from tests.support.forks import digest

SLIM = ("--recipe", "tiny", "--model.widths", "4,8", "--workers", "0", "--quiet")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pictures in two splits and two classes that noise nearly hides."""
    folder, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(48):
        path = folder / ("train" if i < 32 else "test") / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray((noise.integers(0, 200, (16, 16, 3)) + 12 * (i % 2)).astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def runs(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One run without labels and one with them, of two steps each."""
    folder = tmp_path_factory.mktemp("runs")
    for verb, name in (("pretrain", "ours"), ("supervised", "labels")):
        with pytest.raises(SystemExit) as stopped:
            main([verb, str(pictures), "--out", str(folder / name), "--steps", "2", *SLIM])
        assert stopped.value.code == 0
    return [str(folder / "ours"), str(folder / "labels")]


def test_the_command_writes_a_table_and_continues(
    say: Callable[..., Said],
    pictures: Path,
    runs: list[str],
    tmp_path: Path,
) -> None:
    command = ("compare", *runs, "--on", pictures, "--task", "probe", "--share", 0.4, "--out", tmp_path / "c")
    code, out, err = say(*command, "--trials", 2)
    assert (code, err) == (0, "")
    held = {path: path.read_bytes() for path in (tmp_path / "c" / "trials").iterdir()}
    assert len(held) == 6
    next(iter(held)).write_text("{")  # torn: it is made again
    code, out, err = say(*command, "--trials", 2)
    assert (code, err, out.count("kept from before")) == (0, "", 5)
    assert {path: path.read_bytes() for path in held} == held
    found = json.loads((tmp_path / "c" / "probe.json").read_text())
    assert [start["name"] for start in found["models"]] == ["random", "labels (supervised)", "ours"]
    assert (found["baseline"], found["supervised"]) == ("labels (supervised)", True)
    assert found["settings"] == Probe(share=0.4, baselines="none").settings()
    base = found["models"][1]
    for start in found["models"]:
        mean, half = interval([a - b for a, b in zip(start["values"], base["values"])])
        if start is not base:
            assert (start["difference"], start["difference_interval"]) == (pytest.approx(mean), pytest.approx(half))
            assert start["verdict"] == ("tie" if abs(mean) <= half else "win" if mean > 0 else "loss")
            assert f"{100 * mean:+.1f} ± {100 * half:.1f} | {start['verdict']}" in out.replace("\N{MINUS SIGN}", "-")
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        "trials",
        *(f"probe.{s}" for s in ("json", "md", "svg", "html")),
    }
    Checked((tmp_path / "c" / "probe.html").read_text())


def test_starts_are_compared_by_another_number_of_the_same_trials(
    say: Callable[..., Said], pictures: Path, runs: list[str], tmp_path: Path
) -> None:
    tuned = ("--task", "finetune", "--shares", 0.5, "--steps", 1, "--rates", "1e-3", "--batch", 8, "--trials", 2)
    command = ("compare", *runs, "--on", pictures, *tuned, "--out", tmp_path)
    assert say(*command)[0] == 0
    code, out, _ = say(*command, "--metric", "frozen")
    assert (code, out.count("kept from before")) == (0, 6)
    tuned_whole, frozen = (json.loads((tmp_path / f"finetune{part}.json").read_text()) for part in ("", "-frozen"))
    assert frozen["metric"] == "frozen"
    for one, other in zip(tuned_whole["models"], frozen["models"]):
        assert one["others"]["frozen"][0] == pytest.approx(other["mean"])
        assert other["others"]["accuracy"][0] == pytest.approx(one["mean"])
        assert "frozen" not in other["others"]
    refused(say(*command, "--metric", "frozn"), 2, "finetune gives no number 'frozn'; did you mean frozen?")


def test_where_nothing_is_drawn_there_is_one_trial_and_no_verdict(
    pictures: Path, runs: list[str], tmp_path: Path
) -> None:
    found = compare(runs[:1], pictures, "knn", share=1.0, k=3, trials=5, out=tmp_path)
    assert (found.trials, found.baseline, found.supervised) == (1, "random", False)
    assert [row.verdict() for row in found.rows] == ["baseline", "one trial: no verdict"]
    assert "None of the runs was made by lookalike supervised" in found.caption()
    assert "nothing is drawn" in markdown(found)
    rows = markdown(found).splitlines()[2:5]
    assert rows[0] == "| chance | 50.0% | – |  |"
    for row, score in zip(rows[1:], found.rows):  # the interval over the queries
        low, high = wilson(score.mean.mean, 16)
        assert f"| {score.mean.mean:.1%} ({low:.1%} to {high:.1%}) |" in row
    assert found.record()["chance"] == 0.5
    other = compare(runs[:1], pictures, "retrieve", metric="recall_1", share=1.0, workers=0)
    assert (other.chance, compare(runs[:1], pictures, "probe", metric="decay", share=1.0).chance) == (0.5, None)


def test_trials_and_tasks_share_frozen_features_and_give_what_evaluate_gives(
    pictures: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    embeds, read = list[str](), PartFeatures.read

    def counted(trained: Trained, *rest: Any) -> PartFeatures:
        embeds.append(trained.run)
        return read(trained, *rest)

    monkeypatch.setattr(PartFeatures, "read", counted)
    cache = dict[Any, Any]()
    for task, settings in (("knn", {"k": 3}), ("probe", {}), ("fewshot", {"labels": (2,)})):
        found = compare(runs, pictures, task, trials=3, cache=cache, workers=0, **settings)
        assert len(embeds) == 6  # the reference and the queries, by three networks
        spec = found.settings | {"baselines": "none", "seed": 1}
        alone = evaluate(runs[0], pictures, task, workers=0, **spec)
        embeds = embeds[:6]
        row = next(row for row in found.rows if row.name == "ours")
        assert row.values[1] == alone.value
    assert [len(one) for one in cache.values()] == [1, 1, 1]


@dataclass(frozen=True, kw_only=True)
class Toy(Evaluation):
    """An evaluation that is made here."""

    NAME, METRIC, DRAWS = "toy", "score", "nothing"
    made: ClassVar[list[int]] = []

    gain: float = 0.1
    seed: int = 0

    def run(self, model: Trained, data: Data, resources: Resources | None = None) -> Result:
        if len(self.made) == 4:
            raise KeyboardInterrupt
        self.made.append(self.seed)
        numbers = {"score": 0.5 + self.gain * (model.step > 0) + 0.01 * self.seed, "seed": float(self.seed)}
        return self.result(numbers, {})


def test_a_new_evaluation_is_one_class_and_an_interrupted_comparison_goes_on(
    monkeypatch: pytest.MonkeyPatch, pictures: Path, runs: list[str], tmp_path: Path
) -> None:
    made = Toy.made
    monkeypatch.setitem(EVALUATIONS, "toy", Toy)
    again = partial(compare, runs[:1], pictures, "toy", trials=3, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        again()
    made.append(-1)  # the next calls go through
    found = again()
    assert made == [0, 1, 2, 0, -1, 1, 2]
    ours = found.rows[1]
    assert ours.values == pytest.approx([0.6, 0.61, 0.62])
    assert ours.verdict() == "win"  # the same shift in every trial: paired, its interval is 0
    assert ours.others["seed"].mean == 1.0
    again()
    assert len(made) == 7
    (pictures / "train" / "a" / "new.txt").touch()  # other data, annotations too, are other trials
    again()
    (pictures / "train" / "a" / "new.txt").unlink()
    again(gain=-0.1)
    assert len(made) == 7 + 6 + 6


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8))
def test_a_tie_is_a_difference_whose_interval_holds_0(differences: list[float]) -> None:
    found = interval(differences)
    verdict = ModelScores("a", differences, found, found, {}).verdict()
    low, high = found.mean - found.half, found.mean + found.half
    assert verdict == ("tie" if low <= 0 <= high else "win" if low > 0 else "loss")


def test_names_are_short_where_that_tells_them_apart() -> None:
    assert names(["a/x", "b/y", "a/x"]) == {"a/x": "x", "b/y": "y"}
    assert names(["a/x", "b/x", "c/random"]) == {"a/x": "a/x", "b/x": "b/x", "c/random": "c/random"}


def test_random_comes_first_and_labels_before_the_others(runs: list[str]) -> None:
    there = starts(runs, ["torchvision:resnet18"])
    assert [start.title() for start in there] == ["random", "torchvision:resnet18", "labels (supervised)", "ours"]


def test_it_runs_in_one_process(
    say: Callable[..., Said], pictures: Path, runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun sets it
    said = say("compare", runs[0], "--on", pictures, "--task", "knn", "--out", tmp_path / "c")
    refused(said, 2, "compare runs in one process: leave out torchrun")


def test_it_says_no(say: Callable[..., Said], pictures: Path, runs: list[str], tmp_path: Path) -> None:
    command = ("compare", runs[0], "--on", pictures, "--out", tmp_path / "c")
    refused(say(*command, "--task", "nothing"), 2, "no evaluation 'nothing'", "knn")
    refused(say(*command, "--task", "knn", "--shares", 0.1), 2, "knn has no setting '--shares'", "--share")
    refused(say(*command, "--task", "knn", "--share", 2), 2, "--share must be above 0")
    refused(say(*command, "--task", "knn", "--trials", 0), 2, "--trials")
    refused(say(*command, "--task", "finetune", "--share", 0.5), 2, "did you mean --shares?")
    refused(say("compare", tmp_path, "--on", pictures, "--task", "knn"), 65, "is not a run")
    assert not (tmp_path / "c" / "knn.json").exists()


def test_names_of_others_are_no_markup() -> None:
    rows = [
        ModelScores(name, [0.5, 0.6], interval([0.5, 0.6]), interval([0.0, 0.1]), {HOSTILE: interval([1.0, 2.0])})
        for name in (HOSTILE, "b")
    ]
    found = Comparison(HOSTILE, HOSTILE, HOSTILE, rows, "b", True, 2, HOSTILE, {HOSTILE: HOSTILE})
    page = Checked(comparison_page(found))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "<script" not in picture(found)


def test_nothing_of_a_run_changes(pictures: Path, runs: list[str], tmp_path: Path) -> None:
    before = [digest(Path(run)) for run in runs]
    settings = {"shares": (0.5,), "steps": 2, "rates": (1e-3,), "batch": 8}
    found = compare(runs[:1], pictures, "finetune", trials=1, out=tmp_path, **settings)
    assert all(0 <= value <= 1 for row in found.rows for value in row.values)
    assert [digest(Path(run)) for run in runs] == before
