"""Detectors on small backbones: what they are shown, that a fit repeats and goes on, and the command line."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lookalike.cli.main import main
from lookalike.core.errors import UserError
from lookalike.data.annotations.open import open_annotated, split_annotated
from lookalike.data.annotations.record import Annotated
from lookalike.evaluation.compare import compare
from lookalike.evaluation.detect import Fitted, fit, untrained
from lookalike.evaluation.detector import Anchors, Look, Padded, build, detections, in_mirror, looks, picture, truth
from lookalike.evaluation.evaluate import evaluate
from lookalike.evaluation.evaluation import Resources
from lookalike.evaluation.settings import Boxes, Detect, Keypoints
from lookalike.models.dense import pyramid
from lookalike.models.image import ResNet, SmallResNet, Timm
from lookalike.models.norm import GroupedBatchNorm2d
from lookalike.models.vit import ViT
from lookalike.recipes import tiny
from lookalike.train.trained import Trained
from tests.support.scenery import made

pytest.importorskip("faster_coco_eval")

SMALL: dict[str, Any] = {"steps": 2, "batch": 4, "size": 64, "longest": 96, "width": 8, "hidden": 16, "group": 4}
SMALL |= {"rois": 8, "proposals": 20}
QUICK: dict[str, Any] = {"steps": 1, "batch": 2, "size": 48, "width": 8, "hidden": 16, "rois": 8, "proposals": 20}
HERE = Resources(workers=0)  # without worker processes
KINDS: dict[str, Boxes] = {
    "boxes": Detect(**SMALL),
    "c4": Detect(**SMALL, neck="c4"),
    "masks": Detect(**SMALL, masks=True),
    "points": Keypoints(**SMALL, convolutions=1),
}


@pytest.fixture(scope="module")
def scenery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with annotations."""
    return made(tmp_path_factory.mktemp("scenery"), 6)


@pytest.fixture(scope="module")
def parts(scenery: Path) -> tuple[Annotated, Annotated]:
    """What is learned from, and what is asked."""
    return split_annotated(open_annotated(scenery, points=True))


@pytest.fixture(scope="module")
def start() -> Trained:
    """A network that is not trained."""
    recipe = replace(tiny.fitted(200), model=SmallResNet(widths=(8, 8, 16, 16), stride=2))
    return Trained(recipe, recipe.build(200).encoder, 0)


def same(a: Fitted, b: Fitted) -> bool:
    """Whether everything that was found is equal to the bit."""
    fields = [(getattr(x, name), getattr(y, name)) for x, y in zip(a.detections, b.detections) for name in x._fields]
    return a.metrics == b.metrics and all(
        (x is None and y is None) or np.array_equal(np.asarray(x), np.asarray(y)) for x, y in fields
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_repeats_and_leaves_the_start_as_it_was(
    start: Trained, parts: tuple[Annotated, Annotated], kind: str
) -> None:
    before = {name: part.clone() for name, part in start.encoder.state_dict().items()}
    spec = replace(KINDS[kind], lr=1e-2, seed=3)
    first, second = (fit(spec, start, *parts, HERE) for _ in range(2))
    assert same(first, second)
    assert kind != "boxes" or not same(first, fit(replace(spec, seed=4), start, *parts, HERE))
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in first.metrics.values())
    assert all(np.isfinite(answer.boxes).all() for answer in first.detections)
    assert len(first.detections) == 4
    extra = {"masks": {"mask_AP", "mask_AP50", "mask_AP75"}, "points": {"keypoint_AP", "PCK"}}.get(kind, set())
    assert first.metrics.keys() >= {"AP", "AP50", "AP75", "VOC_AP50"} | extra
    assert all(torch.equal(part, before[name]) for name, part in start.encoder.state_dict().items())


