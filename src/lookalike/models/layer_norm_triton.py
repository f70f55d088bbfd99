"""An addition and the LayerNorm of its sum in Triton: one kernel forward, two backward.

A program holds a few rows whole, so each number is read once and written once, in the type of whoever reads it next.
Sums over rows, for weight and bias, are added up by program and then over programs; nothing is added by atomics, and
how rows are shared out is a function of the shape alone, so results are the same bytes every time. Statistics and sums
are fp32, the variance that of what is beyond the mean.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

KERNELS = {"lookalike::add_norm": 1, "lookalike::add_norm_backward": 2}
"""How many kernels each operator starts."""

_TILE = 512  # numbers a warp: 16 a thread, and no row of up to 512 is divided among warps
_TILES = 8  # of a program forward, so that it seldom waits for weight and bias
_PROGRAMS = 1584  # warps backward: twelve on each of an H100's 132 processors, which all run at once
_SUMS, _COLUMNS = 256, 16  # shape of a tile of the last kernel


# ---- kernels ----


@triton.jit
def _centred(x: tl.tensor, known: tl.tensor, eps: tl.tensor, WIDTH: tl.constexpr) -> tl.tensor:
    """What each row (BLOCK_R, BLOCK_W), zero beyond ``known``, is beyond its mean, and 1/√(variance + eps)."""
    away = tl.where(known[None, :], x - (tl.sum(x, 1) / WIDTH)[:, None], 0.0)
    return away, tl.rsqrt(tl.sum(away * away, 1) / WIDTH + eps)[:, None]


@triton.jit(do_not_specialize=["rows", "share"])
def _forward(
    x: tl.tensor,
    added: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    rows: tl.tensor,
    share: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
) -> None:
    """``share``, a multiple of BLOCK_R, is how many rows a program does."""
    columns = tl.arange(0, BLOCK_W)
    known = columns < WIDTH
    scale = tl.load(weight + columns, mask=known, other=0.0)
    shift = tl.load(bias + columns, mask=known, other=0.0)
    first = tl.program_id(0) * share
    for start in range(first, tl.minimum(first + share, rows), BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        inside = (row < rows)[:, None] & known[None, :]
        at = row.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        value = tl.load(x + at, mask=inside, other=0.0)
        if added is not None:
            value += tl.load(added + at, mask=inside, other=0.0).to(tl.float32)
            tl.store(total + at, value, mask=inside)
        away, rate = _centred(value, known, eps, WIDTH)
        normed = away * rate * scale[None, :] + shift[None, :]
        tl.store(out + at, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "share"])
def _backward(
    by_total: tl.tensor,
    by_out: tl.tensor,
    total: tl.tensor,
    to_x: tl.tensor,
    to_added: tl.tensor,
    weights: tl.tensor,
    biases: tl.tensor,
    weight: tl.tensor,
    rows: tl.tensor,
    share: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
) -> None:
    """The gradient by the sum, in up to two types, and of each share what weight and bias get."""
    columns = tl.arange(0, BLOCK_W)
    known = columns < WIDTH
    scale = tl.load(weight + columns, mask=known, other=0.0)
    to_weight, to_bias = tl.zeros([BLOCK_R, BLOCK_W], tl.float32), tl.zeros([BLOCK_R, BLOCK_W], tl.float32)
    first = tl.program_id(0) * share
    for start in range(first, tl.minimum(first + share, rows), BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        inside = (row < rows)[:, None] & known[None, :]
        at = row.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        upstream = tl.load(by_out + at, mask=inside, other=0.0).to(tl.float32)
        away, rate = _centred(tl.load(total + at, mask=inside, other=0.0), known, eps, WIDTH)
        normed = away * rate
        to_weight += upstream * normed
        to_bias += upstream
        by_normed = upstream * scale[None, :]
        level = (tl.sum(by_normed, 1) / WIDTH)[:, None]
        slope = (tl.sum(by_normed * normed, 1) / WIDTH)[:, None]
        found = (by_normed - level - normed * slope) * rate
        if by_total is not None:
            found += tl.load(by_total + at, mask=inside, other=0.0)
        tl.store(to_x + at, found, mask=inside)
        if to_added is not None:
            tl.store(to_added + at, found.to(to_added.dtype.element_ty), mask=inside)
    at = tl.program_id(0) * WIDTH + columns
    tl.store(weights + at, tl.sum(to_weight, 0), mask=known)
    tl.store(biases + at, tl.sum(to_bias, 0), mask=known)


@triton.jit(do_not_specialize=["shares"])
def _add_up(
    weights: tl.tensor,
    biases: tl.tensor,
    to_weight: tl.tensor,
    to_bias: tl.tensor,
    shares: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    by_weight, by_bias = tl.zeros([BLOCK_R, BLOCK_C], tl.float32), tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(0, shares, BLOCK_R):
        share = start + tl.arange(0, BLOCK_R)
        inside = (share < shares)[:, None] & (columns < WIDTH)[None, :]
        at = share[:, None] * WIDTH + columns[None, :]
        by_weight += tl.load(weights + at, mask=inside, other=0.0)
        by_bias += tl.load(biases + at, mask=inside, other=0.0)
    tl.store(to_weight + columns, tl.sum(by_weight, 0), mask=columns < WIDTH)
    tl.store(to_bias + columns, tl.sum(by_bias, 0), mask=columns < WIDTH)


# ---- operators ----


class _Plan(NamedTuple):
    """How rows are shared out."""

    rows: int
    width: int
    lines: int  # rows of a tile
    columns: int  # of a tile: a power of two
    warps: int

    def tile(self) -> dict[str, int]:
        return {"WIDTH": self.width, "BLOCK_R": self.lines, "BLOCK_W": self.columns, "num_warps": self.warps}

    def share(self, programs: int | None = None) -> tuple[int, int]:
        """Rows of a program, and how many programs there are: no more than ``programs``, or as many as it takes."""
        tiles = triton.cdiv(self.rows, self.lines)
        share = (_TILES if programs is None else max(1, triton.cdiv(tiles, programs))) * self.lines
        return share, triton.cdiv(self.rows, share)


def _plan(x: Tensor) -> _Plan:
    width = x.shape[-1]
    columns = max(triton.next_power_of_2(width), 16)
    return _Plan(x.numel() // width, width, max(1, _TILE // columns), columns, max(1, columns // _TILE))


@torch.library.custom_op(
    "lookalike::add_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor? added, Tensor weight, Tensor bias, float eps, ScalarType dtype) -> (Tensor, Tensor)",
)
def forward(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The sum in fp32 (empty without ``added``) and its norm in ``dtype``; ``x`` and ``added`` are contiguous."""
    plan = _plan(x)
    total, out = _room(x, added, dtype)
    share, programs = plan.share()
    if programs:
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            _forward[(programs,)](x, added, total, out, weight, bias, plan.rows, share, eps, **plan.tile())
    return total, out


