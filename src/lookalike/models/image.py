"""Backbones for pictures and for clips. A value says which; ``build`` gives a module and its width F.

The module takes ``pixels``: (B, 3, S, S) of pictures, (B, 3, T, S, S) of clips.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookalike.core.errors import Bounded, Limit, PixelSide, UserError, Width
from lookalike.models.norm import GroupedBatchNorm2d, GroupedBatchNorm3d, group_norms


class Pixels(nn.Module):
    """A network from another library, called by keyword; exports strip the ``net.`` that it adds to names."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, F)."""
        features: Tensor = self.net(pixels)
        return features


@dataclass(frozen=True)
class ResNet:
    """torchvision's ResNets; the ``small`` stem (3×3, stride 1, no pooling) is the usual one for 32-pixel pictures."""

    name: str = "resnet50"
    stem: Literal["imagenet", "small"] = "imagenet"
    zero_init: bool = False  # residual branches begin at zero, by their last BatchNorm (Goyal et al., arXiv 1706.02677)

    def build(self, group: int) -> tuple[nn.Module, int]:
        """Random weights, BatchNorm in groups of ``group`` examples, no classifier."""
        import torchvision

        from lookalike.models.activated import activate_in_norms

        try:
            options = {"zero_init_residual": True} if self.zero_init else {}
            net = torchvision.models.get_model(self.name, weights=None, **options)
            features = int(net.fc.in_features)
        except (ValueError, AttributeError, TypeError):
            raise UserError(
                f"model.name {self.name!r} is not a ResNet of torchvision; try resnet18 or resnet50"
            ) from None
        net.fc = nn.Identity()
        if self.stem == "small":
            net.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
            net.maxpool = nn.Identity()
        return Pixels(activate_in_norms(group_norms(net, group))), features


@dataclass(frozen=True)
class Torchvision:
    """Any other classification model of torchvision, without its last layer."""

    name: str = "mobilenet_v3_large"

    def build(self, group: int) -> tuple[nn.Module, int]:
        """Random weights, BatchNorm in groups of ``group`` examples; F is the width that the last layer took."""
        import torchvision

        options = dict.fromkeys(("transform_input", "aux_logits", "init_weights"), False) if self._inception() else {}
        try:
            module = torchvision.models.get_model_builder(self.name).__module__
            if module.count(".") != 2:  # detection, segmentation and the like lie deeper
                raise ValueError(module)
            net = torchvision.models.get_model(self.name, weights=None, **options)
        except ValueError:
            raise UserError(f"model.name {self.name!r} is not a classification model of torchvision") from None
        linear = [
            name for name, part in net.named_modules() if isinstance(part, nn.Linear) and part.out_features == 1000
        ]
        if not linear:
            raise UserError(f"torchvision's {self.name} ends in no linear layer that can be removed: take another")
        features = net.get_submodule(linear[-1]).in_features
        net.set_submodule(linear[-1], nn.Identity())
        if self._inception():
            net.transform_input = True  # to the colours of its published weights
        return Pixels(group_norms(net, group)), cast("int", features)

    def _inception(self) -> bool:
        return self.name in ("googlenet", "inception_v3")


