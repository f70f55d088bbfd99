"""Heads: from features to the embedding that is contrasted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from lookalike.core.errors import UserError
from lookalike.models.norm import GroupedBatchNorm1d


@dataclass(frozen=True)
class MLP:
    """Linear layers of these widths with ReLU between: ``MLP((128,))`` is MoCo v1's, ``MLP((2048, 128))`` v2's.

    ``norm="hidden"`` puts BatchNorm before each ReLU; ``"all"`` adds one without scale and shift at the end, as
    MoCo v3 does (arXiv 2104.02057, section 3.1). A layer that BatchNorm follows has no bias, which it would cancel.
    """

    widths: tuple[int, ...] = (128,)
    norm: Literal["none", "hidden", "all"] = "none"
    bias: bool = True  # of layers that no BatchNorm follows (MoCo v3's predictor: none)
    tanh: bool = False  # after the last layer, as SimCSE's head (arXiv 2104.08821)

    def build(self, features: int, group: int | None = None) -> nn.Sequential:
        """(B, features) → (B, widths[-1]); BatchNorm, if any, in groups of ``group`` examples, 2 or more."""
        if self.norm != "none" and (group is None or group < 2):
            raise UserError(f"head.norm {self.norm!r} compares the examples of a group: group must be at least 2")
        layers: list[nn.Module] = []
        last = len(self.widths) - 1
        for i, (before, after) in enumerate(zip((features, *self.widths), self.widths)):
            normed = self.norm == "all" or (self.norm == "hidden" and i < last)
            layers.append(nn.Linear(before, after, bias=self.bias and not normed))
            if normed and group is not None:
                layers.append(GroupedBatchNorm1d(after, group, affine=i < last))
            layers.append(nn.ReLU(inplace=True))
        return nn.Sequential(*layers[:-1], *([nn.Tanh()] if self.tanh else []))