@forward.register_fake
def _(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return _room(x, added, dtype)


def _room(x: Tensor, added: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return x.new_empty(0) if added is None else torch.empty_like(x), torch.empty_like(x, dtype=dtype)


@torch.library.custom_op(
    "lookalike::add_norm_backward",
    mutates_args=(),
    schema="(Tensor? by_total, Tensor by_out, Tensor total, Tensor weight, float eps, ScalarType? dtype) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def backward(
    by_total: Tensor | None, by_out: Tensor, total: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients by the sum, in fp32 and in ``dtype`` (empty without one), by weight and by bias."""
    plan = _plan(total)
    to_x, to_added, to_weight, to_bias = _gradients(total, weight, dtype)
    share, programs = plan.share(max(1, _PROGRAMS // plan.warps))
    parts = (weight.new_empty(programs, plan.width), weight.new_empty(programs, plan.width))
    narrow = None if dtype is None else to_added
    with torch.cuda.device_of(total):  # type: ignore[no-untyped-call]
        if programs:
            _backward[(programs,)](
                *(by_total, by_out, total, to_x, narrow, *parts, weight, plan.rows, share, eps), **plan.tile()
            )
        tile = {"WIDTH": plan.width, "BLOCK_R": _SUMS, "BLOCK_C": _COLUMNS, "num_warps": 8}
        _add_up[(triton.cdiv(plan.width, _COLUMNS),)](*parts, to_weight, to_bias, programs, **tile)
    return to_x, to_added, to_weight, to_bias


@backward.register_fake
def _(
    by_total: Tensor | None, by_out: Tensor, total: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _gradients(total, weight, dtype)


def _gradients(total: Tensor, weight: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    to_added = total.new_empty(0) if dtype is None else torch.empty_like(total, dtype=dtype)
    return torch.empty_like(total), to_added, torch.empty_like(weight), torch.empty_like(weight)


def works() -> bool:
    """Whether kernels can be built here, which takes a C compiler and a GPU that Triton knows; says so where not."""
    if not torch.cuda.is_available():
        return True  # tensors without data, for which none is started
    x, weight = torch.zeros(2, 16, device="cuda"), torch.zeros(16, device="cuda")
    try:
        forward(x, None, weight, weight, 1e-5, torch.float32)
    except Exception as error:
        warnings.warn(f"LayerNorm runs without Triton, more slowly: {str(error).splitlines()[0]}", stacklevel=2)
        return False
    return True
