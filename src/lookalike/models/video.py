"""Backbones for clips: they take ``pixels`` (B, 3, T, S, S). A value says which; ``build`` gives module and width F."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torchvision
from torch import nn

from lookalike.core.errors import UserError
from lookalike.models.image import Pixels, ResidualBackbone
from lookalike.models.norm import group_norms


@dataclass(frozen=True)
class VideoResNet:
    """torchvision's ResNets of 18 layers for videos (Tran et al. 2018, arXiv 1711.11248)."""

    name: Literal["r3d_18", "mc3_18", "r2plus1d_18"] = "r3d_18"

    def build(self, group: int) -> tuple[nn.Module, int]:
        """Random weights, BatchNorm in groups of ``group`` examples, no classifier."""
        net = torchvision.models.get_model(self.name, weights=None)
        features = int(net.fc.in_features)
        net.fc = nn.Identity()
        return Pixels(group_norms(net, group)), features


@dataclass(frozen=True)
class SmallVideoResNet:
    """A ResNet of 3×3×3 convolutions for processors: its first one shrinks pictures by ``stride`` and no time.

    From the second stage on each halves the resolution; the last ``slow`` of them halve time, too.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128)
    kernel: int = 5  # side of the first convolution, in pixels; it sees three frames
    stride: int = 4
    slow: int = 2

    def build(self, group: int) -> tuple[nn.Module, int]:
        """Random weights; the width of the last stage is F."""
        if not 0 <= self.slow < len(self.widths):
            raise UserError(f"model.slow must be from 0 to {len(self.widths) - 1}: the first stage halves nothing")
        return SmallVideoBackbone(self, group), self.widths[-1]


class SmallVideoBackbone(ResidualBackbone):
    """Of clips: one block a stage."""

    def __init__(self, spec: SmallVideoResNet, group: int) -> None:
        side, margin = spec.stride, (spec.kernel - spec.stride + 1) // 2
        kernel, stride, padding = (3, spec.kernel, spec.kernel), (1, side, side), (1, margin, margin)
        stem = nn.Conv3d(3, spec.widths[0], kernel, stride, padding, bias=False)
        slow = len(spec.widths) - spec.slow
        strides = [(2 if stage >= slow else 1, 2, 2) if stage else (1, 1, 1) for stage in range(len(spec.widths))]
        super().__init__(stem, zip(spec.widths, strides), group)
