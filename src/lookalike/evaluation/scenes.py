"""Annotated pictures as detectors take them, and what detectors say as numbers of the picture as it was."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.models.detection.roi_heads import paste_masks_in_image

from lookalike.core.seeding import uniforms
from lookalike.data.annotations.record import Scene
from lookalike.evaluation.settings import Boxes

Truth = dict[str, Tensor]
_VIEW = 7  # the stream of draws: no other here asks for it


class Look(NamedTuple):
    """How one picture is shown: its size in pixels, and whether in a mirror."""

    height: int
    width: int
    mirrored: bool = False


class Detections(NamedTuple):
    """What a detector says of one picture, in pixels of the picture as it was; the surest first."""

    boxes: npt.NDArray[np.float64]  # (M, 4) left, top, right, bottom
    labels: npt.NDArray[np.int64]  # (M,) numbers of classes
    scores: npt.NDArray[np.float64]  # (M,)
    masks: Tensor | None = None  # (M, 1, S, S) float32: the share of the mask in cells of the box
    points: npt.NDArray[np.float64] | None = None  # (M, K, 3) x, y, score


def looks(spec: Boxes, scenes: Sequence[Scene], draws: Tensor | None, mirror: bool = True) -> list[Look]:
    """Whole pictures at ``spec.size``; with ``draws`` (B, 2) resized and mirrored at random."""
    shown = []
    for i, scene in enumerate(scenes):
        grow, turn = (0.5, 1.0) if draws is None else draws[i].tolist()
        scale = spec.jitter ** (2 * grow - 1) * spec.size / min(scene.height, scene.width)
        scale = min(scale, spec.long_side / max(scene.height, scene.width))
        height, width = (max(1, round(scale * side)) for side in (scene.height, scene.width))
        shown.append(Look(height, width, mirror and turn < 0.5))
    return shown


def drawn(seed: int, epoch: int, rows: Tensor) -> Tensor:
    """(B, 2) what ``looks`` wants: a function of (seed, epoch, row) alone."""
    return uniforms(seed, epoch, rows, _VIEW, 2)


def picture(canvas: Tensor, look: Look, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(3, height, width) normalised, of a canvas uint8 (3, S, S)."""
    pixels = interpolate(
        canvas[None].float(), (look.height, look.width), mode="bilinear", antialias=True, align_corners=False
    )[0]
    shift, scale = (torch.tensor(numbers, device=canvas.device)[:, None, None] for numbers in (mean, std))
    pixels = (pixels / 255 - shift) / scale
    return pixels.flip(2) if look.mirrored else pixels


def truth(scene: Scene, look: Look, swapped: Sequence[int], masks: bool) -> Truth:
    """What is to be learned of a picture: every object but crowds; an object without an outline fills its box.

    ``swapped`` (K,) are the numbers of points in a mirror.
    """
    scale = np.array([look.width / scene.width, look.height / scene.height])
    rows = np.flatnonzero(~scene.crowd)
    boxes, points = scene.boxes[rows] * np.tile(scale, 2), scene.points[rows].copy()
    points[..., :2] *= scale
    if look.mirrored:
        boxes[:, [0, 2]] = look.width - boxes[:, [2, 0]]
        points = points[:, list(swapped)]
        points[..., 0] = np.where(points[..., 2] > 0, look.width - points[..., 0], 0)
    targets = {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor(scene.labels[rows] + 1),  # 0 is the background
        "keypoints": torch.tensor(points, dtype=torch.float32),
    }
    if masks:
        shapes = [_mask(scene, row, look) for row in rows.tolist()]
        every = np.stack(shapes) if shapes else np.zeros((0, look.height, look.width), dtype=bool)
        targets["masks"] = torch.tensor(every[:, :, ::-1].copy() if look.mirrored else every, dtype=torch.uint8)
    # The network's float32 must not make a line of a thin box.
    sides = targets["boxes"][:, 2:] - targets["boxes"][:, :2]
    return {name: part[(sides > 0.1).all(1)] for name, part in targets.items()}


def _mask(scene: Scene, row: int, look: Look) -> npt.NDArray[np.bool_]:
    outline = scene.outlines[row]
    if outline is not None:
        return outline.mask(look.height, look.width)
    mask = np.zeros((look.height, look.width), dtype=bool)
    scale = np.tile([look.width / scene.width, look.height / scene.height], 2)
    left, top, right, bottom = scene.boxes[row] * scale
    mask[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = True
    return mask


def detections(output: dict[str, Tensor], scene: Scene, look: Look) -> Detections:
    """What torchvision's detector gives for one picture, in its own pixels."""
    scale = np.array([scene.width / look.width, scene.height / look.height])
    boxes = output["boxes"].double().cpu().numpy() * np.tile(scale, 2)
    points = None
    if "keypoints" in output:
        places = output["keypoints"].double().cpu().numpy()[..., :2] * scale
        points = np.concatenate([places, output["keypoints_scores"].double().cpu().numpy()[..., None]], 2)
    return Detections(
        boxes,
        output["labels"].cpu().numpy() - 1,
        output["scores"].double().cpu().numpy(),
        output["masks"].cpu() if "masks" in output else None,
        points,
    )


def pasted(detections: Detections, height: int, width: int) -> npt.NDArray[np.bool_]:
    """(M, height, width) the masks in the whole picture."""
    assert detections.masks is not None
    boxes = torch.tensor(detections.boxes, dtype=torch.float32)
    whole = paste_masks_in_image(detections.masks, boxes, (height, width))[:, 0] if len(boxes) else torch.zeros(0, 1, 1)
    return (whole > 0.5).numpy()


def in_mirror(joints: Sequence[str]) -> tuple[int, ...] | None:
    """(K,) the number that each point has in a mirror, by the words left and right in its name.

    None where no name says a side, or a side lacks its other: then pictures are not to be mirrored.
    """
    names = {name.lower(): i for i, name in enumerate(joints)}
    others = [names.get(_turned(name), -1) for name in names]
    sided = any(other not in (-1, i) for i, other in enumerate(others))
    return tuple(others) if len(names) == len(joints) and sided and -1 not in others else None


def _turned(name: str) -> str:
    """``right_knee`` for ``left_knee``; ``neck`` as it is."""
    swap = {"left": "right", "right": "left", "l": "r", "r": "l"}
    return "".join(swap.get(part, part) for part in re.split(r"([^a-z]+)", name))
