"""Pictures that are in memory already: arrays, map-style datasets, and the digits that come with scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import ConcatDataset

from lookalike.core.errors import BAD_DATA, USAGE, UserError
from lookalike.data.decode import Canvas, Unreadable, one_line, squash
from lookalike.data.example import Example, PictureSource, broken
from lookalike.data.fingerprint import UNREAD, Stamps, stamps_of_values
from lookalike.data.formats.encoded import LABELS, is_numbering
from lookalike.data.formats.files import TEST, TRAIN, VALIDATION, Numbered, split_of
from lookalike.data.formats.lists import classified
from lookalike.data.formats.tables import columns_of
from lookalike.data.preprocessing import Preprocessing, Side

_IMAGES = ("image", "img", "pixels")


class MapStyle(Protocol):
    """Any dataset of torch's or Hugging Face's kind, or a list; an item is a picture, (picture, label) or a dict."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class InMemory:
    """A place of what is in memory: one dataset, or one for each split."""

    def __init__(self, parts: Mapping[str, PictureSource], every: PictureSource) -> None:
        self.splits = [name for name in (TRAIN, VALIDATION, TEST) if name in parts]
        self._parts, self._every = parts, every

    def rows(self, split: str | None) -> PictureSource:
        """One split, or everything."""
        return self._every if split is None else self._parts[split]


def in_memory(data: Tensor | npt.NDArray[np.generic] | MapStyle | Mapping[str, MapStyle]) -> InMemory:
    """The place of arrays, of a dataset, or of datasets by split (Hugging Face's DatasetDict); raises UserError."""
    if isinstance(data, Tensor | np.ndarray):
        return InMemory({}, Arrays(_tensor(data), None, []))
    if not isinstance(data, Mapping):
        return InMemory({}, Mapped({"": _map_style(data)}))
    parts = {split_of(name): _map_style(part) for name, part in data.items() if isinstance(name, str)}
    if None in parts or len(parts) < len(data):
        names = ", ".join(map(str, data)) or "none"
        raise UserError(f"datasets by name are its splits, train, validation and test; here are {names}", USAGE)
    named = {str(name): part for name, part in parts.items()}
    return InMemory({name: Mapped({name: part}) for name, part in named.items()}, Mapped(named))


class Arrays:
    """One tensor of pictures: (N, H, W), or with 1 or 3 channels before or after H and W; uint8 or float in 0..1."""

    starts = texts = read = None

    def __init__(self, images: Tensor, labels: Tensor | None, classes: list[str], name: str = "") -> None:
        """``labels`` (N,) int64, -1 for none; raises UserError where the tensor is no pictures."""
        self._images = _checked(images)
        self.classes = classes
        self.labels = torch.full((len(images),), -1) if labels is None else labels.long()
        self.paths = Numbered([name], [len(images)])
        self.unlisted: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._images)

    def example(self, row: int, side: Side) -> Example:
        """One picture as a canvas."""
        return Example(*squash_tensor(self._images[row], side), int(self.labels[row]), self.paths[row])

    def size(self, row: int) -> tuple[int, int]:
        """(height, width) in pixels."""
        return int(self._images.shape[-2]), int(self._images.shape[-1])

    def stamps(self) -> Stamps:
        """Every picture by its values."""
        return stamps_of_values(self.paths, [image.contiguous().numpy().tobytes() for image in self._images])


