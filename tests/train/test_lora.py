"""Low-rank updates of attention (LoRA): where a run begins, what moves, what is kept, and which networks have none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import VisionTransformer

import lookalike
from lookalike.core.errors import UserError
from lookalike.learn.tuned import LowRank, Movement, attending, merge
from lookalike.models.image import ResNet
from lookalike.models.vit import ViT
from lookalike.recipes import tiny
from lookalike.train.checkpoint import load_learner, published
from lookalike.train.run import Run, read_recipe
from tests.conftest import Said
from tests.support.forks import digest

NET = "timm:test_vit"
SETTINGS = {"batch": "8", "tuned.lora": "2", "tuned.share": "1", "held_out": "0.25", "pretext.first.size": "32"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of two classes."""
    folder, draws = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(24):
        low = draws.integers(0, 128, (6, 5, 3), np.uint8) + np.array([120, 0, 0] if i % 2 else [0, 0, 120], np.uint8)
        path = folder / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(low).resize((40, 40), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture(scope="module", params=["own", "timm"])
def start(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A transformer to begin with, as arguments: one of ours that was trained a little, and one of timm."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "timm":
        torch.manual_seed(0)
        save_file(timm.create_model("test_vit", num_classes=0).state_dict(), folder / "net.safetensors")
        return {"init_from": folder / "net.safetensors", "model": NET}
    recipe = replace(tiny, model=ViT(width=16, depth=2, heads=2, patch=8))
    lookalike.pretrain(photos, folder / "run", recipe=recipe, steps=1, batch=8, workers=0, quiet=True)
    return {"init_from": folder / "run"}


def adapt(photos: Path, out: Path, start: dict[str, Any]) -> None:
    settings = {name: value for name, value in SETTINGS.items() if "model" not in start or "size" not in name}
    how = {"settings": settings, "workers": 0, "save_every": 2, "quiet": True}
    lookalike.pretrain(photos, out, recipe="adapt", steps=4, **start, **how)


@pytest.fixture(scope="module")
def run(photos: Path, start: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    adapt(photos, out, start)
    return out


def opened(start: dict[str, Any]) -> lookalike.Trained:
    return lookalike.load(start["init_from"], model=start.get("model"))


def pixels_of(trained: lookalike.Trained) -> torch.Tensor:
    seen = trained.recipe.preprocessing
    side = seen.size if seen else trained.recipe.pictures.first.size
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_step_0_equals_the_start(run: Path, photos: Path, start: dict[str, Any], tmp_path: Path) -> None:
    before, folder = opened(start), tmp_path / "run"
    recipe, pixels = read_recipe(run / "recipe.json"), pixels_of(before)
    assert recipe.tuned.lora == 2
    began, kept = before.encoder.backbone.state_dict(), load_file(run / "start.safetensors")
    assert kept.keys() == began.keys()
    assert all(torch.equal(part, kept[name]) for name, part in began.items())
    settings = {name: value for name, value in SETTINGS.items() if "model" not in start or "size" not in name}
    lookalike.pretrain(
        photos, folder, recipe="adapt", steps=1, settings={**settings, "optimizer.lr": "0"}, workers=0, **start
    )
    learner = recipe.build(18)
    load_learner(published(Run(folder).checkpoints)[0], learner)
    backbones = (learner.encoder.backbone.eval(), before.encoder.backbone.eval())
    with torch.no_grad():
        assert torch.equal(*(backbone(pixels=pixels) for backbone in backbones))


def test_only_the_updates_and_the_head_move(run: Path) -> None:
    first, last = (load_file(path / "learner.safetensors") for path in sorted((run / "checkpoints").iterdir()))
    moved = {name for name, part in first.items() if not torch.equal(part, last[name])}
    assert moved
    assert all(name.endswith((".0.down", ".0.up")) or name.startswith("encoder.head.") for name in moved)
    assert any(name.endswith("qkv.parametrizations.weight.0.up") for name in moved)
    assert any(name.endswith("proj.parametrizations.weight.0.up") for name in moved)


def test_what_is_kept_is_a_plain_network_of_the_same_features(run: Path, start: dict[str, Any]) -> None:
    recipe, opened_run, plain = read_recipe(run / "recipe.json"), lookalike.load(run), opened(start)
    mine, theirs = opened_run.encoder.backbone.state_dict(), plain.encoder.backbone.state_dict()
    assert list(mine) == list(theirs)
    assert any(not torch.equal(part, theirs[name]) for name, part in mine.items())
    assert all(p.requires_grad for p in opened_run.encoder.parameters())
    learner = recipe.build(18)
    load_learner(published(Run(run).checkpoints)[0], learner)
    (run / "result.json").rename(run / "result.away")  # as of the last step
    pixels, last = pixels_of(plain), lookalike.load(run).encoder.eval()
    (run / "result.away").rename(run / "result.json")
    with torch.no_grad():
        merged, summed = (net(pixels=pixels) for net in (last.backbone, learner.encoder.backbone.eval()))
    assert torch.allclose(merged, summed, rtol=1e-5, atol=1e-5)


def test_the_same_command_goes_on_to_the_same_bytes(
    run: Path, photos: Path, start: dict[str, Any], tmp_path: Path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(published(Run(again).checkpoints)[0])
    for name in ("result.json", "result.safetensors"):
        (again / name).unlink()
    adapt(photos, again, start)
    assert digest(again) == digest(run)
    assert (again / "result.safetensors").read_bytes() == (run / "result.safetensors").read_bytes()
    assert json.loads((again / "result.json").read_text()) == json.loads((run / "result.json").read_text())


def test_a_network_without_attention_is_refused(photos: Path, say: Callable[..., Said], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is none"):
        Movement(lora=2).settle(ResNet("resnet18").build(2)[0])
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "net.safetensors")
    begin = ("--init-from", tmp_path / "net.safetensors", "--model", "timm:test_resnet", "--tuned.lora", 2)
    code, _, err = say("pretrain", photos, *begin, "--steps", 1, "--batch", 8, "--out", tmp_path / "run")
    assert code == 2
    assert "tuned.lora 2 moves attention" in err
    assert err.count("\n") == 1


def test_norms_may_move_beside_the_updates() -> None:
    net, _ = ViT(width=16, depth=2, heads=2, patch=8).build(2)
    Movement(lora=2, weights="norms", share=0.5).settle(net)
    names = {name.removeprefix("blocks.1.") for name, part in net.named_parameters() if part.requires_grad}
    updates = {f"attn.{layer}.parametrizations.weight.0.{part}" for layer in ("qkv", "proj") for part in ("up", "down")}
    assert names == updates | {f"{norm}.{part}" for norm in ("norm1", "norm2", "norm") for part in ("weight", "bias")}


def test_torchvision_s_attention_is_updated_too() -> None:
    net: nn.Module = VisionTransformer(32, 8, 2, 2, 16, 32).eval()
    nn.init.normal_(net.heads.head.weight)  # type: ignore[union-attr, arg-type]
    pixels, names = torch.randn(2, 3, 32, 32), set(net.state_dict())
    before = net(pixels)
    Movement(lora=2).settle(net)
    assert torch.equal(net(pixels), before)
    for module in net.modules():
        if isinstance(module, LowRank):
            nn.init.normal_(module.up)
    after = net(pixels)
    assert not torch.allclose(after, before, atol=1e-3)
    assert len(list(attending(net))) == 4  # in and out of two blocks
    assert torch.allclose(merge(net)(pixels), after, atol=1e-5)
    assert set(net.state_dict()) == names
