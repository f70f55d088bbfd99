"""Reports of runs of every kind: the words follow what the run was, and the numbers are what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.core.errors import UserError
from lookalike.core.files import as_json, publish
from lookalike.core.lock import Lock
from lookalike.data.order import order_of
from lookalike.data.source import open_source
from lookalike.learn.dictionary import InBatch, MemoryBank, Neighbours, Queue, QueueEach
from lookalike.learn.keys import EndToEnd, Momentum, Stored
from lookalike.learn.optim import SGD
from lookalike.pretext.image import OneView
from lookalike.recipes.images import tiny
from lookalike.recipes.modality import loader
from lookalike.recipes.recipe import Recipe
from lookalike.report.account import account, learner_at
from lookalike.report.ages import ages, drifts, keys_made, stored
from lookalike.report.run import report
from lookalike.report.sample import map_of
from lookalike.report.verdict import verdict
from lookalike.train.loop import batches
from lookalike.train.pretrain import pretrain, supervised
from tests.support.runs import noise

pytestmark = pytest.mark.any_precision

Said = tuple[int, str, str]
SMALL = {"workers": 0, "quiet": True, "save_every": 3, "settings": {"model.widths": "4,8", "head.widths": "16"}}


def words(page: Path) -> str:
    """What a page says, in a line."""
    text = page.read_text()
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", text[text.index("<main>") :])))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise(tmp_path_factory.mktemp("report") / "data")


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    """Twelve steps, with checkpoints of the last two saves."""
    pretrain(str(data), data.parent / "run", recipe="tiny", steps=12, **SMALL)
    return data.parent / "run"


KINDS: dict[str, tuple[Recipe, str]] = {
    "queue": (tiny, "queue of 24 keys"),
    "batch": (replace(tiny, keys=EndToEnd(), dictionary=InBatch()), "keys of the batch, made in the same step"),
    "bank": (
        replace(tiny, pretext=OneView(tiny.pictures.first), keys=Stored(), dictionary=MemoryBank()),
        "rows: memory bank of all examples",
    ),
    "neighbours": (replace(tiny, keys=EndToEnd(), dictionary=Neighbours(24)), "the nearest in a queue of 24 keys"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_words_are_those_of_the_dictionary(kind: str, data: Path, tmp_path: Path) -> None:
    recipe, wanted = KINDS[kind]
    pretrain(str(data), tmp_path / "run", recipe=recipe, steps=12, **SMALL)
    said = words(report(tmp_path / "run", tmp_path / "page.html"))
    assert wanted in said
    assert ("twin" in said) == (kind == "queue")
    assert ("queue" in said.split("Recipe")[0]) == (kind in ("queue", "neighbours"))
    assert "Finished, all 12 steps" in said
    assert "before, untrained" in said
    assert "now, at step 12" in said


def test_ages_are_counted_in_steps() -> None:
    assert "4 steps old" in ages(replace(tiny, batch=16, dictionary=Queue(64)), 640)
    assert "2 steps old" in ages(replace(tiny, batch=16, dictionary=Queue(64), keys=Momentum(symmetric=True)), 640)
    assert "40 steps old" in ages(replace(tiny, batch=16, keys=Stored(), dictionary=MemoryBank()), 640)
    assert "never change" in ages(replace(tiny, keys=Stored(), dictionary=MemoryBank(momentum=1.0, filled=True)), 640)
    assert "each of two queues of 64 keys" in ages(replace(tiny, dictionary=QueueEach(64)), 640)


FROZEN = {"lr": 0.0, "weight_decay": 0.0}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("moves", [False, True])
def test_drift_is_of_the_keys_that_are_stored(symmetric: bool, moves: bool, data: Path, tmp_path: Path) -> None:
    """Of a network that stands still every key is made again as it was, whatever its age, so the right one is met."""
    optimizer = SGD(lr=0.5) if moves else SGD(**FROZEN)
    keys = Momentum(momentum=0.5, symmetric=symmetric)
    recipe = replace(tiny, batch=8, group=4, keys=keys, dictionary=Queue(24), optimizer=optimizer)
    pretrain(str(data), tmp_path / "run", recipe=recipe, steps=13, **SMALL)
    found = account(tmp_path / "run")
    assert [one.age for one in found.drift] == list(range(24 // (16 if symmetric else 8) + symmetric))
    still = [1 - one.cosine < 1e-6 for one in found.drift]
    assert all(still) if not moves else not any(still)
    if not moves:
        learner, order = learner_at(found.diagnosis, 13).train(), order_of(found.training.source, 8, 0, None)
        batch = next(batches(found.training, found.history.recipe, order, 11, 12))
        kept, made = stored(learner.dictionary, batch, keys_made(learner, batch), [order.rows(12)])
        assert torch.allclose(kept, made, atol=1e-5)
        assert not torch.allclose(kept.roll(1, 0), made, atol=1e-5)


def test_drift_of_a_bank_is_of_its_rows(data: Path, tmp_path: Path) -> None:
    bank = MemoryBank(momentum=0.0)
    recipe = replace(
        tiny, pretext=OneView(tiny.pictures.first), keys=Stored(), dictionary=bank, optimizer=SGD(**FROZEN)
    )
    pretrain(str(data), tmp_path / "run", recipe=recipe, steps=7, **SMALL)
    cosines = [one.cosine for one in account(tmp_path / "run").drift]
    assert cosines == pytest.approx([1.0] * 3, abs=1e-6)


def test_drift_is_not_measured_of_other_data(run: Path, data: Path) -> None:
    found = account(run, data=str(data))
    assert not found.drift
    assert found.unmade
    assert account(run).drift


def test_a_run_of_text_shows_sentences(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"<script> number {i} of many & more\n" for i in range(40)))
    text = {"model.width": "16", "model.vocabulary": "300", "whiten": "false"}
    pretrain(str(lines), tmp_path / "run", recipe="simcse", batch=8, steps=4, settings=text, workers=0, quiet=True)
    page = report(tmp_path / "run", tmp_path / "page.html")
    assert "<script> number" in words(page)
    assert "<script" not in page.read_text()
    assert "40 sentences" in words(page)
    assert "found again" not in words(page)  # two views of a sentence are one without dropout
    assert "Map" not in words(page)


def test_a_supervised_run_speaks_of_labels(data: Path, tmp_path: Path) -> None:
    supervised(str(data), tmp_path / "run", recipe="tiny", steps=4, workers=0, quiet=True)
    said = words(report(tmp_path / "run", tmp_path / "page.html"))
    assert "Trained with labels" in said
    assert "never saw" not in said
    assert "What queries are scored against" not in said
    assert "A view of each picture" in said
    assert "learns only" not in said


def test_a_run_that_began_with_a_model_is_compared_with_that(run: Path, data: Path, tmp_path: Path) -> None:
    pretrain(str(data), tmp_path / "more", init_from=str(run), recipe="adapt", steps=3, batch=8, workers=0, quiet=True)
    said = words(report(tmp_path / "more", tmp_path / "page.html"))
    assert "before, as the start was" in said
    assert "kept is" in said
    scores = json.loads((tmp_path / "more" / "result.json").read_text())["scores"]
    assert f"the start as it was {scores['the start as it was']:.1%}" in said


def test_an_unfinished_run_with_one_checkpoint_says_how_it_goes_on(data: Path, tmp_path: Path) -> None:
    pretrain(str(data), tmp_path / "run", recipe="tiny", steps=3, **SMALL)
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    recipe["length"]["steps"] = 9
    publish(tmp_path / "run", {"recipe.json": as_json(recipe)})
    said = words(report(tmp_path / "run", tmp_path / "page.html"))
    assert "Not finished: step 3 of 9 is saved" in said
    assert "Next: continue with" in said


def test_a_run_that_goes_on_may_be_reported(run: Path, tmp_path: Path) -> None:
    lock = Lock(run)
    try:
        said = words(report(run, tmp_path / "page.html"))
    finally:
        lock.release()
    assert "Still running, at step 12 of 12" in said


def test_of_one_point_there_is_no_map(run: Path) -> None:
    sample = account(run).sample
    assert "Map" in "".join(map_of(sample))
    sample.features = [torch.ones(len(sample.rows), 8) / 8**0.5]
    assert "".join(map_of(sample)) == ""


@pytest.mark.parametrize(("recipe", "shown"), [("video_moco", "frames"), ("video_moco_clips", "clips")])
def test_a_run_of_videos_shows_frames(recipe: str, shown: str, tmp_path: Path) -> None:
    for video in "abcd":
        (tmp_path / "videos" / video).mkdir(parents=True)
        for i in range(12):
            picture = np.full((24, 24, 3), 20 * i, np.uint8)
            Image.fromarray(picture).save(tmp_path / "videos" / video / f"{i:03}.png")
    settings = (
        {"pretext.first.size": "16", "pretext.every": "0.04"} if shown == "clips" else {"pretext.first.size": "16"}
    )
    small = {"workers": 0, "quiet": True, "settings": settings | {"whiten": "false"}}
    pretrain(f"frames:{tmp_path / 'videos'}", tmp_path / "run", recipe=recipe, steps=2, batch=4, **small)
    said = words(report(tmp_path / "run", tmp_path / "page.html"))
    assert shown in said
    assert "Two views of each video" in said
    assert "Nearest neighbours" in said


def test_a_collapse_is_the_headline(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(tiny, optimizer=SGD(lr=1e-6), head=replace(tiny.head, widths=(16,)))
    pretrain(str(data), tmp_path / "run", recipe=recipe, steps=3, workers=0, quiet=True)
    found = account(tmp_path / "run")
    flat = found.moments[-1].spread._replace(embedding=0.01)
    said = verdict(found._replace(moments=[*found.moments[:-1], found.moments[-1]._replace(spread=flat)]))
    assert "collapsed: everything looks the same" in said
    assert "lower learning rate" in said


# ---- numbers ----


def test_numbers_in_the_folder_and_given_are_shown(
    say: Callable[..., Said], run: Path, data: Path, tmp_path: Path
) -> None:
    assert say("evaluate", "knn", run, data, "--workers", 0, "--json", run / "mine.json")[0] == 0
    assert say("evaluate", "clusters", run, data, "--workers", 0, "--json", tmp_path / "given.json")[0] == 0
    code, out, _ = say("report", run, "--out", tmp_path / "page.html", "--numbers", tmp_path / "given.json")
    (run / "mine.json").unlink()
    assert code == 0
    assert "page.html" in out
    said = words(tmp_path / "page.html")
    assert re.search(r"knn on data accuracy 0\.\d+", said)
    assert "clusters on data" in said


def test_numbers_of_another_run_and_other_files_are_refused(
    say: Callable[..., Said], run: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"run": "other", "data": "d", "accuracy": 0.5}))
    (tmp_path / "b.json").write_text("[1]")
    for name, why in (("a.json", "has the numbers of other"), ("b.json", "holds no numbers"), ("c.json", "")):
        code, _, errors = say("report", run, "--out", tmp_path / "page.html", "--numbers", tmp_path / name)
        assert code in (65, 74)
        assert why in errors
        assert len(errors.splitlines()) == 1
    assert not (tmp_path / "page.html").exists()


def test_what_is_no_run_is_refused(say: Callable[..., Said], tmp_path: Path, run: Path) -> None:
    assert say("report", tmp_path, "--out", tmp_path / "page.html")[0] == 65
    (tmp_path / "knn.html").write_text("a page of lookalike compare")
    code, _, errors = say("report", tmp_path, "--out", tmp_path / "page.html")
    assert code == 65
    assert "knn.html" in errors
    assert say("report", "--out", tmp_path / "page.html")[0] == 2
    assert say("report", run, "--out", tmp_path)[0] in (2, 74)


# ---- several runs ----


def test_runs_beside_each_other(run: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"  # of the same name
    pretrain(str(data), other, recipe="tiny", batch=8, steps=4, **SMALL)
    page = report([run, other], tmp_path / "page.html")
    said = words(page)
    assert f"{run.parent.name}/run" in said
    assert f"{tmp_path.name}/run" in said
    assert "Settings that differ" in said
    table = said[said.index("Settings that differ") :]
    assert "batch 16 8" in table
    assert "head.norm" not in table
    assert '<path class="line c1"' in page.read_text()
    assert len(page.read_bytes()) < 20_000_000


def test_a_run_beside_itself_differs_in_nothing(run: Path, tmp_path: Path) -> None:
    said = words(report([run, run], tmp_path / "page.html"))
    assert "Settings that differ None." in said


def test_no_run_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name at least one run"):
        report([], tmp_path / "page.html")


def test_a_learner_is_that_of_its_checkpoint(run: Path, data: Path) -> None:
    found = account(run)
    steps = [step for step, _ in found.diagnosis.checkpoints]
    assert len(steps) == 2
    with pytest.raises(UserError, match="is gone"):
        learner_at(found.diagnosis, 5)
    source = open_source(str(data))
    recipe = found.history.recipe
    assert drifts(recipe, learner_at(found.diagnosis, 12), loader(recipe, source, None, 0, 0), 12) == found.drift
