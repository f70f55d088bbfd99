"""BatchNorm whose statistics come from groups of a fixed number of examples.

"Whatever sits on this device" is not a definition: with it the mathematics would depend on the number of processes, and
on one device shuffling keys would do nothing. Groups make both independent of where the batch is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from lookalike.core.kernels import load


class _Grouped(torch.autograd.Function):
    """The native kernel once per group, on slices of the batch: encoding by group would cost a quarter of the speed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, ...]:
        x = x if x.is_contiguous() else _channels_last(x)  # in other layouts torch writes elsewhere than into ``out``
        out = torch.empty_like(x)
        mean, scale = (torch.empty(groups, x.shape[1], dtype=weight.dtype, device=x.device) for _ in range(2))
        for part, to, m, s in zip(x.tensor_split(groups), out.tensor_split(groups), mean, scale):
            torch.ops.aten.native_batch_norm.out(
                part, weight, bias, None, None, True, 0.0, eps, out=to, save_mean=m, save_invstd=s
            )
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.groups, ctx.eps = groups, eps
        ctx.mark_non_differentiable(mean, scale)
        return out, mean, scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, means, scales = ctx.saved_tensors
        groups: int = ctx.groups
        to_x = torch.empty_like(x)
        to_weight, to_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        slices = zip(x.tensor_split(groups), grad.tensor_split(groups), to_x.tensor_split(groups), means, scales)
        for part, upstream, to, mean, scale in slices:
            by_x, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
                upstream, part, weight, None, None, mean, scale, True, ctx.eps, [True, True, True]
            )
            to.copy_(by_x)
            to_weight += by_weight
            to_bias += by_bias
        return to_x, to_weight, to_bias, None, None


