"""How well boxes, masks and points match annotations: average precision as COCO and Pascal VOC define it, and PCK."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

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
        raise UserError(
            "boxes, masks and points need the package faster-coco-eval: pip install 'lookalike[detect]'"
        ) from None
    return faster_coco_eval


def coco_precision(
    scenes: Sequence[Scene], detections: Sequence[Detections], classes: int, kind: Kind
) -> dict[str, float]:
    """COCO's AP, AP50 and AP75 in 0..1, the mean over the classes that ``scenes`` have; 0 where they have none.

    Ignored objects count as crowds do. Points have COCO's tolerances if they are its 17, else the mean of those.
    """
    package = tools()
    truth = package.COCO(_plain(scenes, classes), print_function=_silent)
    results = truth.loadRes([row for i, one in enumerate(detections) for row in _results(i, scenes[i], one, kind)])
    joints = scenes[0].points.shape[1] if scenes else 0
    sigmas = [s / 1000 for s in _COCO_POINTS]
    sigmas = sigmas if joints == len(sigmas) else [float(np.mean(sigmas))] * joints
    counted = package.COCOeval_faster(
        truth, results, kind, print_function=_silent, kpt_oks_sigmas=sigmas if kind == "keypoints" else None
    )
    counted.evaluate()
    counted.accumulate()
    counted.summarize()
    # Where there is no object of any class, COCO's tools say -1.
    return {name: max(0.0, float(value)) for name, value in zip(("AP", "AP50", "AP75"), counted.stats)}


def _silent(*_: object) -> None:
    """Says nothing."""


def _plain(scenes: Sequence[Scene], classes: int) -> dict[str, Any]:
    """The truth as COCO's JSON has it. Numbers of annotations begin at 1, since 0 means none to COCO's tools."""
    annotations: list[dict[str, Any]] = []
    for i, scene in enumerate(scenes):
        for j in range(len(scene)):
            outline = scene.outlines[j]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": int(scene.labels[j]) + 1,
                    "bbox": _sides(scene.boxes[j]),
                    "area": float(scene.areas[j]),
                    "iscrowd": int(scene.crowd[j] or scene.ignored[j]),
                    "segmentation": outline.plain() if outline is not None else [_corners(scene.boxes[j])],
                    "keypoints": scene.points[j].reshape(-1).tolist(),
                    "num_keypoints": int((scene.points[j, :, 2] > 0).sum()),
                }
            )
    return {
        "images": [{"id": i, "height": scene.height, "width": scene.width} for i, scene in enumerate(scenes)],
        "annotations": annotations,
        "categories": [{"id": number + 1, "name": str(number)} for number in range(classes)],
    }


def _results(i: int, scene: Scene, result: Detections, kind: Kind) -> list[dict[str, Any]]:
    """The detections of one picture, as COCO's tools take it."""
    masks = pasted(result, scene.height, scene.width) if kind == "segm" else None
    rows = []
    for j in range(len(result.scores)):
        one: dict[str, Any] = {
            "image_id": i,
            "category_id": int(result.labels[j]) + 1,
            "score": float(result.scores[j]),
        }
        if masks is not None:
            one["segmentation"] = tools().mask.encode(np.asfortranarray(masks[j], dtype=np.uint8))
        elif kind == "keypoints":
            assert result.points is not None
            one["keypoints"] = result.points[j].reshape(-1).tolist()
        else:
            one["bbox"] = _sides(result.boxes[j])
        rows.append(one)
    return rows


def _sides(box: Numbers) -> list[float]:
    left, top, right, bottom = map(float, box)
    return [left, top, right - left, bottom - top]


def _corners(box: Numbers) -> list[float]:
    left, top, right, bottom = map(float, box)
    return [left, top, right, top, right, bottom, left, bottom]


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
    """The area under precision, made monotone, over recall, as VOC has it from 2010 on.

    ``hits`` (M,) are 1, 0 or NaN, which is not counted.
    """
    counted = ~np.isnan(hits)
    right = hits[counted][np.argsort(-scores[counted], kind="stable")]
    hit = np.cumsum(right)
    recall = np.concatenate([[0.0], hit / total])
    precision = np.concatenate([hit / np.arange(1, len(right) + 1), [0.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # at entry i: for a recall of i + 1 boxes or more
    return float((np.diff(recall) * precision[:-1]).sum())


def overlaps(a: Numbers, b: Numbers) -> Numbers:
    """(N, M) intersection over union of boxes (N, 4) and (M, 4)."""
    corners = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = corners.clip(0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12))


def correct_points(scenes: Sequence[Scene], detections: Sequence[Detections], alpha: float = 0.2) -> float:
    """PCK: the share of known points that were found within ``alpha`` of the size of their object.

    The size is the longer side of the extent of its known points (Yang & Ramanan 2013). The detected boxes, the surest
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
