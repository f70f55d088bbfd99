"""What leaves is what the model is: other libraries open it and say the same, and what differs does not stay."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import timm
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import lookalike
from lookalike.cli.flags import Export
from lookalike.core.errors import UserError
from lookalike.exchange import targets
from lookalike.exchange.card import Facts
from lookalike.exchange.export import Subject, Target, refuse
from lookalike.exchange.export import export as publish
from lookalike.exchange.targets import TARGETS, detectron2_name
from lookalike.models import convolution
from lookalike.models.encoder import embed, evaluating
from lookalike.models.image import ResNet, SmallResNet, Timm
from lookalike.models.vit import ViT
from lookalike.recipes import RECIPES, tiny
from lookalike.train.exported import pathless
from tests.conftest import Said

PICTURES = torch.rand(24, 3, 40, 48, generator=torch.Generator().manual_seed(0))
VIEW = {"pretext.first.size": 32, "pretext.whole": 32, "canvas": 40}
KINDS: dict[str, tuple[object, bool]] = {  # the model, and whether its features are whitened
    "small": (SmallResNet((8, 16), (1, 1), joined=2, grid=2), True),
    "resnet": (ResNet("resnet18"), False),
    "timm": (Timm("test_resnet"), True),
    "sized": (Timm("test_vit", size=32), False),
    "vit": (ViT(width=32, depth=2, heads=2, patch=8), False),
    "mean": (ViT(width=32, depth=2, heads=2, patch=8, pool="mean"), True),
}
FITS = {name: ["timm", "huggingface", "onnx"] for name in ("timm", "sized", "vit", "mean")}
FITS |= {"small": ["onnx"], "resnet": list(TARGETS)}
EVERY = [(kind, target) for kind, names in FITS.items() for target in names]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of a kind, two steps long, made when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("runs"), dict[str, Path]()

    def trained(kind: str) -> Path:
        if kind not in made:
            model, whiten = KINDS[kind]
            recipe = replace(tiny, model=model, whiten=whiten)
            lookalike.pretrain(PICTURES, folder / kind, recipe=recipe, steps=2, workers=0, quiet=True, settings=VIEW)
            made[kind] = folder / kind
        return made[kind]

    return trained


def subject(run: Path) -> Subject:
    trained = lookalike.load(run)
    return Subject(trained.recipe, trained.encoder.eval(), Facts("a run", "a command"))


def pixels(count: int = 5) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def backbone(run: Path, views: Tensor) -> Tensor:
    encoder = lookalike.load(run).encoder
    with evaluating(encoder):
        return encoder.raw(pixels=views).clone()


def needs(target: str) -> None:
    for package in TARGETS[target].needs:
        pytest.importorskip(package)


# What others make of it


@pytest.mark.parametrize(("kind", "target"), EVERY)
def test_the_other_library_gives_the_same_features(
    kind: str, target: str, run: Callable[[str], Path], tmp_path: Path
) -> None:
    needs(target)
    done = lookalike.export(run(kind), target, tmp_path / "out")
    assert done.difference <= 1e-4
    assert f"largest difference {done.difference:.2g}" in str(done)
    views, out = pixels(), tmp_path / "out"
    if target == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(out / "model.onnx")
        theirs = torch.from_numpy(session.run(None, {"pixels": views.numpy()})[0])
        ours = embed(lookalike.load(run(kind)).encoder, [{"pixels": views}])
        assert not (out / "whitening" / "whitening.safetensors").exists()
    else:
        theirs, ours = opened(target, out, views), backbone(run(kind), views)
        assert (out / "whitening" / "whitening.safetensors").exists() == KINDS[kind][1]
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def opened(target: str, out: Path, views: Tensor) -> Tensor:
    with torch.no_grad():
        if target == "timm":
            return timm.create_model(f"local-dir:{out}", pretrained=True).eval()(views)
        if target == "huggingface":
            import transformers

            return transformers.AutoModel.from_pretrained(out).eval()(views).pooler_output
        net = torchvision.models.resnet18()
        tensors = load_file(out / "model.safetensors")
        if target == "detectron2":
            tensors = {name: tensors[detectron2_name(name)] for name in net.state_dict() if named(name)}
        missing, unexpected = net.load_state_dict(tensors, strict=False)
        assert (set(missing), unexpected) == ({"fc.weight", "fc.bias"}, [])
        net.fc = torch.nn.Identity()
        return net.eval()(views)


def named(name: str) -> bool:
    return not name.startswith("fc.") and not name.endswith("num_batches_tracked")


def test_whitening_beside_a_backbone_leads_to_what_embed_writes(run: Callable[[str], Path], tmp_path: Path) -> None:
    lookalike.export(run("timm"), "timm", tmp_path / "out")
    whitening, views = load_file(tmp_path / "out" / "whitening" / "whitening.safetensors"), pixels()
    rows = (opened("timm", tmp_path / "out", views) - whitening["mean"]) @ whitening["map"]
    ours = embed(lookalike.load(run("timm")).encoder, [{"pixels": views}])
    torch.testing.assert_close(torch.nn.functional.normalize(rows, dim=1), ours, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("target", ["huggingface", "onnx"])
def test_transformers_shows_the_network_the_same_picture(
    target: str, run: Callable[[str], Path], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    lookalike.export(run("timm"), target, tmp_path / "out")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    shown = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    view = lookalike.load(run("timm")).recipe.pictures.first
    ours = (torch.from_numpy(picture).permute(2, 0, 1) / 255 - torch.tensor(view.mean)[:, None, None]) / torch.tensor(
        view.std
    )[:, None, None]
    torch.testing.assert_close(shown[0], ours, rtol=0, atol=1e-5)


def test_a_new_classifier_goes_on_top_in_timm(run: Callable[[str], Path], tmp_path: Path) -> None:
    lookalike.export(run("vit"), "timm", tmp_path / "out")
    net = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=3)
    assert net(pixels()).shape == (5, 3)
    state = lookalike.load(run("vit")).encoder.state_dict()
    assert torch.equal(net.blocks[1].mlp.fc1.weight, state["backbone.blocks.1.mlp.fc1.weight"])


def test_detectron2_has_its_own_names_statistics_and_no_pickle(run: Callable[[str], Path], tmp_path: Path) -> None:
    lookalike.export(run("resnet"), "detectron2", tmp_path / "out")
    held = torch.load(tmp_path / "out" / "model.pth", weights_only=True)
    assert held["matching_heuristics"] is True
    state = lookalike.load(run("resnet")).encoder.backbone.net.state_dict()
    pairs = {
        "stem.conv1.weight": "conv1.weight",
        "stem.conv1.norm.running_var": "bn1.running_var",
        "res2.0.conv1.weight": "layer1.0.conv1.weight",
        "res2.1.conv2.norm.bias": "layer1.1.bn2.bias",
        "res3.0.shortcut.weight": "layer2.0.downsample.0.weight",
        "res5.0.shortcut.norm.running_mean": "layer4.0.downsample.1.running_mean",
    }
    assert all(torch.equal(held["model"][theirs], state[ours]) for theirs, ours in pairs.items())
    assert len(held["model"]) == sum(map(named, state))
    part = r"(stem\.conv1|res[2-5]\.\d\.(conv[12]|shortcut))(\.norm)?\.(weight|bias|running_mean|running_var)"
    assert all(re.fullmatch(part, name) for name in held["model"])


def test_the_batch_stays_open_where_convolutions_take_fewer_products(
    run: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("onnx")
    monkeypatch.setattr(convolution, "_multiplies_in_fp32", lambda: True)  # as on a processor with AVX2
    model = SmallResNet((96, 96), (1, 1))
    encoder = replace(tiny, model=model, pretext=RECIPES["small"].pretext).build(8).encoder.eval()
    here = replace(subject(run("small")), encoder=encoder)
    here = replace(here, recipe=lookalike.load(run("small")).recipe)
    assert publish(here, TARGETS["onnx"], tmp_path / "out").difference <= 1e-4


# What is not the same


def flipped(path: Path) -> None:
    tensors = load_file(path)
    name = next(name for name, part in tensors.items() if part.dim() == 4)
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, path)


def flipped_onnx(path: Path) -> None:
    import onnx

    model = onnx.load(path)
    weights = max(model.graph.initializer, key=lambda part: len(part.raw_data))
    values = np.frombuffer(weights.raw_data, np.float32).copy()
    values[: len(values) // 2] *= 1.1
    weights.raw_data = values.tobytes()
    onnx.save(model, path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


DAMAGES = [
    ("timm", "model.safetensors", flipped),
    ("timm", "model.safetensors", cut),
    ("torchvision", "model.safetensors", flipped),
    ("detectron2", "model.safetensors", flipped),
    ("onnx", "model.onnx", flipped_onnx),
    ("onnx", "model.onnx", cut),
]


@pytest.mark.parametrize(("target", "file", "damage"), DAMAGES)
def test_what_is_written_wrong_is_found_and_leaves_nothing(
    target: str, file: str, damage: Callable[[Path], None], run: Callable[[str], Path], tmp_path: Path
) -> None:
    needs(target)

    def write(model: Subject, folder: Path) -> None:
        TARGETS[target].write(model, folder)
        damage(folder / file)

    here = subject(run("small" if target == "onnx" else "resnet"))
    damaged: Target = replace(TARGETS[target], write=write)
    with pytest.raises(UserError, match="nothing was kept"):
        publish(here, damaged, tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing was kept"):
        publish(here, damaged, tmp_path / "empty")
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


def test_a_target_that_cannot_hold_the_model_names_those_that_can(run: Callable[[str], Path], tmp_path: Path) -> None:
    for target in ("timm", "huggingface", "torchvision", "detectron2"):
        with pytest.raises(UserError, match=r"cannot hold this model, .*SmallResNet.*: take --to onnx$"):
            lookalike.export(run("small"), target, tmp_path / "out")
    with pytest.raises(UserError, match=r"3×3 with no pooling.* take --to onnx$"):
        refuse(RECIPES["moco_cifar"], TARGETS["timm"], TARGETS.values())
    with pytest.raises(UserError, match="takes text"):
        refuse(RECIPES["simcse"], TARGETS["onnx"], TARGETS.values())
    with pytest.raises(UserError, match=r"needs no_such_package: pip install 'lookalike\[export\]'"):
        refuse(tiny, replace(TARGETS["onnx"], needs=("no_such_package",)), ())
    with pytest.raises(UserError, match=r"unknown target 'tim'; did you mean timm\?"):
        lookalike.export(run("small"), "tim", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_as_it_is(run: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out, reason in (
        ("out", "is not empty, it holds mine.txt"),
        ("out/mine.txt", "cannot write"),
        ("link", "cannot"),
    ):
        with pytest.raises(UserError, match=reason):
            lookalike.export(run("vit"), "timm", tmp_path / out)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "mine.txt", "out"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").symlink_to(tmp_path / "empty")
    lookalike.export(run("vit"), "timm", tmp_path / "other")
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


# The card, and the command


def test_the_card_says_where_the_model_comes_from_and_no_folder(
    run: Callable[[str], Path], tmp_path: Path, say: Callable[..., Said]
) -> None:
    numbers = tmp_path / "knn.json"
    numbers.write_text(json.dumps({"data": "/home/me/shoes", "queries": 359, "accuracy": 0.8328, "layer": "backbone"}))
    code, said, _ = say(
        "export", str(run("mean")), "--to", "timm", "--out", str(tmp_path / "out"), "--numbers", str(numbers)
    )
    assert code == 0
    assert re.search(r"checked: timm .* tensors equal bit by bit, .* largest difference \d", said)
    text = (tmp_path / "out" / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "timm"
    assert yaml.safe_load(head)["license"] == "other"
    assert "knn on shoes: queries 359, accuracy 0.8328" in body
    assert "recipe: `tiny, 2 steps of 16`" in body
    assert re.search(r"fingerprint of the data: `[0-9a-f]{16}`", body)
    assert "whitening/whitening.safetensors" in body
    assert str(tmp_path) not in text
    assert "/home" not in text
    code, _, error = say("export", str(run("mean")), "--to", "timm", "--out", str(tmp_path / "out"))
    assert (code, error.count("\n")) == (2, 1)


def test_a_start_with_a_licence_hands_it_down(run: Callable[[str], Path], tmp_path: Path) -> None:
    public = {"model": "timm:resnet10t.c3_in1k", "sha256": "", "licence": "apache-2.0"}
    for name, start in (("first", public), ("second", {"run": str(tmp_path / "first"), "step": "2"})):
        (tmp_path / name).mkdir()
        for file in run("vit").iterdir():
            if file.name not in ("environment.json", "hashes.json"):
                (tmp_path / name / file.name).symlink_to(file)
        recorded = json.loads((run("vit") / "environment.json").read_text())
        recorded["command"] = ["/usr/bin/lookalike", "pretrain", "/home/me/shoes", "--init-from=/home/me/first"]
        recorded["data"]["start"] = start
        (tmp_path / name / "environment.json").write_text(json.dumps(recorded))
    lookalike.export(tmp_path / "second", "timm", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "license: apache-2.0" in text
    assert "began from `first`, whose licence holds here: apache-2.0" in text
    assert "`lookalike pretrain shoes --init-from=first`" in text


@pytest.mark.parametrize(
    ("word", "left"),
    [
        ("/home/me/shoes", "shoes"),
        ("/home/me/shoes/", "shoes"),
        ("--out=/home/me/runs/a", "--out=a"),
        ("frames:/home/me/films", "frames:films"),
        ("~/shoes", "shoes"),
        ("shoes/blue", "shoes/blue"),
        ("--model.size", "--model.size"),
        ("timm:resnet10t.c3_in1k", "timm:resnet10t.c3_in1k"),
        ("https://me:secret@host/a.zip?token=secret", "https://host/a.zip"),
    ],
)
def test_words_of_a_command_lose_their_folders(word: str, left: str) -> None:
    assert pathless(word) == left


def test_the_flag_knows_the_targets() -> None:
    assert set(get_args(get_type_hints(Export)["to"])) == set(TARGETS)
    assert targets.ONNX.name == "onnx"
