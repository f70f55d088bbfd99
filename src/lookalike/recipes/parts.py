"""Parts of one's own: values that recipes may name beside those of the package, and objects that a person hands over.

A file never imports anything. A registered part is found by its name once the person's module has been imported; a
network or a function is kept for as long as the process lives, and is handed over again to open its run.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from hashlib import blake2b
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lookalike.core.errors import Bounded, Count, UserError
from lookalike.core.seeding import hashed
from lookalike.learn.dictionary import Dictionary
from lookalike.models.image import Pixels
from lookalike.models.norm import group_norms
from lookalike.pretext import ops
from lookalike.pretext.image import ImageView
from lookalike.types import Canvases, View

Kind = TypeVar("Kind", bound=type)
Transform = Callable[[Image.Image], Any]
"""A picture to a view of it: a PIL picture, or (3, S, S) uint8, or floats from 0 to 1 that are not normalised."""

PARTS: dict[str, type] = {}
"""The classes that a recipe file may name beside those of the package."""


@runtime_checkable
class Backbone(Protocol):
    """What ``model`` may be."""

    def build(self, group: int) -> tuple[nn.Module, int]:
        """A module that maps pictures (B, 3, S, S) to features (B, F), and F; ``group`` examples share statistics."""


@runtime_checkable
class DictionaryPart(Protocol):
    """What ``dictionary`` may be."""

    def build(self, dim: int, examples: int) -> Dictionary:
        """The module that holds its state, for rows of width ``dim``."""

    def fitted(self, examples: int) -> Any:
        """The same for so many examples."""

    def negatives(self, batch: int, examples: int) -> int:
        """How many a query is scored against."""


def part(kind: Kind) -> Kind:
    """Register a frozen dataclass, which may then be a part of recipes; raises UserError for anything else.

    A backbone has ``build(group)``; a dictionary has ``build``, ``fitted`` and ``negatives``; an objective is an
    ``Objective``, a view an ``ImageView``, a pretext is ``TwoViews``. Fields are numbers, words, tuples or other parts.
    """
    if not (isinstance(kind, type) and is_dataclass(kind) and kind.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise UserError(f"@lookalike.part goes above @dataclass(frozen=True), and {kind!r} is no frozen dataclass")
    known = PARTS.setdefault(kind.__name__, kind)
    if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise UserError(f"there is another part of the name {kind.__name__}, in {known.__module__}: choose another")
    PARTS[kind.__name__] = kind  # of a notebook's cell that has run again, the newer
    return kind


# ---- a network that was handed over ----

_networks: dict[Network, nn.Module] = {}


@part
@dataclass(frozen=True)
class Network(Bounded):
    """A module of a person's own, from pictures (B, 3, S, S) to features (B, F); a run starts from its weights."""

    name: str  # of its class
    features: Count
    shapes: str  # a digest of the names and shapes of its weights

    @classmethod
    def of(cls, net: nn.Module, size: int = 64) -> Network:
        """Keep ``net`` for ``build``, once it has encoded two pictures of ``size`` pixels. Raises UserError."""
        name, net = type(net).__name__, copy.deepcopy(net).cpu()
        try:
            with torch.no_grad():
                out = copy.deepcopy(net).eval()(torch.zeros(2, 3, size, size))
        except (RuntimeError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or ["?"])[0]
            raise UserError(f"model: {name} takes no pictures (2, 3, {size}, {size}): {reason}") from error
        if not isinstance(out, Tensor) or out.dim() != 2:
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise UserError(
                f"model: {name} gives {shape} of two pictures, not (2, F): let it end in pooling, flattened"
            )
        shapes = str([(key, tuple(tensor.shape)) for key, tensor in net.state_dict().items()])
        spec = cls(name, out.shape[1], blake2b(shapes.encode(), digest_size=8).hexdigest())
        _networks[spec] = net
        return spec

    def build(self, group: int) -> tuple[nn.Module, int]:
        """A copy of it as it was handed over. Raises UserError."""
        if self not in _networks:
            raise UserError(
                f"the backbone of this run is a network of your own, {self.name}: give one of the same shapes, "
                "lookalike.load(RUN, model=...)"
            )
        net = copy.deepcopy(_networks[self]).to(torch.get_default_device())  # meta, where only shapes are made
        return net, self.features


