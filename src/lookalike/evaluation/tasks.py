"""What starts are compared on: one table from a task's name to the function that does it once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from lookalike.core.errors import UserError
from lookalike.core.progress import Progress
from lookalike.data.example import as_pictures
from lookalike.data.loader import Loader
from lookalike.data.source import Data
from lookalike.evaluation.detect import measure
from lookalike.evaluation.detector import Detection, Instances
from lookalike.evaluation.finetune import Finetune
from lookalike.evaluation.keypoints import Keypoints
from lookalike.evaluation.segment import segment
from lookalike.evaluation.segmentation import Segmentation
from lookalike.metrics.fewshot import Fewshot, drawn
from lookalike.metrics.knn import Knn
from lookalike.metrics.probe import LinearProbe
from lookalike.models.encoder import Encoder
from lookalike.train.trained import Part, Trained, labelled_parts, parts

Measure = Callable[[Trained, str, Any, int, Progress], dict[str, float]]
"""(start, data, settings, seed, progress) → numbers by name. It changes nothing of the start; the seed decides whatever
is drawn, so that one seed draws alike for every start."""


class Task(NamedTuple):
    """A way to judge a start."""

    measure: Measure
    metric: str  # the number that starts are compared by
    settings: Any  # a frozen dataclass: the same for every start
    draws: str  # what a seed decides, in words
    repeats: Callable[[Any], bool] = lambda _: True  # whether another seed can give another number, with these settings


@dataclass(frozen=True)
class Neighbours:
    """Weighted k nearest neighbours among a drawn ``share`` of the labelled pictures of each class."""

    k: int = 200
    temperature: float = 0.1
    share: float = 0.5


@dataclass(frozen=True)
class Probed:
    """A linear probe (``LinearProbe``) fitted to a drawn ``share`` of the labelled pictures of each class."""

    share: float = 0.5


@dataclass(frozen=True)
class Few:
    """The nearest class mean, of ``labels`` drawn pictures a class."""

    labels: int = 5


@dataclass(frozen=True)
class Tuning:
    """``Finetune`` with a drawn ``share`` of the labels."""

    share: float = 0.1
    rates: tuple[float, ...] = (1e-4, 1e-3)
    steps: int = 200
    batch: int = 64


def knn(trained: Trained, data: Data, settings: Neighbours, seed: int, progress: Progress) -> dict[str, float]:
    """The accuracy on all queries."""
    reference, query = _features(trained, data, progress)
    rows = drawn(reference.labels, _share(settings.share), seed)
    asked = (reference.features[rows], reference.labels[rows], query.features, query.labels)
    return {"accuracy": Knn(settings.k, settings.temperature).accuracy(*asked)}


def probe(trained: Trained, data: Data, settings: Probed, seed: int, progress: Progress) -> dict[str, float]:
    """The accuracy on all queries."""
    reference, query = _features(trained, data, progress)
    rows = drawn(reference.labels, _share(settings.share), seed)
    found = LinearProbe().fit(reference.features[rows], reference.labels[rows])
    return {"accuracy": found.accuracy(query.features, query.labels)}


def fewshot(trained: Trained, data: Data, settings: Few, seed: int, progress: Progress) -> dict[str, float]:
    """The accuracy on all queries."""
    if settings.labels < 1:
        raise UserError("--labels must be at least 1")
    reference, query = _features(trained, data, progress)
    table = (reference.features, reference.labels, query.features, query.labels)
    found = Fewshot((settings.labels,), draws=1, seed=seed).accuracies(*table)
    return {"accuracy": found[settings.labels].mean}


def finetune(trained: Trained, data: Data, settings: Tuning, seed: int, progress: Progress) -> dict[str, float]:
    """The accuracy after tuning everything, and of the probe that it began from."""
    share = _share(settings.share)
    spec = Finetune((share,), settings.rates, settings.steps, settings.batch, draws=1, seed=seed)
    side = trained.recipe.canvas
    reference, query = (Loader(as_pictures(part), side, max_bad=1.0) for part in labelled_parts(trained, data))
    with tempfile.TemporaryDirectory(prefix="lookalike-") as folder:
        found = spec.measured(trained, reference, query, Path(folder), progress)[share]
    return {"accuracy": found.tuned.mean, "frozen": found.frozen.mean, "rate": found.rate}


_DETECTOR = "the new layers, the order of the pictures, and how they are varied"

TASKS: dict[str, Task] = {
    "knn": Task(knn, "accuracy", Neighbours(), "which labelled pictures vote", lambda s: s.share < 1),
    "probe": Task(probe, "accuracy", Probed(), "which labelled pictures are fitted", lambda s: s.share < 1),
    "fewshot": Task(fewshot, "accuracy", Few(), "which pictures are labelled"),
    "finetune": Task(finetune, "accuracy", Tuning(), "which pictures are labelled, and the order they are met in"),
    "detect": Task(measure, "AP", Detection(), _DETECTOR),
    "masks": Task(measure, "mask_AP", Instances(), _DETECTOR),
    "keypoints": Task(measure, "keypoint_AP", Keypoints(), _DETECTOR),
    "segment": Task(segment, "miou", Segmentation(), "the new head, the order of the pictures, and their crops"),
}


_kept: WeakKeyDictionary[Encoder, tuple[Data, tuple[Part, Part]]] = WeakKeyDictionary()


def _features(trained: Trained, data: Data, progress: Progress) -> tuple[Part, Part]:
    """Reference and queries, embedded once for all seeds that ask for them in turn."""
    held = _kept.get(trained.encoder)
    if held is None or held[0] is not data:
        held = _kept[trained.encoder] = data, parts(trained, data, workers=None, progress=progress)
    return held[1]


def _share(share: float) -> float:
    """Above 0 and at most 1; raises UserError."""
    if not 0 < share <= 1:
        raise UserError("--share must be above 0 and at most 1")
    return share