class Mapped:
    """Map-style datasets: their items as they come, so one that augments or normalises must be given without that."""

    starts = texts = read = None

    def __init__(self, parts: Mapping[str, MapStyle]) -> None:
        self._parts = list(parts.values())
        self._items: MapStyle = ConcatDataset[Any](self._parts)  # type: ignore[arg-type]  # it needs no more
        schema = getattr(getattr(self._parts[0], "features", None), "arrow_schema", None)  # Hugging Face's have one
        self._columns = None if schema is None else columns_of(schema)
        self.paths = Numbered(parts, map(len, parts.values()))
        self.unlisted: dict[str, str] = {}

    @cached_property
    def labels(self) -> Tensor:
        """(N,) int64: by the column or list of labels where there is one, else read item by item (slow)."""
        return self._labelled[0]

    @cached_property
    def classes(self) -> list[str]:
        """The dataset's own names where it has them, else the numbers of its labels."""
        return self._labelled[1]

    @cached_property
    def _labelled(self) -> tuple[Tensor, list[str]]:
        if self._columns is not None:
            parts: list[Any] = self._parts if self._columns.label is not None else []
            # Whatever format the dataset gives rows in.
            values = [value for part in parts for value in part.with_format(None)[self._columns.label]]
            labels, classes, _ = classified(values or [None] * len(self), self._columns.names, typed=True)
            return torch.tensor(labels), classes
        values = [_label(value) for part in self._parts for value in _targets(part)]
        if len(values) != len(self):
            values = [self.example(row, 1).label for row in range(len(self))]
        if is_numbering(values):
            values = [-1] * len(self)
        names = getattr(self._parts[0], "classes", None)
        if isinstance(names, Sequence) and all(isinstance(name, str) for name in names):
            return torch.tensor(values), list(names)
        return torch.tensor(values), [str(number) for number in range(max(values) + 1)]

    def __len__(self) -> int:
        return len(self.paths)

    def example(self, row: int, side: Side) -> Example:
        """One item as a canvas."""
        label = -1 if self._columns is None else int(self.labels[row])
        try:
            picture, own = self._divided(self._items[row])
            label = own if self._columns is None else label
            return Example(*_canvas(picture, side), label, self.paths[row])
        except Unreadable as unreadable:
            return broken(side, label, self.paths[row], unreadable.reason)
        except Exception as error:  # a dataset is somebody's code: whatever it raises concerns this row alone
            return broken(side, label, self.paths[row], f"the dataset raised {one_line(error)}")

    def _divided(self, item: Any) -> tuple[Any, int]:
        if isinstance(item, Mapping):
            images, labels = (_IMAGES, LABELS) if self._columns is None else ((self._columns.image,), ())
            value = next((item[name] for name in labels if name in item), None)
            return next((item[name] for name in images if name in item), None), _label(value)
        if isinstance(item, tuple | list) and item:
            return item[0], _label(item[1]) if len(item) > 1 else -1
        return item, -1

    def size(self, row: int) -> tuple[int, int]:
        """(height, width) in pixels, by reading the item; raises Unreadable."""
        example = self.example(row, 1)
        if example.bad is not None:
            raise Unreadable(example.bad)
        return example.height, example.width

    def stamps(self) -> Stamps:
        """The paths alone: what a dataset in Python holds is not looked into."""
        count = len(self)
        return Stamps(list(self.paths), np.full(count, -1, np.int64), np.full(count, UNREAD, np.uint64))