def adapted(net: nn.Module, group: int) -> nn.Module:
    """A person's network as the encoder calls it, by keyword, and BatchNorm in groups of ``group`` examples."""
    by_keyword = "pixels" in inspect.signature(net.forward).parameters
    return group_norms(net if by_keyword else Pixels(net), group)


# ---- a function that was handed over ----

_transforms: dict[str, Transform] = {}


@part
@dataclass(frozen=True)
class Transformed(ImageView):
    """A view that a function of a person's own makes of a picture; evaluations see whole pictures, as ever."""

    transform: str = ""  # what the function is called

    @classmethod
    def of(cls, transform: Transform, like: ImageView) -> Transformed:
        """Keep ``transform`` for what follows, after a look at the size of its views. Raises UserError."""
        name = repr(transform)  # what a transform says of itself, or where that is an address, what it is called
        name = getattr(transform, "__qualname__", type(transform).__qualname__) if " at 0x" in name else name
        _transforms[name] = transform
        with _generators():
            shape = tuple(cls(transform=name)._view(Image.new("RGB", (256, 192), (100, 120, 140)), 0).shape)
        if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
            raise UserError(
                f"view: {name} gives {shape}, not three square planes (3, S, S): crop or resize to a square"
            )
        return cls(size=shape[1], mean=like.mean, std=like.std, transform=name)

    def views(self, canvases: Canvases, rows: Tensor, seed: int, epoch: int, numbers: Sequence[int]) -> list[View]:
        """The views of these numbers: what is random in each is a function of seed, epoch, row and number."""
        pictures = [_picture(pixels, size) for pixels, size in zip(canvases.pixels.cpu(), canvases.sizes.tolist())]
        views: list[View] = []
        with _generators():
            for number in numbers:
                seeds = [hashed(seed, epoch, row, number) for row in rows.tolist()]
                planes = torch.stack([self._view(picture, each) for picture, each in zip(pictures, seeds)], 1)
                view = ops.normalised(planes, self.mean, self.std).permute(0, 3, 1, 2)
                views.append({"pixels": view.to(canvases.pixels.device)})
        return views

    def _view(self, picture: Image.Image, seed: int) -> Tensor:
        """(3, S, S) from 0 to 1, as torch, numpy and random draw from ``seed``."""
        if self.transform not in _transforms:
            raise UserError(
                f"the views of this run are made by a function of your own ({self.transform:.60}): "
                "give it again, lookalike.pretrain(..., view=...)"
            )
        torch.default_generator.manual_seed(seed & (1 << 63) - 1)  # ten times as fast as torch.manual_seed
        random.seed(seed)
        np.random.seed(seed & (1 << 32) - 1)
        out = _transforms[self.transform](picture)
        if isinstance(out, Image.Image):
            out = torch.from_numpy(np.array(out.convert("RGB"))).permute(2, 0, 1)
        if not isinstance(out, Tensor):
            raise UserError(f"view: {self.transform:.60} gives {type(out).__name__}, not a picture or a tensor")
        values = out.float() / 255 if out.dtype == torch.uint8 else out.float()
        if float(values.min()) < -1e-3 or float(values.max()) > 1 + 1e-3:
            raise UserError(
                f"view: {self.transform:.60} gives values outside 0 to 1: leave out Normalize, which follows"
            )
        return values


@contextmanager
def _generators() -> Iterator[None]:
    """What torch, numpy and random drew before goes on after."""
    before = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.default_generator.set_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def _picture(pixels: Tensor, size: Sequence[int]) -> Image.Image:
    """A canvas (3, H, W) in the proportions of the picture that it was, of ``size`` (height, width)."""
    height, width = pixels.shape[1:]
    scale = min(height / size[0], width / size[1])
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return picture.resize((max(1, round(size[1] * scale)), max(1, round(size[0] * scale))), Image.Resampling.BICUBIC)
