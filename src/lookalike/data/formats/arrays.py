"""Pictures that are in memory already: tensors, map-style datasets, and the digits that come with scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.example import Example, broken, whole
from lookalike.data.fingerprint import Stamps, stamps_of_rows, token_of
from lookalike.data.image.decode import Canvas, Unreadable, squash


class MapStyle(Protocol):
    """Any dataset of torch's or Hugging Face's kind; an item is a picture, (picture, label) or a dict."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Arrays:
    """One tensor of pictures: (N, H, W), (N, 1, H, W) or (N, 3, H, W), uint8 or float in 0..1."""

    starts = texts = read = None

    def __init__(self, images: Tensor, labels: Tensor | None, classes: list[str], name: str = "") -> None:
        """``labels`` (N,) int64, -1 for none; raises UserError where the tensor is no pictures."""
        self._images = _checked(images)
        self.classes = classes
        self.labels = torch.full((len(images),), -1) if labels is None else labels.long()
        self.paths = [f"{name}#{row}" for row in range(len(images))]
        self.unlisted: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._images)

    def example(self, row: int, side: int) -> Example:
        """One picture on a canvas of ``side`` pixels."""
        return whole(squash_tensor(self._images[row], side), int(self.labels[row]), self.paths[row])

    def size(self, row: int) -> tuple[int, int]:
        """(height, width) in pixels."""
        return int(self._images.shape[-2]), int(self._images.shape[-1])

    def stamps(self) -> Stamps:
        """Every picture by its values."""
        values = [image.contiguous().numpy().tobytes() for image in self._images]
        sizes = np.fromiter((len(value) for value in values), np.int64, len(values))
        return Stamps(list(self.paths), sizes, np.fromiter(map(token_of, values), np.uint64, len(values)))


class Mapped:
    """A map-style dataset: its items as they come, so one that augments or normalises must be given without that."""

    starts = texts = read = None

    def __init__(self, dataset: MapStyle) -> None:
        self._dataset = dataset
        self.paths = [f"#{row}" for row in range(len(dataset))]
        self.unlisted: dict[str, str] = {}

    @cached_property
    def labels(self) -> Tensor:
        """(N,) int64: the dataset's ``targets`` or ``labels`` if it has them, else read item by item (slow)."""
        for name in ("targets", "labels"):
            found = getattr(self._dataset, name, None)
            if isinstance(found, Sequence | Tensor | np.ndarray) and len(found) == len(self):
                return torch.tensor([_label(value) for value in found])
        return torch.tensor([self.example(row, 1).label for row in range(len(self))], dtype=torch.int64)

    @cached_property
    def classes(self) -> list[str]:
        """The dataset's ``classes`` if it has them, else the numbers of its labels."""
        stated = getattr(self._dataset, "classes", None)
        if isinstance(stated, Sequence) and all(isinstance(name, str) for name in stated):
            return list(stated)
        return [str(i) for i in range(int(self.labels.max()) + 1)] if len(self) else []

    def __len__(self) -> int:
        return len(self.paths)

    def example(self, row: int, side: int) -> Example:
        """One item on a canvas of ``side`` pixels."""
        label = -1
        try:
            picture, label = _item(self._dataset[row])
            return whole(_canvas(picture, side), label, self.paths[row])
        except Unreadable as unreadable:
            return broken(side, label, self.paths[row], unreadable.reason)
        except Exception as error:  # a dataset is somebody's code: whatever it raises concerns this row alone
            return broken(side, label, self.paths[row], f"the dataset raised {type(error).__name__}")

    def size(self, row: int) -> tuple[int, int]:
        """(height, width) in pixels, by reading the item; raises Unreadable."""
        found = self.example(row, 1)
        if found.bad is not None:
            raise Unreadable(found.bad)
        return found.height, found.width

    def stamps(self) -> Stamps:
        """The paths alone: what a dataset in Python holds is not looked into."""
        return stamps_of_rows(self.paths)


def digits() -> Arrays:
    """The 1,797 handwritten digits (8 x 8, 0..16) that ship with scikit-learn; nothing is downloaded."""
    found = load_digits()
    images = torch.from_numpy(np.round(found.images * (255 / 16)).astype(np.uint8))
    return Arrays(images, torch.from_numpy(found.target), [str(i) for i in range(10)], name="digits")


def squash_tensor(image: Tensor, side: int) -> Canvas:
    """A picture (H, W), (1, H, W) or (3, H, W), uint8 or float in 0..1, as a canvas; raises Unreadable."""
    image = image if image.dim() == 3 else image[None]
    if image.dim() != 3 or image.shape[0] not in (1, 3) or not image.numel():
        raise Unreadable(f"a tensor of shape {tuple(image.shape)} is no picture: give (H, W), (1, H, W) or (3, H, W)")
    height, width = image.shape[1:]
    wide = image.float() if image.dtype == torch.uint8 else image.float() * 255
    if not bool((wide >= 0).all() and (wide <= 255).all()):
        raise Unreadable("values lie outside of 0..1: give the pictures before they are normalised")
    if (height, width) != (side, side):
        wide = F.interpolate(wide[None], (side, side), mode="bilinear", antialias=True)[0]
    pixels = wide.round().clamp(0, 255).to(torch.uint8)
    return Canvas(pixels.expand(3, side, side).contiguous(), int(height), int(width))


def _checked(images: Tensor) -> Tensor:
    """The tensor as (N, C, H, W); raises UserError."""
    shaped = images if images.dim() == 4 else images[:, None] if images.dim() == 3 else None
    if shaped is None or shaped.shape[1] not in (1, 3) or not shaped.numel():
        raise UserError(
            f"a tensor of shape {tuple(images.shape)} holds no pictures; give (N, H, W), (N, 1, H, W) or (N, 3, H, W)",
            BAD_DATA,
        )
    if shaped.dtype != torch.uint8:
        if not shaped.is_floating_point():
            raise UserError(f"pixels of {shaped.dtype} state no range; give uint8, or floats in 0..1", BAD_DATA)
        low, high = float(shaped.min()), float(shaped.max())
        if not (low >= 0 and high <= 1):  # NaN fails as well
            raise UserError(f"pixels lie in {low:.3g}..{high:.3g}; give uint8, or floats in 0..1", BAD_DATA)
    return shaped


def _item(item: Any) -> tuple[Any, int]:
    """Picture and label of whatever a dataset gives for a row."""
    if isinstance(item, Mapping):
        picture = next((item[name] for name in ("image", "img", "pixels") if name in item), None)
        return picture, _label(item.get("label"))
    if isinstance(item, tuple | list) and item:
        return item[0], _label(item[1]) if len(item) > 1 else -1
    return item, -1


def _label(value: Any) -> int:
    """A whole number as it is, anything else as none."""
    if isinstance(value, Tensor | np.ndarray | np.generic) and getattr(value, "ndim", 0) == 0:
        value = value.item()
    return value if isinstance(value, int) and value >= 0 else -1


def _canvas(picture: Any, side: int) -> Canvas:
    """A Pillow picture, a tensor (C, H, W) or an array (H, W, C) as a canvas; raises Unreadable."""
    if isinstance(picture, Image.Image):
        return squash(picture, side)
    if isinstance(picture, np.ndarray):
        picture = torch.from_numpy(np.ascontiguousarray(picture))
        picture = picture.permute(2, 0, 1) if picture.dim() == 3 else picture
    if isinstance(picture, Tensor):
        return squash_tensor(picture, side)
    raise Unreadable(f"an item of type {type(picture).__name__} is no picture: give PIL images, tensors or arrays")