def test_a_fit_goes_on_where_it_was_stopped(start: Trained, parts: tuple[Annotated, Annotated], tmp_path: Path) -> None:
    spec = replace(KINDS["boxes"], steps=4)
    whole = fit(spec, start, *parts, HERE)

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("fitting", 2):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as stopped:
        fit(spec, start, *parts, Resources(stop, workers=0, folder=tmp_path))
    assert stopped.value.code == 143
    steps: list[int] = []
    kept = Resources(lambda what, done, _: steps.append(done), workers=0, folder=tmp_path)
    again = fit(spec, start, *parts, kept)
    assert steps[0] == 3
    assert same(whole, again)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    for changed in (replace(spec, lr=1.0), replace(spec, seed=1)):
        with pytest.raises(UserError, match="choose another --out"):
            fit(changed, start, *parts, kept)


def test_something_is_learned(start: Trained, parts: tuple[Annotated, Annotated]) -> None:
    spec = replace(KINDS["boxes"], steps=20, lr=1e-2, width=16)
    assert fit(spec, start, *parts, HERE).metrics["AP50"] > 0.2


def test_pictures_that_break_after_they_were_listed_are_not_asked(start: Trained, tmp_path: Path) -> None:
    parts = split_annotated(open_annotated(made(tmp_path, 4)))
    for path in (parts[0].scenes[0].path, parts[1].scenes[0].path):
        data = (tmp_path / path).read_bytes()
        (tmp_path / path).write_bytes(data[: len(data) // 2])
    done = fit(replace(KINDS["boxes"], steps=1), start, *parts, HERE)
    assert len(done.detections) == len(done.pictures.scenes) == 3


# What is shown


def test_boxes_masks_and_points_turn_with_the_picture(parts: tuple[Annotated, Annotated]) -> None:
    scene = parts[1].scenes[0]
    plain, turned = Look(96, 128), Look(96, 128, mirrored=True)
    swapped = in_mirror(parts[1].joints)
    assert swapped == (1, 0, 2)
    a, b = (truth(scene, look, swapped, masks=True) for look in (plain, turned))
    assert len(a["boxes"]) == 2  # without the crowd
    left, top, right, bottom = (2 * scene.boxes[0]).tolist()
    assert a["boxes"][0].tolist() == [left, top, right, bottom]
    assert b["boxes"][0].tolist() == [128 - right, top, 128 - left, bottom]
    assert torch.equal(b["masks"], a["masks"].flip(2))
    assert a["masks"][1].sum() == 24 * 24  # an object without an outline fills its box
    for found in (a, b):  # the left hand is that of the body, not of the picture
        assert int(found["masks"][0].sum()) == (right - left) * (bottom - top)
        assert found["keypoints"][0, 0, 0] < found["keypoints"][0, 1, 0]
    assert b["keypoints"][0, 0].tolist() == [128 - 2 * scene.points[0, 1, 0], 2 * scene.points[0, 1, 1], 1]
    assert not b["keypoints"][1].any()


def test_a_picture_is_shown_in_its_own_shape() -> None:
    canvas = torch.zeros(3, 32, 32, dtype=torch.uint8)
    canvas[:, :, 16:] = 255
    shown = picture(canvas, Look(16, 48), (0.5,) * 3, (0.5,) * 3)
    assert shown.shape == (3, 16, 48)
    assert torch.allclose(shown[:, :, :20], torch.tensor(-1.0))
    assert torch.allclose(shown[:, :, 28:], torch.tensor(1.0))
    assert torch.equal(picture(canvas, Look(16, 48, True), (0.5,) * 3, (0.5,) * 3), shown.flip(2))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0, 0.999), st.floats(0, 0.999))
def test_sizes_stay_within_their_limits(height: int, width: int, grow: float, turn: float) -> None:
    scene: Any = type("Scene", (), {"height": height, "width": width})
    spec = Detect(size=100, jitter=1.25)  # the long side at most 160
    (look,) = looks(spec, [scene], torch.tensor([[grow, turn]]))
    assert max(look[:2]) <= 161
    assert min(look[:2]) <= 126
    assert look.mirrored == (torch.tensor(turn) < 0.5)
    assert looks(spec, [scene], None)[0].mirrored is False


