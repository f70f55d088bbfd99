"""How a public model sees a picture: its trainer's evaluation transform, to the last bit of its uint8 pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from PIL import Image
from torch import Tensor

from lookalike.core.errors import SHARE, Bounded, Limit, PixelSide
from lookalike.types import View

Triple = tuple[float, float, float]
Mode = Literal["center", "center_floor", "squash"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


@dataclass(frozen=True)
class Preprocessing(Bounded):
    """Resize by Pillow so that a square of ``size`` is ``share`` of the short side, crop it, then mean and std.

    What ``timm.data.create_transform`` does of ``resolve_data_config``, and torchvision's and transformers' evaluation
    transforms, which differ in where a crop begins that has an odd margin.
    """

    size: PixelSide = 224  # side in pixels of what the model sees
    share: Annotated[float, SHARE] = 0.875  # of the short side after the resize, which is the floor of size / share
    mode: Mode = "center"  # squash: the sides lose their proportion
    interpolation: Interpolation = "bicubic"
    mean: Annotated[Triple, Limit(-1000, 1000)] = (0.485, 0.456, 0.406)
    std: Annotated[Triple, Limit(1e-6, 1000)] = (0.229, 0.224, 0.225)

    @classmethod
    def share_of(cls, size: int, short: int) -> float:
        """The share for which the short side becomes ``short`` pixels."""
        share = size / short
        return share if math.floor(size / share) == short else math.nextafter(share, 0)

    def seen(self, image: Image.Image, proportions: tuple[int, int] | None = None) -> Image.Image:
        """An upright RGB picture as a square of ``size`` pixels; ``proportions`` (W, H): of one that was squashed."""
        (width, height), short = proportions or image.size, math.floor(self.size / self.share)
        if self.mode == "squash":
            width = height = short
        else:  # torchvision's arithmetic
            width, height = (short, short * height // width) if width <= height else (short * width // height, short)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        left, top = (self._margin(side) for side in (width, height))
        return image.crop((left, top, left + self.size, top + self.size))

    def _margin(self, side: int) -> int:
        spare = side - self.size
        return spare // 2 if self.mode == "center_floor" else round(spare / 2)

    def view(self, pixels: Tensor) -> View:
        """What the encoder takes, of uint8 canvases (B, 3, S, S) that were made by ``seen``."""
        planes = pixels.to(torch.float32, memory_format=torch.channels_last).div_(255)
        mean, std = (torch.tensor(part, device=pixels.device)[:, None, None] for part in (self.mean, self.std))
        return {"pixels": planes.sub_(mean).div_(std)}


Side = int | Preprocessing
"""What a canvas is: a whole picture squashed to so many pixels a side, or a picture as a public model sees it."""


def pixels_of(side: Side) -> int:
    """The side of a canvas in pixels."""
    return side.size if isinstance(side, Preprocessing) else side
