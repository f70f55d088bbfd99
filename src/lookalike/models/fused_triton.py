"""Triton's kernels for a transformer's layers: an addition with the LayerNorm of its sum, and a bias with GELU.

Each is one kernel forward; backward one, and one that adds up what weight and bias get. Each number is read once and
written once, in the type of whoever reads it next. Sums are fp32 and are added up by program and then over programs;
nothing is added by atomics, and the shape alone decides how rows are shared out: the same bytes every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr, tensor

from lookalike.core.kernels import device_of

WORK = "LayerNorm and GELU run"
KERNELS = {"lookalike::add_norm": 1, "lookalike::add_norm_backward": 2}
KERNELS |= {"lookalike::bias_gelu": 1, "lookalike::bias_gelu_backward": 2}
"""How many kernels each operator starts."""

_TILE = 512  # numbers a warp of LayerNorm: 16 a thread, and no row of up to 512 is divided among warps
_NORM_TILES, _GELU_TILES = 8, 4  # of a program forward, which reads weight and bias once for all
_NORM_WARPS = 1584  # backward: twelve on each of an H100's 132 processors, which all run at once
_GELU_PROGRAMS = 792  # backward, of four warps each


@triton.jit
def _tile(start: tensor, rows: tensor, columns: tensor, WIDTH: constexpr, BLOCK_R: constexpr) -> tensor:
    """Places (BLOCK_R, ...) of the rows from ``start`` on, and which of them exist."""
    row = start + tl.arange(0, BLOCK_R)
    inside = (row < rows)[:, None] & (columns < WIDTH)[None, :]
    return row.to(tl.int64)[:, None] * WIDTH + columns[None, :], inside


@triton.jit
def _centred(x: tensor, known: tensor, eps: tensor, WIDTH: constexpr) -> tensor:
    """What each row (BLOCK_R, BLOCK_C), zero beyond ``known``, is beyond its mean, and 1/√(variance + eps)."""
    away = tl.where(known[None, :], x - (tl.sum(x, 1) / WIDTH)[:, None], 0.0)
    return away, tl.rsqrt(tl.sum(away * away, 1) / WIDTH + eps)[:, None]


@triton.jit(do_not_specialize=["rows", "share"])
def _norm(
    x: tensor,
    added: tensor,
    total: tensor,
    out: tensor,
    weight: tensor,
    bias: tensor,
    rows: tensor,
    share: tensor,
    eps: tensor,
    WIDTH: constexpr,
    BLOCK_R: constexpr,
    BLOCK_C: constexpr,
) -> None:
    """A program holds a few rows whole; ``share``, a multiple of BLOCK_R, is how many it does one after the other."""
    columns = tl.arange(0, BLOCK_C)
    known = columns < WIDTH
    scale = tl.load(weight + columns, mask=known, other=0.0)
    shift = tl.load(bias + columns, mask=known, other=0.0)
    first = tl.program_id(0) * share
    for start in range(first, tl.minimum(first + share, rows), BLOCK_R):
        at, inside = _tile(start, rows, columns, WIDTH, BLOCK_R)
        value = tl.load(x + at, mask=inside, other=0.0)
        if added is not None:
            value += tl.load(added + at, mask=inside, other=0.0).to(tl.float32)
            tl.store(total + at, value, mask=inside)
        away, rate = _centred(value, known, eps, WIDTH)
        normed = away * rate * scale[None, :] + shift[None, :]
        tl.store(out + at, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "share"])
def _norm_backward(
    by_total: tensor,
    by_out: tensor,
    total: tensor,
    to_x: tensor,
    to_added: tensor,
    weights: tensor,
    biases: tensor,
    weight: tensor,
    rows: tensor,
    share: tensor,
    eps: tensor,
    WIDTH: constexpr,
    BLOCK_R: constexpr,
    BLOCK_C: constexpr,
) -> None:
    """The gradient by the sum, in up to two types, and of each share what weight and bias get."""
    columns = tl.arange(0, BLOCK_C)
    known = columns < WIDTH
    scale = tl.load(weight + columns, mask=known, other=0.0)
    to_weight, to_bias = tl.zeros([BLOCK_R, BLOCK_C], tl.float32), tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    first = tl.program_id(0) * share
    for start in range(first, tl.minimum(first + share, rows), BLOCK_R):
        at, inside = _tile(start, rows, columns, WIDTH, BLOCK_R)
        upstream = tl.load(by_out + at, mask=inside, other=0.0).to(tl.float32)
        away, rate = _centred(tl.load(total + at, mask=inside, other=0.0), known, eps, WIDTH)
        normed = away * rate
        to_weight += upstream * normed
        to_bias += upstream
        by_normed = upstream * scale[None, :]
        level = (tl.sum(by_normed, 1) / WIDTH)[:, None]
        slope = (tl.sum(by_normed * normed, 1) / WIDTH)[:, None]
        by_x = (by_normed - level - normed * slope) * rate
        if by_total is not None:
            by_x += tl.load(by_total + at, mask=inside, other=0.0)
        tl.store(to_x + at, by_x, mask=inside)
        if to_added is not None:
            tl.store(to_added + at, by_x.to(to_added.dtype.element_ty), mask=inside)
    at = tl.program_id(0) * WIDTH + columns
    tl.store(weights + at, tl.sum(to_weight, 0), mask=known)
    tl.store(biases + at, tl.sum(to_bias, 0), mask=known)


@triton.jit
def _normal(x: tensor) -> tensor:
    """The normal distribution at x (Abramowitz & Stegun, 7.1.26, within 8e-8: faster than erf), and exp(-x²/2)."""
    bell = tl.exp(-0.5 * x * x)
    t = 1.0 / (1.0 + 0.2316418882663604 * tl.abs(x))  # 0.3275911 / √2
    series = 1.421413741 + t * (-1.453152027 + t * 1.061405429)
    above = 0.5 * bell * t * (0.254829592 + t * (-0.284496736 + t * series))
    return tl.where(x > 0.0, 1.0 - above, above), bell


@triton.jit(do_not_specialize=["rows", "share"])
def _gelu(
    grad: tensor,
    x: tensor,
    bias: tensor,
    out: tensor,
    sums: tensor,
    rows: tensor,
    share: tensor,
    WIDTH: constexpr,
    BLOCK_R: constexpr,
    BLOCK_C: constexpr,
) -> None:
    """Forward without ``grad``; with it the gradient by x, and its sums over each share of rows."""
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    shift = tl.load(bias + columns, mask=columns < WIDTH, other=0.0)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    first = tl.program_id(1) * share
    for start in range(first, tl.minimum(first + share, rows), BLOCK_R):
        at, inside = _tile(start, rows, columns, WIDTH, BLOCK_R)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + shift[None, :]
        below, bell = _normal(value)
        result = value * below
        if grad is not None:
            upstream = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
            result = upstream * (below + 0.3989422804014327 * value * bell)  # 1 / √(2π)
            total += result
        tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)
    if grad is not None:
        tl.store(sums + tl.program_id(1) * WIDTH + columns, tl.sum(total, 0), mask=columns < WIDTH)


@triton.jit(do_not_specialize=["shares"])
def _add_up(
    first: tensor,
    second: tensor,
    to_first: tensor,
    to_second: tensor,
    shares: tensor,
    WIDTH: constexpr,
    BLOCK_R: constexpr,
    BLOCK_C: constexpr,
) -> None:
    """Sums over shares (shares, WIDTH), of one tensor or of two."""
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    one, two = tl.zeros([BLOCK_R, BLOCK_C], tl.float32), tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(0, shares, BLOCK_R):
        share = start + tl.arange(0, BLOCK_R)
        inside = (share < shares)[:, None] & (columns < WIDTH)[None, :]
        at = share[:, None] * WIDTH + columns[None, :]
        one += tl.load(first + at, mask=inside, other=0.0)
        if second is not None:
            two += tl.load(second + at, mask=inside, other=0.0)
    tl.store(to_first + columns, tl.sum(one, 0), mask=columns < WIDTH)
    if second is not None:
        tl.store(to_second + columns, tl.sum(two, 0), mask=columns < WIDTH)


# ---- operators ----


def _tiles(x: Tensor, whole: bool) -> dict[str, int]:
    """What a kernel is compiled for: tiles that hold rows ``whole``, or parts of them."""
    width = x.shape[-1]
    columns = max(triton.next_power_of_2(width), 16) if whole else 256
    lines, warps = (max(1, _TILE // columns), max(1, columns // _TILE)) if whole else (8, 4)
    return {"WIDTH": width, "BLOCK_R": lines, "BLOCK_C": columns, "num_warps": warps}


def _split(rows: int, lines: int, tiles: int | None = None, programs: int = 1) -> tuple[int, int]:
    """Rows of a program and how many programs that makes: for so many tiles of ``lines`` each, or so many programs."""
    share = max(1, tiles or triton.cdiv(triton.cdiv(rows, lines), max(1, programs))) * lines
    return share, triton.cdiv(rows, share)


@torch.library.custom_op("lookalike::add_norm", mutates_args=())
def add_norm(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The sum in fp32 (empty without ``added``) and its norm in ``dtype``; ``x`` and ``added`` are contiguous."""
    total, out = _sum_and_norm(x, added, weight, bias, eps, dtype)
    tile, rows = _tiles(x, whole=True), x.numel() // x.shape[-1]
    share, programs = _split(rows, tile["BLOCK_R"], _NORM_TILES)
    if programs:
        with device_of(x):
            _norm[(programs,)](x, added, total, out, weight, bias, rows, share, eps, **tile)
    return total, out


