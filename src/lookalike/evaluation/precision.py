"""How well boxes, masks and points match annotations: average precision as COCO and Pascal VOC define it, and PCK."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torchvision.ops import box_iou

from lookalike.core.errors import UserError
from lookalike.data.annotations.record import Scene
from lookalike.evaluation.detector import Detections, pasted

Numbers = npt.NDArray[np.float64]
Kind = Literal["bbox", "segm", "keypoints"]

_COCO_POINTS = (26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89)
"""How far people who annotate differ, in thousandths of the root of the area, for COCO's 17 points."""

OVERLAP = 0.5  # of a detected box with the object that it counts for


def tools() -> Any:
    """The package that counts as COCO does; raises UserError where it is missing."""
    try:
        import faster_coco_eval
    except ImportError:
        words = "boxes, masks and points need the package faster-coco-eval: pip install 'lookalike[detect]'"
        raise UserError(words) from None
    return faster_coco_eval


def coco_precision(
    scenes: Sequence[Scene], detections: Sequence[Detections], classes: int, kind: Kind
) -> dict[str, float]:
    """COCO's AP, AP50 and AP75 in 0..1, the mean over the classes that ``scenes`` have; 0 where they have none.

    Ignored objects count as crowds do. Points have COCO's tolerances if they are its 17, else the mean of those.
    """
    package, quiet = tools(), {"print_function": lambda *_: None}
    truth = package.COCO(_annotations(scenes, classes), **quiet)
    results = truth.loadRes([row for i, one in enumerate(detections) for row in _results(i, scenes[i], one, kind)])
    joints = scenes[0].points.shape[1] if scenes else 0
    sigmas = [s / 1000 for s in _COCO_POINTS]
    sigmas = sigmas if joints == len(sigmas) else [float(np.mean(sigmas))] * joints
    points = {"kpt_oks_sigmas": sigmas} if kind == "keypoints" else {}
    counted = package.COCOeval_faster(truth, results, kind, **points, **quiet)
    counted.evaluate()
    counted.accumulate()
    counted.summarize()
    # Where there is no object of any class, COCO's tools say -1.
    return {name: max(0.0, float(value)) for name, value in zip(("AP", "AP50", "AP75"), counted.stats)}


def _annotations(scenes: Sequence[Scene], classes: int) -> dict[str, Any]:
    """The truth as COCO's JSON has it. Numbers of annotations begin at 1, since 0 means none to COCO's tools."""
    objects = [(i, scene, j) for i, scene in enumerate(scenes) for j in range(len(scene))]
    return {
        "images": [{"id": i, "height": scene.height, "width": scene.width} for i, scene in enumerate(scenes)],
        "annotations": [_annotation(scene, j) | {"id": n, "image_id": i} for n, (i, scene, j) in enumerate(objects, 1)],
        "categories": [{"id": number + 1, "name": str(number)} for number in range(classes)],
    }


def _annotation(scene: Scene, j: int) -> dict[str, Any]:
    outline, (left, top, right, bottom) = scene.outlines[j], map(float, scene.boxes[j])
    return {
        "category_id": int(scene.labels[j]) + 1,
        "bbox": [left, top, right - left, bottom - top],
        "area": float(scene.areas[j]),
        "iscrowd": int(scene.crowd[j] or scene.ignored[j]),
        "segmentation": outline.plain()
        if outline is not None
        else [[left, top, right, top, right, bottom, left, bottom]],
        "keypoints": scene.points[j].reshape(-1).tolist(),
        "num_keypoints": int((scene.points[j, :, 2] > 0).sum()),
    }


def _results(i: int, scene: Scene, result: Detections, kind: Kind) -> list[dict[str, Any]]:
    """The detections of one picture, as COCO's tools take them."""
    shapes: Iterable[Any]
    if kind == "segm":
        masks = pasted(result, scene.height, scene.width)
        name, shapes = "segmentation", (tools().mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks)
    elif kind == "keypoints":
        assert result.points is not None
        name, shapes = "keypoints", (points.reshape(-1).tolist() for points in result.points)
    else:
        corners = result.boxes
        name, shapes = "bbox", np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()
    rows = zip(result.labels.tolist(), result.scores.tolist(), shapes)
    return [{"image_id": i, "category_id": label + 1, "score": score, name: shape} for label, score, shape in rows]


