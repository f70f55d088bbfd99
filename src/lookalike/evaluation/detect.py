"""Transfer to boxes, masks and points: a detector is trained on the pictures of one part and tested on another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lookalike.core.devices import device, exact, keep_freed, material_to_device, module_to_device
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.seeding import reseed, uniforms
from lookalike.data.annotations.open import open_annotated, split_annotated
from lookalike.data.annotations.record import Annotated
from lookalike.data.loader import Loader
from lookalike.data.order import Order
from lookalike.data.source import Data
from lookalike.evaluation.detector import (
    Detections,
    Look,
    Truth,
    build,
    detections,
    has_masks,
    in_mirror,
    looks,
    picture,
    truth,
)
from lookalike.evaluation.evaluation import Resources, Result
from lookalike.evaluation.precision import coco_precision, correct_points, tools, voc_precision
from lookalike.evaluation.settings import Boxes, Keypoints
from lookalike.learn.optim import AdamW, Cosine
from lookalike.train.fit import Fit, weights_digest
from lookalike.train.trained import Trained, readable

ALPHA = 0.1
"""PCK: a point is found within so much of the longer side of what the known points of its object reach over."""

_VIEW = 7  # the stream of draws: no other here asks for it
_STEEP = 10.0  # the norm to which a larger gradient is cut: single steps of detectors have far larger ones


class Fitted(NamedTuple):
    """What came of one fit."""

    metrics: dict[str, float]
    pictures: Annotated  # of the test part, those that could be read
    detections: list[Detections]
    learned: int  # pictures


def detect(spec: Boxes, model: Trained, data: Data, resources: Resources) -> Result:
    """Average precision of boxes, and of masks or points, of a detector trained from ``model``."""
    tools()
    annotated = open_annotated(str(data), spec.annotations, points=isinstance(spec, Keypoints))
    for note in annotated.notes:
        resources.say(f"annotations: {note}")
    if isinstance(spec, Keypoints) and in_mirror(annotated.joints) is None:
        resources.say("no picture is mirrored in training, since the names of the points do not say left and right")
    done = fit(spec, model, *split_annotated(annotated, resources.say), resources)
    facts = {"step": model.step, "pictures": len(done.pictures.scenes), "learned": done.learned, "chance": 0}
    on = f"on {facts['pictures']} pictures, trained on {done.learned}"
    line = f"{words(done.metrics)} {on} (chance 0; {model.stage})"
    return spec.result(done.metrics, facts, line, detail=done)


def words(metrics: dict[str, float]) -> str:
    """All numbers in one line."""
    parts = [f"box AP {metrics['AP']:.2%} (AP50 {metrics['AP50']:.2%}, AP75 {metrics['AP75']:.2%})"]
    for name in ("mask", "keypoint"):
        if f"{name}_AP" in metrics:
            parts.append(f"{name} AP {metrics[f'{name}_AP']:.2%} (AP50 {metrics[f'{name}_AP50']:.2%})")
    parts.append(f"PCK@{ALPHA:g} {metrics['PCK']:.2%}" if "PCK" in metrics else f"VOC AP50 {metrics['VOC_AP50']:.2%}")
    return ", ".join(parts)


def fit(spec: Boxes, model: Trained, learned: Annotated, tested: Annotated, resources: Resources) -> Fitted:
    """Train a detector from ``model``, which stays as it is, on ``learned``, and test it on ``tested``.

    A function of its arguments alone. Raises UserError.
    """
    if has_masks(spec) and not any(outline for scene in learned.scenes for outline in scene.outlines):
        raise UserError("--masks needs annotations with outlines, such as COCO's or YOLO's polygons", BAD_DATA)
    keep_freed()
    detector = untrained(spec, model, learned)

    def loss(batch: tuple[list[Tensor], list[Truth]]) -> Tensor:
        losses: dict[str, Tensor] = detector(*batch)
        return torch.stack(list(losses.values())).sum()

    optimizer = AdamW(spec.lr, spec.decay).build(detector, 256)
    views = partial(batches, spec, model, learned, resources.workers)
    origin = {"start": weights_digest(model.encoder.backbone), "data": digest(learned)}
    training = Fit(detector, optimizer, Cosine(warmup=0.1), spec.steps, spec.seed, views, loss, _STEEP)
    training.run(partial(resources.progress, "fitting"), resources.folder, spec.settings() | origin)
    results, rows = _detections(detector.eval(), spec, model, tested, resources)
    pictures = tested.some(rows)
    return Fitted(metrics(spec, pictures, results), pictures, results, len(learned.scenes))


def metrics(spec: Boxes, pictures: Annotated, results: list[Detections]) -> dict[str, float]:
    """All numbers of the detections in ``pictures``, in 0..1: COCO's AP, AP50 and AP75, VOC's AP50 by area, PCK."""
    table = (pictures.scenes, results, len(pictures.classes))
    numbers = coco_precision(*table, "bbox") | {"VOC_AP50": voc_precision(*table)}
    if has_masks(spec):
        numbers |= {f"mask_{name}": value for name, value in coco_precision(*table, "segm").items()}
    if isinstance(spec, Keypoints):
        numbers |= {f"keypoint_{name}": value for name, value in coco_precision(*table, "keypoints").items()}
        numbers |= {"PCK": correct_points(pictures.scenes, results, ALPHA)}
    return numbers


def batches(
    spec: Boxes, model: Trained, learned: Annotated, workers: int | None, done: int
) -> Iterator[tuple[list[Tensor], list[Truth]]]:
    """Pictures, resized and mirrored at random, and what lies in them, for each step after the first ``done``."""
    scenes, swapped = learned.scenes, in_mirror(learned.joints)
    mirror = swapped is not None or not isinstance(spec, Keypoints)
    order = Order(len(scenes), min(spec.batch, len(scenes)), spec.seed)
    loader = Loader(learned.pictures(), spec.long_side, workers=workers, max_bad=1.0)
    steps = range(done, spec.steps)
    for step, (rows, material) in zip(steps, loader.batches(map(order.rows, steps))):
        draws = uniforms(spec.seed, order.epoch(step), rows, _VIEW, 2)
        images, truths = [], []
        views = looks(spec, [scenes[row] for row in rows], draws, mirror)
        for row, canvas, look in zip(rows.tolist(), material_to_device(material).pixels, views):
            target = truth(scenes[row], look, swapped or range(len(learned.joints)), has_masks(spec))
            if row in loader.bad_rows:  # another picture stands in its place
                canvas, target = torch.zeros_like(canvas), {name: part[:0] for name, part in target.items()}
            images.append(_shown(model, canvas, look))
            truths.append({name: part.to(device()) for name, part in target.items()})
        yield images, truths


def untrained(spec: Boxes, model: Trained, learned: Annotated) -> nn.Module:
    """A detector whose new layers have weights that the seed decides, ready to learn."""
    reseed(spec.seed)
    detector: nn.Module = build(spec, model.encoder.backbone, len(learned.classes), len(learned.joints))
    return module_to_device(detector.requires_grad_()).train()


def digest(annotated: Annotated) -> str:
    """Of everything that is learned from."""
    state = hashlib.sha256(repr((annotated.classes, annotated.joints)).encode())
    for scene in annotated.scenes:
        state.update(repr((scene.path, scene.height, scene.width)).encode("utf-8", "surrogateescape"))
        for part in (scene.boxes, scene.labels, scene.crowd, scene.points):
            state.update(np.ascontiguousarray(part).tobytes())
        state.update(repr([shape.plain() if shape is not None else None for shape in scene.outlines]).encode())
    return state.hexdigest()


@torch.no_grad()
@exact()
def _detections(
    detector: nn.Module, spec: Boxes, model: Trained, tested: Annotated, resources: Resources
) -> tuple[list[Detections], list[int]]:
    """What the detector finds in every picture that can be read, each alone, and the rows of these."""
    loader, results = Loader(tested.pictures(), spec.long_side, workers=resources.workers, max_bad=1.0), []
    for chunk, material in loader.batches(torch.split(torch.arange(len(loader)), 32)):
        for row, canvas in zip(chunk.tolist(), material_to_device(material).pixels):
            (look,) = looks(spec, [tested.scenes[row]], None)
            (output,) = detector([_shown(model, canvas, look)])
            results.append(detections(output, tested.scenes[row], look))
            resources.progress("testing", len(results), len(loader))
    good = readable(loader)
    return [results[row] for row in good], good


def _shown(model: Trained, canvas: Tensor, look: Look) -> Tensor:
    view = model.recipe.pictures.first
    return picture(canvas, look, view.mean, view.std)