class TimmPixels(Pixels):
    """A network of timm, many of which take pictures of one size only and say so in their own ways."""

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, F)."""
        try:
            return super().forward(pixels)
        except (AssertionError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or not re.search("height|width|size", str(error)):
                raise
            height, width = pixels.shape[2:]
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(
                f"this model of timm cannot take pictures of {height} by {width} pixels ({reason}): "
                f"try --model.size {height}, other sizes of views, or another model.name"
            ) from error


@dataclass(frozen=True)
class Timm(Bounded):
    """Any backbone of timm by its name, without a classifier.

    Transformers whose positions timm can resample take any size that their patches divide; ``size`` says at which they
    are learned. Others see pictures of that size only.
    """

    name: str = "resnet50"
    size: PixelSide | None = None  # side in pixels that a transformer is made for; None: what timm made it for
    pool: str | None = None  # how positions become one feature, in timm's words; None: as timm has it

    def build(self, group: int) -> tuple[nn.Module, int]:
        """Random weights; BatchNorm, where the model has it, in groups of ``group`` examples."""
        import timm

        from lookalike.models.depthwise import exact_gradients

        if not timm.is_model(self.name):
            near = timm.list_models(f"*{self.name.split('_')[0].split('.')[0]}*")[:3]
            hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() names them"
            raise UserError(f"model.name {self.name!r} is not a model of timm; {hint}")
        net = self._create()
        width = getattr(net, "head_hidden_size", None) or net.num_features  # of the few that keep a layer after pooling
        return TimmPixels(exact_gradients(group_norms(net, group))), cast("int", width)

    def _create(self) -> nn.Module:
        """For any size of picture first: only some constructors have that option, and the others refuse it at once."""
        import timm

        sized: dict[str, Any] = {} if self.size is None else {"img_size": self.size}
        sized |= {} if self.pool is None else {"global_pool": self.pool}
        for options in ({"dynamic_img_size": True, **sized}, sized):
            try:
                net: nn.Module = timm.create_model(self.name, pretrained=False, num_classes=0, **options)
                return net
            except TypeError as error:
                refused = error
        if not sized:
            raise refused
        what = "model.size" if self.pool is None else "model.pool"
        raise UserError(f"{what}: {self.name} of timm is not made for one {what[6:]}; leave it out") from refused


# ---- small ResNets ----


@dataclass(frozen=True)
class SmallResNet(Bounded):
    """A ResNet for processors without an accelerator: its first convolution shrinks the picture by ``stride``."""

    widths: tuple[Width, ...] = (32, 64, 128, 256)  # of the stages, each of which halves the resolution
    blocks: Annotated[tuple[int, ...], Limit(1, 1000)] = (1, 1, 1, 1)
    kernel: Annotated[int, Limit(1, 64)] = 3  # side of the first convolution
    stride: Annotated[int, Limit(1, 64)] = 2
    joined: Annotated[int, Limit(1, 1000)] = 1
    """Last stages, as far as there are, that evaluations see side by side."""
    grid: Annotated[int, Limit(1, 1024)] = 1
    """Cells a side over which evaluations take means of the first joined stage; each later one has half as many."""
    trained: Annotated[int, Limit(1, 1000)] = 1
    """Last stages, as far as there are, whose means the head sees side by side."""

    def build(self, group: int) -> tuple[nn.Module, int]:
        """Random weights; F is the width of the stages that the head sees."""
        if len(self.widths) != len(self.blocks):
            raise UserError(f"model.widths has {len(self.widths)} stages, model.blocks {len(self.blocks)}: set both")
        return SmallResNetBackbone(self, group), sum(self.widths[-self.trained :])


class ResidualBlock(nn.Module):
    """Two convolutions of side 3 beside a shortcut (He et al. 2016), which averages where it shrinks (ResNet-D)."""

    def __init__(
        self,
        convolution: type[nn.Conv2d | nn.Conv3d],
        before: int,
        width: int,
        stride: int | tuple[int, ...],
        group: int,
    ) -> None:
        super().__init__()
        pictures = convolution is nn.Conv2d
        norm = GroupedBatchNorm2d if pictures else GroupedBatchNorm3d
        self.conv1 = convolution(before, width, 3, stride, 1, bias=False)  # type: ignore[arg-type]
        self.norm1 = norm(width, group)
        self.conv2 = convolution(width, width, 3, 1, 1, bias=False)
        self.norm2 = norm(width, group)
        self.shortcut: nn.Module = nn.Identity()
        if self.conv1.stride != self.conv2.stride or before != width:
            mean = nn.AvgPool2d if pictures else nn.AvgPool3d
            self.shortcut = nn.Sequential(
                mean(stride, ceil_mode=True),  # type: ignore[arg-type]  # 3 pixels become 2, as beside
                convolution(before, width, 1, bias=False),
                norm(width, group),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, ...) → (B, width, ...), each side divided by the stride."""
        inner = self.norm1(self.conv1(x), activate=True)
        out: Tensor = self.norm2(self.conv2(inner), self.shortcut(x))
        return out


