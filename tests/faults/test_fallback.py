"""What is used in place of what was asked for is said; what cannot be read is not called damaged."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import SafetensorError

from lookalike.core.errors import IO
from lookalike.core.files import as_json, cannot_write, of_system, publish, write_atomically
from lookalike.train import checkpoint
from lookalike.train.tensorboard import Board
from tests.conftest import Said
from tests.support.forks import Forks, digest

Say = Callable[..., Said]
LIGHT = ("--recipe", "tiny", "--model.widths", "4,8", "--head.widths", "8", "--workers", 0, "--quiet")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """Photos in two classes, and a run on them."""
    place, noise = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    for i in range(24):
        path = place / "photos" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 255, (16, 16, 3)).astype(np.uint8)).save(path)
    ended = forks.run(["pretrain", place / "photos", "--out", place / "run", *LIGHT, "--steps", 4, "--save-every", 1])
    assert ended.code == 0, ended.errors
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of both that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "made"))


def again(place: Path) -> tuple[object, ...]:
    return ("pretrain", place / "photos", "--out", place / "run", *LIGHT, "--steps", 4)


VERBS: dict[str, tuple[str, ...]] = {
    "knn": ("evaluate", "knn", "run", "photos", "--baselines", "none"),
    "embed": ("embed", "run", "photos", "--out", "table.parquet"),
    "search": ("search", "run", "photos/a/00.png"),
    "doctor": ("doctor", "run"),
    "start": ("pretrain", "photos", "--out", "new", "--init-from", "run", "--recipe", "tiny", "--steps", "1"),
    "finetune": (
        "evaluate",
        "finetune",
        "run",
        "photos",
        "--steps",
        "1",
        "--batch",
        "2",
        "--shares",
        "1",
        "--out",
        "fit",
    ),
    "compare": ("compare", "run", "--on", "photos", "--task", "knn", "--trials", "2", "--out", "cmp"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_that_it_passes_over_a_damaged_checkpoint(
    place: Path, say: Say, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.chdir(place)
    newest = checkpoint.published(place / "run" / "checkpoints")[0]
    (newest / "learner.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="passed over a damaged checkpoint: .*step 3 is used"):
        code, _, err = say(*VERBS[verb])
    assert code == 0, err


def test_a_run_that_goes_on_says_it_even_where_it_is_quiet(place: Path, forks: Forks) -> None:
    newest = checkpoint.published(place / "run" / "checkpoints")[0]
    before = digest(place / "run")
    (newest / "learner.safetensors").write_bytes(b"damaged")
    ended = forks.run(again(place))
    assert ended.code == 0, ended.errors
    assert re.fullmatch(r"lookalike: passed over a damaged checkpoint: .*; step 3 is used\n", ended.errors)
    assert digest(place / "run") == before


@pytest.mark.parametrize("file", ["learner.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_what_this_user_may_not_read_is_neither_damaged_nor_deleted(place: Path, forks: Forks, file: str) -> None:
    newest = checkpoint.published(place / "run" / "checkpoints")[0]
    before = sorted(path.name for path in (place / "run" / "checkpoints").iterdir())
    (newest / file).chmod(0)
    for command in (again(place), ("evaluate", "knn", place / "run", place / "photos")):
        ended = forks.run(command)
        assert ended.code == IO, ended.errors
        assert re.fullmatch(r"lookalike: .*Permission denied.* it may be whole: .*\n", ended.errors)
        assert "overwrite" not in ended.errors
    assert sorted(path.name for path in (place / "run" / "checkpoints").iterdir()) == before
    (newest / file).chmod(0o644)
    assert forks.run(again(place)).code == 0


def test_all_files_of_a_run_may_be_read_by_the_same_people(made: Path) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (made / "run").rglob("*") if path.is_file()}
    (made / "plain").touch()
    assert modes == {stat.S_IMODE((made / "plain").stat().st_mode)}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"data": 3}', None])
def test_a_record_of_where_it_ran_may_be_lost_and_the_weights_are_not(
    place: Path, say: Say, content: bytes | None
) -> None:
    record, before = place / "run" / "environment.json", digest(place / "run")
    record.unlink() if content is None else record.write_bytes(content)
    with expected("environment.json is damaged", content is not None):
        code, out, err = say("evaluate", "knn", place / "run", place / "photos", "--baselines", "none")
    assert code == 0, err
    assert "kNN accuracy" in out
    with expected("environment.json is damaged", content is not None):
        code, _, err = say(*again(place))
    assert code == 0, err
    assert digest(place / "run") == before


@contextmanager
def expected(warning: str, comes: bool) -> Iterator[None]:
    if comes:
        with pytest.warns(UserWarning, match=warning):
            yield
    else:
        yield


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_lost_lines_of_metrics_are_said(place: Path, say: Say, kept: int) -> None:
    metrics = place / "run" / "metrics.jsonl"
    shutil.rmtree(checkpoint.published(place / "run" / "checkpoints")[0])
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join(lines[:kept]))
    assert say(*again(place))[0] == 0
    log = (place / "run" / "train.log").read_text()
    assert f"has lost {3 - kept} of 3 lines, the first of step {kept + 1}" in log
    assert metrics.read_bytes().splitlines(keepends=True)[-1] == lines[-1]  # the last step, made again


def recorded(run: Path, **changes: object) -> None:
    """Let environment.json of a run say something else."""
    name = "environment.json"
    publish(run, {name: as_json(json.loads((run / name).read_text()) | changes)})


@pytest.mark.parametrize("name", ["lookalike", "torch", "pillow", "python", "processor", "threads"])
def test_what_decides_the_bytes_is_compared(place: Path, say: Say, name: str) -> None:
    shutil.rmtree(checkpoint.published(place / "run" / "checkpoints")[0])
    recorded(place / "run", **{name: "another"})
    assert say(*again(place))[0] == 0
    assert f"{name} " in (place / "run" / "train.log").read_text()
    assert "(another before)" in (place / "run" / "train.log").read_text()


@pytest.mark.skipif(Board.open(Path(), 0) is None, reason="TensorBoard is not installed")
def test_a_file_of_tensorboard_that_cannot_be_written_ends_nothing(place: Path, say: Say) -> None:
    before = digest(place / "run")
    shutil.rmtree(place / "run" / "tb")
    (place / "run" / "tb").write_text("in the way")
    shutil.rmtree(checkpoint.published(place / "run" / "checkpoints")[0])
    assert say(*again(place))[0] == 0
    assert digest(place / "run") == before
    assert "the run goes on without it" in (place / "run" / "train.log").read_text()


def test_why_a_file_cannot_be_written_decides_the_advice(tmp_path: Path) -> None:
    full = cannot_write(tmp_path / "file", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1234)
    assert re.search(r"cannot write .*/file \(No space left on device\): 1234 bytes are needed, \d+ are free", full)
    closed = cannot_write(tmp_path / "file", OSError(errno.EROFS, os.strerror(errno.EROFS)))
    assert "free some space" not in closed
    assert "Read-only file system" in closed
    of_safetensors = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    failed = of_system(of_safetensors)
    assert failed
    assert failed.errno == errno.ENOSPC


def test_doctor_gives_the_command_for_where_a_run_lies_now(place: Path, say: Say) -> None:
    recorded(place / "run", command=["lookalike", *map(str, again(place)), "--out=elsewhere"])
    (place / "run").rename(place / "moved here")
    shutil.rmtree(checkpoint.published(place / "moved here" / "checkpoints")[0])
    code, out, err = say("doctor", place / "moved here")
    assert code == 0, err
    assert f"--out '{place / 'moved here'}'" in out.split("continue with")[1]
    assert str(place / "run") not in out.split("continue with")[1]


def test_what_a_killed_process_left_is_taken_away_by_the_next(tmp_path: Path) -> None:
    if (pid := os.fork()) == 0:
        os.fsync = lambda _: os._exit(0)  # type: ignore[assignment]  # it dies before it can publish
        write_atomically(tmp_path / "table.parquet", b"half")
    os.waitpid(pid, 0)
    assert len(list(tmp_path.iterdir())) == 1
    write_atomically(tmp_path / "table.parquet", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]
