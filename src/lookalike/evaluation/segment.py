"""Semantic segmentation: an FCN on the dilated backbone, everything tuned (MoCo, arXiv 1911.05722, appendix)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.core.devices import autocast, exact, full_precision, material_to_device, module_to_device
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.seeding import reseed, uniforms
from lookalike.data.annotations.segmentation import MOST, MaskedPhotos, pairs
from lookalike.data.decode import Unreadable
from lookalike.data.example import Example
from lookalike.data.loader import Loader
from lookalike.data.order import Order
from lookalike.data.source import Data
from lookalike.evaluation.evaluation import Resources, Result
from lookalike.evaluation.settings import Segment
from lookalike.learn.optim import SGD, Steps
from lookalike.models.dense import Segmenter
from lookalike.models.encoder import Encoder, width
from lookalike.pretext import ops
from lookalike.pretext.image import ImageView
from lookalike.train.fit import Fit, weights_digest
from lookalike.train.trained import Trained
from lookalike.types import Canvases

VOID = -1
"""In place of a class's number: this pixel is neither trained on nor tested."""

_DRAWS = 8  # the number of the view whose draws place the crops
_FINER = 1.5  # canvases over ``size``, for crops that enlarge
_COARSER = 2  # px of a crop for one pixel of the loss: a quarter of its cost, and masks are no finer than that
_SHOWN = 12  # predictions that are given back
_SIDE = 400  # px of the canvases of their photos


class MaskClasses(NamedTuple):
    """The numbers that masks use, in the order in which they were met: what they are called decides nothing."""

    ids: list[int]
    table: Tensor  # (MOST,) from a number in a mask to that of a class, VOID for others

    @classmethod
    def of(cls, scenes: MaskedPhotos, void: tuple[int, ...], progress: Callable[[int, int], None]) -> MaskClasses:
        """Those of masks that can be read."""
        ids: list[int] = []
        for row in range(len(scenes)):
            if (mask := readable(scenes, row)) is not None:
                ids += [number for number in first_met(mask) if number not in ids and number not in void]
            progress(row + 1, len(scenes))
        table = torch.full((MOST,), VOID)
        table[ids] = torch.arange(len(ids))
        return cls(ids, table)


class Prediction(NamedTuple):
    """One query: numbers (H, W) of its mask, VOID where nothing is tested, and the predicted classes."""

    row: int
    truth: Tensor
    guess: Tensor
    iou: float = math.nan  # the mean over the classes of its mask; NaN where all of it is void


class Scores(NamedTuple):
    """Over all pixels that are not void; ``iou`` by the number in masks, of classes that queries have."""

    miou: float
    accuracy: float
    iou: dict[int, float]
    common: float = 0.0  # the share of the most common class, which always answering it would get right


class Segmented(NamedTuple):
    """What was measured, and the worst predictions with their photos, the worst first."""

    scores: Scores
    classes: MaskClasses
    reference: int
    queries: int
    unmasked: list[str]  # photos without a mask, which are left out
    notes: tuple[str, ...]  # what repeats in the data, in words
    predictions: list[tuple[Prediction, Example]]


def segment(spec: Segment, model: Trained, data: Data, resources: Resources) -> Result:
    """Mean intersection over union, pixel accuracy, and the former of each class."""
    done = segmented(spec, model, data, resources)
    for note in done.notes:
        resources.say(note)
    if done.unmasked:
        resources.say(f"{len(done.unmasked)} photos have no mask and are left out, first {done.unmasked[0]}")
    miou, accuracy, iou, common = done.scores
    line = (
        f"mean intersection over union {miou:.2%} of {len(iou)} classes, pixel accuracy {accuracy:.2%}, on "
        f"{done.queries} pictures after {spec.steps} steps on {done.reference} "
        f"(chance {common / len(iou):.2%} and {common:.2%}; {model.stage})"
    )
    numbers = {"miou": miou, "pixel_accuracy": accuracy, **{f"iou_{number}": value for number, value in iou.items()}}
    facts: dict[str, Any] = {"step": model.step, "queries": done.queries, "reference": done.reference}
    facts |= {"unmasked": len(done.unmasked), "chance": common / len(iou), "chance_pixel_accuracy": common}
    return spec.result(numbers, facts, line, detail=done)


