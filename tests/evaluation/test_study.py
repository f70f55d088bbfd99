"""Studies: every run is kept, the same call goes on, and findings are judged seed by seed."""

from __future__ import annotations

import inspect
import signal
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lookalike.cli import flags
from lookalike.core.errors import UserError
from lookalike.evaluation import study as engine
from lookalike.evaluation.studies import STUDIES, Cell, Claim, Experiment
from lookalike.evaluation.study import Row, StudyResult, conducted
from lookalike.learn.dictionary import Queue
from lookalike.learn.optim import AdamW
from lookalike.recipes import RECIPES
from lookalike.recipes.recipe import meaningless
from lookalike.report.study import cells_of, markdown, plot, write
from lookalike.train import loop
from lookalike.train.run import read_environment

TINY = RECIPES["tiny"]
SMALL = Experiment(
    "toy",
    "Does a longer queue help?",
    "nowhere",
    (Cell("queue", 32, replace(TINY, dictionary=Queue(32))), Cell("queue", 64, TINY)),
    (Claim("longer is better", "queue 64", "queue 32"),),
    axis="keys",
    steps=3,
)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDIES, "toy", SMALL)


def test_a_study_goes_on_where_it_was_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    first = conducted("toy", "digits", tmp_path, seeds=1, workers=0, done=lambda so_far: told.append(len(so_far.rows)))
    assert [row.cell for row in first.rows] == ["untrained", "queue 32", "queue 64"]
    assert told == [2, 3]
    assert [row.steps for row in first.rows] == [0, 3, 3]
    with monkeypatch.context() as patch:
        patch.setattr(engine, "pretrain", None)  # nothing may be trained again
        assert conducted("toy", "digits", tmp_path, seeds=1, workers=0).rows == first.rows
        with pytest.raises(TypeError):
            conducted("toy", "digits", tmp_path, steps=4, seeds=1, workers=0)
    assert len(conducted("toy", "digits", tmp_path, seeds=2, workers=0).rows) == 6


def test_a_run_that_a_signal_stops_is_no_result_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = conducted("toy", "digits", tmp_path / "whole", seeds=1, workers=0)
    reseed = loop.reseed

    def at_its_second_step(seed: int, step: int) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        reseed(seed, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "reseed", at_its_second_step)
        with pytest.raises(SystemExit) as stopped:
            conducted("toy", "digits", tmp_path / "stopped", seeds=1, workers=0)
    assert stopped.value.code == 128 + signal.SIGTERM
    told: list[str] = []
    again = conducted("toy", "digits", tmp_path / "stopped", seeds=1, workers=0, say=told.append)
    assert [row.numbers for row in again.rows] == [row.numbers for row in whole.rows]
    assert ["kept from before" in line for line in told] == [True, False, False]


def test_a_run_that_cannot_be_trained_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wild = replace(SMALL, cells=(SMALL.cells[0], Cell("queue", 64, replace(TINY, optimizer=AdamW(1e9)))))
    monkeypatch.setitem(STUDIES, "toy", wild)
    outcome = conducted("toy", "digits", tmp_path, seeds=1, workers=0)
    assert outcome.rows[-1].failed
    assert outcome.rows[-1].numbers == {}
    assert list(outcome.sentences()) == ["longer is better: queue 64 failed to train"]
    assert list(cells_of(outcome))[-1][:3] == ["queue 64", "failed", "1, 1 failed"]


def test_a_cell_may_learn_from_some_of_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(SMALL, cells=(Cell("queue", 32, TINY, pictures=0.1), Cell("queue", 64, TINY)))
    monkeypatch.setitem(STUDIES, "toy", few)
    rows = conducted("toy", "digits", tmp_path, seeds=2, workers=0).rows
    learned = [read_environment(folder)["data"]["examples"] for folder in tmp_path.glob("runs/*")]
    assert sorted(learned) == [180, 180, 180, 180, 1797, 1797]  # untrained networks begin with few, too
    assert rows[1].numbers != rows[4].numbers  # other pictures for another seed


def test_too_few_pictures_for_a_share_of_them_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1% of 1,797 pictures do not fill a batch of 128: this study needs 12,800"):
        conducted("more_data", "digits", tmp_path, workers=0)


def outcome(better: list[float], worse: list[float]) -> StudyResult:
    rows = [
        Row(cell, seed, 3, {"knn": value}, machine=("a card" if seed else "a processor"))
        for cell, values in (("queue 64", better), ("queue 32", worse))
        for seed, value in enumerate(values)
    ]
    return StudyResult(SMALL, "digits", 3, ["knn"], rows)


def test_seeds_of_several_machines_are_told_apart() -> None:
    assert markdown(outcome([0.7, 0.8, 0.9], [0.6, 0.7, 0.8])).endswith("a processor (seed 0); a card (seed 1, 2).\n")
    assert markdown(outcome([0.7], [0.6])).endswith("seed by seed. a processor.\n")


@pytest.mark.parametrize(
    ("better", "worse", "said"),
    [
        ([0.7, 0.8, 0.9], [0.6, 0.71, 0.8], "held (+9.7 ± 1.4 points of knn, n = 3)"),
        ([0.6, 0.71, 0.8], [0.7, 0.8, 0.9], "the opposite (-9.7 ± 1.4 points of knn, n = 3)"),
        ([0.7, 0.6], [0.6, 0.7], "undecided (+0.0 ± 127.1 points of knn, n = 2)"),
        ([0.7], [0.6], "undecided by one seed (+10.0 points of knn, n = 1)"),
        ([0.6], [0.7, 0.7], "undecided by one seed (-10.0 points of knn, n = 1)"),
        ([], [0.7], "not measured yet"),
    ],
)
def test_a_finding_is_judged_by_pairs_of_one_seed(better: list[float], worse: list[float], said: str) -> None:
    assert list(outcome(better, worse).sentences()) == [f"longer is better: {said}"]


def test_what_is_written_is_whole_at_every_stage(tmp_path: Path) -> None:
    for stage in (outcome([], []), outcome([0.7], []), outcome([0.7, 0.8], [0.6, 0.7])):
        files = write(stage, tmp_path)
        assert {"toy.json", "toy.md", "toy.html"} <= {file.name for file in files}
        for file in files:
            if file.suffix == ".svg":
                ElementTree.fromstring(file.read_text("utf-8"))
        assert "not measured yet" in markdown(stage) or "queue 64" in plot(stage, "knn") or stage.rows


@pytest.mark.parametrize("study", STUDIES.values(), ids=list(STUDIES))
def test_every_study_can_be_drawn_and_asks_about_its_own_runs(study: Experiment) -> None:
    names = [cell.name for cell in study.cells]
    assert len(set(names)) == len(names)
    for claim in study.claims:
        assert {claim.better, claim.worse} <= set(names)
    for cell in study.cells:
        assert meaningless(cell.recipe) is None
        assert 0 < cell.share < 10
    rows = [Row(name, 0, 1, {"knn": 0.5}) for name in names]
    ElementTree.fromstring(plot(StudyResult(study, "digits", 1, ["knn"], rows), "knn"))


def test_the_help_names_every_study() -> None:
    text = inspect.getdoc(flags.Study) or ""
    assert all(f"{name}:" in text for name in STUDIES if name != "toy")


def test_an_unknown_study_or_evaluation_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean momentum"):
        conducted("momentums", "digits", tmp_path)
    with pytest.raises(UserError, match="did you mean knn"):
        conducted("toy", "digits", tmp_path, tasks=("kn",))
