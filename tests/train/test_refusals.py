"""A run that is refused leaves nothing behind, so that the corrected command works with the same --out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import lookalike
from lookalike.core.errors import UserError
from lookalike.learn import optim
from lookalike.train import checkpoint
from lookalike.train.fit import Fit
from lookalike.train.run import Run, open_run, read_recipe
from tests.conftest import Said
from tests.support.forks import digest

pytestmark = pytest.mark.any_precision

Say = Callable[..., Said]
LIGHT = ("--recipe", "tiny", "--model.widths", "4,8", "--head.widths=16", "--workers", 0, "--steps", 1, "--quiet")
NEW = ("--out", "new/run")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos in two classes, others without a label, an empty folder, and lines of text."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0)
    for i in range(24):
        path = tmp_path / ("photos" if i < 16 else "bare") / ("ab"[i % 2] if i < 16 else "") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 255, (16, 16, 3)).astype(np.uint8)).save(path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "lines.txt").write_text("\n".join(f"line {i} of a text" for i in range(20)))
    return tmp_path


def everything(folder: Path) -> dict[str, bytes | None]:
    """All but the lock, and the batch of a step that went wrong, which stays to be looked at."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name not in ("run.lock", "bad_step.json", "bad_step.safetensors")
    }


REFUSED = {
    "nothing in it": ("pretrain", "empty", *LIGHT),
    "not there": ("pretrain", "nowhere", *LIGHT),
    "no labels": ("supervised", "bare", *LIGHT),
    "text for pictures": ("pretrain", "lines.txt", *LIGHT),
    "pictures for text": ("pretrain", "photos", "--recipe", "simcse"),
    "no videos": ("pretrain", "photos", "--recipe", "video_moco", "--workers", 0),
    "no clips": ("pretrain", "photos", "--recipe", "video_moco_clips", "--workers", 0),
    "no captions": ("pretrain", "photos", "--recipe", "moco_captions", "--workers", 0),
    "no such split": ("pretrain", "photos", *LIGHT, "--split", "val"),
    "batch": ("pretrain", "photos", *LIGHT, "--batch", 64),
    "memory": ("pretrain", "photos", *LIGHT, "--memory", "nan"),
    "field": ("pretrain", "photos", *LIGHT, "--keys.nothing", 3),
    "recipe": ("pretrain", "photos", *LIGHT, "--slices", 3),
    "start": ("pretrain", "photos", *LIGHT, "--init-from", "nothing"),
    "minutes": ("pretrain", "photos", *LIGHT[:-3], "--minutes", 1e-6),
    "loss": ("pretrain", "photos", *LIGHT, "--objective.temperature", 0),
    "gradient": ("pretrain", "photos", *LIGHT, "--objective.temperature", "1e-38"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("overwrite", [False, True])
def test_no_folder_stands_in_the_way_of_the_corrected_command(
    say: Say, place: Path, case: str, overwrite: bool
) -> None:
    more = ("--overwrite",) if overwrite else ()
    right = ("pretrain", "photos", *LIGHT, *NEW)
    if overwrite:  # the old run stays where it is
        assert say(*right, "--seed", 1)[0] == 0
    before = everything(place)
    code, _, err = say(*REFUSED[case], *NEW, *more)
    assert code in (2, 65), err
    assert err.startswith("lookalike: ")
    kept = {"new": None, "new/run": None} if "bad_step" in err else {}
    assert everything(place) == before | kept
    assert say(*right, *more)[0] == 0
    assert read_recipe(place / "new" / "run" / "recipe.json").seed == 0
    assert (place / "new" / "run.old-1").exists() == overwrite


def test_any_amount_of_memory_is_allowed(say: Say, place: Path) -> None:
    for memory in ("inf", "1e300", "0"):
        assert say("pretrain", "photos", *LIGHT, "--out", memory, "--memory", memory) == (0, "", "")


def test_the_list_of_bad_files_stays_where_the_message_speaks_of_it(say: Say, place: Path) -> None:
    (place / "photos" / "a" / "00.png").write_bytes(b"<html>")
    code, _, err = say("pretrain", "photos", *LIGHT, *NEW)
    assert code == 65
    assert "bad_files.csv" in err
    assert [path.name for path in (place / "new" / "run").iterdir()] == ["bad_files.csv"]
    assert say("pretrain", "photos", *LIGHT, *NEW, "--max-bad", 0.5)[0] == 0
    before = everything(place / "new")
    assert say("pretrain", "photos", *LIGHT, *NEW, "--overwrite")[0] == 65
    assert everything(place / "new") == before


def refused_in(folder: Path, work: Callable[[Run], object] = lambda _: None, overwrite: bool = False) -> None:
    """A run that does some work and is refused then."""
    with open_run(folder, overwrite) as run:
        work(run)
        raise UserError("no")


def test_a_folder_that_was_there_stays_and_so_does_what_others_put_into_it(place: Path) -> None:
    (place / "run").mkdir()
    with pytest.raises(UserError, match="no"):
        refused_in(place / "run", lambda run: run.note("a line"))
    assert list((place / "run").iterdir()) == []
    with pytest.raises(UserError, match="no"):
        refused_in(place / "new" / "run", lambda run: (run.folder / "thesis.tex").write_text("precious"))
    assert (place / "new" / "run" / "thesis.tex").read_text() == "precious"


def test_what_is_saved_is_kept(place: Path) -> None:
    run = place / "run"
    settings = {"recipe": "tiny", "workers": 0, "quiet": True, "save_every": 1}
    with pytest.raises(UserError, match="no checkpoint holds it"):
        lookalike.pretrain("photos", run, steps=20, settings={"optimizer.lr": 1e30}, **settings)
    assert checkpoint.published(run / "checkpoints")
    before = digest(run)
    recipe = read_recipe(run / "recipe.json")
    with pytest.raises(UserError, match="no"):
        refused_in(run, lambda opened: opened.write_recipe(recipe), overwrite=True)
    assert digest(run) == before
    assert [path.name for path in place.glob("run*")] == ["run"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_whatever_stops_it_before_a_step_is_saved(place: Path, error: type[BaseException]) -> None:
    def view(picture: Image.Image) -> torch.Tensor:
        if picture.size != (256, 192):  # the one by which its size is found
            raise error
        return torch.zeros(3, 8, 8)

    with pytest.raises(error):
        lookalike.pretrain("photos", place / "run", recipe="tiny", steps=1, workers=0, quiet=True, view=view)
    assert not (place / "run").exists()


def test_a_fit_that_is_refused_before_a_step_is_saved_can_be_corrected(place: Path) -> None:
    def fit(rate: float, steps: int) -> None:
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        schedule, batches = optim.Cosine(0.0), lambda done: iter([torch.ones(1, 2)] * (steps - done))
        optimizer: Any = optim.SGD(0.1).build(model, 256)
        loss: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rate * model(rows).sum()  # noqa: E731
        Fit(model, optimizer, schedule, steps, 0, batches, loss).run(lambda *_: None, place / "fit", {"rate": rate})

    with pytest.raises(UserError, match="lower the learning rate"):
        fit(float("nan"), 2)
    assert not (place / "fit").exists()
    fit(0.1, 2)
    with pytest.raises(UserError, match="holds a fit of another rate"):
        fit(0.2, 2)
    assert checkpoint.newest_step(Run(place / "fit").checkpoints) == 2
