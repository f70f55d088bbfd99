"""Depthwise convolutions, whose gradients a processor makes in fp32.

In bf16 oneDNN falls back to plain loops: the gradient of 64 × 672 × 11 × 11 pixels by a stride of 2 took 122 ms on one
core of a Zen 5, and 0.6 in fp32; that of its kernels 114 ms, and 13 (torch 2.14).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, settings: tuple[list[int], list[int], list[int]]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = settings
        return torch.conv2d(x, weight, None, *settings, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted, place = [*ctx.needs_input_grad[:2], False], (False, [0, 0], len(weight))
        parts = (grad.float(), x.float(), weight.float(), None)
        by_x, by_weight, _ = torch.ops.aten.convolution_backward(*parts, *ctx.settings, *place, wanted)
        return *(None if by is None else by.to(x.dtype) for by in (by_x, by_weight)), None


class Depthwise(nn.Conv2d):
    """The same as what it replaces, bias, names and padding included; other gradients in bf16 on a processor."""

    same = False  # padded as TensorFlow does, and timm's ``Conv2dSame``

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, ...)."""
        stride, padding, dilation = list(self.stride), [int(p) for p in self.padding], list(self.dilation)
        if self.same:
            from timm.layers.padding import pad_same

            x, padding = pad_same(x, list(self.kernel_size), stride, dilation), [0, 0]
        settings = stride, padding, dilation
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled():
            kind = torch.get_autocast_dtype("cpu")
            out: Tensor = _Depthwise.apply(x.to(kind), self.weight.to(kind), settings)
            return out if self.bias is None else out + self.bias.to(kind)[:, None, None]
        return torch.conv2d(x, self.weight, self.bias, stride, padding, dilation, self.groups)


def exact_gradients(module: nn.Module) -> nn.Module:
    """Make every depthwise convolution below ``module`` one of these; weights and names stay."""
    from timm.layers.conv2d_same import Conv2dSame

    for part in module.modules():
        if type(part) not in (nn.Conv2d, Conv2dSame) or not isinstance(part, nn.Conv2d):
            continue
        if 1 < part.groups == part.in_channels == part.out_channels and isinstance(part.padding, tuple):
            same, part.__class__ = type(part) is Conv2dSame, Depthwise
            part.same = same  # type: ignore[assignment]
    return module
