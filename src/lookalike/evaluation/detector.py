"""Detectors on a pretrained backbone: torchvision's Faster and Mask R-CNN, small enough for a processor.

As in the MoCo paper (arXiv 1911.05722, section 4.2) everything is tuned, BatchNorm too, whose statistics come from
groups of a fixed number of pictures, and the new layers have BatchNorm as well; all models have one schedule.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from lookalike.core.errors import UserError
from lookalike.evaluation.settings import Boxes, Detect, Keypoints
from lookalike.models.dense import Pyramid, pyramid
from lookalike.models.norm import GroupedBatchNorm2d

LEVELS = 4  # the coarsest of a backbone that are used, as the paper's C2 to C5


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
    if isinstance(spec, Detect) and spec.masks:
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
        maps: Tensor = super().forward(x)
        return maps.contiguous()


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
        joined: dict[str, Tensor] = self.fpn(OrderedDict(zip(self.names, self.levels(pixels)[-LEVELS:])))
        return joined

    def pool(self, side: int) -> MultiScaleRoIAlign:
        """Boxes to maps of ``side``."""
        return pooled(self.names, side, self.strides[:-1])

    def box_head(self) -> nn.Module:
        """One convolution and one hidden layer; its BatchNorm sees the boxes of ``spec.grouped`` pictures."""
        norm = partial(GroupedBatchNorm2d, group=self.spec.grouped * self.spec.rois)
        head: nn.Module = FastRCNNConvFCHead((self.spec.width, 7, 7), [self.spec.width], [self.spec.hidden], norm)
        return head


class C4(nn.Module):
    """All stages but the last, which is the head of every box, with one more BatchNorm behind it as in the paper."""

    def __init__(self, levels: Pyramid, spec: Boxes) -> None:
        super().__init__()
        if not hasattr(levels, "stages"):
            raise UserError("--neck c4 needs separate stages, which timm's backbones do not have: choose --neck fpn")
        *trunk, self._last = levels.stages
        self.trunk, self.spec, self.out_channels = nn.Sequential(*trunk), spec, levels.widths[-2]
        self.strides, self.every_stride = levels.strides[-2:-1], levels.strides[-LEVELS:]
        self.box_width = levels.widths[-1]
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
        here = maps[0].device
        self.set_cell_anchors(maps[0].dtype, here)
        sizes = [list(level.shape[-2:]) for level in maps]
        strides = [[torch.tensor(stride, device=here)] * 2 for stride in self.strides]
        every = torch.cat(self.grid_anchors(sizes, strides))
        return [every] * len(images.image_sizes)


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
        """As it is."""
        return results
