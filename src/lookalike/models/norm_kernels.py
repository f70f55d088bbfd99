"""Kernels of grouped BatchNorm in Triton: see norm_triton.py, which starts them.

Statistics and sums are fp32: Welford's within a share, Chan's over shares (Chan, Golub & LeVeque 1983), so that a mean
far from 0 costs no digits. Nothing is added by atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import constexpr, tensor

# ---- what programs share ----


@triton.jit
def _work(share: tensor, count: tensor, BLOCK_C: constexpr) -> tensor:
    """What a program works on: its channels (BLOCK_C,), the numbers of its share and its group, its rows' bounds."""
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    start = tl.program_id(1) * share
    return columns, tl.program_id(1), tl.program_id(2), start, tl.minimum(start + share, count)


@triton.jit
def _tile(
    first: tensor, stop: tensor, group: tensor, count: tensor, columns: tensor, channels: tensor, BLOCK_R: constexpr
) -> tensor:
    """Of rows ``first`` to ``stop`` of a group: where they begin, places (BLOCK_R, BLOCK_C) from there, which exist."""
    lines = tl.arange(0, BLOCK_R)
    inside = (first + lines < stop)[:, None] & (columns < channels)[None, :]
    at = (group * count + first).to(tl.int64) * channels
    return at, lines[:, None] * channels + columns[None, :], inside


