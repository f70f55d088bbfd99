"""Convolutions that a processor computes in the fastest of three ways: torch's, by Winograd, or of unfolded pictures.

An encoder replaces its convolutions (``quick_convolutions``); nothing else knows of them. Which way is taken is a rule
over shapes, types and the processor, not a measurement at the start of a process: the ways round differently, and a
clock may answer otherwise when a run is resumed or in the next rank, which would then not repeat the bytes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn

from lookalike.core.devices import computes_in_bf16, product_type
from lookalike.models.unfolded import Inside, Unfolded, Ways
from lookalike.models.winograd import Convolution, best_side


class QuickConv2d(nn.Conv2d):
    """A convolution of side 1 or 3, padded by half of it; the state is nn.Conv2d's."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, D, ⌈H / stride⌉, ⌈W / stride⌉)."""
        if x.device.type != "cpu" or self.bias is not None or _traced():
            return super().forward(x)
        kind, stride = product_type(x), self.stride[0]
        if torch.float64 in (x.dtype, self.weight.dtype):  # which autocast leaves as it is
            return super().forward(x)
        if border_is_much(x, self.weight, stride):
            return cast("Tensor", Inside.apply(x.to(kind), self.weight.to(kind), stride))
        if self.rewritable and fewer_products_pay(x, self.weight):
            return cast("Tensor", Convolution.apply(x, self.weight))
        if kind == torch.bfloat16 and any(ways := ways_of(x, self.weight, stride)):
            return cast("Tensor", Unfolded.apply(x.to(kind), self.weight.to(kind), stride, ways))
        return super().forward(x)

    @property
    def rewritable(self) -> bool:
        """Whether it is of the kind that Winograd's products are for."""
        return self.kernel_size == (3, 3) and self.stride == (1, 1)


def _traced() -> bool:
    """A graph should hold one convolution, not these loops."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]


def fewer_products_pay(x: Tensor, weight: Tensor) -> bool:
    """Whether Winograd was measured to be faster than torch's own convolution, with AVX2 and MKL (docs/results.md).

    Under 64 channels the transforms cost more than they save; in little batches those of the weights do.
    """
    height, width = x.shape[2:]
    side = best_side(max(height, width))
    return (
        x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and _multiplies_in_fp32()
        and min(weight.shape[:2]) >= (64 if min(height, width) > 6 else 96)
        and len(x) * -(-height // side) * -(-width // side) >= 64
    )


def border_is_much(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Whether all results see the border alike, and each is worth a product of its own, in fp32 and bf16."""
    alike = all(side <= 2 or (side == 3 and stride == 2) for side in x.shape[2:])
    return alike and weight.shape[2] == 3 and min(len(x), *weight.shape[:2]) >= 64


def ways_of(x: Tensor, weight: Tensor, stride: int) -> Ways:
    """Which products of unfolded pictures were measured to be faster than torch's, in bf16."""
    pixels = -(-x.shape[2] // stride) * -(-x.shape[3] // stride)
    if not _multiplies_tiles():
        return Ways(by_weight=pixels <= (64 if stride == 2 else 9) and computes_in_bf16(x.device))
    few = pixels <= 4 or (pixels <= 16 and (stride == 2 or weight.shape[1] >= 256))
    return Ways(few, few, pixels <= 64)


@lru_cache
def _multiplies_in_fp32() -> bool:
    """Whether the processor is fastest in fp32, by products that are fast enough to gain from fewer of them."""
    mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return mkl and torch.backends.cpu.get_cpu_capability() == "AVX2"


@lru_cache
def _multiplies_tiles() -> bool:
    """Whether the processor multiplies tiles of matrices (AMX)."""
    return torch.cpu._is_amx_tile_supported()


def _fits(module: nn.Module) -> bool:
    """Whether this is a convolution of the kinds that are replaced here."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size in ((1, 1), (3, 3))
        and module.padding == tuple(side // 2 for side in module.kernel_size)
        and module.stride in ((1, 1), (2, 2))
        and (module.dilation, module.groups, module.padding_mode) == ((1, 1), 1, "zeros")
        and module.bias is None
    )


def quick_convolutions(module: nn.Module) -> nn.Module:
    """Replace every convolution that fits in ``module``; weights, names and shapes stay the same."""
    for part in module.modules():
        if _fits(part):
            part.__class__ = QuickConv2d
    return module
