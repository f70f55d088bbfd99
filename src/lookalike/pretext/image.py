"""Two random views of each picture, made for whole batches on the device of the pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from lookalike.core.errors import SHARE, Bounded, Count, Limit, PixelSide, Probability, UserError
from lookalike.core.kernels import load
from lookalike.core.seeding import uniforms
from lookalike.pretext import ops
from lookalike.pretext.ops import STILL, GroupSlice, Numbers, Plan, Style, group_slices
from lookalike.types import Canvases, View

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
CIFAR_MEAN: Triple = (0.4914, 0.4822, 0.4465)
CIFAR_STD: Triple = (0.2023, 0.1994, 0.2010)  # as in the MoCo CIFAR notebook and lemniscate

_MASK = 8  # the number of the draws that choose patches, beside those of the two views
_GRAY = 128
_CHUNK = 1 << 18  # pixels a colour plane of a sub-batch on a CPU: fewer calls were faster than staying in L2 cache


class Draws:
    """Which of the uniform draws of (seed, epoch, row, view) decides what; new operations take columns at the end."""

    CROP = slice(0, 2 * ops.TRIES + 2)
    FLIP, JITTER = 22, 23
    ORDER = slice(24, 28)  # the four colour operations run in the order of these draws
    FACTORS = slice(28, 32)  # brightness, contrast, saturation, hue
    GRAY, BLUR, SIGMA, SOLARIZE = 32, 33, 34, 35
    COUNT = 36


def kernels_for(pixels: Tensor) -> ModuleType | None:
    """Those of ops_triton on a GPU, where they can be built."""
    return load("pretext.ops_triton") if pixels.is_cuda else None


@dataclass(frozen=True)
class ImageView(Bounded):
    """One random view: crop, mirror, change colours, blur; the defaults crop and mirror only."""

    size: PixelSide = 224
    scale: Annotated[tuple[float, float], SHARE] = (0.2, 1.0)  # area of the crop
    ratio: Annotated[tuple[float, float], Limit(0.01, 100)] = (3 / 4, 4 / 3)  # its width over its height
    flip: Probability = 0.5  # probability, as jitter, gray, blur and solarize
    jitter: Probability = 0.0
    brightness: Annotated[float, Limit(0, 10)] = 0.0  # factors within 1 - b and 1 + b, as contrast and saturation
    contrast: Annotated[float, Limit(0, 10)] = 0.0
    saturation: Annotated[float, Limit(0, 10)] = 0.0
    hue: Annotated[float, Limit(0, 0.5)] = 0.0  # turns, at most one half either way
    gray: Probability = 0.0
    blur: Probability = 0.0
    sigma: Annotated[tuple[float, float], Limit(0, 1000, above=True)] = (0.1, 2.0)  # pixels of the view
    kernel: Probability = 0.0  # side of the blur's kernel over the view's, odd (SimCLR 0.1); 0: three widest sigmas
    solarize: Probability = 0.0
    order: Literal["jitter first", "gray first"] = "jitter first"
    mean: Annotated[Triple, Limit(-1000, 1000)] = IMAGENET_MEAN
    std: Annotated[Triple, Limit(1e-6, 1000)] = IMAGENET_STD

    def __call__(self, canvases: Canvases, rows: Tensor, seed: int, epoch: int, view: int) -> View:
        """View number ``view`` of the examples at ``rows`` (B,): each a function of its canvas and the four numbers."""
        return self.views(canvases, rows, seed, epoch, [view])[0]

    def views(self, canvases: Canvases, rows: Tensor, seed: int, epoch: int, numbers: Sequence[int]) -> list[View]:
        """The views of these numbers, made together: what a call costs however few the examples are is paid once."""
        pixels, (height, width) = canvases.pixels, canvases.pixels.shape[2:]
        draws = torch.cat([uniforms(seed, epoch, rows, number, Draws.COUNT) for number in numbers])
        plan = self.plan(draws, canvases.sizes.repeat(len(numbers), 1), (height, width))
        kernels = kernels_for(pixels)
        out = kernels.views(pixels, plan, self._style()) if kernels else self._on_planes(pixels, plan)
        return [{"pixels": view.permute(0, 3, 1, 2)} for view in torch.split(out, len(rows))]

    def _on_planes(self, pixels: Tensor, plan: Plan) -> Tensor:
        """(B, S, S, 3) the views of a plan by operations of torch, group by group."""
        (height, width), device = pixels.shape[2:], pixels.device
        order = (2 * plan.group + plan.gray).argsort(stable=True)  # what is alike lies together
        plan = plan.ordered(order)
        slices, indices = group_slices(plan, self._places(plan.group, device))
        numbers = Numbers.of(plan, order, indices, device)
        axes = ops.axes(numbers.boxes, (height, width), self.size, numbers.flip)
        examples = numbers.order % len(pixels)
        out = torch.empty(len(order), self.size, self.size, 3, device=device)
        for part in slices:
            planes = ops.cropped(pixels.index_select(0, examples[part.place]), axes.at(part.place))
            self._recolour(planes, part, numbers)
            out.index_copy_(0, numbers.order[part.place], ops.normalised(planes, self.mean, self.std))
        return out

    def evaluation(self, canvases: Canvases, share: float = 1.0) -> View:
        """The centre square of each picture, its side ``share`` of the short side; nothing is random."""
        pixels, (height, width) = canvases.pixels, canvases.pixels.shape[2:]
        boxes = ops.on_canvas(ops.centre_squares(canvases.sizes, share), canvases.sizes, (height, width)).float()
        if kernels := kernels_for(pixels):
            style = replace(self, jitter=0.0, blur=0.0)._style()
            return {"pixels": kernels.views(pixels, Plan.crops(boxes), style).permute(0, 3, 1, 2)}
        axes = ops.axes(boxes.to(pixels.device), (height, width), self.size)
        out = torch.empty(len(pixels), self.size, self.size, 3, device=pixels.device)
        limit = self._limit(pixels.device)
        for start in range(0, len(pixels), limit):
            part = slice(start, start + limit)
            out[part] = ops.normalised(ops.cropped(pixels[part], axes.at(part)), self.mean, self.std)
        return {"pixels": out.permute(0, 3, 1, 2)}

    def displayable(self, view: View) -> Tensor:
        """The view's pixels back as uint8 (B, 3, S, S)."""
        return ops.displayable(view["pixels"], self.mean, self.std)

    def plan(self, draws: Tensor, sizes: Tensor, canvas: tuple[int, int]) -> Plan:
        """What ``draws`` (B, Draws.COUNT) mean for pictures of ``sizes`` (B, 2) on canvases (H, W)."""
        boxes = ops.crop_boxes(sizes, draws[:, Draws.CROP], self.scale, self.ratio)
        order = draws[:, Draws.ORDER].argsort(dim=1, stable=True)
        place = order.eq(ops.HUE).int().argmax(1)
        still = draws[:, Draws.JITTER] >= self.jitter
        return Plan(
            boxes=ops.on_canvas(boxes, sizes, canvas).float(),
            flip=draws[:, Draws.FLIP] < self.flip,
            gray=draws[:, Draws.GRAY] < self.gray,
            blur=draws[:, Draws.BLUR] < self.blur,
            solarize=draws[:, Draws.SOLARIZE] < self.solarize,
            group=torch.where(still, STILL, place if self.hue else ops.HUE),
            kinds=order[order != ops.HUE].view(-1, 3),
            factors=self._factors(draws[:, Draws.FACTORS]),
            sigma=self.sigma[0] + (self.sigma[1] - self.sigma[0]) * draws[:, Draws.SIGMA],
        )

    def _factors(self, draws: Tensor) -> Tensor:
        """(B, 4) the factors of ColorJitter from its four draws."""
        spread = (self.brightness, self.contrast, self.saturation)
        low = torch.tensor([*(max(0.0, 1 - s) for s in spread), -self.hue])
        high = torch.tensor([*(1 + s for s in spread), self.hue])
        return low + (high - low) * draws

    def _limit(self, device: torch.device) -> int:
        """How many examples at a time: enough for the CPU's cache, all of them elsewhere."""
        return max(8, _CHUNK // self.size**2) if device.type == "cpu" else 1 << 30

    def _places(self, group: Tensor, device: torch.device) -> Iterator[slice]:
        """Consecutive examples of one group, in about equal parts; ``group`` (B,) is sorted."""
        start, limit = 0, self._limit(device)
        counts: list[int] = torch.bincount(group).tolist()
        for count in counts:
            parts = math.ceil(count / limit)
            for i in range(parts):
                yield slice(start + count * i // parts, start + count * (i + 1) // parts)
            start += count

    def _recolour(self, planes: Tensor, part: GroupSlice, numbers: Numbers) -> None:
        """Everything after the crop, in place, on examples of one group."""
        if part.gray and self.order == "gray first":
            part.gray.change(planes, numbers, ops.grayed)
        if part.group != STILL:
            self._jitter(planes, part.group, numbers.blends[:, :, part.place], numbers.hues[:, part.place])
        if part.gray and self.order == "jitter first":
            part.gray.change(planes, numbers, ops.grayed)
        if part.blur:
            sigma = part.blur.of(numbers.sigma[part.place], numbers)
            part.blur.change(planes, numbers, lambda some: ops.blurred(some, sigma, self.radius()))
        if part.solarize:
            part.solarize.change(planes, numbers, ops.solarized)

    def _jitter(self, planes: Tensor, group: int, blends: Tensor, hues: Tensor) -> None:
        """ColorJitter: its four operations in each example's own order, the hue at the group's place in it."""
        for step, weights in enumerate(blends):
            if step == group and self.hue:
                ops.shift_hue(planes, hues)
            ops.adjust(planes, weights)
        if group == ops.HUE and self.hue:
            ops.shift_hue(planes, hues)

    def _style(self) -> Style:
        plain = self.jitter == self.blur == 0
        return Style(self.size, self.radius(), plain, self.order == "gray first", self.mean, self.std)

    def radius(self) -> int:
        """Pixels that the blur reaches to each side."""
        return int(self.kernel * self.size) // 2 if self.kernel else math.ceil(3 * self.sigma[1])


@dataclass(frozen=True)
class ViewPair(Bounded):
    """Two random views of pictures, and how evaluations see pictures."""

    modality: ClassVar[str] = "pictures"

    first: ImageView
    second: ImageView | None = None  # the same kind as the first where not given
    whole: PixelSide | None = None  # side at which evaluations see pictures: the first view's where not given

    def evaluation(self, canvases: Canvases, share: float = 1.0) -> View:
        """What evaluations encode: ``ImageView.evaluation`` of the first view, at ``whole`` pixels."""
        return replace(self.first, size=self.whole or self.first.size).evaluation(canvases, share)

    def shown(self) -> str:
        """What a run says of its views."""
        return f"views of {self.first.size} px"

    def displayable(self, first: View, second: View) -> tuple[Tensor, Tensor]:
        """Both views back as uint8 (B, 3, S, S)."""
        return self.first.displayable(first), (self.second or self.first).displayable(second)


@dataclass(frozen=True)
class TwoViews(ViewPair):
    """The pretext of momentum contrast: two random views of a picture belong together."""

    pairs: Count = 1  # that each picture gives in a step

    def __call__(self, canvases: Canvases, rows: Tensor, seed: int, epoch: int) -> tuple[View, View]:
        """Two views (pairs · B, ...) of the examples at ``rows`` (B,) of the source: all first pairs, then the next."""
        numbers = range(2 * self.pairs)
        if self.second is None:
            views = self.first.views(canvases, rows, seed, epoch, list(numbers))
        else:
            kinds = (self.first, self.second) * self.pairs
            views = [kind(canvases, rows, seed, epoch, number) for kind, number in zip(kinds, numbers)]
        return (views[0], views[1]) if self.pairs == 1 else (_together(views[::2]), _together(views[1::2]))

    def shown(self) -> str:
        """What a run says of its views."""
        return super().shown() if self.pairs == 1 else f"{2 * self.pairs} views of {self.first.size} px of each"

    def crops(self) -> ImageView:
        """What classifiers are trained on: the first view's crops and mirror images, at the size of evaluations."""
        size, view = self.whole or self.first.size, self.first
        return ImageView(size, view.scale, view.ratio, view.flip, mean=view.mean, std=view.std)


def _together(views: Sequence[View]) -> View:
    return {name: torch.cat([view[name] for view in views]) for name in views[0]}


@dataclass(frozen=True)
class OneView(TwoViews):
    """One random view a step, where keys are stored from steps before (InstDisc); it stands in both places."""

    def __call__(self, canvases: Canvases, rows: Tensor, seed: int, epoch: int) -> tuple[View, View]:
        """One view of the examples at ``rows`` (B,) of the source, twice."""
        view = self.first(canvases, rows, seed, epoch, 0)
        return view, view


@dataclass(frozen=True)
class Masked(TwoViews):
    """The query sees a random part of the patches, its key the whole (arXiv 2111.06377, section 3, for the mask).

    ``patch`` is the model's, so that what is hidden costs nothing: see ``ViTBackbone.tokens``.
    """

    share: Probability = 0.6  # of the patches, hidden
    patch: Annotated[int, Limit(1, 1024)] = 16  # side in pixels
    same: bool = False  # one crop on both sides: masked against whole, and no second view to make

    def __call__(self, canvases: Canvases, rows: Tensor, seed: int, epoch: int) -> tuple[View, View]:
        """Two views of the examples at ``rows`` (B,) of the source; the first says which patches it may ``keep``."""
        if self.same:
            first = second = self.first(canvases, rows, seed, epoch, 0)
        else:
            first, second = super().__call__(canvases, rows, seed, epoch)
        return {**first, "keep": self.keep(rows, seed, epoch)}, second

    def keep(self, rows: Tensor, seed: int, epoch: int) -> Tensor:
        """(B, n) the patches that stay visible, numbered by rows of the picture, ascending: equally many in each."""
        draws = uniforms(seed, epoch, rows, _MASK, self.patches())
        return draws.argsort(dim=1, stable=True)[:, : self.visible()].sort(dim=1).values

    def patches(self) -> int:
        """Of a view; raises UserError."""
        if self.first.size % self.patch or self.share == 1:
            raise UserError(
                f"views of {self.first.size} pixels do not divide into patches of {self.patch} of which "
                f"{self.share:g} are hidden: pretext.patch must divide pretext.first.size, and pretext.share be below 1"
            )
        return (self.first.size // self.patch) ** 2

    def visible(self) -> int:
        """Patches of a view that stay: at least one."""
        return max(1, round((1 - self.share) * self.patches()))

    def displayable(self, first: View, second: View) -> tuple[Tensor, Tensor]:
        """Both views back as uint8 (B, 3, S, S), the hidden patches gray."""
        query, key = super().displayable(first, second)
        across = self.first.size // self.patch
        visible = torch.zeros(len(query), across**2, dtype=torch.bool, device=query.device)
        visible = visible.scatter(1, first["keep"].to(query.device), True).view(-1, 1, across, across)
        wide = visible.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)
        return torch.where(wide, query, _GRAY), key


# ---- published views ----

MOCO_V1 = ImageView(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4, jitter=1.0, gray=0.2, order="gray first")
"""He et al. 2019, arXiv 1911.05722; moco/main_moco.py without ``--aug-plus``, and InstDisc's lemniscate.pytorch."""

MOCO_V2 = replace(MOCO_V1, hue=0.1, jitter=0.8, blur=0.5, order="jitter first")
"""Chen et al. 2020, arXiv 2003.04297; moco/main_moco.py with ``--aug-plus``."""

SIMCLR = replace(MOCO_V2, scale=(0.08, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, kernel=0.1)
"""Chen et al. 2020, arXiv 2002.05709, appendix A, colour strength 1."""

MOCO_V3_FIRST = replace(MOCO_V2, scale=(0.08, 1.0), saturation=0.2, blur=1.0)
"""Chen et al. 2021, arXiv 2104.02057; moco-v3/main_moco.py augmentation1 (crops from 0.2 for ResNet-50)."""

MOCO_V3_SECOND = replace(MOCO_V3_FIRST, blur=0.1, solarize=0.2)
"""Chen et al. 2021, arXiv 2104.02057; moco-v3/main_moco.py augmentation2 (crops from 0.2 for ResNet-50)."""

MOCO_CIFAR = replace(MOCO_V2, size=32, scale=(0.08, 1.0), blur=0.0, mean=CIFAR_MEAN, std=CIFAR_STD)
"""facebookresearch/moco, branch colab-notebook, moco_cifar10_demo.ipynb."""

INSTDISC_CIFAR = replace(MOCO_CIFAR, scale=(0.2, 1.0), hue=0.4, jitter=1.0)
"""Wu et al. 2018, arXiv 1805.01978; lemniscate.pytorch/cifar.py."""
