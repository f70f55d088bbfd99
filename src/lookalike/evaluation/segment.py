"""Semantic segmentation of a start, once: from photos with masks to scores and something to look at."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lookalike.core.progress import Progress, silent
from lookalike.data.example import Example
from lookalike.data.image.masks import Scenes, pairs
from lookalike.data.source import Data
from lookalike.evaluation.segmentation import Classes, Confusion, Scores, Seen, Segmentation, guesses, learning
from lookalike.recipes.serialize import to_plain
from lookalike.train.fit import Fit, carried_out, weights_of
from lookalike.train.trained import Trained

_SHOWN = 400  # px of the canvases of photos that are given back


class Segmented(NamedTuple):
    """What was measured, on how much, and some queries."""

    scores: Scores
    classes: Classes
    reference: int
    queries: int
    unmasked: list[str]  # photos without a mask, which are left out
    seen: list[tuple[Seen, Example]]  # with their photos


def segmented(
    trained: Trained,
    data: Data,
    spec: Segmentation,
    seed: int = 0,
    progress: Progress = silent,
    keep: int = 0,
    folder: Path | None = None,
) -> Segmented:
    """Tune a copy of the backbone to the reference's masks and ask the queries; ``keep`` of them are given back.

    With ``folder`` the fit is kept there, and the same call goes on where it was stopped. Raises UserError.
    """
    found = pairs(str(data))
    view = trained.recipe.pictures.first

    def told(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(what, done, total)

    classes = Classes.of(found.reference, spec.void, told("reading masks"))
    learns = learning(spec, trained.encoder, found.reference, classes, view, seed)
    start, data = weights_of(trained.encoder.backbone), digest(found.reference, classes)
    marks = {"spec": to_plain(spec), "seed": seed, "start": start, "data": data}
    carried_out(Fit(learns.model, learns.optimizer, spec.steps, learns.losses), folder, marks, told("tuning"))
    model = learns.model
    confusion, seen = Confusion(classes, spec.void), list[tuple[Seen, Example]]()
    for one in guesses(spec, model, found.query, classes, view, told("asking")):
        confusion.add(one.truth, one.guess)
        if len(seen) < keep:
            seen.append((one, found.query.source.example(one.row, _SHOWN)))
    return Segmented(confusion.scores(), classes, len(found.reference), len(found.query), found.unmasked, seen)


def digest(scenes: Scenes, classes: Classes) -> str:
    """Of the photos and masks that are learned from, by name, and of what the masks hold."""
    names = repr((list(scenes.source.paths), list(scenes.masks), classes.ids))
    return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()


def segment(trained: Trained, data: Data, settings: Segmentation, seed: int, progress: Progress) -> dict[str, float]:
    """Mean intersection over union, pixel accuracy, and the former of each class."""
    scores = segmented(trained, data, settings, seed, progress).scores
    by_class = {f"iou_{number}": value for number, value in scores.iou.items()}
    return {"miou": scores.miou, "pixel_accuracy": scores.accuracy, **by_class}