class ResidualBackbone(nn.Module):
    """Stem, residual blocks, mean over positions."""

    def __init__(self, stem: nn.Conv2d | nn.Conv3d, blocks: Iterable[tuple[int, Any]], group: int) -> None:
        """``blocks``: the width and the stride of each."""
        super().__init__()
        convolution = type(stem)
        self.stem = stem
        self.norm = (GroupedBatchNorm2d if convolution is nn.Conv2d else GroupedBatchNorm3d)(stem.out_channels, group)
        before, layers = stem.out_channels, []
        for width, stride in blocks:
            layers.append(ResidualBlock(convolution, before, width, stride, group))
            before = width
        self.blocks = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, convolution):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) or (B, 3, T, S, S) → (B, F)."""
        x = self.blocks(self.norm(self.stem(pixels), activate=True))
        return torch.mean(x, dim=tuple(range(2, x.dim())))


class SmallResNetBackbone(ResidualBackbone):
    """Of pictures: stages that each halve the resolution."""

    def __init__(self, spec: SmallResNet, group: int) -> None:
        padding = (spec.kernel - spec.stride + 1) // 2
        stem = nn.Conv2d(3, spec.widths[0], spec.kernel, spec.stride, padding, bias=False)
        blocks = [
            (width, 2 if stage > 0 and number == 0 else 1)
            for stage, (width, count) in enumerate(zip(spec.widths, spec.blocks))
            for number in range(count)
        ]
        super().__init__(stem, blocks, group)
        every = [number - 1 for number in accumulate(spec.blocks)]
        ends = every[-spec.joined :]
        self.cells = {end: max(1, spec.grid >> order) for order, end in enumerate(ends)}  # a side, by number of block
        self.trained = dict.fromkeys(every[-spec.trained :], 1)
        self.evaluated_width = sum(
            width * side**2 for width, side in zip(spec.widths[-spec.joined :], self.cells.values())
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, F): means over the picture of the stages that the head sees, the last one last."""
        return self._stages(pixels, self.trained)

    def evaluated(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, evaluated_width): means over cells of the joined stages, the last one last."""
        return self._stages(pixels, self.cells)

    def _stages(self, pixels: Tensor, cells: Mapping[int, int]) -> Tensor:
        x, means = self.norm(self.stem(pixels), activate=True), list[Tensor]()
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in cells:
                means.append(over_cells(x, cells[number]))
        return torch.cat(means, 1) if len(means) > 1 else means[0]


def over_cells(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) → (B, C · side²): means over cells, which overlap by a position where they do not divide it."""
    return torch.mean(x, dim=(2, 3)) if side == 1 else F.adaptive_avg_pool2d(x, side).flatten(1)


# ---- clips ----


@dataclass(frozen=True)
class VideoResNet:
    """torchvision's ResNets of 18 layers for videos (Tran et al. 2018, arXiv 1711.11248)."""

    name: Literal["r3d_18", "mc3_18", "r2plus1d_18"] = "r3d_18"

    def build(self, group: int) -> tuple[nn.Module, int]:
        """Random weights, BatchNorm in groups of ``group`` examples, no classifier."""
        import torchvision

        net = torchvision.models.get_model(self.name, weights=None)
        features = int(net.fc.in_features)
        net.fc = nn.Identity()
        return Pixels(group_norms(net, group)), features


@dataclass(frozen=True)
class SmallVideoResNet(Bounded):
    """A ResNet of 3×3×3 convolutions for processors: its first one shrinks pictures by ``stride`` and no time.

    From the second stage on each halves the resolution; the last ``slow`` of them halve time, too.
    """

    widths: tuple[Width, ...] = (16, 32, 64, 128)
    kernel: Annotated[int, Limit(1, 64)] = 5  # side of the first convolution, in pixels; it sees three frames
    stride: Annotated[int, Limit(1, 64)] = 4
    slow: Annotated[int, Limit(0, 1000)] = 2

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