def test_what_is_found_is_told_in_pixels_of_the_picture(parts: tuple[Annotated, Annotated]) -> None:
    scene, look = parts[1].scenes[0], Look(24, 32)
    found = {"boxes": torch.tensor([[1.0, 2, 3, 4]]), "labels": torch.tensor([2]), "scores": torch.tensor([0.5])}
    found |= {"keypoints": torch.tensor([[[1.0, 2, 1]]]), "keypoints_scores": torch.tensor([[7.0]])}
    told = detections(found, scene, look)
    assert told.boxes.tolist() == [[2, 4, 6, 8]]
    assert told.labels.tolist() == [1]
    assert told.points is not None
    assert told.points.tolist() == [[[2, 4, 7]]]


@pytest.mark.parametrize(
    ("joints", "turned"),
    [
        (("left_eye", "Right_Eye", "nose"), (1, 0, 2)),
        (("l-hand", "r-hand"), (1, 0)),
        (("Left Knee", "Right Knee"), (1, 0)),
        (("lefty", "nose"), None),
        (("left_eye", "nose"), None),
        (("0", "1"), None),
        ((), None),
    ],
)
def test_points_in_a_mirror(joints: tuple[str, ...], turned: tuple[int, ...] | None) -> None:
    assert in_mirror(joints) == turned


# Backbones


