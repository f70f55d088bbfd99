"""Maps of features in place of one mean: what detectors and segmenters stand on.

Backbones whose last strides become dilation under a head that names pixels, and backbones as pyramids of stages.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookalike.core.errors import UserError
from lookalike.models.image import Pixels, SmallResNetBackbone, TimmPixels
from lookalike.models.norm import GroupedBatchNorm2d, set_group

_SIDE = 128  # in pixels, of the picture that the strides are measured with
_MAIN = re.compile(r"conv\d")  # the convolutions of a block that are not its shortcut


class Segmenter(nn.Module):
    """FCN on a dilated backbone (MoCo, arXiv 1911.05722, appendix): two 3×3 convolutions and one of 1×1."""

    def __init__(
        self, backbone: nn.Module, features: int, classes: int, width: int, dilation: int, stride: int, group: int
    ) -> None:
        """A copy of ``backbone``; BatchNorm, also in the new layers, in groups of ``group`` examples."""
        super().__init__()
        self.body = dilated(backbone, stride)
        layers: list[nn.Module] = []
        for before in (features, width):
            convolution = nn.Conv2d(before, width, 3, padding=dilation, dilation=dilation, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers += [convolution, GroupedBatchNorm2d(width, group), nn.ReLU(inplace=True)]
        last = nn.Conv2d(width, classes, 1)
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.head = nn.Sequential(*layers, last)
        set_group(self, group)

    def forward(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, 3, H, W) → logits (B, C, *size)."""
        logits: Tensor = self.head(self.body(pixels))
        return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)


def dilated(backbone: nn.Module, stride: int) -> nn.Sequential:
    """A copy that maps (B, 3, H, W) to features (B, F, H / s, W / s), with s at most ``stride`` where stages allow it.

    A stride that would lead beyond is left out, and what follows looks at places as far apart as it did before: every
    s'th place of the result is what the strided network computes (à trous). With ``stride`` 16 that is the last stage
    of a ResNet-50, as in the papers. Raises UserError for other networks than ResNets.
    """
    parts = stem_and_blocks(copy.deepcopy(backbone))
    if parts is None:
        raise UserError(
            "segmentation takes SmallResNet and torchvision's ResNets so far, "
            f"and this run's model is a {type(getattr(backbone, 'net', backbone)).__name__}"
        )
    stem, blocks = parts
    total, spread = stride_of(stem), 1
    for block in blocks:
        step = stride_of([block])
        if step > 1 and total * step > stride:
            _spread(block, spread, spread * step)
            spread *= step
        elif spread > 1:
            _spread(block, spread, spread)
        else:
            total *= step
    return nn.Sequential(*stem, *blocks)


def stem_and_blocks(backbone: nn.Module) -> tuple[list[nn.Module], list[nn.Module]] | None:
    """What comes before the first residual block, and the blocks; None where it is no ResNet that comes apart."""
    if isinstance(backbone, SmallResNetBackbone):
        return [backbone.stem, backbone.norm, nn.ReLU(inplace=True)], list(backbone.blocks)
    if not isinstance(backbone, Pixels):
        return None
    import torchvision

    net = backbone.net
    if not isinstance(net, torchvision.models.ResNet):
        return None
    stages = (net.layer1, net.layer2, net.layer3, net.layer4)
    return [net.conv1, net.bn1, net.relu, net.maxpool], [block for stage in stages for block in stage]


def stride_of(modules: list[nn.Module]) -> int:
    """By how much they shrink a picture together, shortcuts left out."""
    total = 1
    for module in modules:
        layers = [module] if isinstance(module, nn.Conv2d | nn.MaxPool2d) else [layer for _, layer in _main(module)]
        for layer in layers:
            total *= layer.stride if isinstance(layer.stride, int) else layer.stride[0]
    return total


