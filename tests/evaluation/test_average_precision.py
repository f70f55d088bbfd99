"""Average precision against COCO's own tools and against the definition written out; PCK by hand."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.data.annotations.masks import Polygons
from lookalike.data.annotations.record import Scene
from lookalike.evaluation.detector import Detections, pasted
from lookalike.evaluation.precision import (
    average_precision,
    coco_precision,
    correct_points,
    matched,
    overlaps,
    voc_precision,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIDE, CLASSES = 120, 3


def drawn_boxes(draw: np.random.Generator, count: int) -> Any:
    """Boxes (N, 4) of all sizes inside the picture."""
    corners = draw.uniform(0, SIDE, (count, 2, 2))
    low, high = corners.min(1), corners.max(1)
    return np.concatenate([low, np.maximum(high, low + 1)], 1).clip(0, SIDE)


def drawn_scene(draw: np.random.Generator, joints: int) -> Scene:
    """Up to six objects, some of them crowds, hard, or with no point."""
    count = int(draw.integers(0, 7))
    boxes = drawn_boxes(draw, count)
    points = np.zeros((count, joints, 3))
    for row, (left, top, right, bottom) in zip(points, boxes):
        row[:, 0], row[:, 1] = draw.uniform(left, right, joints), draw.uniform(top, bottom, joints)
        row[:, 2] = draw.integers(0, 3, joints) * draw.integers(0, 2)
        row[row[:, 2] == 0] = 0
    rings = [np.array([a, b, c, b, c, d, a, d]) + draw.uniform(-3, 3, 8) for a, b, c, d in boxes]
    return Scene(
        "a.png",
        SIDE,
        SIDE,
        boxes,
        draw.integers(0, CLASSES, count),
        draw.random(count) < 0.15,
        draw.random(count) < 0.1,
        (boxes[:, 2:] - boxes[:, :2]).prod(1) * draw.uniform(0.5, 1, count),
        tuple(Polygons((ring,), SIDE, SIDE) for ring in rings),
        points,
    )


def drawn_answer(draw: np.random.Generator, scene: Scene) -> Detections:
    """Objects of the scene moved a little, some twice, and boxes of nothing; scores on a coarse grid, so with ties."""
    near = np.repeat(np.arange(len(scene)), draw.integers(0, 3, len(scene)))
    extra = int(draw.integers(0, 4))
    jitter = draw.normal(0, draw.choice([0.5, 3, 12]), (len(near), 4))
    boxes = np.concatenate([scene.boxes[near] + jitter, drawn_boxes(draw, extra)]).clip(0, SIDE)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    count = len(boxes)
    labels = np.concatenate([scene.labels[near], draw.integers(0, CLASSES, extra)])
    joints = scene.points.shape[1]
    points = np.concatenate([scene.points[near], draw.uniform(0, SIDE, (extra, joints, 3))])
    points[..., :2] += draw.normal(0, 4, points[..., :2].shape)
    order = np.argsort(-(scores := np.round(draw.random(count), 1)), kind="stable")
    masks = torch.tensor(draw.random((count, 1, 8, 8)) ** 0.3, dtype=torch.float32)
    return Detections(boxes[order], labels[order], scores[order], masks, points[order])


def official(scenes: list[Scene], found: list[Detections], kind: str) -> list[float]:
    """AP, AP50, AP75 by pycocotools, from lists that this test writes itself."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    tool = pytest.importorskip("pycocotools.mask")
    truth, said = coco.COCO(), []
    annotations: list[dict[str, Any]] = []
    for i, scene in enumerate(scenes):
        for j, (left, top, right, bottom) in enumerate(scene.boxes.tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": int(scene.labels[j]),
                    "bbox": [left, top, right - left, bottom - top],
                    "area": scene.areas[j],
                    "iscrowd": int(scene.crowd[j] | scene.ignored[j]),
                    "segmentation": scene.outlines[j].plain(),  # type: ignore[union-attr]
                    "keypoints": scene.points[j].reshape(-1).tolist(),
                    "num_keypoints": int((scene.points[j, :, 2] > 0).sum()),
                }
            )
    for i, (scene, seen) in enumerate(zip(scenes, found)):
        whole = pasted(seen, scene.height, scene.width)
        for j, (left, top, right, bottom) in enumerate(seen.boxes.tolist()):
            one = {"image_id": i, "category_id": int(seen.labels[j]), "score": float(seen.scores[j])}
            one |= {
                "bbox": {"bbox": [left, top, right - left, bottom - top]},
                "segm": {"segmentation": tool.encode(np.asfortranarray(whole[j], dtype=np.uint8))},
                "keypoints": {"keypoints": seen.points[j].reshape(-1).tolist()},  # type: ignore[index]
            }[kind]
            said.append(one)
    truth.dataset = {
        "images": [{"id": i, "height": SIDE, "width": SIDE} for i in range(len(scenes))],
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in range(CLASSES)],
        "info": {},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        counted = evaluation.COCOeval(truth, truth.loadRes(said), kind)
        counted.evaluate()
        counted.accumulate()
        counted.summarize()
    return [float(number) for number in counted.stats[:3]]


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
@pytest.mark.parametrize("seed", range(3))
def test_coco_precision_is_that_of_cocos_own_tools(kind: Any, seed: int) -> None:
    pytest.importorskip("faster_coco_eval")
    draw = np.random.default_rng(seed)
    scenes = [drawn_scene(draw, 17) for _ in range(12)]
    found = [drawn_answer(draw, scene) for scene in scenes]
    mine = coco_precision(scenes, found, CLASSES, kind)
    # COCO's own tools add 2.2e-16 to each denominator, so that their perfect precision is 0.9999999999999998.
    assert list(mine.values()) == pytest.approx(official(scenes, found, kind), rel=0, abs=5e-16)
    assert 0 < mine["AP"] < mine["AP50"] < 1


