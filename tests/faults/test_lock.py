"""One writer a folder, whatever happens to the folder meanwhile."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import lookalike
from lookalike.core.errors import IO, LOCKED, UserError
from lookalike.core.lock import Lock, holder
from lookalike.train import checkpoint
from lookalike.train.run import Run

LIGHT: dict[str, Any] = {"recipe": "tiny", "workers": 0, "quiet": True, "save_every": 1}


def test_a_lock_knows_when_its_folder_has_gone_elsewhere(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "run")
    assert lock.fresh
    assert lock.holds()
    assert holder(tmp_path / "run") == (tmp_path / "run" / "run.lock").read_text()
    (tmp_path / "run").rename(tmp_path / "away")
    assert not lock.holds()
    other = Lock(tmp_path / "run")  # another folder, which is free
    assert other.holds()
    with pytest.raises(UserError, match=f"in use by pid {os.getpid()}") as refused:
        Lock(tmp_path / "away")
    assert refused.value.code == LOCKED
    lock.release()
    other.release()
    lock = Lock(tmp_path / "away")
    assert not lock.fresh
    lock.release()
    assert (tmp_path / "away" / "run.lock").read_text() == ""
    assert holder(tmp_path / "nowhere") is None


def test_a_file_that_is_locked_too_late_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    take, moves = Lock._take, [0]

    def late(lock: Lock, file: Any) -> None:
        if moves[0] < 3:  # between opening and locking somebody moves the folder
            moves[0] += 1
            lock.path.parent.rename(tmp_path / f"old-{moves[0]}")
        take(lock, file)

    monkeypatch.setattr(Lock, "_take", late)
    lock = Lock(tmp_path / "run")
    assert lock.holds()
    assert moves == [3]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.lock"]
    lock.release()


def test_a_run_that_is_in_use_is_not_moved_aside(tmp_path: Path) -> None:
    lookalike.pretrain("digits", tmp_path / "run", steps=1, **LIGHT)
    with Run(tmp_path / "run"), pytest.raises(UserError, match="in use") as refused:
        lookalike.pretrain("digits", tmp_path / "run", steps=1, overwrite=True, **LIGHT)
    assert refused.value.code == LOCKED
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("do", ["move", "delete", "replace"])
def test_a_folder_that_goes_away_under_a_training_ends_it(tmp_path: Path, do: str) -> None:
    for i in range(16):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i}.png")
    run, seen = tmp_path / "runs" / "run", [0]

    def view(picture: Image.Image) -> torch.Tensor:
        seen[0] += 1
        if seen[0] == 16 * 2 * 3:  # in the third step
            shutil.rmtree(run) if do == "delete" else run.rename(tmp_path / "away")
            if do == "replace":
                shutil.copytree(tmp_path / "away", run)
        return torch.rand(3, 8, 8)

    with pytest.raises(UserError, match="was moved or deleted while it was in use") as stopped:
        lookalike.pretrain(tmp_path, run, steps=8, view=view, batch=16, settings={"dictionary.size": "16"}, **LIGHT)
    assert stopped.value.code == IO
    if do == "delete":
        assert not run.exists()
    if do == "replace":  # what is there now is another's, and is left alone
        assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
        assert checkpoint.newest_step(run / "checkpoints") == 2
    if do != "delete":
        assert checkpoint.newest(tmp_path / "away" / "checkpoints")[1] == []