def _main(block: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    for name, part in block.named_children():
        if isinstance(part, nn.Conv2d) and _MAIN.fullmatch(name):
            yield name, part


def _spread(block: nn.Module, before: int, after: int) -> None:
    """Take the stride out of a block: its input is spread by ``before``, what follows the stride by ``after``."""
    spread = before
    for name, layer in list(_main(block)):
        setattr(block, name, _without_stride(layer, spread))
        spread = after if layer.stride[0] > 1 else spread
    shortcut = getattr(block, "shortcut", None) or getattr(block, "downsample", None)
    if isinstance(shortcut, nn.Sequential):
        for i, inner in enumerate(shortcut):
            if isinstance(inner, nn.AvgPool2d):
                shortcut[i] = SpreadMean(before)
            elif isinstance(inner, nn.Conv2d):
                shortcut[i] = _without_stride(inner, before)


def _without_stride(old: nn.Conv2d, dilation: int) -> nn.Conv2d:
    """The same weights."""
    side = old.kernel_size[0]
    new = nn.Conv2d(
        *(old.in_channels, old.out_channels, side, 1, dilation * (side // 2), dilation, old.groups),
        bias=False,
        device="meta",
    )
    new.weight = old.weight
    return new


class SpreadMean(nn.Module):
    """What ``AvgPool2d(2, ceil_mode=True)`` gives at every place, of neighbours ``apart``; none lie beyond the edge."""

    def __init__(self, apart: int) -> None:
        super().__init__()
        self.apart = apart

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same."""
        for axis in (2, 3):
            place = torch.arange(x.shape[axis], device=x.device)
            neighbour = torch.where(place + self.apart < len(place), place + self.apart, place)
            x = (x + x.index_select(axis, neighbour)) / 2
        return x


# ---- pyramids ----


class Pyramid(nn.Module):
    """``widths`` and ``strides`` in pixels of its levels, the finest first."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.widths, self.strides = _measured(self)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → one (B, C, H / stride, W / stride) a level."""
        levels = []
        for stage in self.stages:
            pixels = stage(pixels)
            levels.append(pixels)
        return levels


class _TimmPyramid(Pyramid):
    """Of timm's networks, which know their own stages but do not come apart."""

    def __init__(self, net: nn.Module) -> None:
        nn.Module.__init__(self)
        self.net = net
        self.kept = slice(None)
        self.widths, self.strides = _measured(self)
        self.kept = slice(len(self.strides) - len({*self.strides}), None)  # a stem as coarse as its first stage is none
        self.widths, self.strides = self.widths[self.kept], self.strides[self.kept]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.net.forward_intermediates(pixels, intermediates_only=True)[self.kept]  # type: ignore[operator]
        return levels


def pyramid(backbone: nn.Module, group: int) -> Pyramid:
    """A copy of the backbone's weights as a pyramid, with BatchNorm in groups of ``group`` examples.

    Raises UserError for what has none, such as a transformer, whose layers all have one resolution.
    """
    result = _of(copy.deepcopy(backbone))
    if result is None or len(result.strides) < 2 or any(a >= b for a, b in pairwise(result.strides)):
        name = type(getattr(backbone, "net", backbone)).__name__
        raise UserError(
            f"the backbone ({name}) has no pyramid, whose levels grow coarser: boxes, masks and points want a run of a "
            "ResNet or of a convolutional network of timm"
        )
    set_group(result, group)
    return result


def _of(backbone: nn.Module) -> Pyramid | None:
    if parts := stem_and_blocks(backbone):
        return Pyramid(_stages(*parts))
    if isinstance(backbone, TimmPixels) and hasattr(backbone.net, "forward_intermediates"):
        with suppress(RuntimeError, ValueError, AssertionError, IndexError):  # of those that take one size only
            return _TimmPyramid(backbone.net)
    return None


def _stages(stem: list[nn.Module], blocks: list[nn.Module]) -> list[nn.Module]:
    """The stem with the first stage, then the others, each of which begins where the resolution is halved."""
    stages = [stem]
    for number, block in enumerate(blocks):
        if number and stride_of([block]) > 1:
            stages.append([])
        stages[-1].append(block)
    return [nn.Sequential(*stage) for stage in stages]


@torch.no_grad()
def _measured(pyramid: Pyramid) -> tuple[list[int], list[int]]:
    """Widths and strides, measured on a black picture; statistics of BatchNorm stay as they are."""
    parameter = next(pyramid.parameters())
    training = pyramid.training
    levels = pyramid.eval()(torch.zeros(1, 3, _SIDE, _SIDE, dtype=parameter.dtype, device=parameter.device))
    pyramid.train(training)
    return [level.shape[1] for level in levels], [_SIDE // level.shape[3] for level in levels]
