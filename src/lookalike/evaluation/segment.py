"""Semantic segmentation once: from photos with masks to scores, and predictions to look at."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import NamedTuple

from lookalike.data.annotations.segmentation import MaskedPhotos, pairs
from lookalike.data.example import Example
from lookalike.data.source import Data
from lookalike.evaluation import settings
from lookalike.evaluation.result import Resources, Result
from lookalike.evaluation.segmentation import Confusion, MaskClasses, Prediction, Scores, guesses, learning, segmenter
from lookalike.train.fit import weights_digest
from lookalike.train.trained import Trained

_SHOWN = 12  # predictions that are given back
_SIDE = 400  # px of the canvases of their photos


class Segmented(NamedTuple):
    """What was measured, on how much, and some predictions."""

    scores: Scores
    classes: MaskClasses
    reference: int
    queries: int
    unmasked: list[str]  # photos without a mask, which are left out
    predictions: list[tuple[Prediction, Example]]  # with their photos


def segment(spec: settings.Segment, model: Trained, data: Data, resources: Resources) -> Result:
    """Mean intersection over union, pixel accuracy, and the former of each class."""
    done = segmented(spec, model, data, resources)
    if done.unmasked:
        resources.say(f"{len(done.unmasked)} photos have no mask and are left out, first {done.unmasked[0]}")
    miou, accuracy, iou = done.scores
    line = (
        f"mean intersection over union {miou:.2%} of {len(iou)} classes, pixel accuracy {accuracy:.2%}, on "
        f"{done.queries} pictures after {spec.steps} steps on {done.reference} (step {model.step})"
    )
    numbers = {"miou": miou, "pixel_accuracy": accuracy, **{f"iou_{number}": value for number, value in iou.items()}}
    facts = {"step": model.step, "queries": done.queries, "reference": done.reference, "unmasked": len(done.unmasked)}
    return spec.result(numbers, facts, [line], done)


def segmented(spec: settings.Segment, model: Trained, data: Data, resources: Resources) -> Segmented:
    """Train a copy of the backbone on the reference's masks and test it on the queries.

    With a folder the fit is kept there, and the same call goes on where it was stopped. Raises UserError.
    """
    scenes, view, progress = pairs(str(data)), model.recipe.pictures.first, resources.progress
    classes = MaskClasses.of(scenes.reference, spec.void, partial(progress, "reading masks"))
    network = segmenter(spec, model.encoder, scenes.reference, classes)
    start, masks = weights_digest(model.encoder.backbone), digest(scenes.reference, classes)
    fit = learning(spec, network, scenes.reference, classes, view, model.encoder.precision)
    fit.run(partial(progress, "tuning"), resources.folder, spec.settings() | {"start": start, "data": masks})
    confusion, shown = Confusion(classes, spec.void), list[tuple[Prediction, Example]]()
    for one in guesses(spec, network, scenes.query, classes, view, partial(progress, "testing")):
        confusion.add(one.truth, one.guess)
        if len(shown) < _SHOWN:
            shown.append((one, scenes.query.source.example(one.row, _SIDE)))
    counts = (len(scenes.reference), len(scenes.query))
    return Segmented(confusion.scores(), classes, *counts, scenes.unmasked, shown)


def digest(scenes: MaskedPhotos, classes: MaskClasses) -> str:
    """Of the photos and masks that are learned from, by name, and of what the masks hold."""
    names = repr((list(scenes.source.paths), list(scenes.masks), classes.ids))
    return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
