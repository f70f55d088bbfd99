"""Pages of pictures: what a network predicts beside the truth, objects and masks."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from lookalike.curate.survey import upright
from lookalike.data.annotations.record import Annotated, Scene
from lookalike.data.decode import Unreadable, decode
from lookalike.data.example import Example
from lookalike.data.formats.disk import Local
from lookalike.evaluation.segment import Prediction, Segmented
from lookalike.metrics.fewshot import Interval
from lookalike.report.page import bar, facts, picture, shown, side_by_side, table, write

if TYPE_CHECKING:  # it takes a second to import, and only a detector's page needs it
    from lookalike.evaluation.detector import Detections

_SIDE = 236  # pixels of the longer side of a picture on the page
_MOST = 24  # pictures on a page of objects
_SURE = 0.5  # scores below are not drawn
_COLOURS = (  # of classes, told apart by people who see no red or no green, too (Okabe & Ito 2008)
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)
_LEFT, _RIGHT, _MIDDLE = (86, 180, 233), (230, 159, 0), (255, 255, 255)  # sides of a body
_OPACITY = 0.45  # of a mask
_LARGE = 300  # pixels of the longer side of a picture beside its masks
_VOID = (128, 128, 128)


def write_detections(
    path: Path, title: str, lead: str, truth: Annotated, detections: Sequence[Detections], settings: Mapping[str, str]
) -> None:
    """Up to 24 of the pictures of ``truth``, evenly spaced: annotated on the left, detected on the right.

    Raises UserError where it cannot be written.
    """
    rows = range(0, len(truth.scenes), max(1, -(-len(truth.scenes) // _MOST)))
    panels = [_panel(truth, truth.scenes[row], detections[row]) for row in rows]
    choice = "All" if len(panels) == len(truth.scenes) else f"{len(panels)} evenly spaced ones of the"
    parts = [
        f'<p class="quiet">{choice} {len(truth.scenes)} test pictures. Left: the annotations. Right: the detections '
        f"with a score of at least {_SURE:g}; where there are none, the one with the highest score.</p>",
        f'<div class="pairs">{"".join(panels)}</div>',
        f"<h2>Settings</h2>{facts(settings)}",
    ]
    write(path, title, lead, parts)


def _panel(truth: Annotated, scene: Scene, detections: Detections) -> str:
    """Both pictures side by side, with the numbers of objects for those who do not see them."""
    photo, rows = _photo(truth, scene), _confident(detections)
    images = [annotated(photo, truth, scene), detected(photo, truth, scene, detections, rows)]
    words = f"{scene.path}: {len(scene)} annotated, {len(rows)} detected"
    image = picture(side_by_side(images, ground="white"), words)
    return f'<div class="panel">{image}<p class="quiet">{shown(words)}</p></div>'


def annotated(photo: Image.Image, truth: Annotated, scene: Scene) -> Image.Image:
    """The photo with the objects that the files state."""
    scale, size = photo.width / scene.width, (photo.height, photo.width)
    masks = [outline.mask(*size) if outline else np.zeros(size, np.bool_) for outline in scene.outlines]
    names = [f"{truth.classes[i]}{' (crowd)' if crowd else ''}" for i, crowd in zip(scene.labels, scene.crowd)]
    image = drawing(photo, scene.boxes * scale, scene.labels, names, np.array(masks))
    for points in scene.points:
        draw_body(image, points * (scale, scale, 1), truth)
    return image


def detected(
    photo: Image.Image, truth: Annotated, scene: Scene, detections: Detections, rows: npt.NDArray[np.int64]
) -> Image.Image:
    """The photo with some ``rows`` of what a detector reports."""
    scale, labels, scores = photo.width / scene.width, detections.labels[rows], detections.scores[rows]
    boxes, masks = detections.boxes[rows] * scale, None
    if detections.masks is not None:
        from lookalike.evaluation.detector import pasted

        masks = pasted(
            detections._replace(boxes=boxes, labels=labels, scores=scores, masks=detections.masks[rows]),
            photo.height,
            photo.width,
        )
    names = [f"{truth.classes[label]} {score:.2f}" for label, score in zip(labels, scores)]
    image = drawing(photo, boxes, labels, names, masks)
    for points in () if detections.points is None else detections.points[rows]:
        known = np.ones((len(points), 1))
        draw_body(image, np.concatenate([points[:, :2] * scale, known], 1), truth)
    return image


def _confident(detections: Detections) -> npt.NDArray[np.int64]:
    """Rows that are drawn: those with a high score, else the one with the highest."""
    rows = np.flatnonzero(detections.scores >= _SURE)
    return rows if len(rows) else np.arange(min(1, len(detections.scores)))


def _photo(truth: Annotated, scene: Scene) -> Image.Image:
    try:
        canvas = decode(Local(truth.root).whole(scene.path), _SIDE)
        return upright(canvas.pixels, canvas.height, canvas.width, _SIDE)
    except Unreadable:
        return Image.new("RGB", (_SIDE, max(1, round(_SIDE * scene.height / scene.width))), "gray")


def drawing(
    photo: Image.Image,
    boxes: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    names: list[str],
    masks: npt.NDArray[np.bool_] | None,
) -> Image.Image:
    """A copy of the photo (H, W) with boxes (N, 4) in its pixels, and masks (N, H, W), in the colours of ``labels``."""
    if not len(boxes):
        return photo.copy()
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    pixels, colours = pil_to_tensor(photo), [_COLOURS[label % len(_COLOURS)] for label in labels]
    if masks is not None:
        pixels = draw_segmentation_masks(pixels, torch.from_numpy(masks), _OPACITY, colours)
    corners, style = torch.from_numpy(boxes).round(), {"label_colors": "black", "fill_labels": True, "width": 2}
    image: Image.Image = to_pil_image(draw_bounding_boxes(pixels, corners, names, colours, **style))
    return image


def draw_body(image: Image.Image, points: npt.NDArray[np.float64], truth: Annotated) -> None:
    """Draw known points (K, 3) and the bones between them: left blue, right orange."""
    draw = ImageDraw.Draw(image)
    where = [(float(x), float(y)) for x, y in points[:, :2]]
    for a, b in truth.bones:
        if points[a, 2] > 0 and points[b, 2] > 0:
            draw.line((*where[a], *where[b]), fill=_side(truth.joints[b]), width=2)
    for (x, y), known, name in zip(where, points[:, 2], truth.joints):
        if known > 0:
            draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill=_side(name), outline="black")


def _side(joint: str) -> tuple[int, int, int]:
    return _LEFT if "left" in joint.lower() else _RIGHT if "right" in joint.lower() else _MIDDLE


def write_segmentation(path: Path, title: str, lead: str, result: Segmented, settings: Mapping[str, str]) -> None:
    """Photo, true mask and predicted mask of the worst pictures, below the scores of the classes.

    Raises UserError where it cannot be written.
    """
    shown_ones = result.predictions
    choice = "All" if len(shown_ones) == result.queries else f"The {len(shown_ones)} worst of the"
    parts = [
        f'<h2>Classes</h2><p class="quiet">Intersection over union: of the pixels that are a class or are taken for '
        f"it, the share that is both. Gray in a mask is not tested.</p>{legend(result)}",
        f'<h2>Pictures</h2><p class="quiet">{choice} {result.queries} test pictures, the worst first, each with the '
        "mean intersection over union of its classes. Left: the photo. Middle: its true mask. Right: the predicted "
        "mask.</p>",
        f'<div class="pairs">{"".join(_masks(result, *one) for one in shown_ones)}</div>',
        f"<h2>Settings</h2>{facts(settings)}",
    ]
    write(path, title, lead, parts)


def _masks(result: Segmented, one: Prediction, example: Example) -> str:
    """The three pictures side by side, with their score for those who do not see them."""
    photo = upright(example.pixels, example.height, example.width, _SIDE)
    masks = (one.truth.numpy(), np.array(result.classes.ids)[one.guess.numpy()])
    panels = [photo, *(painted(mask, result.classes.ids, photo) for mask in masks)]
    score = "not tested" if math.isnan(one.iou) else f"{one.iou:.1%}"
    words = f"{example.path}: {score}"
    image = picture(side_by_side(panels, ground="white"), f"photo, true mask and predicted mask of {words}")
    return f'<div class="panel">{image}<p class="quiet">{shown(words)}</p></div>'


def colour(place: int) -> tuple[int, int, int]:
    """Of a class by its place among all: hues far apart, in three shades."""
    hue, shade = place * 0.381966 % 1, (0.85, 0.6, 1.0)[place % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, shade)
    return round(255 * red), round(255 * green), round(255 * blue)


def painted(numbers: npt.NDArray[np.int64], ids: Sequence[int], like: Image.Image) -> Image.Image:
    """A mask in colours, as large as a picture; what is no class is gray."""
    pixels = np.full((*numbers.shape, 3), _VOID, np.uint8)
    for place, number in enumerate(ids):
        pixels[numbers == number] = colour(place)
    return Image.fromarray(pixels).resize(like.size, Image.Resampling.NEAREST)


def legend(result: Segmented) -> str:
    """Colour, number and intersection over union of each class, the worst first."""
    rows = []
    for place, number in sorted(enumerate(result.classes.ids), key=lambda pair: pair[1]):
        value = result.scores.iou.get(number, math.nan)
        said = "not in the test pictures" if math.isnan(value) else f"{value:.1%}{bar(Interval(value, 0), False)}"
        rows.append((math.isnan(value), value, (f"{swatch(place)} class {number}", said)))
    return table("accuracies", [cells for *_, cells in sorted(rows)], ["intersection over union"], "classes")


def swatch(place: int) -> str:
    """A square in the colour of a class."""
    fill = f'<rect width="14" height="14" fill="rgb{colour(place)}"/>'
    return f'<svg width="14" height="14" aria-hidden="true">{fill}</svg>'