@add_norm.register_fake
def _sum_and_norm(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return x.new_empty(0) if added is None else torch.empty_like(x), torch.empty_like(x, dtype=dtype)


@torch.library.custom_op("lookalike::add_norm_backward", mutates_args=())
def add_norm_backward(
    by_total: Tensor | None, by_out: Tensor, total: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients by the sum, in fp32 and in ``dtype`` (empty without one), by weight and by bias."""
    to_x, to_added, to_weight, to_bias = _norm_gradients(by_total, by_out, total, weight, eps, dtype)
    tile, width = _tiles(total, whole=True), total.shape[-1]
    rows, narrow = total.numel() // width, None if dtype is None else to_added
    share, programs = _split(rows, tile["BLOCK_R"], programs=_NORM_WARPS // tile["num_warps"])
    parts = weight.new_empty(programs, width), weight.new_empty(programs, width)
    with device_of(total):
        if programs:
            _norm_backward[(programs,)](
                *(by_total, by_out, total, to_x, narrow, *parts, weight, rows, share, eps), **tile
            )
        tile = {"WIDTH": width, "BLOCK_R": 256, "BLOCK_C": 16, "num_warps": 8}
        _add_up[(triton.cdiv(width, 16),)](*parts, to_weight, to_bias, programs, **tile)
    return to_x, to_added, to_weight, to_bias


@add_norm_backward.register_fake
def _norm_gradients(
    by_total: Tensor | None, by_out: Tensor, total: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    to_added = total.new_empty(0) if dtype is None else torch.empty_like(total, dtype=dtype)
    return torch.empty_like(total), to_added, torch.empty_like(weight), torch.empty_like(weight)


@torch.library.custom_op("lookalike::bias_gelu", mutates_args=())
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """(..., width) GELU of x + bias, in the type of ``x``, which is contiguous."""
    out, tile, rows = torch.empty_like(x), _tiles(x, whole=False), x.numel() // x.shape[-1]
    share, programs = _split(rows, tile["BLOCK_R"], _GELU_TILES)
    if programs:
        with device_of(x):
            _gelu[triton.cdiv(x.shape[-1], tile["BLOCK_C"]), programs](None, x, bias, out, None, rows, share, **tile)
    return out


@torch.library.custom_op("lookalike::bias_gelu_backward", mutates_args=())
def bias_gelu_backward(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients by x, in its type, and by bias."""
    to_x, to_bias, width, tile = torch.empty_like(x), torch.empty_like(bias), x.shape[-1], _tiles(x, whole=False)
    rows, blocks = x.numel() // width, triton.cdiv(width, tile["BLOCK_C"])
    share, programs = _split(rows, tile["BLOCK_R"], programs=_GELU_PROGRAMS // blocks)
    sums = bias.new_empty(programs, width)
    with device_of(x):
        if programs:
            _gelu[blocks, programs](grad, x, bias, to_x, sums, rows, share, **tile)
        tile = {"WIDTH": width, "BLOCK_R": 128, "BLOCK_C": 16, "num_warps": 4}
        _add_up[(triton.cdiv(width, 16),)](sums, None, to_bias, None, programs, **tile)
    return to_x, to_bias


bias_gelu.register_fake(lambda x, bias: torch.empty_like(x))
bias_gelu_backward.register_fake(lambda grad, x, bias: (torch.empty_like(x), torch.empty_like(bias)))


def trial() -> None:
    """Run on the GPU once; raises what Triton raises where it cannot."""
    x, weight = torch.zeros(2, 16, device="cuda"), torch.zeros(16, device="cuda")
    add_norm(x, None, weight, weight, 1e-5, torch.float32)