@triton.jit
def _read(pointer: tensor, at: tensor, within: tensor, inside: tensor) -> tensor:
    return tl.load(pointer + at + within, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _of_channel(pointer: tensor, columns: tensor, channels: tensor, default: constexpr) -> tensor:
    """(BLOCK_C,) fp32; ``default`` where there is no tensor."""
    if pointer is None:
        values = tl.full(columns.shape, default, tl.float32)
    else:
        values = tl.load(pointer + columns, mask=columns < channels, other=0.0).to(tl.float32)
    return values


@triton.jit
def _of_shares(
    first: tensor, group: tensor, columns: tensor, shares: tensor, channels: tensor, BLOCK_R: constexpr
) -> tensor:
    """From share ``first`` of a group on: their numbers (BLOCK_R,), places (BLOCK_R, BLOCK_C), which exist."""
    lines = first + tl.arange(0, BLOCK_R)
    inside = (lines < shares)[:, None] & (columns < channels)[None, :]
    return lines, (group * shares + lines)[:, None] * channels + columns[None, :], inside


@triton.jit
def _sum_of_shares(
    sums: tensor, group: tensor, columns: tensor, shares: tensor, channels: tensor, BLOCK_R: constexpr
) -> tensor:
    """(BLOCK_C,) of a group."""
    total = tl.zeros(columns.shape, tl.float32)
    for first in range(0, shares, BLOCK_R):
        _, at, inside = _of_shares(first, group, columns, shares, channels, BLOCK_R)
        total += tl.sum(tl.load(sums + at, mask=inside, other=0.0), 0)
    return total


@triton.jit
def _group_moments(parts: tensor, group: tensor, columns: tensor, sizes: tensor, BLOCK_R: constexpr) -> tensor:
    """Mean and variance (BLOCK_C,) of a group, from those of its shares; twice over them, as digits ask."""
    means, squares = parts
    count, share, shares, channels = sizes
    mean = tl.zeros(columns.shape, tl.float32)
    for first in range(0, shares, BLOCK_R):
        lines, at, inside = _of_shares(first, group, columns, shares, channels, BLOCK_R)
        rows = tl.minimum(share, count - lines * share).to(tl.float32)
        mean += tl.sum(tl.load(means + at, mask=inside, other=0.0) * (rows / count)[:, None], 0)
    square = tl.zeros(columns.shape, tl.float32)
    for first in range(0, shares, BLOCK_R):
        lines, at, inside = _of_shares(first, group, columns, shares, channels, BLOCK_R)
        rows = tl.minimum(share, count - lines * share).to(tl.float32)
        away = tl.load(means + at, mask=inside, other=0.0) - mean[None, :]
        within = tl.load(squares + at, mask=inside, other=0.0)
        square += tl.sum(tl.where(inside, within + rows[:, None] * away * away, 0.0), 0)
    return mean, square / count


# ---- forward ----


@triton.jit(do_not_specialize=["count", "share", "shares"])
def moments(
    x: tensor,
    means: tensor,
    squares: tensor,
    count: tensor,
    share: tensor,
    shares: tensor,
    channels: tensor,
    BLOCK_R: constexpr,
    BLOCK_C: constexpr,
    STAGES: constexpr,
) -> None:
    """Mean and centred sum of squares of a share, by Welford's recurrence in each place of the tile."""
    columns, split, group, start, stop = _work(share, count, BLOCK_C)
    mean, square = tl.zeros([BLOCK_R, BLOCK_C], tl.float32), tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    steps = 0.0
    for first in tl.range(start, stop, BLOCK_R, num_stages=STAGES):
        at, within, inside = _tile(first, stop, group, count, columns, channels, BLOCK_R)
        value = _read(x, at, within, inside)
        steps += 1.0
        away = tl.where(inside, value - mean, 0.0)
        mean += away * (1.0 / steps)
        square += away * (value - mean)
    rows = ((stop - start - tl.arange(0, BLOCK_R) + BLOCK_R - 1) // BLOCK_R).to(tl.float32)[:, None]
    middle = tl.sum(mean * (rows / (stop - start)), 0)
    away = mean - middle[None, :]
    at = (group * shares + split) * channels + columns
    tl.store(means + at, middle, mask=columns < channels)
    tl.store(squares + at, tl.sum(square + rows * away * away, 0), mask=columns < channels)


@triton.jit
def _update_running(
    running: tensor, parts: tensor, columns: tensor, sizes: tensor, groups: tensor, momentum: tensor, BLOCK_R: constexpr
) -> None:
    """Move the running statistics toward the mean over groups of means and of unbiased variances."""
    running_mean, running_var = running
    mean, variance = tl.zeros(columns.shape, tl.float32), tl.zeros(columns.shape, tl.float32)
    for group in range(groups):
        m, v = _group_moments(parts, group, columns, sizes, BLOCK_R)
        mean += m
        variance += v
    known = columns < sizes[3]
    unbiased = variance * (sizes[0] / tl.maximum(sizes[0] - 1, 1).to(tl.float32)) / groups
    before = tl.load(running_mean + columns, mask=known)
    tl.store(running_mean + columns, before + momentum * (mean / groups - before), mask=known)
    before = tl.load(running_var + columns, mask=known)
    tl.store(running_var + columns, before + momentum * (unbiased - before), mask=known)


@triton.jit(do_not_specialize=["count", "share", "shares", "groups"])
def normalise(
    x: tensor,
    residual: tensor,
    out: tensor,
    means: tensor,
    squares: tensor,
    mean: tensor,
    variance: tensor,
    weight: tensor,
    bias: tensor,
    running_mean: tensor,
    running_var: tensor,
    count: tensor,
    share: tensor,
    shares: tensor,
    channels: tensor,
    groups: tensor,
    eps: tensor,
    momentum: tensor,
    ACTIVATE: constexpr,
    BLOCK_R: constexpr,
    BLOCK_C: constexpr,
    STAGES: constexpr,
) -> None:
    """Of each share; beyond the last one stands a program that works on the running statistics meanwhile."""
    columns, split, group, start, stop = _work(share, count, BLOCK_C)
    parts, sizes = (means, squares), (count, share, shares, channels)
    if split == shares:
        if group == 0:
            _update_running((running_mean, running_var), parts, columns, sizes, groups, momentum, BLOCK_R)
    else:
        m, v = _group_moments(parts, group, columns, sizes, BLOCK_R)
        if split == 0:
            tl.store(mean + group * channels + columns, m, mask=columns < channels)
            tl.store(variance + group * channels + columns, v, mask=columns < channels)
        scale = tl.rsqrt(v + eps) * _of_channel(weight, columns, channels, 1.0)
        shift = _of_channel(bias, columns, channels, 0.0)
        for first in tl.range(start, stop, BLOCK_R, num_stages=STAGES):
            at, within, inside = _tile(first, stop, group, count, columns, channels, BLOCK_R)
            y = (_read(x, at, within, inside) - m[None, :]) * scale[None, :] + shift[None, :]
            if residual is not None:
                y += _read(residual, at, within, inside)
            if ACTIVATE:
                y = tl.where(y <= 0.0, 0.0, y)  # what is not a number stays so
            tl.store(out + at + within, y.to(out.dtype.element_ty), mask=inside)


# ---- backward ----


@triton.jit(do_not_specialize=["count", "share", "shares"])
def gradient_sums(
    grad: tensor,
    x: tensor,
    out: tensor,
    masked: tensor,
    by_weight: tensor,
    by_bias: tensor,
    mean: tensor,
    variance: tensor,
    weight: tensor,
    bias: tensor,
    count: tensor,
    share: tensor,
    shares: tensor,
    channels: tensor,
    eps: tensor,
    ACTIVATE: constexpr,
    BLOCK_R: constexpr,
    BLOCK_C: constexpr,
    STAGES: constexpr,
) -> None:
    """Of a share: the sum of the gradient, and that of its products with what x is beyond its mean."""
    columns, split, group, start, stop = _work(share, count, BLOCK_C)
    m = _of_channel(mean + group * channels, columns, channels, 0.0)
    v = _of_channel(variance + group * channels, columns, channels, 0.0)
    scale = tl.rsqrt(v + eps) * _of_channel(weight, columns, channels, 1.0)
    shift = _of_channel(bias, columns, channels, 0.0)
    plain, product = tl.zeros([BLOCK_R, BLOCK_C], tl.float32), tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for first in tl.range(start, stop, BLOCK_R, num_stages=STAGES):
        at, within, inside = _tile(first, stop, group, count, columns, channels, BLOCK_R)
        upstream = _read(grad, at, within, inside)
        away = _read(x, at, within, inside) - m[None, :]
        if out is not None:
            upstream = tl.where(_read(out, at, within, inside) <= 0.0, 0.0, upstream)
            tl.store(masked + at + within, upstream.to(masked.dtype.element_ty), mask=inside)
        elif ACTIVATE:
            upstream = tl.where(away * scale[None, :] + shift[None, :] <= 0.0, 0.0, upstream)
        plain += upstream
        product += upstream * away
    at = (group * shares + split) * channels + columns
    tl.store(by_bias + at, tl.sum(plain, 0), mask=columns < channels)
    tl.store(by_weight + at, tl.sum(product, 0), mask=columns < channels)


@triton.jit(do_not_specialize=["count", "share", "shares", "groups"])
def to_input(
    grad: tensor,
    x: tensor,
    to_x: tensor,
    to_weight: tensor,
    to_bias: tensor,
    by_weight: tensor,
    by_bias: tensor,
    mean: tensor,
    variance: tensor,
    weight: tensor,
    bias: tensor,
    count: tensor,
    share: tensor,
    shares: tensor,
    channels: tensor,
    groups: tensor,
    eps: tensor,
    ACTIVATE: constexpr,
    BLOCK_R: constexpr,
    BLOCK_C: constexpr,
    STAGES: constexpr,
) -> None:
    """Of each share; beyond the last one stands a program that sums up over groups for weight and bias meanwhile."""
    columns, split, group, start, stop = _work(share, count, BLOCK_C)
    if split == shares:
        if group == 0:
            weights, biases = tl.zeros(columns.shape, tl.float32), tl.zeros(columns.shape, tl.float32)
            for one in range(groups):
                v = _of_channel(variance + one * channels, columns, channels, 0.0)
                weights += _sum_of_shares(by_weight, one, columns, shares, channels, BLOCK_R) * tl.rsqrt(v + eps)
                biases += _sum_of_shares(by_bias, one, columns, shares, channels, BLOCK_R)
            tl.store(to_weight + columns, weights, mask=columns < channels)
            tl.store(to_bias + columns, biases, mask=columns < channels)
    else:
        m = _of_channel(mean + group * channels, columns, channels, 0.0)
        v = _of_channel(variance + group * channels, columns, channels, 0.0)
        rate = tl.rsqrt(v + eps)
        scale = rate * _of_channel(weight, columns, channels, 1.0)
        shift = _of_channel(bias, columns, channels, 0.0)
        level = _sum_of_shares(by_bias, group, columns, shares, channels, BLOCK_R) / count
        slope = _sum_of_shares(by_weight, group, columns, shares, channels, BLOCK_R) / count * rate * rate
        for first in tl.range(start, stop, BLOCK_R, num_stages=STAGES):
            at, within, inside = _tile(first, stop, group, count, columns, channels, BLOCK_R)
            upstream = _read(grad, at, within, inside)
            away = _read(x, at, within, inside) - m[None, :]
            if ACTIVATE:
                upstream = tl.where(away * scale[None, :] + shift[None, :] <= 0.0, 0.0, upstream)
            by_x = (upstream - level[None, :] - away * slope[None, :]) * scale[None, :]
            tl.store(to_x + at + within, by_x.to(to_x.dtype.element_ty), mask=inside)
