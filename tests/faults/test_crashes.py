"""A command that is killed at any system call, or whose disk refuses one, ends with the same bytes when it is repeated.

Killed before each call that changes its folder, a command leaves every state of the disk that it ever makes.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.train import checkpoint
from tests.faults.kit import ERRORS, Call, Scene, Tracer, every
from tests.support.forks import Ended, Forks, Moment, digest
from tests.support.runs import command, done, unfinished

Kept = Callable[[str], Scene]
Failure = tuple[Call, str, bool]  # which call fails, how, and whether all after it fail, too


def begin(data: Path, out: Path, *more: object, steps: int) -> list[object]:
    return command(data, out, "--checkups", 0, *more, steps=steps, save=1)


def masked(folder: Path) -> Path:
    """Pictures of noise with masks of three classes."""
    chance = np.random.default_rng(0)
    for name, most, shape in (("images", 256, (24, 24, 3)), ("masks", 3, (24, 24))):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(chance.integers(0, most, shape, dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def scenes(forks: Forks, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """By name: a run that begins, goes on after it was killed in a save, starts over; and what writes other files."""
    made = tmp_path_factory.mktemp("made")
    killed, whole, known = made / "killed", made / "whole", made / "known"
    assert forks.run(begin(pictures, killed, steps=3), Moment(".step-000000002", 6)).code == -signal.SIGKILL
    assert unfinished(killed)
    done(forks.run(begin(pictures, whole, steps=2)))

    def copy(of: Path) -> Callable[[Path], object]:
        return lambda out: shutil.copytree(of, out)

    def a_checkpoint(out: Path) -> None:
        runs = [
            run for run in (out, *out.parent.glob(f"{out.name}.old-*")) if checkpoint.published(run / "checkpoints")
        ]
        assert any(checkpoint.newest(run / "checkpoints")[0] for run in runs)

    def no_half_table(out: Path) -> None:
        assert set(out.iterdir()) <= {out / "table.parquet"} | set(unfinished(out))

    def files(out: Path) -> dict[str, bytes]:
        every = (path for path in out.rglob("*") if path.is_file() and path.name != "run.lock")
        return {str(path.relative_to(out)): path.read_bytes() for path in every}

    def fits(out: Path) -> dict[str, dict[str, bytes]]:
        return {str(path.parent.relative_to(out)): digest(path.parent) for path in out.rglob("checkpoints")}

    def no_half_cache(out: Path) -> None:
        about = out / "canvases.json"
        assert not about.exists() or "finished" in json.loads(about.read_text())

    def no_half_model(out: Path) -> None:
        assert not (out / "model").exists() or (out / "model" / "config.json").exists()

    def nothing(_: Path) -> None:
        """It makes its folder itself."""

    of_timm = ("--recipe", "tiny", "--model", "timm:test_resnet", "--workers", 0, "--quiet", "--checkups", 0)
    done(forks.run(["pretrain", pictures, "--out", known, "--steps", 1, *of_timm]))
    embed = ["embed", whole, pictures, "--workers", 0, "--out"]
    prepare = ["prepare", pictures, "--workers", 0, "--size", 16, "--quiet"]
    export = ["export", known, "--to", "timm"]
    tune = ["evaluate", "finetune", whole, pictures, "--workers", 0, "--steps", 2, "--shares", 1.0, "--draws", 1]
    segment = ["evaluate", "segment", whole, masked(made / "masks"), "--workers", 0, "--steps", 2]
    segment += ["--page", made / "segment.html"]  # which else lies where tests are run
    scenes = {
        "begins": Scene(lambda _: None, lambda out: begin(pictures, out, steps=1), digest, lambda _: None),
        "goes on": Scene(copy(killed), lambda out: begin(pictures, out, steps=3), digest, a_checkpoint),
        "starts over": Scene(
            copy(whole), lambda out: begin(pictures, out, "--overwrite", steps=1), digest, a_checkpoint
        ),
        "embeds": Scene(Path.mkdir, lambda out: [*embed, out / "table.parquet"], files, no_half_table),
        "prepares": Scene(nothing, lambda out: [*prepare, "--out", out], files, no_half_cache),
        "exports": Scene(Path.mkdir, lambda out: [*export, "--out", out / "model"], files, no_half_model, once=True),
        "tunes": Scene(nothing, lambda out: [*tune, "--out", out], fits, lambda _: None),
        "segments": Scene(nothing, lambda out: [*segment, "--out", out], fits, lambda _: None),
    }
    return scenes.__getitem__


SCENES = ("begins", "goes on", "starts over", "embeds", "prepares", "exports", "tunes", "segments")


def watched(scene: Scene, tracer: Tracer, folder: Path) -> tuple[list[Call], object]:
    """The calls of a command that meets no fault, and what it leaves."""
    scene.set_up(folder)
    calls = tracer.calls(scene.command(folder), folder)
    return calls, scene.left(folder)


def ends_the_same(scene: Scene, forks: Forks, out: Path, reference: object) -> None:
    """The old state is there; the same command ends as if nothing had been, and nothing half is left."""
    scene.whole(out)
    if not (scene.once and scene.left(out) == reference):
        done(forks.run(scene.command(out)))
    assert scene.left(out) == reference
    assert unfinished(out) == []
    shutil.rmtree(out)


@pytest.mark.parametrize("name", SCENES)
def test_every_call_at_which_it_may_be_killed_is_safe(
    scenes: Kept, tracer: Tracer, tmp_path: Path, thorough: Callable[[int, int], int], name: str
) -> None:
    scene = scenes(name)
    calls, reference = watched(scene, tracer, tmp_path / "reference")
    assert len(calls) >= 3

    def killed(call: Call, out: Path) -> None:
        scene.set_up(out)
        ended = tracer.run(scene.command(out), *call.killed())
        assert ended.code == -signal.SIGKILL
        ends_the_same(scene, tracer.forks, out, reference)

    few = max(20, len(calls) // 2)
    every(f"{name}: kills at {len(calls)} calls", calls[:: thorough(few, 1)], killed, tmp_path)


def failures(calls: list[Call]) -> Iterator[Failure]:
    """Each call with each error; and with one of them for good."""
    for call in calls:
        errors = ERRORS.get(call.name, ("EIO",))
        yield from ((call, error, False) for error in errors)
        yield call, errors[0], True


def refused(ended: Ended, mute: bool) -> bool:
    """Whether it says in one line that the disk failed it, or goes on to its end; it may be that it can say nothing."""
    said = ended.errors.strip().splitlines()
    if mute and not said:
        return True
    return ended.code == 0 or (ended.code == 74 and len(said) == 1 and said[0].startswith("lookalike: "))


@pytest.mark.parametrize("name", SCENES)
def test_every_call_that_may_fail_is_safe(
    scenes: Kept, tracer: Tracer, tmp_path: Path, thorough: Callable[[int, int], int], name: str
) -> None:
    """ENOSPC, EIO, EDQUOT and EROFS; the disk recovers, and the same command ends the same."""
    scene = scenes(name)
    calls, reference = watched(scene, tracer, tmp_path / "reference")

    def failed(failure: Failure, out: Path) -> None:
        call, error, ever_after = failure
        scene.set_up(out)
        ended = tracer.run(scene.command(out), *call.fails(error, ever_after))
        assert str(out) in tracer.injected()
        assert refused(ended, mute=ever_after and call.name == "write"), ended
        ends_the_same(scene, tracer.forks, out, reference)

    tries = list(failures(calls))
    few, many = max(61, len(tries) // 3), max(1, len(tries) // 250)  # a fit is made of runs, whose calls are alike
    every(f"{name}: failures of {len(calls)} calls", tries[:: thorough(few, many)], failed, tmp_path)


def test_killed_at_random_times_it_ends_as_if_it_never_was(
    forks: Forks, pictures: Path, tmp_path: Path, thorough: Callable[[int, int], int]
) -> None:
    """Half of the kills are aimed inside a save, half may come after the end; a run is compared after ten at most."""
    reference, out, chance = tmp_path / "reference", tmp_path / "run 0", random.Random(2)
    done(forks.run(command(pictures, tmp_path / "before", steps=30)))  # the server of forks is ready then
    began = time.monotonic()
    done(forks.run(command(pictures, reference, steps=30)))
    long, kills, compared = 1.2 * (time.monotonic() - began), 0, 0
    while kills < thorough(4, 200):
        moment = Moment(".step-", chance.randint(1, 16)) if kills % 2 else None
        ended = forks.run(command(pictures, out, steps=30), moment, None if moment else chance.uniform(0.02, long))
        assert ended.code in (0, -signal.SIGKILL), ended.errors
        kills += ended.code != 0
        if ended.code == 0 or kills % 10 == 0 or kills == thorough(4, 200):
            done(forks.run(command(pictures, out, steps=30)))
            assert digest(out) == digest(reference)
            assert unfinished(out) == []
            compared += 1
            out = tmp_path / f"run {compared}"
    print(f"{kills} kills at random times, {compared} runs compared")
