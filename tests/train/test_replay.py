"""A GPU that repeats a recorded step gives the bytes of one that is told each kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lookalike.core.devices import DEVICE
from lookalike.data.loader import Loader
from lookalike.data.source import open_source
from lookalike.recipes import recipe_named
from lookalike.recipes.recipe import Length, Recipe
from lookalike.train.loop import GRAPHS, can_repeat, train
from lookalike.train.run import Run

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")


def state_after(recipe: Recipe, folder: Path) -> dict[str, torch.Tensor]:
    loader = Loader(open_source("digits"), recipe.canvas, workers=0)
    with Run(folder) as run:
        run.begin(recipe, {"examples": len(loader)}, b"")
        learner = train(recipe, run, loader, save_every=4).learner
    return {name: part.cpu().clone() for name, part in learner.state_dict().items()}


@on_gpu
@pytest.mark.parametrize(
    "name", ["tiny", "small_simclr", "small_nnclr", "small_moco_v3", "small_instdisc", "small_mae"]
)
def test_the_bytes_are_those_of_kernels_that_are_started_one_by_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(recipe_named(name, 1797, 16), length=Length(steps=12), checkups=2, batch=32, group=16)
    monkeypatch.setenv(DEVICE, "cuda")
    states = []
    for graphs in "10":
        monkeypatch.setenv(GRAPHS, graphs)
        states.append(state_after(recipe, tmp_path / graphs))
    assert all(torch.equal(part, states[1][part_name]) for part_name, part in states[0].items())


@pytest.mark.parametrize(("name", "can"), [("moco_v2", True), ("supcon", True), ("instdisc", False), ("simcse", False)])
def test_what_the_host_decides_anew_each_step_is_not_recorded(
    name: str, can: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(DEVICE, "cuda")
    assert can_repeat(recipe_named(name, 100_000, 224)) is can
    monkeypatch.setenv(GRAPHS, "0")
    assert not can_repeat(recipe_named(name, 100_000, 224))
