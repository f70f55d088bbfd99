"""A backbone's stages, each coarser than the one before: what detectors and segmenters stand on."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn

from lookalike.core.errors import UserError
from lookalike.models.image import Pixels, SmallResNetBackbone, TimmPixels
from lookalike.models.norm import GroupedBatchNorm1d, GroupedBatchNorm2d

_LOOK = 128  # side in pixels of the picture by which the strides are found


class Pyramid(nn.Module):
    """``widths`` and ``strides`` in pixels of its levels, the finest first."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.widths, self.strides = _measured(self)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → one (B, C, H / stride, W / stride) a level."""
        levels = []
        for stage in self.stages:
            pixels = stage(pixels)
            levels.append(pixels)
        return levels


class _TimmPyramid(Pyramid):
    """Of timm's networks, which know their own stages but do not come apart."""

    def __init__(self, net: nn.Module) -> None:
        nn.Module.__init__(self)
        self.net = net
        self.kept = slice(None)
        self.widths, self.strides = _measured(self)
        self.kept = slice(len(self.strides) - len({*self.strides}), None)  # a stem as coarse as its first stage is none
        self.widths, self.strides = self.widths[self.kept], self.strides[self.kept]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.net.forward_intermediates(pixels, intermediates_only=True)[self.kept]  # type: ignore[operator]
        return levels


def pyramid(backbone: nn.Module, group: int) -> Pyramid:
    """A copy of the backbone's weights as a pyramid, with BatchNorm in groups of ``group`` examples.

    Raises UserError for what has none, such as a transformer, whose layers all have one resolution.
    """
    found = _of(copy.deepcopy(backbone))
    for module in found.modules():
        if isinstance(module, GroupedBatchNorm1d | GroupedBatchNorm2d):
            module.group = group
    if len(found.strides) < 2 or any(a >= b for a, b in zip(found.strides, found.strides[1:])):
        _refuse(backbone)
    return found


def _of(backbone: nn.Module) -> Pyramid:
    if isinstance(backbone, SmallResNetBackbone):
        return Pyramid(_stages(backbone))
    if isinstance(backbone, Pixels) and isinstance(backbone.net, torchvision.models.ResNet):
        net = backbone.net
        stem = [net.conv1, net.bn1, net.relu, net.maxpool]
        return Pyramid([nn.Sequential(*stem, net.layer1), net.layer2, net.layer3, net.layer4])
    if isinstance(backbone, TimmPixels) and hasattr(backbone.net, "forward_intermediates"):
        try:
            return _TimmPyramid(backbone.net)
        except (RuntimeError, ValueError, AssertionError, IndexError):
            pass  # of those that take pictures of one size only
    _refuse(backbone)
    raise AssertionError


def _refuse(backbone: nn.Module) -> None:
    name = type(getattr(backbone, "net", backbone)).__name__
    raise UserError(
        f"the backbone ({name}) has no pyramid, whose levels grow coarser: boxes, masks and points want a run of a "
        "ResNet or of a convolutional network of timm"
    )


def _stages(backbone: SmallResNetBackbone) -> list[nn.Module]:
    """The stem with the first stage, then the others, each of which begins where the resolution halves."""
    stages: list[list[nn.Module]] = [[backbone.stem, backbone.norm, nn.ReLU(inplace=True)]]
    for number, block in enumerate(backbone.blocks):
        if number and block.conv1.stride != (1, 1):
            stages.append([])
        stages[-1].append(block)
    return [nn.Sequential(*stage) for stage in stages]


@torch.no_grad()
def _measured(pyramid: Pyramid) -> tuple[list[int], list[int]]:
    """Widths and strides, by looking at a black picture; statistics of BatchNorm stay as they are."""
    parameter = next(pyramid.parameters())
    training = pyramid.training
    levels = pyramid.eval()(torch.zeros(1, 3, _LOOK, _LOOK, dtype=parameter.dtype, device=parameter.device))
    pyramid.train(training)
    return [level.shape[1] for level in levels], [_LOOK // level.shape[3] for level in levels]
