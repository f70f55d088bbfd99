"""Transfer to boxes, masks and points: a detector is tuned on the pictures of one part and asked about another."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lookalike.core.devices import device, moved, placed
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.memory import keep_freed
from lookalike.core.progress import Progress, silent
from lookalike.core.seeding import reseed
from lookalike.data.annotations.open import open_annotated, split_annotated
from lookalike.data.annotations.record import Annotated
from lookalike.data.loader import Loader
from lookalike.data.order import Order
from lookalike.evaluation.detector import Detection, Instances
from lookalike.evaluation.keypoints import Keypoints
from lookalike.evaluation.precision import coco_precision, correct_points, tools, voc_precision
from lookalike.evaluation.scenes import Look, Seen, Truth, drawn, in_mirror, looks, picture, seen, truth
from lookalike.learn import optim
from lookalike.learn.optim import AdamW, Cosine
from lookalike.recipes.serialize import to_plain
from lookalike.train.fit import Fit, carried_out, weights_of
from lookalike.train.trained import Trained

ALPHA = 0.1
"""PCK: a point is found within so much of the longer side of what the known points of its object reach over."""

_STEEP = 10.0  # the norm to which a larger gradient is cut: single steps of detectors have far larger ones


class Fitted(NamedTuple):
    """What came of one fit, and what it was asked."""

    metrics: dict[str, float]
    asked: Annotated  # the pictures that could be read
    seen: list[Seen]
    learned: int  # pictures


def measure(trained: Trained, data: str, spec: Detection, seed: int, progress: Progress) -> dict[str, float]:
    """One trial: the numbers of a fit on the training part of ``data``, asked about the rest of it."""
    found = open_annotated(data, points=isinstance(spec, Keypoints))
    return fit(trained, *split_annotated(found), spec, seed, progress).metrics


def fit(
    trained: Trained,
    learned: Annotated,
    asked: Annotated,
    spec: Detection,
    seed: int = 0,
    progress: Progress = silent,
    folder: Path | None = None,
    workers: int | None = None,
) -> Fitted:
    """Tune a detector from ``trained``, which stays as it is, to ``learned``, and ask it about ``asked``.

    A function of its arguments alone. With ``folder`` it is saved there, and the same call goes on where it stopped.
    Metrics are in 0..1. Raises UserError.
    """
    tools()
    if isinstance(spec, Instances) and not any(outline for scene in learned.scenes for outline in scene.outlines):
        raise UserError("masks want annotations with outlines, such as COCO's or YOLO's polygons", BAD_DATA)
    keep_freed()
    model = _Fit(trained, learned, spec, seed, progress, workers).run(folder)
    found, good = _answers(model, trained, asked, spec, progress, workers)
    whole = asked.some(good)
    return Fitted(metrics(whole, found, spec), whole, found, len(learned.scenes))


def metrics(asked: Annotated, found: Sequence[Seen], spec: Detection) -> dict[str, float]:
    """All numbers that ``spec`` asks for, in 0..1: COCO's AP, AP50 and AP75, VOC's AP50 by area, PCK."""
    asks = (asked.scenes, found, len(asked.classes))
    numbers = coco_precision(*asks, "bbox") | {"VOC_AP50": voc_precision(*asks)}
    if isinstance(spec, Instances):
        numbers |= {f"mask_{name}": value for name, value in coco_precision(*asks, "segm").items()}
    if isinstance(spec, Keypoints):
        numbers |= {f"keypoint_{name}": value for name, value in coco_precision(*asks, "keypoints").items()}
        numbers |= {"PCK": correct_points(asked.scenes, found, ALPHA)}
    return numbers


@dataclass(frozen=True)
class _Fit:
    """One fit, from its start or from where it was left."""

    trained: Trained
    learned: Annotated
    spec: Detection
    seed: int
    progress: Progress
    workers: int | None

    def run(self, folder: Path | None) -> nn.Module:
        """The tuned detector."""
        model = detector(self.trained, self.learned, self.spec, self.seed)
        optimizer = AdamW(self.spec.lr, self.spec.decay).build(model, 256)

        def losses(done: int) -> Iterator[float]:
            for step, (images, truths) in enumerate(self._batches(done), done + 1):
                yield self._step(step, model, optimizer, images, truths)

        start, data = weights_of(self.trained.encoder.backbone), digest(self.learned)
        marks = {"spec": to_plain(self.spec), "seed": self.seed, "start": start, "data": data}
        carried_out(Fit(model, optimizer, self.spec.steps, losses), folder, marks, partial(self.progress, "fitting"))
        return model.eval()

    def _step(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, images: list[Tensor], truths: list[Truth]
    ) -> float:
        reseed(self.seed, step)  # which boxes are learned from is drawn
        optim.apply(Cosine(warmup=0.1), optimizer, (step - 1) / self.spec.steps)
        optimizer.zero_grad()
        losses: dict[str, Tensor] = model(images, truths)
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(model.parameters(), _STEEP)
        if not math.isfinite(float(loss.detach() + norm)):
            raise UserError(
                f"the loss of step {step} is {loss.item()}, its gradient {norm.item()}: lower --lr", BAD_DATA
            )
        optimizer.step()
        return float(loss.detach())

    def _batches(self, done: int) -> Iterator[tuple[list[Tensor], list[Truth]]]:
        """Pictures, resized and mirrored at random, and what lies in them, from a step on."""
        spec, scenes = self.spec, self.learned.scenes
        swapped = in_mirror(self.learned.joints)
        mirror = swapped is not None or not isinstance(spec, Keypoints)
        order = Order(len(scenes), min(spec.batch, len(scenes)), self.seed)
        loader = Loader(self.learned.pictures(), spec.longest, workers=self.workers, max_bad=1.0)
        steps = range(done, spec.steps)
        for step, (rows, material) in zip(steps, loader.batches(map(order.rows, steps))):
            views = looks(spec, [scenes[row] for row in rows], drawn(self.seed, order.epoch(step), rows), mirror)
            images, truths = [], []
            for row, canvas, look in zip(rows.tolist(), moved(material).pixels, views):
                found = truth(
                    scenes[row], look, swapped or range(len(self.learned.joints)), isinstance(spec, Instances)
                )
                if row in loader.bad_rows:  # another picture stands in its place
                    canvas, found = torch.zeros_like(canvas), {name: part[:0] for name, part in found.items()}
                images.append(_shown(self.trained, canvas, look))
                truths.append({name: part.to(device()) for name, part in found.items()})
            yield images, truths


def detector(trained: Trained, learned: Annotated, spec: Detection, seed: int) -> nn.Module:
    """A detector whose new layers have weights that the seed decides, ready to learn."""
    reseed(seed)
    model: nn.Module = spec.build(trained.encoder.backbone, len(learned.classes), len(learned.joints))
    return placed(model.requires_grad_()).train()


def digest(found: Annotated) -> str:
    """Of everything that is learned from."""
    state = hashlib.sha256(repr((found.classes, found.joints)).encode())
    for scene in found.scenes:
        state.update(repr((scene.path, scene.height, scene.width)).encode("utf-8", "surrogateescape"))
        for part in (scene.boxes, scene.labels, scene.crowd, scene.points):
            state.update(np.ascontiguousarray(part).tobytes())
        state.update(repr([shape.plain() if shape is not None else None for shape in scene.outlines]).encode())
    return state.hexdigest()


@torch.no_grad()
def _answers(
    model: nn.Module, trained: Trained, asked: Annotated, spec: Detection, progress: Progress, workers: int | None
) -> tuple[list[Seen], list[int]]:
    """What the detector says of every picture that can be read, each alone, and the rows of these."""
    loader = Loader(asked.pictures(), spec.longest, workers=workers, max_bad=1.0)
    rows = torch.arange(len(loader))
    found: list[Seen] = []
    for chunk, material in loader.batches(torch.split(rows, 32)):
        for row, canvas in zip(chunk.tolist(), moved(material).pixels):
            scene = asked.scenes[row]
            (look,) = looks(spec, [scene], None)
            (said,) = model([_shown(trained, canvas, look)])
            found.append(seen(said, scene, look))
            progress("asking", len(found), len(loader))
    good = [row for row in range(len(loader)) if row not in loader.bad_rows]
    return [found[row] for row in good], good


def _shown(trained: Trained, canvas: Tensor, look: Look) -> Tensor:
    view = trained.recipe.pictures.first
    return picture(canvas, look, view.mean, view.std)
