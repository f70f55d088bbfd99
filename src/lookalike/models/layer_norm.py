"""LayerNorm of a residual stream, with the addition before it: on a GPU in one pass over memory."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lookalike.core.devices import product_type
from lookalike.core.kernels import built

_WIDEST = 4096  # a row that a program holds in registers
_ADDED = (torch.float32, torch.bfloat16, torch.float16)


def add_norm(
    x: Tensor, added: Tensor | None, norm: nn.LayerNorm, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """(..., width) x with what is ``added`` to it, if anything, and the norm of that.

    A GPU writes the norm in ``dtype``, or else in the type that a linear layer would turn it into.
    """
    if not _on_a_gpu(x, added, norm) or (kernels := built("models.layer_norm_triton")) is None:
        total = x if added is None else x + added
        return total, norm(total)
    found = _AddNorm.apply(x, added, norm.weight, norm.bias, norm.eps, dtype or product_type(x), kernels)
    return cast("tuple[Tensor, Tensor]", found)


def _on_a_gpu(x: Tensor, added: Tensor | None, norm: nn.LayerNorm) -> bool:
    """Whether it is there, in types and widths that the kernels know; on ``meta`` what a GPU would do is counted."""
    wide = x.dtype == norm.weight.dtype == torch.float32 and x.shape[-1] <= _WIDEST
    return wide and (x.is_cuda or x.is_meta) and (added is None or added.dtype in _ADDED)


class _AddNorm(torch.autograd.Function):
    """By ``kernels``; the gradient of the stream passes through, so that adding it up is part of the same pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, *settings: Any) -> Any:
        eps, dtype, kernels = settings
        ctx.set_materialize_grads(False)
        whole = None if added is None else added.contiguous()
        total, out = kernels.forward(x.contiguous(), whole, weight, bias, eps, dtype)
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
        to_x, to_added, to_weight, to_bias = ctx.kernels.backward(
            by_total, by_out.contiguous(), total.contiguous(), weight, ctx.eps, narrow
        )
        if ctx.added is not None and narrow is None:
            to_added = to_x
        return to_x, None if ctx.added is None else to_added, to_weight, to_bias, None, None, None
