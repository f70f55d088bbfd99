"""Grouped BatchNorm in Triton: two kernels forward and two backward, however many groups there are.

Memory lies channels last, in rows of channels, so a group is a stretch of rows. A program walks over its share of the
rows of one group, for up to 64 channels. The first kernel leaves statistics of each share; the second puts those of its
group together and normalises. Nothing is added by atomics, and how rows are shared out is a function of the shape
alone, so results are the same bytes every time. Statistics and sums are fp32: Welford's within a share, Chan's over
shares (Chan, Golub & LeVeque 1983), so that a mean far from 0 costs no digits.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

KERNELS = {"lookalike::grouped_norm": 2, "lookalike::grouped_norm_backward": 2}
"""How many kernels each operator starts."""

_TILE = 2048  # numbers that a program holds at once: 16 a thread
_WARPS = 4
_STAGES = 3  # tiles that are on their way while one is worked on
_PROGRAMS = 792  # six on each of an H100's 132 processors: all run at once, so none waits for a second wave


# ---- what programs share ----


@triton.jit
def _columns(channels: tl.tensor, BLOCK_C: tl.constexpr) -> tl.tensor:
    return tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def _of_channel(pointer: tl.tensor, columns: tl.tensor, channels: tl.tensor, default: tl.constexpr) -> tl.tensor:
    """(BLOCK_C,) fp32; ``default`` where there is no tensor."""
    if pointer is None:
        found = tl.full(columns.shape, default, tl.float32)
    else:
        found = tl.load(pointer + columns, mask=columns < channels, other=0.0).to(tl.float32)
    return found


@triton.jit
def _group_moments(
    means: tl.tensor,
    squares: tl.tensor,
    group: tl.tensor,
    columns: tl.tensor,
    count: tl.tensor,
    share: tl.tensor,
    shares: tl.tensor,
    channels: tl.tensor,
    BLOCK_R: tl.constexpr,
) -> tl.tensor:
    """Mean and variance (BLOCK_C,) of a group, from those of its shares; twice over them, as digits ask."""
    mean = tl.zeros(columns.shape, tl.float32)
    for first in range(0, shares, BLOCK_R):
        lines = first + tl.arange(0, BLOCK_R)
        inside = (lines < shares)[:, None] & (columns < channels)[None, :]
        rows = tl.minimum(share, count - lines * share).to(tl.float32)
        at = (group * shares + lines)[:, None] * channels + columns[None, :]
        mean += tl.sum(tl.load(means + at, mask=inside, other=0.0) * (rows / count)[:, None], 0)
    square = tl.zeros(columns.shape, tl.float32)
    for first in range(0, shares, BLOCK_R):
        lines = first + tl.arange(0, BLOCK_R)
        inside = (lines < shares)[:, None] & (columns < channels)[None, :]
        rows = tl.minimum(share, count - lines * share).to(tl.float32)
        at = (group * shares + lines)[:, None] * channels + columns[None, :]
        away = tl.load(means + at, mask=inside, other=0.0) - mean[None, :]
        within = tl.load(squares + at, mask=inside, other=0.0)
        square += tl.sum(tl.where(inside, within + rows[:, None] * away * away, 0.0), 0)
    return mean, square / count


# ---- forward ----


@triton.jit(do_not_specialize=["count", "share", "shares"])
def _moments(
    x: tl.tensor,
    means: tl.tensor,
    squares: tl.tensor,
    count: tl.tensor,
    share: tl.tensor,
    shares: tl.tensor,
    channels: tl.tensor,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Mean and centred sum of squares of a share, by Welford's recurrence in each place of the tile."""
    columns = _columns(channels, BLOCK_C)
    split, group = tl.program_id(1), tl.program_id(2)
    lines = tl.arange(0, BLOCK_R)
    within = lines[:, None] * channels + columns[None, :]
    start, stop = split * share, tl.minimum(split * share + share, count)
    mean, square = tl.zeros([BLOCK_R, BLOCK_C], tl.float32), tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    seen = 0.0
    for first in tl.range(start, stop, BLOCK_R, num_stages=STAGES):
        inside = (first + lines < stop)[:, None] & (columns < channels)[None, :]
        at = (group * count + first).to(tl.int64) * channels
        value = tl.load(x + at + within, mask=inside, other=0.0).to(tl.float32)
        seen += 1.0
        away = tl.where(inside, value - mean, 0.0)
        mean += away * (1.0 / seen)
        square += away * (value - mean)
    rows = ((stop - start - lines + BLOCK_R - 1) // BLOCK_R).to(tl.float32)[:, None]
    middle = tl.sum(mean * (rows / (stop - start)), 0)
    away = mean - middle[None, :]
    at = (group * shares + split) * channels + columns
    tl.store(means + at, middle, mask=columns < channels)
    tl.store(squares + at, tl.sum(square + rows * away * away, 0), mask=columns < channels)


@triton.jit
def _remember(
    running_mean: tl.tensor,
    running_var: tl.tensor,
    means: tl.tensor,
    squares: tl.tensor,
    columns: tl.tensor,
    count: tl.tensor,
    share: tl.tensor,
    shares: tl.tensor,
    channels: tl.tensor,
    groups: tl.tensor,
    momentum: tl.tensor,
    BLOCK_R: tl.constexpr,
) -> None:
    """Move the running statistics toward the mean over groups of means and of unbiased variances."""
    mean, variance = tl.zeros(columns.shape, tl.float32), tl.zeros(columns.shape, tl.float32)
    for group in range(groups):
        m, v = _group_moments(means, squares, group, columns, count, share, shares, channels, BLOCK_R)
        mean += m
        variance += v
    known = columns < channels
    unbiased = variance * (count / tl.maximum(count - 1, 1).to(tl.float32)) / groups
    before = tl.load(running_mean + columns, mask=known)
    tl.store(running_mean + columns, before + momentum * (mean / groups - before), mask=known)
    before = tl.load(running_var + columns, mask=known)
    tl.store(running_var + columns, before + momentum * (unbiased - before), mask=known)


@triton.jit(do_not_specialize=["count", "share", "shares", "groups"])
def _normalise(
    x: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    means: tl.tensor,
    squares: tl.tensor,
    mean: tl.tensor,
    variance: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    running_mean: tl.tensor,
    running_var: tl.tensor,
    count: tl.tensor,
    share: tl.tensor,
    shares: tl.tensor,
    channels: tl.tensor,
    groups: tl.tensor,
    eps: tl.tensor,
    momentum: tl.tensor,
    ACTIVATE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Of each share; beyond the last one stands a program that works on the running statistics meanwhile."""
    columns = _columns(channels, BLOCK_C)
    split, group = tl.program_id(1), tl.program_id(2)
    if split == shares:
        if group == 0:
            _remember(
                running_mean,
                running_var,
                means,
                squares,
                columns,
                count,
                share,
                shares,
                channels,
                groups,
                momentum,
                BLOCK_R,
            )
    else:
        m, v = _group_moments(means, squares, group, columns, count, share, shares, channels, BLOCK_R)
        if split == 0:
            tl.store(mean + group * channels + columns, m, mask=columns < channels)
            tl.store(variance + group * channels + columns, v, mask=columns < channels)
        scale = tl.rsqrt(v + eps) * _of_channel(weight, columns, channels, 1.0)
        shift = _of_channel(bias, columns, channels, 0.0)
        lines = tl.arange(0, BLOCK_R)
        within = lines[:, None] * channels + columns[None, :]
        start, stop = split * share, tl.minimum(split * share + share, count)
        for first in tl.range(start, stop, BLOCK_R, num_stages=STAGES):
            inside = (first + lines < stop)[:, None] & (columns < channels)[None, :]
            at = (group * count + first).to(tl.int64) * channels
            value = tl.load(x + at + within, mask=inside, other=0.0).to(tl.float32)
            y = (value - m[None, :]) * scale[None, :] + shift[None, :]
            if residual is not None:
                y += tl.load(residual + at + within, mask=inside, other=0.0).to(tl.float32)
            if ACTIVATE:
                y = tl.where(y <= 0.0, 0.0, y)  # what is not a number stays so
            tl.store(out + at + within, y.to(out.dtype.element_ty), mask=inside)


# ---- backward ----


@triton.jit(do_not_specialize=["count", "share", "shares"])
def _gradient_sums(
    grad: tl.tensor,
    x: tl.tensor,
    out: tl.tensor,
    masked: tl.tensor,
    by_weight: tl.tensor,
    by_bias: tl.tensor,
    mean: tl.tensor,
    variance: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    count: tl.tensor,
    share: tl.tensor,
    shares: tl.tensor,
    channels: tl.tensor,
    eps: tl.tensor,
    ACTIVATE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Of a share: the sum of the gradient, and that of its products with what x is beyond its mean."""
    columns = _columns(channels, BLOCK_C)
    split, group = tl.program_id(1), tl.program_id(2)
    m = _of_channel(mean + group * channels, columns, channels, 0.0)
    v = _of_channel(variance + group * channels, columns, channels, 0.0)
    scale = tl.rsqrt(v + eps) * _of_channel(weight, columns, channels, 1.0)
    shift = _of_channel(bias, columns, channels, 0.0)
    lines = tl.arange(0, BLOCK_R)
    within = lines[:, None] * channels + columns[None, :]
    start, stop = split * share, tl.minimum(split * share + share, count)
    plain, product = tl.zeros([BLOCK_R, BLOCK_C], tl.float32), tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for first in tl.range(start, stop, BLOCK_R, num_stages=STAGES):
        inside = (first + lines < stop)[:, None] & (columns < channels)[None, :]
        at = (group * count + first).to(tl.int64) * channels
        upstream = tl.load(grad + at + within, mask=inside, other=0.0).to(tl.float32)
        away = tl.load(x + at + within, mask=inside, other=0.0).to(tl.float32) - m[None, :]
        if out is not None:
            y = tl.load(out + at + within, mask=inside, other=0.0).to(tl.float32)
            upstream = tl.where(y <= 0.0, 0.0, upstream)
            tl.store(masked + at + within, upstream.to(masked.dtype.element_ty), mask=inside)
        elif ACTIVATE:
            upstream = tl.where(away * scale[None, :] + shift[None, :] <= 0.0, 0.0, upstream)
        plain += upstream
        product += upstream * away
    at = (group * shares + split) * channels + columns
    tl.store(by_bias + at, tl.sum(plain, 0), mask=columns < channels)
    tl.store(by_weight + at, tl.sum(product, 0), mask=columns < channels)


@triton.jit
def _share_sums(
    sums: tl.tensor, group: tl.tensor, columns: tl.tensor, shares: tl.tensor, channels: tl.tensor, BLOCK_R: tl.constexpr
) -> tl.tensor:
    """(BLOCK_C,) of a group."""
    total = tl.zeros(columns.shape, tl.float32)
    for first in range(0, shares, BLOCK_R):
        lines = first + tl.arange(0, BLOCK_R)
        inside = (lines < shares)[:, None] & (columns < channels)[None, :]
        at = (group * shares + lines)[:, None] * channels + columns[None, :]
        total += tl.sum(tl.load(sums + at, mask=inside, other=0.0), 0)
    return total


@triton.jit
def _to_parameters(
    to_weight: tl.tensor,
    to_bias: tl.tensor,
    by_weight: tl.tensor,
    by_bias: tl.tensor,
    variance: tl.tensor,
    columns: tl.tensor,
    shares: tl.tensor,
    channels: tl.tensor,
    groups: tl.tensor,
    eps: tl.tensor,
    BLOCK_R: tl.constexpr,
) -> None:
    """The sums over all groups."""
    weights, biases = tl.zeros(columns.shape, tl.float32), tl.zeros(columns.shape, tl.float32)
    for group in range(groups):
        v = _of_channel(variance + group * channels, columns, channels, 0.0)
        weights += _share_sums(by_weight, group, columns, shares, channels, BLOCK_R) * tl.rsqrt(v + eps)
        biases += _share_sums(by_bias, group, columns, shares, channels, BLOCK_R)
    tl.store(to_weight + columns, weights, mask=columns < channels)
    tl.store(to_bias + columns, biases, mask=columns < channels)


@triton.jit(do_not_specialize=["count", "share", "shares", "groups"])
def _to_input(
    grad: tl.tensor,
    x: tl.tensor,
    to_x: tl.tensor,
    to_weight: tl.tensor,
    to_bias: tl.tensor,
    by_weight: tl.tensor,
    by_bias: tl.tensor,
    mean: tl.tensor,
    variance: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    count: tl.tensor,
    share: tl.tensor,
    shares: tl.tensor,
    channels: tl.tensor,
    groups: tl.tensor,
    eps: tl.tensor,
    ACTIVATE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Of each share; beyond the last one stands a program that sums up for weight and bias meanwhile."""
    columns = _columns(channels, BLOCK_C)
    split, group = tl.program_id(1), tl.program_id(2)
    if split == shares:
        if group == 0:
            _to_parameters(
                to_weight, to_bias, by_weight, by_bias, variance, columns, shares, channels, groups, eps, BLOCK_R
            )
    else:
        m = _of_channel(mean + group * channels, columns, channels, 0.0)
        v = _of_channel(variance + group * channels, columns, channels, 0.0)
        rate = tl.rsqrt(v + eps)
        scale = rate * _of_channel(weight, columns, channels, 1.0)
        shift = _of_channel(bias, columns, channels, 0.0)
        level = _share_sums(by_bias, group, columns, shares, channels, BLOCK_R) / count
        slope = _share_sums(by_weight, group, columns, shares, channels, BLOCK_R) / count * rate * rate
        lines = tl.arange(0, BLOCK_R)
        within = lines[:, None] * channels + columns[None, :]
        start, stop = split * share, tl.minimum(split * share + share, count)
        for first in tl.range(start, stop, BLOCK_R, num_stages=STAGES):
            inside = (first + lines < stop)[:, None] & (columns < channels)[None, :]
            at = (group * count + first).to(tl.int64) * channels
            upstream = tl.load(grad + at + within, mask=inside, other=0.0).to(tl.float32)
            away = tl.load(x + at + within, mask=inside, other=0.0).to(tl.float32) - m[None, :]
            if ACTIVATE:
                upstream = tl.where(away * scale[None, :] + shift[None, :] <= 0.0, 0.0, upstream)
            by_x = (upstream - level[None, :] - away * slope[None, :]) * scale[None, :]
            tl.store(to_x + at + within, by_x.to(to_x.dtype.element_ty), mask=inside)


# ---- operators ----


class _Plan(NamedTuple):
    """How the rows and channels of a tensor are shared out."""

    height: int  # rows of a group
    share: int  # rows of a program
    shares: int  # programs of a group, for each block of channels
    channels: int
    groups: int
    rows: int  # of a tile
    columns: int

    def grid(self, more: int = 0) -> tuple[int, int, int]:
        """Blocks of channels vary fastest, so that neighbours read what lies side by side."""
        return triton.cdiv(self.channels, self.columns), self.shares + more, self.groups


def _plan(x: Tensor, groups: int) -> _Plan:
    channels = x.shape[1]
    height = x.numel() // channels // groups
    columns = min(max(triton.next_power_of_2(channels), 16), 64)
    rows = _TILE // columns
    tiles = triton.cdiv(height, rows)
    blocks = triton.cdiv(channels, columns) * groups
    share = triton.cdiv(tiles, max(1, min(_PROGRAMS // blocks, tiles))) * rows
    return _Plan(height, share, triton.cdiv(height, share), channels, groups, rows, columns)


def _fp32(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


@torch.library.custom_op(
    "lookalike::grouped_norm",
    mutates_args=("running_mean", "running_var"),
    schema="(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor(a!) running_mean, "
    "Tensor(b!) running_var, int groups, float eps, float momentum, bool activate) -> (Tensor, Tensor, Tensor)",
)
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
    plan = _plan(x, groups)
    out = torch.empty_like(x)
    mean, variance = (_fp32(x, groups, plan.channels) for _ in range(2))
    parts = _fp32(x, groups, plan.shares, plan.channels), _fp32(x, groups, plan.shares, plan.channels)
    tile = {"BLOCK_R": plan.rows, "BLOCK_C": plan.columns, "STAGES": _STAGES, "num_warps": _WARPS}
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _moments[plan.grid()](x, *parts, *plan[:4], **tile)
        _normalise[plan.grid(1)](
            *(
                x,
                residual,
                out,
                *parts,
                mean,
                variance,
                weight,
                bias,
                running_mean,
                running_var,
                *plan[:5],
                eps,
                momentum,
            ),
            ACTIVATE=activate,
            **tile,
        )
    return out, mean, variance


@forward.register_fake
def _(
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
    mean, variance = (running_mean.new_empty(groups, x.shape[1]) for _ in range(2))
    return torch.empty_like(x), mean, variance


@torch.library.custom_op(
    "lookalike::grouped_norm_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor? out, Tensor? weight, Tensor? bias, Tensor mean, Tensor variance, "
    "int groups, float eps, bool activate) -> (Tensor, Tensor, Tensor, Tensor)",
)
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
    plan = _plan(x, groups)
    to_x, masked = torch.empty_like(x), torch.empty_like(grad) if out is not None else grad.new_empty(0)
    to_weight, to_bias = (_fp32(x, plan.channels) for _ in range(2))
    parts = _fp32(x, groups, plan.shares, plan.channels), _fp32(x, groups, plan.shares, plan.channels)
    tile = {"BLOCK_R": plan.rows, "BLOCK_C": plan.columns, "STAGES": _STAGES, "num_warps": _WARPS}
    known = (mean, variance, weight, bias, *plan[:4])
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _gradient_sums[plan.grid()](
            *(grad, x, out, masked if out is not None else None, *parts, *known, eps), ACTIVATE=activate, **tile
        )
        _to_input[plan.grid(1)](
            *(grad if out is None else masked, x, to_x, to_weight, to_bias, *parts, *known, groups, eps),
            ACTIVATE=activate and out is None,
            **tile,
        )
    return to_x, masked, to_weight, to_bias


@backward.register_fake
def _(
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
    masked = torch.empty_like(grad) if out is not None else grad.new_empty(0)
    return torch.empty_like(x), masked, mean.new_empty(x.shape[1]), mean.new_empty(x.shape[1])


def works() -> bool:
    """Whether kernels can be built here, which takes a C compiler and a GPU that Triton knows; says so where not."""
    if not torch.cuda.is_available():
        return True  # tensors without data, for which none is started
    x, statistics = torch.zeros(2, 16, device="cuda"), torch.zeros(16, device="cuda")
    try:
        forward(x, None, None, None, statistics, statistics.clone(), 1, 1e-5, 0.1, False)
    except Exception as error:
        warnings.warn(f"BatchNorm runs without Triton, more slowly: {str(error).splitlines()[0]}", stacklevel=2)
        return False
    return True
