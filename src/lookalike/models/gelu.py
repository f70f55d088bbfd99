"""A linear layer and GELU: in bf16 a GPU adds the bias in the pass of the activation, and sums its gradient there."""

from __future__ import annotations

from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lookalike.core.devices import product_type
from lookalike.core.kernels import built

_NARROW = (torch.bfloat16, torch.float16)


def linear_gelu(layer: nn.Linear, x: Tensor) -> Tensor:
    """GELU of the layer's output."""
    if (kernels := _kernels(layer, x)) is None:
        return F.gelu(layer(x))
    return cast("Tensor", _BiasGELU.apply(F.linear(x, layer.weight), layer.bias, kernels))


def _kernels(layer: nn.Linear, x: Tensor) -> ModuleType | None:
    """Only for narrow types, whose rounding is coarser than that of the kernels' polynomial."""
    narrow = x.is_cuda and product_type(x) in _NARROW and layer.bias.dtype == torch.float32
    return built("models.gelu_triton") if narrow else None


class _BiasGELU(torch.autograd.Function):
    """By ``kernels``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, kernels: ModuleType) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, bias)
        ctx.kernels = kernels
        return cast("Tensor", kernels.forward(x, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.kernels.backward(grad.contiguous(), *ctx.saved_tensors), None
