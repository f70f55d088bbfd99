"""A run that is killed, stopped, or continued with other workers ends as one that never was, byte for byte."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path

import pytest

from lookalike.models.vit import ViT
from lookalike.recipes import RECIPES
from tests.support.forks import Forks, Moment, digest
from tests.support.runs import command, done, noise, unfinished

STEPS = 12
POINTS = 2  # every other moment, for time; 1 tries them all


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pictures of noise in two classes."""
    return noise(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def uninterrupted(forks: Forks, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("reference") / "run"
    done(forks.run(command(pictures, out)))
    assert len(digest(out)["metrics"].splitlines()) == STEPS + 2  # two check-ups
    return digest(out)


def test_killed_ten_times_it_ends_as_if_it_never_was(
    forks: Forks, pictures: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    out, chance = tmp_path / "run", random.Random(1)
    kills = {"in a save": 0, "at a time": 0}
    while sum(kills.values()) < 10:
        kind = min(kills, key=lambda kind: kills[kind])
        if kind == "in a save":  # a save touches its temporary folder some ten times
            ended = forks.run(command(pictures, out), Moment(".step-", chance.randint(1, 16)))
        else:
            ended = forks.run(command(pictures, out), seconds=chance.uniform(0.05, 0.5))
        assert ended.code in (0, -signal.SIGKILL), ended.errors
        if ended.code:
            kills[kind] += 1
        elif sum(kills.values()) < 10:  # it was done before its time came: start another
            assert digest(out) == uninterrupted
            out = tmp_path / f"run {sum(kills.values())}"
    done(forks.run(command(pictures, out)))
    assert digest(out) == uninterrupted
    assert unfinished(out) == []


def test_every_moment_at_which_a_run_touches_its_folder_is_safe(forks: Forks, pictures: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    done(forks.run(command(pictures, reference, "--checkups", 0, steps=1)))
    for point in range(1, 100, POINTS):
        out = tmp_path / str(point)
        ended = forks.run(command(pictures, out, "--checkups", 0, steps=1), Moment(str(out), point))
        if ended.code == 0:
            assert point > 25  # there were so many moments to choose from
            return
        assert ended.code == -signal.SIGKILL
        done(forks.run(command(pictures, out, "--checkups", 0, steps=1)))
        assert digest(out) == digest(reference), point
        assert unfinished(out) == [], point
    pytest.fail("the run never ended")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_saves_and_the_same_command_goes_on(
    forks: Forks, pictures: Path, uninterrupted: dict[str, bytes], tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "run"
    # metrics.jsonl is opened for its first line, in step 1, after it was made new: written, renamed.
    ended = forks.run(command(pictures, out, save=100), Moment("metrics.jsonl", 3, number))
    assert (ended.code, ended.errors) == (code, "")
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000000001"]
    done(forks.run(command(pictures, out)))
    assert digest(out) == uninterrupted


def test_a_stopped_run_keeps_its_lock_and_a_killed_one_frees_it_at_once(
    forks: Forks, pictures: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    streaming = command(pictures, out, "--workers", 2, "--memory", 0)  # its workers inherit all open files
    holder = forks.run(streaming, Moment(".step-000000006", 5, signal.SIGSTOP))
    assert holder.code is None
    second = forks.run(command(pictures, out))
    assert second.code == 75
    assert f"pid {holder.pid} on " in second.errors
    assert second.errors.count("\n") == 1
    assert forks.kill(holder.pid).code == -signal.SIGKILL
    done(forks.run(command(pictures, out, "--workers", 1)))  # cached now, by another number of workers
    assert digest(out) == uninterrupted


def test_minutes_are_measured_once_and_a_resume_keeps_their_steps(forks: Forks, pictures: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    measured = ["--minutes" if word == "--steps" else word for word in command(pictures, out, steps=3, save=2)]
    assert forks.run(measured, Moment(".step-000000002", 3)).code == -signal.SIGKILL
    length = json.loads((out / "recipe.json").read_text())["length"]
    assert (length["minutes"], length["stages"]) == (3, [])
    # Killed again long before the three minutes are over, and before they could be corrected.
    for run in (measured, command(pictures, other, steps=length["steps"], save=2)):
        assert forks.run(run, Moment(".step-000000008", 3)).code == -signal.SIGKILL
    assert json.loads((out / "recipe.json").read_text())["length"] == length
    assert json.loads(digest(out)["state.json"])["step"] == 6
    assert digest(other) == digest(out)


@pytest.fixture(scope="module")
def longer(
    forks: Forks, pictures: Path, uninterrupted: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What twelve steps leave that were then made twenty."""
    out = tmp_path_factory.mktemp("longer") / "run"
    done(forks.run(command(pictures, out)))
    done(forks.run(command(pictures, out, "--extend", steps=20)))
    assert digest(out)["metrics"].startswith(uninterrupted["metrics"])
    assert json.loads(digest(out)["state.json"])["step"] == 20
    return digest(out)


def test_a_run_made_longer_and_killed_ends_as_if_it_never_was(
    forks: Forks, pictures: Path, longer: dict[str, bytes], tmp_path: Path
) -> None:
    extend, began = command(pictures, tmp_path / "run", "--extend", steps=20), command(pictures, tmp_path / "run")
    done(forks.run(began))
    kills = [Moment("recipe.json", 3), Moment(".step-000000015", 4), Moment(".step-000000018", 9)]
    for moment, again in zip(kills, (extend, extend, began)):  # once it is on record, what began it goes on, too
        assert forks.run(again, moment).code == -signal.SIGKILL
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["length"]["steps"] == STEPS
    done(forks.run(extend))
    assert digest(tmp_path / "run") == longer
    assert unfinished(tmp_path / "run") == []


def test_every_moment_at_which_a_run_is_made_longer_is_safe(forks: Forks, pictures: Path, tmp_path: Path) -> None:
    began, reference = tmp_path / "began", tmp_path / "reference"
    done(forks.run(command(pictures, began, "--checkups", 0, steps=1)))
    shutil.copytree(began, reference)
    done(forks.run(command(pictures, reference, "--checkups", 0, "--extend", steps=2)))
    for point in range(1, 100, 2 * POINTS):
        out = tmp_path / str(point)
        shutil.copytree(began, out)
        extend = command(pictures, out, "--checkups", 0, "--extend", steps=2)
        ended = forks.run(extend, Moment(str(out), point))
        if ended.code == 0:
            assert point > 25  # there were so many moments to choose from
            return
        assert ended.code == -signal.SIGKILL
        done(forks.run(extend))
        assert digest(out) == digest(reference), point
        assert unfinished(out) == [], point
    pytest.fail("the run never ended")


def test_a_run_that_was_stopped_is_made_longer_from_its_checkpoint_on(
    forks: Forks, pictures: Path, longer: dict[str, bytes], tmp_path: Path
) -> None:
    ends = []
    for number, moment in enumerate((None, Moment(".step-000000015", 4))):
        out = tmp_path / f"run {number}"
        assert forks.run(command(pictures, out), Moment(".step-000000009", 4)).code == -signal.SIGKILL
        extend = command(pictures, out, "--extend", steps=20)
        if moment:
            assert forks.run(extend, moment).code == -signal.SIGKILL
        done(forks.run(extend))
        length = json.loads((out / "recipe.json").read_text())["length"]
        assert [(stage["after"], stage["total"]) for stage in length["stages"]] == [(6, 20)]
        ends.append(digest(out))
    assert ends[0] == ends[1]
    assert ends[0]["learner.safetensors"] != longer["learner.safetensors"]  # steps 7 to 12 had other rates


FAMILY = [name for name in RECIPES if name.startswith("small_")]
QUICK = {"small_instdisc", "small_moco_v3", "small_masked_moco"}  # bank and Z; predictor, no dictionary; decoder


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILY]
)
def test_every_recipe_killed_in_a_save_ends_as_if_it_never_was(
    forks: Forks, pictures: Path, tmp_path: Path, name: str
) -> None:
    vit = isinstance(RECIPES[name].fitted(48, 16).model, ViT)
    size = ["--model.width", "8", "--model.depth", "1", "--model.heads", "2"] if vit else []
    arguments = [*("--recipe", name, "--steps", 8, "--save-every", 3, "--workers", 0, "--quiet", "--batch", 16)]
    arguments += ["--group", 8, "--checkups", 1, *(size or ["--model.widths", "4,8", "--model.blocks", "1,1"])]
    reference, out = tmp_path / "reference", tmp_path / "run"
    done(forks.run(["pretrain", pictures, "--out", reference, *arguments]))
    ended = forks.run(["pretrain", pictures, "--out", out, *arguments], Moment(".step-000000006", 4))
    assert ended.code == -signal.SIGKILL, ended.errors
    done(forks.run(["pretrain", pictures, "--out", out, *arguments]))
    assert digest(out) == digest(reference)
