"""A backbone's stages, each coarser than the one before: what detectors and segmenters stand on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

import torch
from torch import Tensor, nn

from lookalike.core.errors import UserError
from lookalike.models.dense import stem_and_blocks, stride_of
from lookalike.models.image import TimmPixels
from lookalike.models.norm import GroupedBatchNorm1d, GroupedBatchNorm2d

_SIDE = 128  # in pixels, of the picture that the strides are measured with


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
    result = _of(copy.deepcopy(backbone))
    if result is None or len(result.strides) < 2 or any(a >= b for a, b in pairwise(result.strides)):
        name = type(getattr(backbone, "net", backbone)).__name__
        raise UserError(
            f"the backbone ({name}) has no pyramid, whose levels grow coarser: boxes, masks and points want a run of a "
            "ResNet or of a convolutional network of timm"
        )
    for module in result.modules():
        if isinstance(module, GroupedBatchNorm1d | GroupedBatchNorm2d):
            module.group = group
    return result


def _of(backbone: nn.Module) -> Pyramid | None:
    if parts := stem_and_blocks(backbone):
        return Pyramid(_stages(*parts))
    if isinstance(backbone, TimmPixels) and hasattr(backbone.net, "forward_intermediates"):
        with suppress(RuntimeError, ValueError, AssertionError, IndexError):  # of those that take one size only
            return _TimmPyramid(backbone.net)
    return None


def _stages(stem: list[nn.Module], blocks: list[nn.Module]) -> list[nn.Module]:
    """The stem with the first stage, then the others, each of which begins where the resolution is halved."""
    stages = [stem]
    for number, block in enumerate(blocks):
        if number and stride_of([block]) > 1:
            stages.append([])
        stages[-1].append(block)
    return [nn.Sequential(*stage) for stage in stages]


@torch.no_grad()
def _measured(pyramid: Pyramid) -> tuple[list[int], list[int]]:
    """Widths and strides, measured on a black picture; statistics of BatchNorm stay as they are."""
    parameter = next(pyramid.parameters())
    training = pyramid.training
    levels = pyramid.eval()(torch.zeros(1, 3, _SIDE, _SIDE, dtype=parameter.dtype, device=parameter.device))
    pyramid.train(training)
    return [level.shape[1] for level in levels], [_SIDE // level.shape[3] for level in levels]
