"""Public models by name: features are those of the library that brings them, on the same pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torch.nn import functional as F

import lookalike
from lookalike.data.decode import decode
from lookalike.data.preprocessing import Preprocessing
from lookalike.exchange.named import opened
from lookalike.models.norm import group_norms
from lookalike.recipes.serialize import from_plain, to_plain
from lookalike.train.embeddings import read_embeddings, write_embeddings
from tests.conftest import Said

SIZES = ((40, 53), (61, 40), (40, 40), (97, 33), (32, 32), (31, 90))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth noise of several sizes, as JPEG and PNG."""
    folder, draws = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i, size in enumerate(SIZES):
        small = Image.fromarray(draws.integers(0, 256, (9, 7, 3), np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
    return folder


def theirs(net: nn.Module, transform: object, files: list[Path]) -> Tensor:
    """Unit rows by the library's own loop."""
    with torch.inference_mode():
        pixels = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])  # type: ignore[operator]
        return F.normalize(net.eval()(pixels).flatten(1), dim=1)


def lively(net: nn.Module) -> nn.Module:
    """Statistics and scales that are not those of a new network."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for part, low in ((module.running_mean, -0.2), (module.running_var, 0.5), (module.weight.data, 0.5)):
                part.uniform_(low, low + 1, generator=generator)  # type: ignore[union-attr]
    return net


def same(where: object, folder: Path, net: nn.Module, transform: object, **how: str) -> None:
    trained = lookalike.load(where, **how)  # type: ignore[arg-type]
    table = lookalike.embed(trained, folder, workers=0)
    want = theirs(net, transform, [folder / path for path in table.path])
    assert torch.allclose(torch.from_numpy(table.vectors), want, atol=1e-5, rtol=0)


def timm_transform(net: nn.Module) -> object:
    return create_transform(**resolve_data_config({}, pretrained_cfg=net.pretrained_cfg))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_byobnet"])
def test_a_network_of_timm_is_timms(name: str, photos: Path, tmp_path: Path) -> None:
    net = lively(timm.create_model(name, pretrained=False))
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    net.reset_classifier(0)
    same(tmp_path / "weights.safetensors", photos, net, timm_transform(net), model=f"timm:{name}")


def test_a_folder_of_timm_says_what_it_is(photos: Path, tmp_path: Path) -> None:
    net = lively(timm.create_model("test_efficientnet", pretrained=False, num_classes=0))
    own = {"input_size": (3, 48, 48), "crop_pct": 0.9, "mean": (0.4, 0.5, 0.6), "crop_mode": "squash"}
    net.pretrained_cfg = {**net.pretrained_cfg, **own, "license": "mit"}
    timm.models.save_for_hf(net, tmp_path, safe_serialization=True)
    for model in (tmp_path, f"hf:{tmp_path}", tmp_path / "model.safetensors"):
        same(model, photos, net, timm_transform(net))
    assert opened(tmp_path).licence == "mit"
    assert opened(tmp_path).recipe.preprocessing == Preprocessing(48, 0.9, "squash", mean=(0.4, 0.5, 0.6))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_a_network_of_torchvision_is_torchvisions(name: str, photos: Path, tmp_path: Path) -> None:
    net = lively(torchvision.models.get_model(name, weights=None))
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    (*_, (last, _)) = [item for item in net.named_modules() if isinstance(item[1], nn.Linear)]
    net.set_submodule(last, nn.Identity())
    transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    same(tmp_path / "weights.pth", photos, net, transform, model=f"torchvision:{name}")


@pytest.mark.shared
def test_the_public_weights_are_timms(shared: Path, tmp_path: Path) -> None:
    file, name = shared / "weights/tf_efficientnet_lite0.safetensors", "tf_efficientnet_lite0"
    net = timm.create_model(name, pretrained=False)
    net.load_state_dict(load_file(file))
    net.reset_classifier(0)
    for i, photo in enumerate(sorted((shared / "clothing160/test").rglob("*.jpg"))[:12]):
        (tmp_path / f"{i}.jpg").symlink_to(photo)
    same(file, tmp_path, net, timm_transform(net), model=f"timm:{name}")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize(("mode", "share"), [("center", 0.875), ("center", 0.95), ("center", 1.0), ("squash", 0.9)])
def test_pixels_are_those_of_timms_transform(mode: str, share: float, interpolation: str, photos: Path) -> None:
    transform = create_transform((3, 24, 24), crop_pct=share, crop_mode=mode, interpolation=interpolation)
    transform.transforms = transform.transforms[:2]
    seen = Preprocessing(24, share, mode, interpolation)  # type: ignore[arg-type]
    for file in photos.iterdir():
        want = np.asarray(transform(Image.open(file).convert("RGB")))
        assert np.array_equal(decode(file.read_bytes(), seen).pixels.permute(1, 2, 0).numpy(), want)


def test_a_turned_photo_is_seen_upright(tmp_path: Path) -> None:
    exif, picture = Image.Exif(), Image.effect_noise((50, 30), 60).convert("RGB")
    exif[0x0112] = 6
    picture.save(tmp_path / "plain.jpg")
    picture.save(tmp_path / "turned.jpg", exif=exif)
    upright = Image.open(tmp_path / "plain.jpg").transpose(Image.Transpose.ROTATE_270)
    canvas = decode((tmp_path / "turned.jpg").read_bytes(), Preprocessing(24, 0.9))
    assert (canvas.height, canvas.width) == (50, 30)
    assert np.array_equal(canvas.pixels.permute(1, 2, 0).numpy(), np.asarray(Preprocessing(24, 0.9).seen(upright)))


def test_shares_give_the_short_side_that_was_stated() -> None:
    for size in range(8, 400, 7):
        assert all(math.floor(size / Preprocessing.share_of(size, short)) == short for short in range(size, 2 * size))


@pytest.fixture
def small_folder(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Any]:
    """A folder that transformers wrote, of a network with few weights, and that network."""
    transformers = pytest.importorskip("transformers")
    config, processor, network = request.param(transformers)
    torch.manual_seed(0)
    net = network(config)
    net.save_pretrained(tmp_path / "folder")
    processor.save_pretrained(tmp_path / "folder")
    return tmp_path / "folder", net.eval()


def small_vit(lib: Any) -> tuple[Any, Any, Any]:
    config = lib.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    processor = lib.ViTImageProcessorPil(size={"height": 32, "width": 32}, resample=3, image_mean=[0.4, 0.5, 0.6])
    return config, processor, lib.ViTForImageClassification


def small_convnext(lib: Any) -> tuple[Any, Any, Any]:
    config = lib.ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1])
    return config, lib.ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875), lib.ConvNextModel


def small_clip(lib: Any) -> tuple[Any, Any, Any]:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = lib.CLIPConfig(text_config=sizes, vision_config={**sizes, "image_size": 32, "patch_size": 8})
    processor = lib.CLIPImageProcessorPil(size={"shortest_edge": 33}, crop_size={"height": 32, "width": 32})
    return config, processor, lib.CLIPModel


@pytest.mark.parametrize("small_folder", [small_vit, small_convnext, small_clip], indirect=True)
def test_a_folder_of_transformers_is_transformers(small_folder: tuple[Path, Any], photos: Path) -> None:
    folder, net = small_folder
    processor = pytest.importorskip("transformers").AutoImageProcessor.from_pretrained(folder, backend="pil")
    table = lookalike.embed(lookalike.load(folder), photos, workers=0)
    pictures = [Image.open(photos / path).convert("RGB") for path in table.path]
    with torch.inference_mode():
        pixels = torch.cat([processor(picture, return_tensors="pt")["pixel_values"] for picture in pictures])
        net = getattr(net, "vit", getattr(net, "vision_model", net))
        out = net(pixel_values=pixels)
    want = out.last_hidden_state[:, 0] if "ViT" in type(net).__name__ else out.pooler_output.flatten(1)
    assert torch.allclose(torch.from_numpy(table.vectors), F.normalize(want, dim=1), atol=1e-5, rtol=0)


def test_a_folder_of_a_text_encoder_embeds_sentences(tmp_path: Path) -> None:
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=60
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    words = {"[PAD]": 0, "[CLS]": 1, "[MASK]": 2, "[UNK]": 3, "[SEP]": 4, "a": 5, "dog": 6, "cat": 7}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A", special_tokens=[("[CLS]", 1)])
    tokenizer.save(str(tmp_path / "bert/tokenizer.json"))
    (tmp_path / "lines.txt").write_text("a dog\na cat\n")
    table = lookalike.embed(lookalike.load(f"hf:{tmp_path / 'bert'}"), tmp_path / "lines.txt")
    assert (len(table), table.text) == (2, ["a dog", "a cat"])


def test_a_public_model_has_no_head(photos: Path, tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(lookalike.UserError, match="has no head"):
        lookalike.embed(lookalike.load(tmp_path / "weights.safetensors", model="timm:test_resnet"), photos, "head")


def test_grouped_norms_evaluate_as_plain_ones() -> None:
    net = lively(timm.create_model("test_efficientnet", pretrained=False, num_classes=0)).eval()
    pixels = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        plain = net(pixels)
        assert torch.equal(group_norms(net, 2).eval()(pixels), plain)


def test_a_table_names_the_file_and_a_search_opens_it(photos: Path, tmp_path: Path) -> None:
    net = timm.create_model("test_resnet", pretrained=False)
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    named = opened(tmp_path / "weights.safetensors", "timm:test_resnet")
    trained = lookalike.load(tmp_path / "weights.safetensors", model="timm:test_resnet")
    write_embeddings(lookalike.embed(trained, photos), tmp_path / "table.parquet")
    origin = read_embeddings(tmp_path / "table.parquet").origin
    assert origin is not None
    assert (origin.file, origin.model) == (named.digest(), "timm:test_resnet")
    (hits,) = lookalike.search(tmp_path / "table.parquet", [str(photos / "0.png")])
    assert hits[0].path == "0.png"
    assert hits[0].cosine == pytest.approx(1, abs=1e-5)


def test_verbs_take_a_file_with_its_network(photos: Path, tmp_path: Path, say: Callable[..., Said]) -> None:
    for i, photo in enumerate(sorted(photos.iterdir())):
        (tmp_path / f"labelled/{'ab'[i % 2]}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"labelled/{'ab'[i % 2]}" / photo.name).symlink_to(photo)
    file, network = tmp_path / "weights.safetensors", ("--model", "timm:test_resnet")
    save_file(timm.create_model("test_resnet").state_dict(), file)
    code, out, err = say("evaluate", "knn", file, tmp_path / "labelled", *network)
    assert (code, err) == (0, "")
    assert "backbone, as published)" in out
    code, out, err = say("doctor", file, *network)
    assert (code, err) == (0, "")
    assert "model: timm:test_resnet, 0." in out
    assert "sees: size 160, share 0.95" in out
    assert f"{file}, sha256 {opened(file, network[1]).digest()}" in out
    comparing = (
        "compare",
        file,
        "--on",
        tmp_path / "labelled",
        "--task",
        "knn",
        "--trials",
        2,
        "--out",
        tmp_path / "out",
    )
    code, out, err = say(*comparing, *network)
    assert (code, err) == (0, "")
    assert "weights.safetensors" in out
    code, out, err = say("embed", file, tmp_path / "labelled", "--out", tmp_path / "table.npy")
    assert (code, out) == (65, "")
    assert "does not say which network it is of" in err
    assert say("embed", tmp_path / "labelled", file, "--out", tmp_path / "table.npy")[0] == 2


def test_recipes_carry_it_in_their_file() -> None:
    recipe = opened_recipe()
    assert from_plain(json.loads(json.dumps(to_plain(recipe)))) == recipe
    old = to_plain(recipe)
    del old["preprocessing"]
    assert from_plain(old).preprocessing is None


def opened_recipe() -> lookalike.Recipe:
    return replace(lookalike.recipe_named("small", 100, 32), preprocessing=Preprocessing(32, mean=(0.5, 0.5, 0.5)))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("timm:test_resnet.r160_in1k", "add --download"),
        ("torchvision:resnet18", "add --download, or put https://download.pytorch.org/models/resnet18-"),
        ("timm:resnet18.nonsense", "timm has no weights"),
        ("timm:resnot18", "did you mean"),
        ("torchvision:resnot18", "did you mean"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classification model"),
        ("hf:/nowhere", "is no file"),
        ("weights.pth", "is no file"),
    ],
)
def test_what_is_not_here_is_one_line(model: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(lookalike.UserError, match=words) as error:
        lookalike.load(model)
    assert "\n" not in str(error.value)
