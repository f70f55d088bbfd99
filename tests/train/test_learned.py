"""What a run says before it begins and when it ends: doubts, what was learned, and the next command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.data.loader import Loader
from lookalike.data.source import open_source
from lookalike.models.encoder import Encoder
from lookalike.recipes import recipe_of, tiny
from lookalike.train import learned as module
from lookalike.train.learned import doubts, found_again, learned, next_command
from lookalike.train.trained import initial
from tests.conftest import Said
from tests.support.forks import digest

SLIM = ("--recipe", "tiny", "--workers", 0)


def pictures(folder: Path, count: int, noise: int, classes: str = "ab") -> Path:
    """Pictures around one, so many levels apart."""
    draw = np.random.default_rng(0)
    base = draw.integers(60, 180, (16, 16, 3))
    for i in range(count):
        path = folder / classes[i % len(classes)] / f"{i:03}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        pixels = base + draw.integers(-noise, noise + 1, (16, 16, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return folder


def digits() -> Loader:
    return Loader(open_source("digits"), 16, workers=0)


def test_few_or_equal_pictures_are_doubted_before_a_run(say: Callable[..., Said], tmp_path: Path) -> None:
    assert list(doubts(tiny.fitted(1797), digits())) == []
    alike, apart = pictures(tmp_path / "alike", 40, 2), pictures(tmp_path / "apart", 40, 60)
    code, out, _ = say("pretrain", alike, "--out", tmp_path / "first", "--steps", 2, *SLIM)
    few, equal, begins = out.splitlines()[:3]
    assert code == 0
    assert few.startswith("40 pictures are few to learn from without labels")
    assert equal.startswith("100% of the pictures nearly equal another one")
    assert "--init-from MODEL" in few
    assert begins.startswith("tiny: 40 examples")
    _, out, _ = say("pretrain", apart, "--out", tmp_path / "second", "--steps", 2, *SLIM)
    assert "nearly equal" not in out
    more = ("--init-from", tmp_path / "first")
    _, out, _ = say("pretrain", apart, "--out", tmp_path / "third", "--steps", 2, *SLIM, *more)
    assert "few to learn" not in out
    _, out, _ = say("supervised", apart, "--out", tmp_path / "fourth", "--steps", 2, *SLIM)
    assert "few to learn" not in out
    assert "again" not in out


@pytest.fixture(autouse=True)
def _slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same number of pictures, however long it takes."""
    monkeypatch.setattr(module, "_SECONDS", 0.0)


def test_a_run_ends_with_what_it_learned_and_the_next_command(say: Callable[..., Said], tmp_path: Path) -> None:
    quiet, loud = tmp_path / "quiet", tmp_path / "loud"
    command = ("pretrain", "digits", "--steps", 40, "--checkups", 0, *SLIM)
    assert say(*command, "--out", quiet, "--quiet") == (0, "", "")
    code, out, err = say(*command, "--out", loud)
    assert (code, err) == (0, "")
    finds, then = out.splitlines()[-2:]
    assert "finds a picture again from another view among " in finds
    assert " untrained, chance " in finds
    assert then == f"next: lookalike evaluate knn {loud} digits"
    for name in ("metrics.jsonl", "recipe.json"):
        assert (loud / name).read_bytes() == (quiet / name).read_bytes()
    assert digest(loud) == digest(quiet)
    code, out, _ = say(*command, "--out", loud)  # finished: the same is said again
    assert out.splitlines()[-2:] == [finds, then]


def test_pictures_are_found_again_as_often_as_they_are() -> None:
    loader, recipe = digits(), tiny.fitted(1797)
    encoder = initial(recipe).train()
    before, state = digest_of(encoder), torch.get_rng_state()
    (found,) = found_again(recipe, loader, encoder)
    assert len(found.each) == 100  # the least, whatever time it takes
    assert found.chance == pytest.approx(0.01)
    assert 0 < found.mean < 1
    assert found_again(recipe, loader, encoder)[0].each.equal(found.each)
    assert digest_of(encoder) == before
    assert encoder.training
    assert torch.get_rng_state().equal(state)


def digest_of(encoder: Encoder) -> list[bytes]:
    return [part.numpy().tobytes() for part in encoder.state_dict().values()]


def test_a_network_that_stayed_as_it_was_has_learned_nothing() -> None:
    loader, recipe = digits(), tiny.fitted(1797)
    (line,) = learned(recipe, loader, initial(recipe))
    assert line.startswith("nothing was learned: finds a picture again from another view among ")
    assert "no better than untrained" in line
    masked = recipe_of("small_mae").fitted(1797, 16)
    (line,) = learned(masked, loader, initial(masked))
    assert line.startswith("finds a picture again")
    assert "which this recipe does not train" in line


def test_one_view_a_step_is_compared_with_one_of_another_epoch() -> None:
    recipe = replace(recipe_of("small_instdisc"), canvas=16).fitted(1797, 16)
    (found,) = found_again(recipe, digits(), initial(recipe))
    assert found.mean < 0.98


def test_the_next_command_is_one_that_works(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    source = open_source("digits")
    assert next_command(tiny, source, "digits", run) == f"next: lookalike evaluate knn '{run}' digits"
    bare = open_source(pictures(tmp_path / "bare", 4, 9, "a"))
    assert next_command(tiny, bare, "bare", run).startswith(f"next: lookalike search '{run}' PICTURE, or with labels")
    assert next_command(recipe_of("simcse"), bare, "x.txt", run).startswith(
        f"next: lookalike search '{run}' 'A SENTENCE'"
    )
    assert next_command(recipe_of("moco_captions"), source, "x", run) == f"next: lookalike evaluate captions '{run}' x"
    assert next_command(recipe_of("video_moco"), source, "x", run).endswith(" x --clip inf")