@pytest.mark.parametrize(
    ("model", "strides"),
    [
        (SmallResNet(widths=(8, 8, 16), blocks=(1, 2, 1)), [2, 4, 8]),
        (SmallResNet(widths=(8, 8, 8, 8), kernel=9, stride=8), [8, 16, 32, 64]),
        (ResNet("resnet18"), [4, 8, 16, 32]),
        (Timm("resnet10t"), [4, 8, 16, 32]),
        (Timm("mobilenetv3_small_050"), [2, 4, 8, 16, 32]),
    ],
)
def test_a_pyramid_is_the_backbone_in_stages(model: Any, strides: list[int]) -> None:
    torch.manual_seed(0)
    backbone = model.build(4)[0].eval()
    levels = pyramid(backbone, 3).eval()
    assert levels.strides[-len(strides) :] == strides
    pixels = torch.rand(1, 3, 64, 96)
    found = levels(pixels)
    assert [tuple(level.shape[1:]) for level in found] == [
        (width, -(-64 // stride), -(-96 // stride)) for width, stride in zip(levels.widths, levels.strides)
    ]
    if not isinstance(model, Timm):
        assert torch.allclose(found[-1].mean((2, 3)), backbone(pixels), atol=1e-5)
    norms = [module.group for module in levels.modules() if isinstance(module, GroupedBatchNorm2d)]
    assert set(norms) <= {3}
    assert norms or isinstance(model, Timm)
    with torch.no_grad():
        next(levels.parameters()).zero_()
    assert bool(next(backbone.parameters()).any())  # a copy


@pytest.mark.parametrize("model", [ViT(width=16, depth=1, heads=2, patch=8), Timm("vit_tiny_patch16_224")])
def test_a_transformer_has_no_pyramid(model: Any) -> None:
    with pytest.raises(UserError, match="has no pyramid"):
        pyramid(model.build(4)[0], 4)


def test_c4_wants_stages_that_come_apart() -> None:
    with pytest.raises(UserError, match="--neck fpn"):
        build(KINDS["c4"], Timm("resnet10t").build(4)[0], 2)


@pytest.mark.parametrize("kind", ["boxes", "c4"])
def test_every_layer_learns_and_new_ones_are_normalised_in_groups(
    start: Trained, parts: tuple[Annotated, Annotated], kind: str
) -> None:
    model = untrained(KINDS[kind], start, parts[0])
    assert all(parameter.requires_grad for parameter in model.parameters())
    old = {id(module) for module in start.encoder.modules()}
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(norm, GroupedBatchNorm2d) and id(norm) not in old for norm in norms)
    assert {norm.group for norm in norms} == {4, 4 * 8}  # pictures, and their boxes
    assert len(norms) > sum(isinstance(module, GroupedBatchNorm2d) for module in start.encoder.modules())


def test_anchors_stand_at_the_true_strides() -> None:
    anchors = Anchors([(8.0,), (16.0,)], [4, 8])
    images, _ = Padded()([torch.zeros(3, 21, 13), torch.zeros(3, 10, 18)])
    assert images.tensors.shape == (2, 3, 21, 18)
    (first, second) = anchors(images, [torch.zeros(2, 1, 6, 5), torch.zeros(2, 1, 3, 3)])
    assert torch.equal(first, second)
    centres = ((first[:, :2] + first[:, 2:]) / 2).view(-1, 3, 2)[:, 0]
    assert centres[:30, 0].unique().tolist() == [0, 4, 8, 12, 16]
    assert centres[30:, 1].unique().tolist() == [0, 8, 16]


# The command line


@pytest.fixture
def say(say: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """The same without worker processes."""
    return lambda *arguments: say(*arguments, "--workers", "0")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step on digits."""
    out = tmp_path_factory.mktemp("trained") / "run"
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "digits", "--out", str(out), "--recipe", "tiny", "--steps", "1", "--quiet"])
    assert stopped.value.code == 0
    return out


@pytest.mark.parametrize(
    ("verb", "metric", "words"), [("detect", "mask_AP", "mask AP"), ("keypoints", "PCK", "PCK@0.1")]
)
def test_the_verbs_print_write_and_draw(
    say: Callable[..., tuple[int, str, str]],
    run: Path,
    scenery: Path,
    tmp_path: Path,
    verb: str,
    metric: str,
    words: str,
) -> None:
    page, file = tmp_path / "page.html", tmp_path / "found.json"
    command = ["evaluate", verb, run, scenery, "--steps", 1, "--batch", 2, "--size", 64, "--json", file, "--page", page]
    command += ["--masks"] if verb == "detect" else []
    code, out, err = say(*command)
    assert (code, err) == (0, "")
    found = json.loads(file.read_text())
    assert 0 <= found[metric] <= 1
    assert (found["step"], found["pictures"], found["learned"], found["steps"]) == (1, 4, 5, 1)
    assert words in out
    text = page.read_text()
    assert text.count('<img src="data:image/jpeg;base64,') == 4
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")


@pytest.mark.parametrize("task", ["detect", "masks", "keypoints"])
def test_a_trial_of_compare_is_evaluate_with_its_seed(run: Path, scenery: Path, task: str) -> None:
    table = compare([run], scenery, task, trials=1, workers=0, seed=5, **QUICK)
    name, masks = ("detect", {"masks": True}) if task == "masks" else (task, {})
    alone = evaluate(run, str(scenery), name, workers=0, seed=5, **masks, **QUICK)
    assert (table.metric, table.rows[-1].values) == (alone.metric, [alone.value])
    assert table.settings == alone.settings
    assert alone.settings["longest"] == 77  # 1.6 times the size


def test_one_line_says_what_is_wrong(
    say: Callable[..., tuple[int, str, str]], run: Path, scenery: Path, tmp_path: Path
) -> None:
    for command, word in (
        (("detect", run, tmp_path / "none"), "no folder"),
        (("detect", run, tmp_path), "no annotations"),
        (("detect", tmp_path, scenery), "is not a run"),
        (("detect", scenery, run), "swap them"),
        (("keypoints", run, scenery, "--annotations", tmp_path / "x.json"), "no such file"),
        (("detect", tmp_path, scenery, "--steps", "0"), "--steps must be at least 1"),
    ):
        code, _, err = say("evaluate", *command, "--page", tmp_path / "page.html")
        assert code in (2, 65)
        assert word in err
        assert err.count("\n") == 1


def test_shown_pixels_are_normalised_by_the_runs_own_colours(parts: tuple[Annotated, Annotated]) -> None:
    gray = torch.full((3, 8, 8), 51, dtype=torch.uint8)
    shown: Tensor = picture(gray, Look(8, 8), (0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
    assert torch.allclose(shown[:, 0, 0], torch.tensor([0.1, 0.0, -0.025]), atol=1e-6)
