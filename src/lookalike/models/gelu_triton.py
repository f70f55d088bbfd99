"""Bias and GELU in Triton: one kernel forward; backward one, and one that adds up what the bias gets.

Nothing is added by atomics, and how rows are shared out is a function of the shape alone, so results are the same bytes
every time. The normal distribution is that of Abramowitz & Stegun, 7.1.26, within 8e-8: half of the operations of a
library's erf, whose many would take longer than the memory does.
"""

from __future__ import annotations

import warnings

import torch
import triton
import triton.language as tl
from torch import Tensor

KERNELS = {"lookalike::bias_gelu": 1, "lookalike::bias_gelu_backward": 2}
"""How many kernels each operator starts."""

_TILE = {"BLOCK_R": 8, "BLOCK_C": 256, "num_warps": 4}
_SUMS = {"BLOCK_R": 128, "BLOCK_C": 16, "num_warps": 4}
_TILES = 4  # of a program forward, which reads the bias once for all
_PROGRAMS = 792  # backward: six on each of an H100's 132 processors, which all run at once


# ---- kernels ----


@triton.jit
def _normal(x: tl.tensor) -> tl.tensor:
    """The normal distribution at x, and exp(-x²/2)."""
    bell = tl.exp(-0.5 * x * x)
    t = 1.0 / (1.0 + 0.2316418882663604 * tl.abs(x))  # 0.3275911 / √2
    series = 1.421413741 + t * (-1.453152027 + t * 1.061405429)
    above = 0.5 * bell * t * (0.254829592 + t * (-0.284496736 + t * series))
    return tl.where(x > 0.0, 1.0 - above, above), bell


@triton.jit(do_not_specialize=["rows", "share"])
def _forward(
    x: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    share: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """``share``, a multiple of BLOCK_R, is how many rows a program does."""
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = columns < WIDTH
    shift = tl.load(bias + columns, mask=known, other=0.0)
    first = tl.program_id(1) * share
    for start in range(first, tl.minimum(first + share, rows), BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        inside = (row < rows)[:, None] & known[None, :]
        at = row.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + shift[None, :]
        below, _ = _normal(value)
        tl.store(out + at, (value * below).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "share"])
def _backward(
    grad: tl.tensor,
    x: tl.tensor,
    bias: tl.tensor,
    to_x: tl.tensor,
    sums: tl.tensor,
    rows: tl.tensor,
    share: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """The gradient by the layer's output, and its sum over each share of rows."""
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = columns < WIDTH
    shift = tl.load(bias + columns, mask=known, other=0.0)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    first = tl.program_id(1) * share
    for start in range(first, tl.minimum(first + share, rows), BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        inside = (row < rows)[:, None] & known[None, :]
        at = row.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + shift[None, :]
        upstream = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        below, bell = _normal(value)
        found = upstream * (below + 0.3989422804014327 * value * bell)  # 1 / √(2π)
        total += found
        tl.store(to_x + at, found.to(to_x.dtype.element_ty), mask=inside)
    tl.store(sums + tl.program_id(1) * WIDTH + columns, tl.sum(total, 0), mask=known)


@triton.jit(do_not_specialize=["shares"])
def _add_up(
    sums: tl.tensor,
    out: tl.tensor,
    shares: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(0, shares, BLOCK_R):
        share = start + tl.arange(0, BLOCK_R)
        inside = (share < shares)[:, None] & (columns < WIDTH)[None, :]
        total += tl.load(sums + share[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0)
    tl.store(out + columns, tl.sum(total, 0), mask=columns < WIDTH)


# ---- operators ----


def _grid(rows: int, width: int, programs: int | None = None) -> tuple[int, tuple[int, int]]:
    """Rows of a program, and how many programs there are: about ``programs``, or as many as it takes."""
    height, blocks = _TILE["BLOCK_R"], triton.cdiv(width, _TILE["BLOCK_C"])
    tiles = _TILES if programs is None else triton.cdiv(triton.cdiv(rows, height), max(1, programs // blocks))
    share = max(1, tiles) * height
    return share, (blocks, triton.cdiv(rows, share))


@torch.library.custom_op("lookalike::bias_gelu", mutates_args=(), schema="(Tensor x, Tensor bias) -> Tensor")
def forward(x: Tensor, bias: Tensor) -> Tensor:
    """(..., width) GELU of x + bias, in the type of ``x``, which is contiguous."""
    out, width = torch.empty_like(x), x.shape[-1]
    rows = x.numel() // width
    share, grid = _grid(rows, width)
    if rows:
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            _forward[grid](x, bias, out, rows, share, WIDTH=width, **_TILE)
    return out


@forward.register_fake
def _(x: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op(
    "lookalike::bias_gelu_backward", mutates_args=(), schema="(Tensor grad, Tensor x, Tensor bias) -> (Tensor, Tensor)"
)
def backward(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients by x, in its type, and by bias."""
    to_x, to_bias, width = torch.empty_like(x), torch.empty_like(bias), x.shape[-1]
    rows = x.numel() // width
    share, grid = _grid(rows, width, _PROGRAMS)
    sums = bias.new_empty(grid[1], width)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        if rows:
            _backward[grid](grad, x, bias, to_x, sums, rows, share, WIDTH=width, **_TILE)
        _add_up[(triton.cdiv(width, _SUMS["BLOCK_C"]),)](sums, to_bias, grid[1], WIDTH=width, **_SUMS)
    return to_x, to_bias


@backward.register_fake
def _(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(bias)


def works() -> bool:
    """Whether kernels can be built here, which takes a C compiler and a GPU that Triton knows; says so where not."""
    if not torch.cuda.is_available():
        return True  # tensors without data, for which none is started
    x, bias = torch.zeros(2, 16, dtype=torch.bfloat16, device="cuda"), torch.zeros(16, device="cuda")
    try:
        forward(x, bias)
    except Exception as error:
        warnings.warn(f"GELU runs without Triton, more slowly: {str(error).splitlines()[0]}", stacklevel=2)
        return False
    return True