def segmented(spec: Segment, model: Trained, data: Data, resources: Resources) -> Segmented:
    """Train a copy of the backbone on the reference's masks and test it on the queries; raises UserError."""
    scenes, view, progress = pairs(str(data)), model.recipe.pictures.first, resources.progress
    classes = MaskClasses.of(scenes.reference, spec.void, partial(progress, "reading masks"))
    origin = {"start": weights_digest(model.encoder.backbone), "data": digest(scenes.reference, classes)}
    training, test = (Photos(spec, photos, classes, view) for photos in (scenes.reference, scenes.query))
    network = training.fitted(model.encoder, resources, spec.settings() | origin)
    confusion, worst = Confusion(classes, spec.void), list[Prediction]()
    for one in test.predictions(network, partial(progress, "testing")):
        confusion.add(one.truth, one.guess)
        own = Confusion(classes, spec.void)
        own.add(one.truth, one.guess)
        worst = sorted([*worst, one._replace(iou=own.mean())], key=lambda one: (math.isnan(one.iou), one.iou))[:_SHOWN]
    shown = [(one, scenes.query.source.example(one.row, _SIDE)) for one in worst]
    counts = (len(scenes.reference), len(scenes.query))
    return Segmented(confusion.scores(), classes, *counts, scenes.unmasked, scenes.notes, shown)


def digest(scenes: MaskedPhotos, classes: MaskClasses) -> str:
    """Of the photos and masks that are learned from, by name, and of what the masks hold."""
    names = repr((list(scenes.source.paths), list(scenes.masks), classes.ids))
    return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()


def first_met(mask: Tensor) -> list[int]:
    """The numbers of a mask in the order of its pixels."""
    pixels = mask.flatten()
    numbers: list[int] = torch.bincount(pixels).nonzero()[:, 0].tolist()
    return sorted(numbers, key=lambda number: int((pixels == number).int().argmax()))


def readable(scenes: MaskedPhotos, row: int) -> Tensor | None:
    """The mask, None where it cannot be read."""
    try:
        return scenes.mask(row)
    except Unreadable:
        return None


