"""What happens to each example of a batch, decided before any pixel is computed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

STILL = 4  # the group of examples whose colours stay; groups 0 to 3 change their hue as the first to fourth of the ops


class Plan(NamedTuple):
    """What happens to each of B examples, on the CPU: the code that runs depends on it."""

    boxes: Tensor  # (B, 4) float32 top, left, height, width on the canvas
    flip: Tensor  # (B,) bool, as the next three
    gray: Tensor
    blur: Tensor
    solarize: Tensor
    group: Tensor  # (B,) when the hue changes, 0 to 3, or STILL
    kinds: Tensor  # (B, 3) brightness, contrast and saturation in their order
    factors: Tensor  # (B, 4) by number of the operation; the hue in turns
    sigma: Tensor  # (B,) pixels

    def ordered(self, order: Tensor) -> Plan:
        """The same for the examples in another order."""
        return Plan(*(field.index_select(0, order) for field in self))

    @classmethod
    def crops(cls, boxes: Tensor) -> Plan:
        """Nothing but that ``boxes`` (B, 4) are cropped."""
        count = len(boxes)
        no, one = torch.zeros(count, dtype=torch.bool), torch.ones(count)
        group, kinds = torch.full((count,), STILL), torch.arange(3).expand(count, 3)
        return cls(boxes, no, no, no, no, group, kinds, one[:, None].expand(count, 4), one)


class Style(NamedTuple):
    """What views of one kind have in common."""

    size: int
    radius: int  # pixels that the blur reaches to each side
    plain: bool  # whether no example of any batch changes its colours' hue, contrast, ... or blurs
    gray_first: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
