"""Grouped BatchNorm in Triton: two kernels forward and two backward, however many groups there are.

Memory lies channels last, in rows of channels, so a group is a stretch of rows. A program walks over its share of the
rows of one group, for up to 64 channels. The first kernel leaves statistics of each share; the second puts those of its
group together and normalises. How rows are shared out is a function of the shape alone, so results are the same bytes
every time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from lookalike.core.kernels import device_of
from lookalike.models.norm_kernels import gradient_sums, moments, normalise, to_input

WORK = "BatchNorm runs"
KERNELS = {"lookalike::grouped_norm": 2, "lookalike::grouped_norm_backward": 2}
"""How many kernels each operator starts."""

_TILE = 2048  # numbers that a program holds at once: 16 a thread
_STAGES = 3  # tiles that are on their way while one is worked on
_PROGRAMS = 792  # six on each of an H100's 132 processors: all run at once, so none waits for a second wave


class Sharing(NamedTuple):
    """How the rows and channels of a tensor are shared out."""

    height: int  # rows of a group
    share: int  # rows of a program
    shares: int  # programs of a group, for each block of channels
    channels: int
    groups: int
    rows: int  # of a tile
    columns: int

    @classmethod
    def of(cls, x: Tensor, groups: int) -> Sharing:
        """A function of the shape alone."""
        channels = x.shape[1]
        height = x.numel() // channels // groups
        columns = min(max(triton.next_power_of_2(channels), 16), 64)
        rows = _TILE // columns
        tiles = triton.cdiv(height, rows)
        blocks = triton.cdiv(channels, columns) * groups
        share = triton.cdiv(tiles, max(1, min(_PROGRAMS // blocks, tiles))) * rows
        return cls(height, share, triton.cdiv(height, share), channels, groups, rows, columns)

    def grid(self, more: int = 0) -> tuple[int, int, int]:
        """Blocks of channels vary fastest, so that neighbours read what lies side by side."""
        return triton.cdiv(self.channels, self.columns), self.shares + more, self.groups

    def tile(self) -> dict[str, int]:
        """What all kernels are compiled for."""
        return {"BLOCK_R": self.rows, "BLOCK_C": self.columns, "STAGES": _STAGES, "num_warps": 4}

    def partial(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Room for two sums of each share."""
        first, second = (_fp32(like, self.groups, self.shares, self.channels) for _ in range(2))
        return first, second


def _fp32(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


@torch.library.custom_op("lookalike::grouped_norm", mutates_args=("running_mean", "running_var"))
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
    sharing = Sharing.of(x, groups)
    out, mean, variance = _normed(x, residual, weight, bias, running_mean, running_var, groups)
    parts, tile = sharing.partial(x), sharing.tile()
    with device_of(x):
        moments[sharing.grid()](x, *parts, *sharing[:4], **tile)
        normalise[sharing.grid(1)](
            *(x, residual, out, *parts, mean, variance, weight, bias, running_mean, running_var),
            *(*sharing[:5], eps, momentum),
            ACTIVATE=activate,
            **tile,
        )
    return out, mean, variance


@forward.register_fake
def _normed(
    x: Tensor, residual: Any, weight: Any, bias: Any, running_mean: Tensor, running_var: Any, groups: int, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance = (running_mean.new_empty(groups, x.shape[1]) for _ in range(2))
    return torch.empty_like(x), mean, variance


@torch.library.custom_op("lookalike::grouped_norm_backward", mutates_args=())
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
    """The gradients by x, by what was added (empty without ``out``), by weight and by bias; all lie channels last.

    ``out`` says where an activation after an addition let pass; without addition x says it, and is read anyway.
    """
    sharing = Sharing.of(x, groups)
    to_x, masked, to_weight, to_bias = _gradients(grad, x, out, weight, bias, mean)
    parts, tile = sharing.partial(x), sharing.tile()
    known = (mean, variance, weight, bias, *sharing[:4])
    with device_of(x):
        gradient_sums[sharing.grid()](
            *(grad, x, out, masked if out is not None else None, *parts, *known, eps), ACTIVATE=activate, **tile
        )
        to_input[sharing.grid(1)](
            *(grad if out is None else masked, x, to_x, to_weight, to_bias, *parts, *known, groups, eps),
            ACTIVATE=activate and out is None,
            **tile,
        )
    return to_x, masked, to_weight, to_bias


@backward.register_fake
def _gradients(
    grad: Tensor, x: Tensor, out: Tensor | None, weight: Any, bias: Any, mean: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    masked = torch.empty_like(grad) if out is not None else grad.new_empty(0)
    return torch.empty_like(x), masked, mean.new_empty(x.shape[1]), mean.new_empty(x.shape[1])


def trial() -> None:
    """Run on the GPU once; raises what Triton raises where it cannot."""
    x, statistics = torch.zeros(2, 16, device="cuda"), torch.zeros(16, device="cuda")
    forward(x, None, None, None, statistics, statistics.clone(), 1, 1e-5, 0.1, False)
