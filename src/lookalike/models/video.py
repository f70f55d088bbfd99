"""Backbones for clips: they take ``pixels`` (B, 3, T, S, S). A value says which; ``build`` gives module and width F."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn

from lookalike.core.errors import UserError
from lookalike.models.image import Pixels
from lookalike.models.norm import GroupedBatchNorm3d, group_norms


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


class _Block(nn.Module):
    """Two convolutions beside a shortcut, which averages where it shrinks."""

    def __init__(self, before: int, width: int, stride: tuple[int, int, int], group: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(before, width, 3, stride, 1, bias=False)
        self.norm1 = GroupedBatchNorm3d(width, group)
        self.conv2 = nn.Conv3d(width, width, 3, 1, 1, bias=False)
        self.norm2 = GroupedBatchNorm3d(width, group)
        self.shortcut: nn.Module = nn.Identity()
        if max(stride) > 1 or before != width:
            self.shortcut = nn.Sequential(
                nn.AvgPool3d(stride, ceil_mode=True),
                nn.Conv3d(before, width, 1, bias=False),
                GroupedBatchNorm3d(width, group),
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm1(self.conv1(x), activate=True)
        out: Tensor = self.norm2(self.conv2(inner), self.shortcut(x))
        return out


class SmallVideoBackbone(nn.Module):
    """Stem, one block a stage, mean over time and positions."""

    def __init__(self, spec: SmallVideoResNet, group: int) -> None:
        super().__init__()
        first, side = spec.widths[0], spec.stride
        padding = (1, (spec.kernel - side + 1) // 2, (spec.kernel - side + 1) // 2)
        kernel, stride = (3, spec.kernel, spec.kernel), (1, side, side)
        self.stem = nn.Conv3d(3, first, kernel, stride, padding, bias=False)
        self.norm = GroupedBatchNorm3d(first, group)
        blocks, before = [], first
        for stage, width in enumerate(spec.widths):
            slows = stage >= len(spec.widths) - spec.slow
            step = (2 if slows else 1, 2, 2) if stage else (1, 1, 1)
            blocks.append(_Block(before, width, step, group))
            before = width
        self.blocks = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, T, S, S) → (B, F)."""
        x = self.norm(self.stem(pixels), activate=True)
        return torch.mean(self.blocks(x), dim=(2, 3, 4))
