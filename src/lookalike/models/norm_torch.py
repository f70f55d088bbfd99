"""Grouped BatchNorm in torch's own operations, for GPUs where Triton is not to be had and for float64.

The groups are a dimension of one view, so that the number of operations does not depend on how many there are.
Arguments and results are those of norm_triton; arithmetic is fp32, or float64 where the input is.
"""

from __future__ import annotations

import torch
from torch import Tensor


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    groups: int,
    eps: float,
    momentum: float,
    activate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised (B, C, ...), means and variances (groups, C); ``x`` and ``residual`` lie channels last."""
    wide = _wide(x, groups)
    variance, mean = torch.var_mean(wide, 1, correction=0)
    y = (wide - mean[:, None]) * _scale(variance, weight, eps)[:, None]
    if bias is not None:
        y += bias
    if residual is not None:
        y += _rows(residual, groups)
    out = torch.empty_like(x)
    _rows(out, groups).copy_(y.relu_() if activate else y)
    unbiased = variance.mean(0) * (wide.shape[1] / max(1, wide.shape[1] - 1))
    running_mean.lerp_(mean.mean(0).to(running_mean.dtype), momentum)
    running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return out, mean, variance


def backward(
    grad: Tensor,
    x: Tensor,
    out: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    groups: int,
    eps: float,
    activate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients by x, by what was added (empty without ``out``), by weight and by bias; all lie channels last."""
    away, scale = _wide(x, groups) - mean[:, None], _scale(variance, weight, eps)[:, None]
    masked = grad.new_empty(0)
    if out is not None:
        masked = grad = torch.ops.aten.threshold_backward(grad, out, 0)
    upstream = _wide(grad, groups)
    if activate and out is None:
        y = away * scale
        upstream = torch.ops.aten.threshold_backward(upstream, y if bias is None else y + bias, 0)
    level, product, rate = upstream.sum(1), (upstream * away).sum(1), (variance + eps).rsqrt()
    slope = product * (rate * rate / away.shape[1])
    to_x = torch.empty_like(x)
    _rows(to_x, groups).copy_((upstream - (level / away.shape[1])[:, None] - away * slope[:, None]) * scale)
    return to_x, masked, (product * rate).sum(0), level.sum(0)


def _rows(x: Tensor, groups: int) -> Tensor:
    """A view (groups, n, C) of (B, C, ...), whose memory is that of channels last."""
    return x.movedim(1, -1).view(groups, -1, x.shape[1])


def _wide(x: Tensor, groups: int) -> Tensor:
    return _rows(x, groups).to(torch.promote_types(x.dtype, torch.float32))


def _scale(variance: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    rate = (variance + eps).rsqrt()
    return rate if weight is None else rate * weight
