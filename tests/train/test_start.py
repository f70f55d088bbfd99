"""A run that begins with a model of others, or learns from one: what it takes, what stays, what is kept at its end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import lookalike
from lookalike.core.progress import silent
from lookalike.data.source import open_source
from lookalike.evaluation.settings import Finetune
from lookalike.evaluation.tuning import classifier
from lookalike.learn.keys import Stored
from lookalike.learn.tuned import Movement
from lookalike.metrics.accuracy import Evidence
from lookalike.models.encoder import Whitening
from lookalike.models.norm import _GroupedBatchNorm
from lookalike.recipes import RECIPES, recipe_of, tiny
from lookalike.train.checkpoint import newest
from lookalike.train.result import Candidate, Judge, mixed
from lookalike.train.run import Run, read_recipe
from tests.conftest import Said
from tests.support.forks import digest

NET = "timm:test_efficientnet"
STEPS = ("--steps", 4, "--batch", 8, "--workers", 0, "--save-every", 2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of timm with statistics of its own."""
    torch.manual_seed(0)
    net, file = (
        timm.create_model("test_efficientnet", num_classes=0),
        tmp_path_factory.mktemp("weights") / "net.safetensors",
    )
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.uniform_(-0.1, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    save_file(net.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures of two classes."""
    folder, draws = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(40):
        low = draws.integers(0, 128, (6, 5, 3), np.uint8) + np.array([120, 0, 0] if i % 2 else [0, 0, 120], np.uint8)
        path = folder / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(low).resize((48, 40), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture(scope="module")
def adapted(weights: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "adapted"
    settings = {"batch": "8", "tuned.share": "0.5", "held_out": "0.25"}
    lookalike.pretrain(photos, out, init_from=weights, model=NET, steps=4, settings=settings, workers=0, save_every=2)
    return out


def test_the_recipe_follows_the_model_and_not_the_reverse(adapted: Path, weights: Path) -> None:
    recipe, named = read_recipe(adapted / "recipe.json"), lookalike.load(weights, model=NET).recipe
    assert recipe.name == "adapt"
    assert (recipe.model, recipe.preprocessing) == (named.model, named.preprocessing)
    assert recipe.preprocessing is not None
    first = recipe.pictures.first
    assert (first.mean, first.std) == (recipe.preprocessing.mean, recipe.preprocessing.std)
    assert first.size % 32 == 0
    assert first.size <= recipe.preprocessing.size
    recorded = Run(adapted).data()["start"]
    assert recorded["architecture"] == NET
    assert len(recorded["sha256"]) == 64


def test_statistics_and_the_first_stages_stay_and_the_last_ones_learn(adapted: Path, weights: Path) -> None:
    path, _ = newest(Run(adapted).checkpoints)
    assert path is not None
    before, after = load_file(weights), load_file(path / "learner.safetensors")
    began = load_file(adapted / "start.safetensors")
    same = {name: torch.equal(part, after[f"encoder.backbone.net.{name}"]) for name, part in before.items()}
    assert all(torch.equal(part, began[f"net.{name}"]) for name, part in before.items() if f"net.{name}" in began)
    assert all(equal for name, equal in same.items() if "running" in name)
    assert same["conv_stem.weight"]
    assert not same["conv_head.weight"]


def test_the_same_command_goes_on_from_a_checkpoint_to_the_same_bytes(
    adapted: Path, weights: Path, photos: Path, tmp_path: Path
) -> None:
    again = tmp_path / "adapted"
    shutil.copytree(adapted, again)
    path, _ = newest(Run(again).checkpoints)
    assert path is not None
    shutil.rmtree(path)
    for name in ("result.json", "result.safetensors"):
        (again / name).unlink()
    settings = {"batch": "8", "tuned.share": "0.5", "held_out": "0.25"}
    lookalike.pretrain(photos, again, init_from=weights, model=NET, steps=4, settings=settings, workers=0, save_every=2)
    assert digest(again) == digest(adapted)
    assert (again / "result.safetensors").read_bytes() == (adapted / "result.safetensors").read_bytes()


def test_the_better_one_is_kept_and_opened(adapted: Path, say: Callable[..., Said]) -> None:
    assert "net.safetensors; kept: the " in say("doctor", adapted)[1]
    verdict = json.loads((adapted / "result.json").read_text())
    assert verdict["kept"] in verdict["scores"]
    assert {"the start as it was", "the start, whitened", "the result"} <= verdict["scores"].keys()
    kept = load_file(adapted / "result.safetensors")
    opened = lookalike.load(adapted).encoder.state_dict()
    assert all(torch.equal(part, opened[name]) for name, part in kept.items())


@pytest.mark.parametrize(
    ("start", "result", "kept"),
    [(0.5, 0.6, "the result"), (0.55, 0.5, "the result"), (0.9, 0.5, "the start as it was")],
)
def test_the_start_is_kept_where_it_is_better_by_an_interval(start: float, result: float, kept: str) -> None:
    judge = Judge(tiny, open_source("digits"), open_source("digits"), silent)

    def scored(name: str, right: float) -> Candidate:
        return Candidate(
            name, 1.0, Whitening(2), Evidence((torch.arange(100) < 100 * right).double(), "held-out pictures")
        )

    found = [scored("the start as it was", start), scored("the start, whitened", 0.4), scored("the result", result)]
    assert judge.by_labels
    assert judge.best(found).name == kept


def test_the_verdict_needs_no_labels(weights: Path, photos: Path, say: Callable[..., Said], tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in photos.rglob("*.png"):
        shutil.copy(path, flat)
    code, out, err = say("pretrain", flat, "--init-from", weights, "--model", NET, "--out", tmp_path / "run", *STEPS)
    assert code == 0, err
    verdict = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "larger pictures" in verdict["by"]
    assert all(0 <= score <= 1 for score in verdict["scores"].values())
    assert "compared on 4 held-out pictures" in out
    assert "kept: " in out


def test_a_teacher_gives_the_keys_and_stays(
    weights: Path, photos: Path, say: Callable[..., Said], tmp_path: Path
) -> None:
    started = tmp_path / "start"
    lookalike.pretrain(photos, started, init_from=weights, model=NET, steps=1, settings={"batch": "8"}, workers=0)
    run = tmp_path / "small"
    code, _, err = say("pretrain", photos, "--teacher", started, "--recipe", "tiny", "--out", run, *STEPS)
    assert code == 0, err
    recipe, width = read_recipe(run / "recipe.json"), timm.create_model("test_efficientnet", num_classes=0).num_features
    assert recipe.model == recipe_of("tiny").model
    assert recipe.keys == Stored()
    assert recipe.head.widths[-1] == width
    first, last = (load_file(path / "learner.safetensors") for path in sorted((run / "checkpoints").iterdir()))
    assert first["dictionary.rows"].shape == (40, width)
    assert torch.equal(first["dictionary.rows"], last["dictionary.rows"])
    assert torch.allclose(first["dictionary.rows"].norm(dim=1), torch.ones(40), atol=1e-5)


@pytest.mark.parametrize("name", ["adapt_moco", "adapt_instances", "adapt_neighbours", "adapt_simclr"])
def test_each_way_on_trains(name: str, weights: Path, photos: Path, say: Callable[..., Said], tmp_path: Path) -> None:
    begin = ("--init-from", weights, "--model", NET, "--recipe", name)
    code, _, err = say("pretrain", photos, *begin, "--out", tmp_path / "run", *STEPS)
    assert code == 0, err
    assert read_recipe(tmp_path / "run" / "recipe.json").keys == RECIPES[name].keys


def test_a_network_that_is_not_that_of_the_start_is_refused(
    weights: Path, photos: Path, say: Callable[..., Said], tmp_path: Path
) -> None:
    begin = ("--init-from", weights, "--model", NET, "--model.name", "test_resnet")
    code, _, err = say("pretrain", photos, *begin, "--out", tmp_path / "run", *STEPS)
    assert code != 0
    assert "has another model" in err
    assert not (tmp_path / "run").exists()


def test_what_goes_on_from_a_model_wants_one(photos: Path, say: Callable[..., Said], tmp_path: Path) -> None:
    code, _, err = say("pretrain", photos, "--recipe", "adapt", "--out", tmp_path / "run", *STEPS)
    assert code != 0
    assert "--init-from" in err
    assert err.count("\n") == 1


def test_a_mixture_lies_between() -> None:
    start, end = (
        {"a": torch.tensor([0.0, 2.0]), "n": torch.tensor(3)},
        {"a": torch.tensor([4.0, 0.0]), "n": torch.tensor(5)},
    )
    half = mixed(start, end, 0.25)
    assert half["a"].tolist() == [1.0, 1.5]
    assert half["n"] == 5
    assert torch.equal(mixed(start, end, 1.0)["a"], end["a"])


def test_kept_statistics_are_those_of_evaluation(adapted: Path) -> None:
    learner = read_recipe(adapted / "recipe.json").build(36)
    backbone = learner.encoder.backbone
    for part in backbone.modules():
        if isinstance(part, _GroupedBatchNorm):
            part.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    pixels = torch.randn(4, 3, 64, 64)
    trained = backbone.train()(pixels=pixels)
    assert torch.allclose(trained, backbone.eval()(pixels=pixels), atol=1e-5)


def test_what_was_held_in_training_is_free_where_the_run_is_used(adapted: Path) -> None:
    for untrained in (False, True):
        trained = lookalike.load(adapted, untrained=untrained)
        assert all(parameter.requires_grad for parameter in trained.encoder.parameters())
        assert not any(getattr(part, "kept", False) for part in trained.encoder.modules())
    assert classifier(Finetune(), trained.recipe, 2, 40, 1e-3, 0).tuned == Movement()


def test_an_evaluation_stands_beside_the_start(adapted: Path, photos: Path, weights: Path) -> None:
    result = lookalike.evaluate(adapted, photos, "knn", workers=0)
    public = lookalike.evaluate(lookalike.load(weights, model=NET), photos, "knn", workers=0, baselines="none")
    assert "the start" in str(result)
    assert result.facts["start_accuracy"] == public.numbers["accuracy"]
