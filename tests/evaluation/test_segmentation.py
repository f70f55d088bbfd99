"""Segmentation: the metric is its definition, dilation computes what strides did, names of classes decide nothing."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from lookalike.core.devices import module_to_device
from lookalike.core.errors import UserError
from lookalike.core.seeding import uniforms
from lookalike.data.annotations.segmentation import MOST, decoded, pairs
from lookalike.data.decode import Unreadable
from lookalike.evaluation.compare import compare
from lookalike.evaluation.evaluation import Resources
from lookalike.evaluation.segment import VOID, Confusion, MaskClasses, crops, cut, mean_loss, photos, segmented
from lookalike.evaluation.settings import Segment
from lookalike.models.dense import dilated
from lookalike.models.image import Pixels, SmallResNet, Timm
from lookalike.pretext.image import ImageView
from lookalike.recipes import tiny
from lookalike.train.trained import Trained
from tests.cli.test_cli import refused
from tests.conftest import Said
from tests.report.test_report import Checked

QUICK = Segment(steps=8, batch=2, size=32, crop=32, width=8, stride=4)
HERE = Resources()


def start() -> Trained:
    recipe = tiny.fitted(16)
    return Trained(recipe, module_to_device(recipe.build(16).encoder), 0)


def scene(seed: int, size: tuple[int, int] = (24, 40)) -> tuple[Image.Image, np.ndarray]:
    """A photo of a bright box on dark ground, and its mask of 0 and 1."""
    random = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    top, left = random.integers(0, 10, 2)
    mask[top : top + 12, left : left + 16] = 1
    photo = np.repeat(40 + 150 * mask[..., None], 3, 2) + random.integers(0, 20, (*size, 3))
    return Image.fromarray(photo.astype(np.uint8)), mask


def scenes(root: Path, count: int = 6, names: tuple[int, int] = (0, 1)) -> Path:
    for i in range(count):
        photo, mask = scene(i)
        for folder, image in (("images", photo), ("masks", Image.fromarray(np.array(names, np.uint8)[mask]))):
            path = root / ("train" if i < count - 2 else "val") / folder / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return root


# What it measures


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), classes=st.integers(1, 5), size=st.integers(1, 9), share=st.sampled_from([0.0, 0.5]))
def test_mean_intersection_over_union_is_its_definition(seed: int, classes: int, size: int, share: float) -> None:
    random = np.random.default_rng(seed)
    ids = random.permutation(20)[: classes + 1]  # the last one was never learned
    table = torch.full((MOST,), VOID)
    table[ids[:classes].tolist()] = torch.arange(classes)
    confusion = Confusion(MaskClasses(ids[:classes].tolist(), table), (255,))
    truths, guesses = [], []
    for _ in range(3):
        truth = ids[random.integers(0, classes + 1, (size, 2))]
        truth[random.random(truth.shape) < share] = 255
        guess = random.integers(0, classes, truth.shape)
        confusion.add(torch.from_numpy(truth), torch.from_numpy(guess))
        truths.append(truth.ravel())
        guesses.append(ids[guess].ravel())
    truth, guess = np.concatenate(truths), np.concatenate(guesses)
    truth, guess = truth[truth != 255], guess[truth != 255]
    if not len(truth):
        with pytest.raises(UserError, match="void"):
            confusion.scores()
        return
    expected = {}
    for name in set(truth.tolist()):
        either = ((truth == name) | (guess == name)).sum()
        expected[name] = ((truth == name) & (guess == name)).sum() / either
    found = confusion.scores()
    assert found.iou == pytest.approx(expected, abs=1e-12)
    assert found.miou == pytest.approx(np.mean(list(expected.values())), abs=1e-12)
    assert found.accuracy == pytest.approx((truth == guess).mean(), abs=1e-12)
    assert found.common == pytest.approx(np.unique(truth, return_counts=True)[1].max() / len(truth))


def test_pixels_that_are_void_teach_nothing() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    truth = torch.full((2, 4, 4), VOID)
    loss = mean_loss(logits, truth)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert not bool(logits.grad.any())
    truth[0, 1, 2] = 2
    expected = -logits.detach()[0, :, 1, 2].log_softmax(0)[2]
    torch.testing.assert_close(mean_loss(logits.detach(), truth), expected)


# What it trains


def bottlenecks() -> nn.Module:
    """The blocks of ResNet-50, few and narrow."""
    net = torchvision.models.ResNet(Bottleneck, [1, 1, 1, 2], width_per_group=8)
    net.fc = nn.Identity()
    return Pixels(net)


@pytest.mark.parametrize(
    ("built", "size"),
    [
        (lambda: SmallResNet((4, 6, 8, 10), (1, 2, 1, 2), kernel=5, stride=4).build(2)[0], (75, 130)),
        (bottlenecks, (33, 66)),
    ],
    ids=["small", "bottlenecks"],
)
def test_dilation_computes_at_every_stride_what_strides_did(
    built: Callable[[], nn.Module], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    backbone = built().double().eval()
    pixels = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        coarse = dilated(backbone, 1 << 20)(pixels)
        torch.testing.assert_close(coarse.mean((2, 3)), backbone(pixels=pixels))
        for stride, apart in ((16, 2), (8, 4)):
            fine = dilated(backbone, stride)(pixels)
            assert min(fine.shape[2:]) >= min(size) // stride
            torch.testing.assert_close(fine[:, :, ::apart, ::apart], coarse)


def test_a_network_that_is_no_resnet_is_refused() -> None:
    with pytest.raises(UserError, match="segmentation takes SmallResNet and torchvision's ResNets"):
        dilated(Timm("mobilenetv3_small_050").build(2)[0], 16)


def test_crops_of_photo_and_mask_show_the_same_place() -> None:
    spec, size = Segment(size=64, crop=48), torch.tensor([[90, 120]])
    rows, columns = torch.meshgrid(torch.arange(90), torch.arange(120), indexing="ij")
    mask = (rows // 15 * 8 + columns // 15).long()
    pixels = (mask[None] * torch.tensor([5, 3, 2])[:, None, None]).to(torch.uint8)[None]
    canvas = torch.nn.functional.interpolate(pixels, (360, 360))  # squashed, as canvases are
    view = ImageView(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    flips = set()
    for seed in range(12):
        boxes, flip = crops(spec, size, uniforms(seed, 0, torch.tensor([0]), 8, 4))
        assert bool((boxes[:, :2] >= 0).all())
        assert bool((boxes[:, :2] + boxes[:, 2:] <= size).all())
        material = type("C", (), {"pixels": canvas, "sizes": size})
        found = photos(material, boxes, flip, 48, view)[0, 0] * 255 / 5
        truth = cut(mask, torch.arange(MOST), size[0], boxes[0], bool(flip[0]), 48)
        assert float((found.round() == truth).double().mean()) > 0.6  # but at edges, which are blurred
        flips.add(bool(flip[0]))
    assert flips == {True, False}


def test_it_learns_and_what_classes_are_called_changes_nothing_else(tmp_path: Path) -> None:
    trained, names = start(), (9, 4)
    spec = Segment(steps=30, batch=4, size=32, crop=32, width=16, stride=4)
    before = {name: part.numpy().tobytes() for name, part in trained.encoder.state_dict().items()}
    plain = segmented(spec, trained, str(scenes(tmp_path / "plain")), HERE).scores
    other = segmented(spec, trained, str(scenes(tmp_path / "other", names=names)), HERE).scores
    assert plain.miou > 0.6
    assert {names[name]: value for name, value in plain.iou.items()} == other.iou
    assert plain.accuracy == other.accuracy
    assert segmented(replace(spec, seed=1), trained, str(tmp_path / "plain"), HERE).scores != plain
    assert {name: part.numpy().tobytes() for name, part in trained.encoder.state_dict().items()} == before


def test_a_fit_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    trained, root, fits = start(), str(scenes(tmp_path / "scenes")), tmp_path / "fit"
    spec = replace(QUICK, steps=4)
    whole = segmented(spec, trained, root, HERE).scores

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("tuning", 2):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as stopped:
        segmented(spec, trained, root, Resources(stop, folder=fits))
    assert stopped.value.code == 143
    steps: list[tuple[str, int]] = []
    kept = Resources(lambda what, done, _: steps.append((what, done)), folder=fits)
    again = segmented(spec, trained, root, kept)
    assert [done for what, done in steps if what == "tuning"] == [3, 4]
    assert again.scores == whole
    with pytest.raises(UserError, match="holds a fit of another seed: choose another --out"):
        segmented(replace(spec, seed=1), trained, root, kept)


def test_void_masks_and_broken_files_are_no_numbers(tmp_path: Path) -> None:
    root = scenes(tmp_path, 8)
    Image.new("L", (40, 24), 255).save(root / "train" / "masks" / "1.png")
    Image.new("L", (40, 24), 255).save(root / "val" / "masks" / "7.png")
    (root / "train" / "masks" / "2.png").write_bytes(b"no mask")
    (root / "train" / "images" / "3.png").write_bytes(b"no photo")
    found = segmented(QUICK, start(), str(root), HERE)
    assert 0 <= found.scores.miou <= 1
    assert sum(one.truth.numel() for one, _ in found.predictions) == 2 * 24 * 40
    for path in root.glob("*/masks/*"):
        Image.new("L", (40, 24), 255).save(path)
    with pytest.raises(UserError, match="every pixel of the masks is void"):
        segmented(QUICK, start(), str(root), HERE)


# Where masks come from


@pytest.mark.parametrize(
    ("photo", "mask"),
    [
        ("train/a.png", "trainannot/a.png"),
        ("images/train/a.jpg", "masks/train/a.png"),
        ("train/images/a.jpg", "train/labels/a.png"),
        ("JPEGImages/a.jpg", "SegmentationClass/a.png"),
        ("leftImg8bit/train/b/a_leftImg8bit.png", "gtFine/train/b/a_gtFine_labelIds.png"),
        ("a.jpg", "a_mask.png"),
    ],
)
def test_photos_find_their_masks(tmp_path: Path, photo: str, mask: str) -> None:
    for i in range(5):
        image, numbers = scene(i)
        for name, what in ((photo, image), (mask, Image.fromarray(numbers))):
            path = (
                tmp_path / name.replace("a", f"{i}a", 1)
                if "/" not in name
                else tmp_path / Path(name).parent / f"{i}{Path(name).name}"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            what.save(path)
    alone = (tmp_path / photo).with_name(f"alone{Path(photo).suffix}")
    scene(9)[0].save(alone)
    found = pairs(str(tmp_path))
    assert (len(found.reference), len(found.query)) == (4, 1)
    assert found.unmasked == [str(alone.relative_to(tmp_path))]
    for part in (found.reference, found.query):
        for row, path in enumerate(part.source.paths):
            number = int(Path(path).name[0])
            assert torch.equal(part.mask(row), torch.from_numpy(scene(number)[1]).long())


def test_lists_of_pascal_voc_divide_the_photos(tmp_path: Path) -> None:
    for i in range(4):
        for folder, image in zip(("JPEGImages", "SegmentationClass"), (scene(i)[0], Image.fromarray(scene(i)[1]))):
            (tmp_path / folder).mkdir(exist_ok=True)
            image.save(tmp_path / folder / f"2007_{i}.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_0\n2007_3\n2007_9\n")
    (lists / "val.txt").write_text("2007_1\n")
    (lists / "trainval.txt").write_text("2007_0\n2007_1\n2007_3\n")
    found = pairs(str(tmp_path))
    assert [list(part.masks) for part in (found.reference, found.query)] == [
        ["SegmentationClass/2007_0.png", "SegmentationClass/2007_3.png"],
        ["SegmentationClass/2007_1.png"],
    ]


def test_repeats_of_photos_masks_and_lists_are_said(tmp_path: Path) -> None:
    for name in ("images/0.png", "images/1.png", "photos/1.png", "masks/0.png", "labels/0.png", "masks/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image, mask = scene(int(name[-5]))
        (image if name[0] in "ip" else Image.fromarray(mask)).save(tmp_path / name)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n0\n1\n")
    (lists / "val.txt").write_text("1\n")
    found = pairs(str(tmp_path))
    assert (len(found.reference), len(found.query)) == (2, 1)
    assert found.notes == (
        "tested on validation: there is no test split",
        "1 masks are left out, whose photo has an earlier mask, first masks/0.png (after labels/0.png)",
        "1 photos are left out, which have the name of an earlier one, first photos/1.png (after images/1.png)",
        "1 pictures that are in both train and validation, first images/1.png",
        "1 repeated pictures in the list of train, first train",
        "leak: 1 of 1 queries are in the reference too, first images/1.png",
    )


def png(image: Image.Image, tmp_path: Path) -> bytes:
    image.save(tmp_path / "mask.png")
    return (tmp_path / "mask.png").read_bytes()


def test_masks_are_numbers_however_they_are_kept(tmp_path: Path) -> None:
    numbers = np.array([[0, 1, 2], [7, 7, 255]], np.uint8)
    palette = Image.fromarray(numbers)
    palette.putpalette(bytes(reversed(range(256))) * 3)
    deep = Image.fromarray(numbers.astype(np.uint16) * 200)
    kept: list[tuple[Image.Image, Tensor]] = [
        (Image.fromarray(numbers), torch.from_numpy(numbers).long()),
        (palette, torch.from_numpy(numbers).long()),
        (Image.fromarray(numbers).convert("RGB"), torch.from_numpy(numbers).long()),
        (deep, torch.from_numpy(numbers).long() * 200),
        (Image.fromarray(numbers > 1), torch.from_numpy(numbers > 1).long()),
    ]
    for image, expected in kept:
        assert torch.equal(decoded(png(image, tmp_path)), expected)
    for wrong in (png(Image.new("RGB", (2, 2), "red"), tmp_path), b"", b"GIF89a"):
        with pytest.raises(Unreadable):
            decoded(wrong)


# The command


def test_the_command_draws_what_it_says(say: Callable[..., Said], tmp_path: Path) -> None:
    data, run = scenes(tmp_path / "data"), tmp_path / "run"
    scene(9)[0].save(data / "train" / "images" / "alone.png")
    assert say("pretrain", "digits", "--out", run, "--recipe", "tiny", "--steps", 1, "--quiet")[0] == 0
    command = ("evaluate", "segment", run, data, "--steps", 2, "--size", 32, "--crop", 32, "--width", 8)
    code, out, err = say(*command, "--json", tmp_path / "s.json", "--page", tmp_path / "p" / "s.html", "--workers", 0)
    assert (code, err) == (0, "")
    assert "1 photos have no mask and are left out, first train/images/alone.png" in out
    found = json.loads((tmp_path / "s.json").read_text())
    assert f"mean intersection over union {found['miou']:.2%} of 2 classes" in out
    assert f"(chance {found['chance']:.2%} and {found['chance_pixel_accuracy']:.2%}; step " in out
    assert found["chance"] == found["chance_pixel_accuracy"] / 2
    assert "in repeated trials: lookalike compare " in out
    assert found["miou"] == pytest.approx((found["iou_0"] + found["iou_1"]) / 2)
    assert (found["queries"], found["reference"], found["unmasked"]) == (2, 4, 1)
    page = Checked((tmp_path / "p" / "s.html").read_text())
    assert sum(name == "src" and str(value).startswith("data:image/jpeg") for name, value in page.attributes) == 2
    assert {"Classes", "Pictures", "Settings", "crop"} <= set(page.text)
    shown = [float(share) for text in page.text for share in re.findall(r"val/images/\S+: ([\d.]+)%$", text)]
    assert len(shown) == 2
    assert shown == sorted(shown)  # the worst first
    table = compare([run], data, "segment", trials=1, steps=2, size=32, crop=32, width=8)
    assert table.rows[-1].values == [found["miou"]]
    assert table.settings["group"] == found["group"] == 8
    refused(say("evaluate", "segment", run, tmp_path / "run", "--workers", 0), 65, "no photo has a mask")
    refused(say("evaluate", "segment", run, data, "--steps", 0), 2, "--steps")