class _Together(torch.autograd.Function):
    """All groups at once by ``kernels`` (norm_triton), with what follows: an addition, an activation."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, *settings: Any
    ) -> Tensor:
        kernels, running_mean, running_var, groups, eps, momentum, activate = settings
        x, residual = _channels_last(x), residual if residual is None else _channels_last(residual)
        out, mean, variance = kernels.forward(
            x, residual, weight, bias, running_mean, running_var, groups, eps, momentum, activate
        )
        ctx.save_for_backward(x, out if residual is not None else None, weight, bias, mean, variance)
        ctx.kernels, ctx.settings = kernels, (groups, eps, activate)
        ctx.added = None if residual is None else residual.dtype
        return cast("Tensor", out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight = ctx.saved_tensors[2]
        by_x, by_added, *by_parameters = ctx.kernels.backward(_channels_last(grad), *ctx.saved_tensors, *ctx.settings)
        by_weight, by_bias = by_parameters if weight is not None else (None, None)
        return by_x, None if ctx.added is None else by_added.to(ctx.added), by_weight, by_bias, *[None] * 7


def _channels_last(x: Tensor) -> Tensor:
    """(B, C, ...) in whose memory the channels of a place lie side by side: itself, if it is so."""
    return x if (rows := x.movedim(1, -1)).is_contiguous() else rows.contiguous().movedim(-1, 1)


class _GroupedBatchNorm(_BatchNorm):
    """BatchNorm over groups of ``group`` consecutive examples; evaluation uses the running statistics as usual."""

    def __init__(self, features: int, group: int, affine: bool = True) -> None:
        super().__init__(features, affine=affine)
        self.group, self.kept = group, False

    def forward(self, x: Tensor, residual: Tensor | None = None, activate: bool = False) -> Tensor:
        """(B, C, ...) → the same; a batch that is no multiple of ``group`` is split as evenly as may be.

        With ``activate`` ReLU follows, and with a ``residual`` its addition and then ReLU: on a GPU in the same pass.
        """
        if residual is not None and residual.shape != x.shape:
            raise ValueError(f"what is added to {tuple(x.shape)} is {tuple(residual.shape)}")
        activate = activate or residual is not None
        groups = max(1, len(x) // self.group) if self.training else 1  # exports leave the batch open
        if kernels := self._kernels(x, groups):
            statistics = self.running_mean, self.running_var
            settings = groups, self.eps, self.momentum or 0.1, activate
            together = _Together.apply(x, residual, self.weight, self.bias, kernels, *statistics, *settings)
            return cast("Tensor", together)
        out = self._one_by_one(x, groups) if self.training and not self.kept else self._by_running_statistics(x)
        if residual is not None:
            out = out.add_(residual)
        return F.relu(out, inplace=True) if activate else out

    def _kernels(self, x: Tensor, groups: int) -> ModuleType | None:
        """Triton's, where they run and know the types; on ``meta`` what a GPU would do is counted."""
        known = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        if not self.training or self.kept or not (x.is_cuda or x.is_meta) or not known or len(x) % groups:
            return None
        assert self.running_mean is not None
        return load("models.norm_triton") if self.running_mean.dtype == torch.float32 else None

    def _by_running_statistics(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def _one_by_one(self, x: Tensor, groups: int) -> Tensor:
        weight, bias = (self.weight, self.bias) if self.affine else self._neutral()
        out, mean, scale = cast("tuple[Tensor, ...]", _Grouped.apply(x, weight, bias, groups, self.eps))
        self._update_running(mean, scale, x.numel() // x.shape[1] // groups)
        return out

    @torch.no_grad()
    def _update_running(self, mean: Tensor, scale: Tensor, count: int) -> None:
        """Move the running statistics toward the mean over groups; ``scale`` is 1/√(variance + eps) of each."""
        variance = (scale.double().pow(-2) - self.eps) * (count / max(1, count - 1))
        assert self.running_mean is not None
        assert self.running_var is not None
        self.running_mean.lerp_(mean.mean(0).to(self.running_mean.dtype), self.momentum or 0.1)
        self.running_var.lerp_(variance.mean(0).to(self.running_var.dtype), self.momentum or 0.1)

    def _neutral(self) -> tuple[Tensor, Tensor]:
        """Scale 1 and shift 0 in the precision of the statistics, which the kernel takes from them."""
        assert self.running_var is not None
        return torch.ones_like(self.running_var), torch.zeros_like(self.running_var)


class GroupedBatchNorm1d(_GroupedBatchNorm, nn.BatchNorm1d):
    """For (B, C), such as what heads pass on."""


class GroupedBatchNorm2d(_GroupedBatchNorm, nn.BatchNorm2d):
    """For (B, C, H, W)."""


class GroupedBatchNorm3d(_GroupedBatchNorm, nn.BatchNorm3d):
    """For (B, C, T, H, W)."""


class GroupedBatchNormAct2d(GroupedBatchNorm2d):
    """The same where an activation belongs to it, as in timm's ``BatchNormAct2d``; names of weights stay."""

    def __init__(self, features: int, group: int, affine: bool, drop: nn.Module, act: nn.Module) -> None:
        super().__init__(features, group, affine)
        self.drop, self.act = drop, act

    def forward(self, x: Tensor, residual: Tensor | None = None, activate: bool = False) -> Tensor:
        """(B, C, H, W) → the same."""
        if type(self.act) is nn.ReLU and type(self.drop) is nn.Identity:
            return super().forward(x, residual, True)
        activated: Tensor = self.act(self.drop(super().forward(x, residual, activate)))
        return activated


_GROUPED = {
    nn.BatchNorm1d: GroupedBatchNorm1d,
    nn.BatchNorm2d: GroupedBatchNorm2d,
    nn.BatchNorm3d: GroupedBatchNorm3d,
}


def group_norms(module: nn.Module, group: int) -> nn.Module:
    """Replace every BatchNorm below ``module`` by a grouped one; its state, weights included, stays."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and (type(child) in _GROUPED or _activates(child)):
            setattr(module, name, _like(child, group))
        else:
            group_norms(child, group)
    return module


def set_group(module: nn.Module, group: int) -> None:
    """Let every grouped BatchNorm in ``module`` take groups of ``group`` examples."""
    for part in module.modules():
        if isinstance(part, _GroupedBatchNorm):
            part.group = group


def keep_statistics(module: nn.Module) -> None:
    """Let every grouped BatchNorm in ``module`` normalise by its running statistics in training, too: they stay."""
    for part in module.modules():
        if isinstance(part, _GroupedBatchNorm):
            part.kept = True


def norms(module: nn.Module) -> Iterator[nn.Module]:
    """Every layer of ``module`` that normalises, of whatever kind."""
    for part in module.modules():
        if isinstance(part, _BatchNorm | nn.LayerNorm | nn.GroupNorm | _InstanceNorm | nn.RMSNorm):
            yield part


def _like(norm: _BatchNorm, group: int) -> _GroupedBatchNorm:
    """A grouped one with the state of another: some networks start residual branches at weight 0."""
    grouped: _GroupedBatchNorm
    if _activates(norm):
        grouped = GroupedBatchNormAct2d(norm.num_features, group, norm.affine, norm.drop, norm.act)  # type: ignore[arg-type]
    else:
        grouped = _GROUPED[type(norm)](norm.num_features, group, norm.affine)
    grouped.eps, grouped.momentum = norm.eps, norm.momentum
    grouped.load_state_dict(norm.state_dict())
    return grouped


def _activates(norm: nn.Module) -> bool:
    """Whether it is timm's, which need not be installed: BatchNorm with children that drop and activate."""
    return isinstance(norm, nn.BatchNorm2d) and [name for name, _ in norm.named_children()] == ["drop", "act"]