class Photos(NamedTuple):
    """Photos with masks, to train and to test on."""

    spec: Segment
    scenes: MaskedPhotos
    classes: MaskClasses
    view: ImageView  # says how pixels are normalised

    def loader(self) -> Loader:
        """The photos, however many cannot be read."""
        return Loader(self.scenes.source, round(_FINER * self.spec.size), max_bad=1.0)

    def fitted(self, encoder: Encoder, resources: Resources, settings: Mapping[str, Any]) -> Segmenter:
        """The network that has learned these, from a copy of the backbone of ``encoder`` on; raises UserError."""
        spec, side = self.spec, loss_side(self.spec)
        model = self.untrained(encoder).train()

        def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
            pixels, truth = batch
            with autocast(encoder.precision, pixels.device.type):
                logits = model(pixels, (side, side))
            return mean_loss(logits, truth.to(logits.device))

        optimizer = SGD(spec.lr, spec.momentum, spec.decay).build(model, 256)
        fit = Fit(model, optimizer, Steps(spec.drops), spec.steps, spec.seed, self.batches, loss)
        fit.run(partial(resources.progress, "tuning"), resources.folder, settings)
        return model

    def untrained(self, encoder: Encoder) -> Segmenter:
        """A copy of the backbone with a new head that the seed decides; raises UserError."""
        spec, classes = self.spec, self.classes.ids
        if not classes:
            raise UserError("every pixel of the masks is void: there is no class to learn; see --void", BAD_DATA)
        features, group = width(encoder, 64), min(spec.grouped, spec.batch, len(self.scenes))
        reseed(spec.seed, 1)
        layout = (features, len(classes), spec.width, spec.dilation, spec.stride, group)
        return module_to_device(Segmenter(encoder.backbone, *layout))

    def batches(self, done: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Crops (B, 3, H, W) and the classes (B, H, W) of their pixels, for each step after the first ``done``."""
        spec, scenes, loader = self.spec, self.scenes, self.loader()
        order, steps = Order(len(loader), min(spec.batch, len(scenes)), spec.seed), range(done, spec.steps)
        for step, (rows, canvases) in zip(steps, loader.batches(map(order.rows, steps))):
            boxes, flip = crops(spec, canvases.sizes, uniforms(spec.seed, order.epoch(step), rows, _DRAWS, 4))
            # Another photo stands in the place of one that cannot be read.
            masks = [None if row in loader.bad_rows else readable(scenes, row) for row in rows.tolist()]
            truth = [
                cut(mask, self.classes.table, size, box, turned, loss_side(spec))
                for mask, size, box, turned in zip(masks, canvases.sizes, boxes, flip.tolist())
            ]
            yield photos(material_to_device(canvases), boxes, flip, spec.crop, self.view), torch.stack(truth)

    def predictions(self, model: Segmenter, progress: Callable[[int, int], None]) -> Iterator[Prediction]:
        """What the network predicts of every photo that can be read, at the resolution of its mask."""
        loader = self.loader()
        model.eval()
        batches = loader.batches(torch.split(torch.arange(len(loader)), 1))
        for row, (_, canvases) in enumerate(batches):
            mask = readable(self.scenes, row)
            progress(row + 1, len(loader))
            if mask is None or row in loader.bad_rows:
                continue
            with torch.inference_mode(), exact(), full_precision():
                pixels = whole(material_to_device(canvases), self.spec.size, self.view)
                logits = model(pixels, (mask.shape[0], mask.shape[1]))
            yield Prediction(row, mask, logits[0].argmax(0).cpu())


def loss_side(spec: Segment) -> int:
    """Pixels of a crop, a side, at which the loss is taken."""
    return max(1, spec.crop // _COARSER)


def crops(spec: Segment, sizes: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (B, 4) float64 top, left, height, width in pixels of pictures of ``sizes`` (B, 2); which are mirrored."""
    low, high = spec.scale
    draws, whole = draws.double(), sizes.double()
    scale = low * (high / low) ** draws[:, 0]
    side = (whole.amin(1) * (spec.crop / (scale * spec.size)).clamp_max(1))[:, None].expand(-1, 2)
    return torch.cat([draws[:, 1:3] * (whole - side), side], 1), draws[:, 3] < 0.5


def photos(canvases: Canvases, boxes: Tensor, flip: Tensor, crop: int, view: ImageView) -> Tensor:
    """(B, 3, crop, crop) what ``boxes`` hold."""
    pixels = canvases.pixels
    canvas = (pixels.shape[2], pixels.shape[3])
    places = ops.on_canvas(boxes, canvases.sizes.cpu(), canvas).float().to(pixels.device)
    planes = ops.cropped(pixels, ops.axes(places, canvas, crop, flip.to(pixels.device)))
    return ops.normalised(planes, view.mean, view.std).permute(0, 3, 1, 2)


def cut(mask: Tensor | None, table: Tensor, size: Tensor, box: Tensor, flip: bool, crop: int) -> Tensor:
    """(crop, crop) numbers of classes at the middle of each pixel of a crop; all void without a mask."""
    if mask is None:
        return torch.full((crop, crop), VOID)
    middle = (torch.arange(crop, dtype=torch.float64) + 0.5) / crop
    (top, left, height, width), scale = box, torch.tensor(mask.shape, dtype=torch.float64) / size.double()
    rows = ((top + height * middle) * scale[0]).long().clamp(0, mask.shape[0] - 1)
    columns = ((left + width * (1 - middle if flip else middle)) * scale[1]).long().clamp(0, mask.shape[1] - 1)
    return table[mask[rows[:, None], columns]]


def mean_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """The mean cross entropy of the pixels (B, H, W) that are not void; 0 where all are."""
    total = F.cross_entropy(logits, truth, ignore_index=VOID, reduction="sum")
    return total / (truth != VOID).sum().clamp_min(1)


def whole(canvases: Canvases, size: int, view: ImageView) -> Tensor:
    """(1, 3, H, W) one picture, its short side ``size``."""
    height, width = canvases.sizes[0].tolist()
    short = min(height, width)
    shape = (max(1, round(height * size / short)), max(1, round(width * size / short)))
    planes = F.interpolate(canvases.pixels.float(), shape, mode="bilinear", antialias=True).transpose(0, 1) / 255
    return ops.normalised(planes.contiguous(), view.mean, view.std).permute(0, 3, 1, 2)


class Confusion:
    """How many pixels of each number in masks were given each class."""

    def __init__(self, classes: MaskClasses, void: tuple[int, ...]) -> None:
        self.classes, self.counts = classes, torch.zeros(MOST, len(classes.ids), dtype=torch.long)
        self._counted = torch.ones(MOST, dtype=torch.bool)
        self._counted[list(void)] = False

    def add(self, truth: Tensor, guess: Tensor) -> None:
        """The numbers of a mask (H, W), and the classes that were guessed."""
        counted = self._counted[truth]
        numbers = truth[counted] * len(self.classes.ids) + guess[counted]
        self.counts += torch.bincount(numbers, minlength=self.counts.numel()).view_as(self.counts)

    def mean(self) -> float:
        """The mean intersection over union, NaN where no pixel counts."""
        return self.scores().miou if bool(self.counts.any()) else math.nan

    def scores(self) -> Scores:
        """Raises UserError where no pixel counts."""
        numbers = self.counts.sum(1).nonzero()[:, 0].tolist()
        if not numbers:
            raise UserError("every pixel of the test masks is void, or no picture can be read", BAD_DATA)
        given, iou, right = self.counts.sum(0), {}, 0
        for number in numbers:
            at = int(self.classes.table[number])  # a class that was never learned has none
            hit = int(self.counts[number, at]) if at >= 0 else 0
            union = int(self.counts[number].sum()) + (int(given[at]) if at >= 0 else 0) - hit
            iou[number] = hit / union
            right += hit
        total = int(self.counts.sum())
        return Scores(sum(iou.values()) / len(iou), right / total, iou, int(self.counts.sum(1).max()) / total)