def voc_precision(scenes: Sequence[Scene], detections: Sequence[Detections], classes: int) -> float:
    """Pascal VOC's AP50: the mean over the classes that ``scenes`` have of ``average_precision``.

    A detected box counts for the object that it overlaps most, once; on one that is ignored, or a crowd, it
    counts for nothing.
    """
    every = []
    for number in range(classes):
        hits, scores, total = [], [], 0
        for scene, one in zip(scenes, detections):
            mine, theirs = scene.labels == number, one.labels == number
            hard = (scene.ignored | scene.crowd)[mine]
            total += int((~hard).sum())
            order = np.argsort(-one.scores[theirs], kind="stable")
            hits.append(_hits(scene.boxes[mine], hard, one.boxes[theirs][order]))
            scores.append(one.scores[theirs][order])
        if total:
            every.append(average_precision(np.concatenate(hits), np.concatenate(scores), total))
    return float(np.mean(every)) if every else 0.0


def _hits(truth: Numbers, hard: npt.NDArray[np.bool_], boxes: Numbers) -> Numbers:
    """(M,) 1 for a box that finds an object first, 0 for one that does not, NaN for one that is not counted."""
    hits, taken = np.zeros(len(boxes)), np.zeros(len(truth), dtype=bool)
    shares = overlaps(truth, boxes)
    for j in range(len(boxes)):
        best = int(shares[:, j].argmax()) if len(truth) else -1
        if best < 0 or shares[best, j] < OVERLAP:
            continue
        hits[j] = np.nan if hard[best] else float(not taken[best])
        taken[best] = True
    return hits


def average_precision(hits: Numbers, scores: Numbers, total: int) -> float:
    """The area under precision, made monotone, over recall, as VOC has it from 2010 on; see ``_hits``."""
    counted = ~np.isnan(hits)
    right = hits[counted][np.argsort(-scores[counted], kind="stable")]
    hit = np.cumsum(right)
    recall = np.concatenate([[0.0], hit / total])
    precision = np.concatenate([hit / np.arange(1, len(right) + 1), [0.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # at entry i: for a recall of i + 1 boxes or more
    return float((np.diff(recall) * precision[:-1]).sum())


def overlaps(a: Numbers, b: Numbers) -> Numbers:
    """(N, M) intersection over union of boxes (N, 4) and (M, 4)."""
    shares: Numbers = box_iou(torch.from_numpy(a), torch.from_numpy(b)).nan_to_num().numpy()
    return shares


def correct_points(scenes: Sequence[Scene], detections: Sequence[Detections], alpha: float = 0.2) -> float:
    """PCK: the share of known points that were found within ``alpha`` of the size of their object.

    The size is the longer side of the extent of its known points (Yang & Ramanan 2013). The detected boxes, the best
    first, are each counted for the object that they overlap most and that has none yet; the points of an object without
    one are not found. 0 where no point is known.
    """
    right = known = 0
    for scene, one in zip(scenes, detections):
        objects = np.flatnonzero((scene.points[..., 2] > 0).any(1) & ~scene.crowd)
        given = matched(scene.boxes[objects], one.boxes)
        for row, j in zip(objects, given):
            points = scene.points[row]
            visible = points[:, 2] > 0
            known += int(visible.sum())
            if j is not None and one.points is not None:
                reach = alpha * extent(points)
                away = np.linalg.norm(one.points[j, :, :2] - points[:, :2], axis=1)
                right += int((away[visible] <= reach).sum())
    return right / known if known else 0.0


def matched(truth: Numbers, boxes: Numbers) -> list[int | None]:
    """(N,) for each object the box that is counted for it."""
    given: list[int | None] = [None] * len(truth)
    shares = overlaps(truth, boxes)
    for j in range(len(boxes)):
        free = np.array([share if taken is None else -1.0 for share, taken in zip(shares[:, j], given)])
        if len(free) and free.max() >= OVERLAP:
            given[int(free.argmax())] = j
    return given


def extent(points: Numbers) -> float:
    """The longer side of what the known points (K, 3) reach over, at least a pixel."""
    known = points[points[:, 2] > 0, :2]
    return max(1.0, float((known.max(0) - known.min(0)).max()))
