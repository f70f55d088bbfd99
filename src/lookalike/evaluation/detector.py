"""Detectors on a pretrained backbone: torchvision's Faster and Mask R-CNN, small enough for a processor.

Also the pictures as they take them, and what they detect in pixels of the picture as it was. As in the MoCo paper
(arXiv 1911.05722, section 4.2) everything is tuned, BatchNorm too, whose statistics come from groups of a fixed number
of pictures, and the new layers have BatchNorm as well; all models have one schedule.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from lookalike.core.errors import UserError
from lookalike.data.annotations.record import Scene
from lookalike.evaluation.settings import Boxes, Detect, Keypoints
from lookalike.models.dense import Pyramid, pyramid
from lookalike.models.norm import GroupedBatchNorm2d

LEVELS = 4  # the coarsest of a backbone that are used, as the paper's C2 to C5
Truth = dict[str, Tensor]


def build(spec: Boxes, backbone: nn.Module, classes: int, joints: int = 0) -> FasterRCNN:
    """Faster R-CNN (arXiv 1506.01497) on a feature pyramid (arXiv 1612.03144), or on the last stage but one (C4).

    Copies the backbone; the rest has random weights. It takes a list of pictures that are ready, see ``Padded``. Raises
    UserError for a backbone that has no pyramid, or does not come apart as C4 needs it.
    """
    levels = pyramid(backbone, spec.grouped)
    neck = C4(levels, spec) if spec.neck == "c4" else FPN(levels, spec)
    model = _faster_rcnn(spec, neck, classes)
    for name, module in _heads(spec, neck, classes, joints).items():
        setattr(model.roi_heads, name, module)
    model.transform = Padded()
    return model


def has_masks(spec: Boxes) -> bool:
    """Whether masks are predicted."""
    return isinstance(spec, Detect) and spec.masks


def _faster_rcnn(spec: Boxes, neck: FPN | C4, classes: int) -> FasterRCNN:
    sides = [tuple(anchor * stride for anchor in spec.anchors) for stride in neck.every_stride]
    if spec.neck == "c4":  # all sizes on its one level
        sides = [tuple(sorted({side for level in sides for side in level}))]
    return FasterRCNN(
        neck,
        rpn_anchor_generator=Anchors(sides, neck.strides),
        rpn_pre_nms_top_n_train=2 * spec.proposals,
        rpn_pre_nms_top_n_test=2 * spec.proposals,
        rpn_post_nms_top_n_train=spec.proposals,
        rpn_post_nms_top_n_test=spec.proposals,
        rpn_batch_size_per_image=4 * spec.rois,
        box_roi_pool=neck.pool(7 if spec.neck == "fpn" else 14),
        box_head=neck.box_head(),
        box_predictor=FastRCNNPredictor(neck.box_width, classes + 1),
        box_batch_size_per_image=spec.rois,
    )


def _heads(spec: Boxes, neck: FPN | C4, classes: int, joints: int) -> dict[str, nn.Module]:
    """Heads beside the one for boxes, by the names that torchvision's RoIHeads have for them.

    Mask R-CNN (arXiv 1703.06870) has two convolutions here, without BatchNorm: how many boxes there are to normalise
    over is chance. Of Keypoint R-CNN (section 5), each point is one cell of a 56 × 56 map of its box.
    """
    heads: dict[str, nn.Module] = {}
    if has_masks(spec):
        heads["mask_roi_pool"] = neck.pool(14)
        heads["mask_head"] = MaskRCNNHeads(neck.out_channels, [spec.width] * 2, 1)
        heads["mask_predictor"] = MaskRCNNPredictor(spec.width, spec.width, classes + 1)
    if isinstance(spec, Keypoints):
        heads["keypoint_roi_pool"] = neck.pool(14)
        heads["keypoint_head"] = KeypointRCNNHeads(neck.out_channels, [spec.width] * spec.convolutions)
        heads["keypoint_predictor"] = _PointMaps(spec.width, joints)
    return heads


class _PointMaps(KeypointRCNNPredictor):  # type: ignore[misc]  # torchvision is not typed
    """torchvision's, whose loss wants the memory layout that convolutions are not fastest in."""

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, 14, 14) → (R, K, 56, 56)."""
        return cast(Tensor, super().forward(x)).contiguous()


class FPN(nn.Module):
    """A backbone's coarsest levels, joined from the top down, and one more that is pooled."""

    def __init__(self, levels: Pyramid, spec: Boxes) -> None:
        super().__init__()
        self.levels, self.spec, self.out_channels = levels, spec, spec.width
        strides = levels.strides[-LEVELS:]
        self.strides = self.every_stride = [*strides, 2 * strides[-1]]
        self.names = [str(i) for i in range(len(strides))]
        norm = partial(GroupedBatchNorm2d, group=spec.grouped)
        self.fpn = FeaturePyramidNetwork(levels.widths[-LEVELS:], spec.width, LastLevelMaxPool(), norm)
        self.box_width = spec.hidden

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) → maps of ``spec.width`` by name, the finest first."""
        levels = OrderedDict(zip(self.names, self.levels(pixels)[-LEVELS:]))
        return cast(dict[str, Tensor], self.fpn(levels))

    def pool(self, side: int) -> MultiScaleRoIAlign:
        """Boxes to maps of ``side``."""
        return pooled(self.names, side, self.strides[:-1])

    def box_head(self) -> nn.Module:
        """One convolution and one hidden layer; its BatchNorm sees the boxes of ``spec.grouped`` pictures."""
        spec = self.spec
        norm = partial(GroupedBatchNorm2d, group=spec.grouped * spec.rois)
        return cast(nn.Module, FastRCNNConvFCHead((spec.width, 7, 7), [spec.width], [spec.hidden], norm))


class C4(nn.Module):
    """All stages but the last, which is the head of every box, with one more BatchNorm behind it as in the paper."""

    def __init__(self, levels: Pyramid, spec: Boxes) -> None:
        super().__init__()
        if not hasattr(levels, "stages"):
            raise UserError("--neck c4 needs separate stages, which timm's backbones do not have: choose --neck fpn")
        *trunk, self._last = levels.stages
        self.trunk, self.out_channels, self.box_width = nn.Sequential(*trunk), levels.widths[-2], levels.widths[-1]
        self.strides, self.every_stride = levels.strides[-2:-1], levels.strides[-LEVELS:]
        self._last_group = spec.grouped * spec.rois

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) → one map."""
        return {"0": self.trunk(pixels)}

    def pool(self, side: int) -> MultiScaleRoIAlign:
        """Boxes to maps of ``side``."""
        return pooled(["0"], side, self.strides)

    def box_head(self) -> nn.Module:
        """The last stage, which is moved out of the neck."""
        stage, self._last = self._last, nn.Identity()
        for module in stage.modules():
            if isinstance(module, GroupedBatchNorm2d):
                module.group = self._last_group
        norm = GroupedBatchNorm2d(self.box_width, self._last_group)
        return nn.Sequential(stage, norm, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def pooled(names: list[str], side: int, strides: list[int]) -> MultiScaleRoIAlign:
    """torchvision's pooling, told the strides, which it would guess from the first batch's sizes."""
    pool = MultiScaleRoIAlign(names, side, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(round(math.log2(strides[0])), round(math.log2(strides[-1])))
    return pool


class Anchors(AnchorGenerator):  # type: ignore[misc]  # torchvision is not typed
    """Anchors at the true strides, where torchvision divides the padded size by the number of cells."""

    def __init__(self, sides: list[tuple[float, ...]], strides: list[int]) -> None:
        super().__init__(tuple(sides), ((0.5, 1.0, 2.0),) * len(sides))
        self.strides = strides

    def forward(self, images: ImageList, maps: list[Tensor]) -> list[Tensor]:
        """(A, 4) for each picture."""
        self.set_cell_anchors(maps[0].dtype, maps[0].device)
        strides = [[torch.tensor(stride, device=maps[0].device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([list(level.shape[-2:]) for level in maps], strides))
        return [anchors] * len(images.image_sizes)


class Padded(nn.Module):
    """In the place of torchvision's transform: pictures are resized and normalised already, results stay as they are.

    Pictures of a batch are padded with 0 to the largest.
    """

    def forward(self, images: list[Tensor], truths: Any = None) -> tuple[ImageList, Any]:
        """Pictures (3, H, W) of any sizes."""
        height, width = (max(image.shape[side] for image in images) for side in (1, 2))
        batch = images[0].new_zeros(len(images), 3, height, width).contiguous(memory_format=torch.channels_last)
        for row, image in zip(batch, images):
            row[:, : image.shape[1], : image.shape[2]] = image
        return ImageList(batch, [(image.shape[1], image.shape[2]) for image in images]), truths

    def postprocess(self, results: list[dict[str, Tensor]], *_: object) -> list[dict[str, Tensor]]:
        """In pixels of the pictures that were given."""
        return results


# Pictures and detections


class Look(NamedTuple):
    """How one picture is shown: its size in pixels, and whether in a mirror."""

    height: int
    width: int
    mirrored: bool = False


class Detections(NamedTuple):
    """What a detector predicts for one picture, in pixels of the picture as it was; the highest scores first."""

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


def picture(canvas: Tensor, look: Look, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(3, height, width) normalised, of a canvas uint8 (3, S, S)."""
    size = (look.height, look.width)
    pixels = interpolate(canvas[None].float(), size, mode="bilinear", antialias=True, align_corners=False)[0]
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
    if (outline := scene.outlines[row]) is not None:
        return outline.mask(look.height, look.width)
    mask = np.zeros((look.height, look.width), dtype=bool)
    left, top, right, bottom = scene.boxes[row] * np.tile([look.width / scene.width, look.height / scene.height], 2)
    mask[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = True
    return mask


def detections(output: dict[str, Tensor], scene: Scene, look: Look) -> Detections:
    """What torchvision's detector gives for one picture, in its own pixels."""
    scale = np.array([scene.width / look.width, scene.height / look.height])
    boxes = output["boxes"].double().cpu().numpy() * np.tile(scale, 2)
    labels, scores = output["labels"].cpu().numpy() - 1, output["scores"].double().cpu().numpy()
    points = None
    if "keypoints" in output:
        places = output["keypoints"].double().cpu().numpy()[..., :2] * scale
        points = np.concatenate([places, output["keypoints_scores"].double().cpu().numpy()[..., None]], 2)
    return Detections(boxes, labels, scores, output["masks"].cpu() if "masks" in output else None, points)


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
    swap = {"left": "right", "right": "left", "l": "r", "r": "l"}
    names = {name.lower(): i for i, name in enumerate(joints)}
    turned = ("".join(swap.get(part, part) for part in re.split(r"([^a-z]+)", name)) for name in names)
    others = [names.get(name, -1) for name in turned]
    sided = any(other not in (-1, i) for i, other in enumerate(others))
    return tuple(others) if len(names) == len(joints) and sided and -1 not in others else None