def digits() -> Arrays:
    """The 1,797 handwritten digits (8 x 8, 0..16) that ship with scikit-learn; nothing is downloaded."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8))
    return Arrays(images, torch.from_numpy(bunch.target), [str(i) for i in range(10)], name="digits")


def squash_tensor(image: Tensor, side: Side) -> Canvas:
    """A picture (H, W), or with 1 or 3 channels before or after, uint8 or float in 0..1, as a canvas; or Unreadable."""
    planes = image if image.dim() == 3 else image[None]
    if planes.dim() == 3 and planes.shape[0] not in (1, 3):
        planes = planes.permute(2, 0, 1)
    if planes.dim() != 3 or planes.shape[0] not in (1, 3) or not planes.numel():
        raise Unreadable(f"an array of shape {tuple(image.shape)} is no picture: give (H, W), (3, H, W) or (H, W, 3)")
    height, width = planes.shape[1:]
    wide = planes.float() if planes.dtype == torch.uint8 else planes.float() * 255
    if not bool((wide >= 0).all() and (wide <= 255).all()):
        raise Unreadable("values lie outside of 0..1: give the pictures before they are normalised")
    if isinstance(side, Preprocessing):
        return squash(Image.fromarray(wide.round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).numpy()), side)
    if (height, width) != (side, side):
        wide = F.interpolate(wide[None], (side, side), mode="bilinear", antialias=True)[0]
    pixels = wide.round().clamp(0, 255).to(torch.uint8)
    return Canvas(pixels.expand(3, side, side).contiguous(), int(height), int(width))


def _tensor(data: Tensor | npt.NDArray[np.generic]) -> Tensor:
    """The same on the host; raises UserError for an array of anything but numbers."""
    if isinstance(data, Tensor):
        return data.detach().cpu()
    if data.dtype.kind not in "uif":
        raise UserError(f"an array of {data.dtype} holds no pictures; give uint8, or floats in 0..1", BAD_DATA)
    return _from_numpy(data)


def _from_numpy(data: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.require(data, data.dtype.newbyteorder("="), ["C", "W"]))


def _checked(images: Tensor) -> Tensor:
    """The tensor as (N, C, H, W); raises UserError."""
    shaped = images[:, None] if images.dim() == 3 else images
    if shaped.dim() == 4 and shaped.shape[1] not in (1, 3):
        shaped = shaped.permute(0, 3, 1, 2)
    if shaped.dim() != 4 or shaped.shape[1] not in (1, 3) or not shaped.numel():
        raise UserError(
            f"an array of shape {tuple(images.shape)} holds no pictures; give (N, H, W), (N, 3, H, W) or (N, H, W, 3)",
            BAD_DATA,
        )
    if shaped.dtype != torch.uint8:
        if not shaped.is_floating_point():
            raise UserError(f"pixels of {shaped.dtype} state no range; give uint8, or floats in 0..1", BAD_DATA)
        low, high = float(shaped.min()), float(shaped.max())
        if not (low >= 0 and high <= 1):  # NaN fails as well
            raise UserError(f"pixels lie in {low:.3g}..{high:.3g}; give uint8, or floats in 0..1", BAD_DATA)
    return shaped


def _map_style(data: Any) -> MapStyle:
    """The dataset if it is map-style and holds anything; raises UserError."""
    kind = type(data).__name__
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise UserError(f"a {kind} is no data; give a path, an array, a list of pictures or a map-style dataset", USAGE)
    if not len(data):
        raise UserError(f"the {kind} is empty; give one that holds pictures", BAD_DATA)
    try:
        first = data[0]
    except (KeyError, TypeError) as error:
        raise UserError(f"a {kind} is no map-style dataset: its item 0 raises {one_line(error)}", USAGE) from None
    except Exception:  # of one picture, perhaps: that is a bad row
        return data  # type: ignore[no-any-return]
    if isinstance(data, list | tuple) and not isinstance(first, Image.Image | Tensor | np.ndarray | Mapping | Sequence):
        raise UserError(f"a {kind} of {type(first).__name__} holds no pictures; give PIL images or arrays", BAD_DATA)
    return data  # type: ignore[no-any-return]


def _targets(dataset: MapStyle) -> Sequence[Any]:
    """The labels that a dataset of torchvision's holds beside its items; none where it has no such list."""
    for name in ("targets", "labels"):
        values = getattr(dataset, name, None)
        if isinstance(values, Sequence | Tensor | np.ndarray) and len(values) == len(dataset):
            return list(values)
    return []


def _label(value: Any) -> int:
    if isinstance(value, Tensor | np.ndarray | np.generic) and getattr(value, "ndim", 0) == 0:
        value = value.item()
    return value if isinstance(value, int) and value >= 0 else -1


def _canvas(picture: Any, side: Side) -> Canvas:
    """A Pillow picture, a tensor or an array as a canvas; raises Unreadable."""
    if isinstance(picture, Image.Image):
        return squash(picture, side)
    if isinstance(picture, np.ndarray):
        last = picture.ndim == 3 and picture.shape[2] in (1, 3)  # even where the first could be channels, too
        picture = _from_numpy(np.moveaxis(picture, 2, 0) if last else picture)
    if isinstance(picture, Tensor):
        return squash_tensor(picture.detach().cpu(), side)
    raise Unreadable(f"an item of type {type(picture).__name__} is no picture: give PIL images, tensors or arrays")