def test_nothing_found_and_nothing_there_are_zero() -> None:
    pytest.importorskip("faster_coco_eval")
    draw = np.random.default_rng(0)
    scenes = [drawn_scene(draw, 3) for _ in range(3)]
    no_box = np.zeros((0, 4))
    nothing = Detections(no_box, np.zeros(0, np.int64), np.zeros(0), torch.zeros(0, 1, 8, 8), np.zeros((0, 3, 3)))
    some = np.zeros(0, dtype=np.int64)
    empty = Scene("a", SIDE, SIDE, no_box, some, some > 0, some > 0, some * 1.0, (), np.zeros((0, 3, 3)))
    for truth, found in ((scenes, [nothing] * 3), ([empty], [drawn_answer(draw, empty)]), ([empty], [nothing])):
        for kind in ("bbox", "segm", "keypoints"):
            assert set(coco_precision(truth, found, CLASSES, kind).values()) == {0.0}  # type: ignore[arg-type]
        assert voc_precision(truth, found, CLASSES) == correct_points(truth, found) == 0.0


def by_definition(scenes: list[Scene], found: list[Detections]) -> float:
    """VOC's AP50 from its own words: at every recall the best precision at that recall or above, and the area."""
    every = []
    for number in range(CLASSES):
        said = [(-s.scores[j], i, j) for i, s in enumerate(found) for j in np.flatnonzero(s.labels == number)]
        taken: set[tuple[int, int]] = set()
        curve, right, wrong = [], 0, 0
        total = sum(int(((s.labels == number) & ~s.crowd & ~s.ignored).sum()) for s in scenes)
        for _, i, j in sorted(said):
            mine = np.flatnonzero(scenes[i].labels == number)
            shares = [float(overlaps(scenes[i].boxes[[k]], found[i].boxes[[j]])[0, 0]) for k in mine]
            best = int(np.argmax(shares)) if shares else -1
            if best >= 0 and shares[best] >= 0.5:
                k = int(mine[best])
                if scenes[i].crowd[k] or scenes[i].ignored[k]:
                    continue
                right, wrong = (right, wrong + 1) if (i, k) in taken else (right + 1, wrong)
                taken.add((i, k))
            else:
                wrong += 1
            curve.append((right / max(total, 1), right / (right + wrong)))
        if total:
            recalls = sorted({recall for recall, _ in curve if recall > 0})
            area, before = 0.0, 0.0
            for recall in recalls:
                area += (recall - before) * max(p for r, p in curve if r >= recall)
                before = recall
            every.append(area)
    return float(np.mean(every)) if every else 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100_000))
def test_voc_precision_is_that_of_the_definition(seed: int) -> None:
    draw = np.random.default_rng(seed)
    scenes = [drawn_scene(draw, 1) for _ in range(5)]
    found = [drawn_answer(draw, scene) for scene in scenes]
    assert voc_precision(scenes, found, CLASSES) == pytest.approx(by_definition(scenes, found), abs=1e-12)


def test_the_area_under_precision_by_hand() -> None:
    hits, scores = np.array([1.0, 0.0, 1.0, np.nan]), np.array([0.9, 0.8, 0.7, 0.6])
    assert average_precision(hits, scores, 4) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100_000))
def test_overlaps_are_those_of_counted_cells(seed: int) -> None:
    draw = np.random.default_rng(seed)
    a, b = (np.sort(draw.integers(0, 9, (4, 2, 2)), 1).reshape(4, 4).astype(float) for _ in range(2))
    cells = [np.zeros((4, 9, 9), dtype=bool) for _ in range(2)]
    for boxes, grid in zip((a, b), cells):
        for k, (left, top, right, bottom) in enumerate(boxes.astype(int)):
            grid[k, top:bottom, left:right] = True
    for i, j in np.ndindex(4, 4):
        union = (cells[0][i] | cells[1][j]).sum()
        assert overlaps(a, b)[i, j] == pytest.approx((cells[0][i] & cells[1][j]).sum() / max(union, 1))


def test_points_count_within_reach_of_the_box_that_found_their_object() -> None:
    boxes = np.array([[0.0, 0, 40, 40], [60, 60, 100, 100]])
    points = np.array([[[10, 10, 2], [30, 10, 1], [0, 0, 0]], [[70, 70, 2], [90, 70, 2], [80, 90, 2]]], dtype=float)
    flat = np.zeros(2, dtype=np.int64)
    scene = Scene("a", 100, 100, boxes, flat, flat > 0, flat > 0, flat + 1.0, (None, None), points)
    moved = points.copy()
    moved[0, 1, 0] += 4.1  # the extent of the first is 20: reach 2 at 0.1
    said = Detections(boxes, flat, np.array([0.9, 0.8]), None, moved)
    assert correct_points([scene], [said], 0.1) == pytest.approx(4 / 5)
    assert correct_points([scene], [said], 0.3) == 1.0
    one = Detections(boxes[:1], flat[:1], np.array([0.9]), None, points[:1])
    assert correct_points([scene], [one], 0.1) == pytest.approx(2 / 5)
    assert matched(boxes, np.array([[0.0, 0, 39, 40], [0, 0, 40, 40], [61, 60, 100, 100]])) == [0, 2]
