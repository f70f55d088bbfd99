"""Layers of a transformer that are quicker than torch's own operations, which they are made of where nothing else runs.

On a GPU, in one pass over memory (core/kernels.py): LayerNorm with the addition to the residual stream, and in narrow
types GELU with the bias of the linear layer. On a processor, in bf16: the gradients of attention, as products of
matrices. torch's own take 45 ms for 32 pictures of 65 tokens and 3 heads, of which its products need 4 (torch 2.14, one
thread of an Intel Xeon with AMX); what it computes forward is quick.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lookalike.core.devices import product_type
from lookalike.core.kernels import load

_WIDEST = 4096  # a row that a program holds in registers
_NARROW = (torch.bfloat16, torch.float16)


def add_norm(
    x: Tensor, added: Tensor | None, norm: nn.LayerNorm, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """(..., width) the sum of x and ``added``, if there is any, and the norm of the sum.

    A GPU writes the norm in ``dtype``, or else in the type that a linear layer would turn it into.
    """
    if (kernels := _norm_kernels(x, added, norm)) is None:
        total = x if added is None else x + added
        return total, norm(total)
    outputs = _AddNorm.apply(x, added, norm.weight, norm.bias, norm.eps, dtype or product_type(x), kernels)
    return cast("tuple[Tensor, Tensor]", outputs)


def linear_gelu(layer: nn.Linear, x: Tensor) -> Tensor:
    """GELU of the layer's output."""
    if (kernels := _gelu_kernels(layer, x)) is None:
        return F.gelu(layer(x))
    return cast("Tensor", _BiasGELU.apply(F.linear(x, layer.weight), layer.bias, kernels))


def _norm_kernels(x: Tensor, added: Tensor | None, norm: nn.LayerNorm) -> ModuleType | None:
    """On a GPU, for the types and widths that the kernels know; on ``meta`` what a GPU would do is counted."""
    known = x.dtype == norm.weight.dtype == torch.float32 and x.shape[-1] <= _WIDEST
    known = known and (added is None or added.dtype in (torch.float32, *_NARROW))
    return load("models.fused_triton") if known and (x.is_cuda or x.is_meta) else None


def _gelu_kernels(layer: nn.Linear, x: Tensor) -> ModuleType | None:
    """Only for narrow types, whose rounding is coarser than that of the kernels' polynomial."""
    narrow = x.is_cuda and product_type(x) in _NARROW and layer.bias.dtype == torch.float32
    return load("models.fused_triton") if narrow else None


class _AddNorm(torch.autograd.Function):
    """By ``kernels``; the gradient of the stream passes through, so that adding it up is part of the same pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, *settings: Any) -> Any:
        eps, dtype, kernels = settings
        ctx.set_materialize_grads(False)
        whole = None if added is None else added.contiguous()
        total, out = kernels.add_norm(x.contiguous(), whole, weight, bias, eps, dtype)
        total = x if added is None else total
        ctx.save_for_backward(total, weight)
        ctx.kernels, ctx.eps, ctx.dtype = kernels, eps, dtype
        ctx.added = None if added is None else added.dtype
        return total, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_total: Tensor | None, by_out: Tensor | None) -> tuple[Tensor | None, ...]:
        total, weight = ctx.saved_tensors
        by_out = torch.zeros_like(total, dtype=ctx.dtype) if by_out is None else by_out
        by_total = None if by_total is None else by_total.contiguous()
        narrow = None if ctx.added == total.dtype else ctx.added
        to_x, to_added, to_weight, to_bias = ctx.kernels.add_norm_backward(
            by_total, by_out.contiguous(), total.contiguous(), weight, ctx.eps, narrow
        )
        if ctx.added is not None and narrow is None:
            to_added = to_x
        return to_x, None if ctx.added is None else to_added, to_weight, to_bias, None, None, None


class _BiasGELU(torch.autograd.Function):
    """By ``kernels``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, kernels: ModuleType) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, bias)
        ctx.kernels = kernels
        return cast("Tensor", kernels.bias_gelu(x, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.kernels.bias_gelu_backward(grad.contiguous(), *ctx.saved_tensors), None


def attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, heads, N, d): for each query the mean of the values (B, heads, M, d), weighed by the keys' scaled products.

    Where ``mask``, which is broadcast to (B, heads, N, M), is False, a key is not there.
    """
    learns = torch.is_grad_enabled() and query.requires_grad
    if learns and query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return cast("Tensor", _Attended.apply(query, key, value, mask))
    return F.scaled_dot_product_attention(query, key, value, mask)


class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        return F.scaled_dot_product_attention(query, key, value, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        scale = query.shape[-1] ** -0.5
        logits = (query @ key.mT).float().mul_(scale)
        if mask is not None:
            logits.masked_fill_(~mask, -torch.inf)
        shares = logits.softmax(-1)
        by_shares = (grad @ value.mT).float()
        by_logits = torch.ops.aten._softmax_backward_data(by_shares, shares, -1, torch.float32)
        by_products = by_logits.mul_(scale).to(query.dtype)
        return by_products @ key, by_products.mT @ query, shares.to(query.dtype).mT @ grad, None
