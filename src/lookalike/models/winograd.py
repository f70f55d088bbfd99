"""3×3 convolutions with fewer products, for processors that are fastest in fp32 (Lavin & Gray, arXiv 1509.09308).

Winograd's tile of 4×4 results takes 36 products instead of 144: ``A ((G w) * (B x))`` along rows and columns, where *
goes element by element and, over channels, is 36 matrix products. Those run as fast as any, so the time falls as well.
The matrices come from interpolation at a few points, which decide how rounding grows. Tiles are made and used up in
chunks that stay in the cache; nothing but the input is kept for the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from numpy.polynomial import polynomial
from torch import Tensor
from torch.autograd.function import once_differentiable

from lookalike.core.devices import full_precision

_ROWS = 128  # of each matrix product, about: with fewer they are slower, with more the tiles leave the cache
_POINTS: dict[int, tuple[float, ...]] = {
    3: (0.0, 1.0),
    4: (0.0, 1.0, -1.0),
    5: (0.5, -0.5, 1.5, -1.5),
    6: (0.0, 0.7, -0.7, 1.5, -1.5),
}
"""Where polynomials of a transform of this size are interpolated, beside infinity: of some dozens tried those with the
least rounding. The usual 0, ±1, ±2 have twice the error; whole numbers would make no product cheaper here."""


def interpolation(outputs: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """A (outputs, n), G (n, taps), B (n, n) in float64, n = outputs + taps - 1 (Toom and Cook)."""
    n = outputs + taps - 1
    points = _POINTS[n]
    a, g, b = (torch.zeros(*shape, dtype=torch.float64) for shape in ((outputs, n), (n, taps), (n, n)))
    for i, point in enumerate(points):
        others = [other for other in points if other != point]
        powers = torch.tensor(point, dtype=torch.float64) ** torch.arange(n)
        a[:, i] = powers[:outputs]
        g[i] = powers[:taps] / torch.tensor([point - other for other in others], dtype=torch.float64).prod()
        b[i, :-1] = torch.from_numpy(polynomial.polyfromroots(others))
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = torch.from_numpy(polynomial.polyfromroots(points))
    sizes = a.abs().sum(0), g.abs().sum(1), b.abs().sum(1)
    level = (sizes[0] * sizes[1] * sizes[2]) ** (1 / 3)  # what one factor gains another loses: all three alike
    return a * (level / sizes[0]), g * (level / sizes[1])[:, None], b * (level / sizes[2])[:, None]


@dataclass(frozen=True, eq=False)
class Scheme:
    """How tiles of ``side`` × ``side`` results are computed, from tiles of input that are two pixels wider."""

    side: int
    enter: Tensor  # (n, n): a line of a tile of input, to n factors; rows first, then columns
    weigh: Tensor  # (n·n, 9): a kernel, to n·n factors
    leave: Tensor  # (side·side, n·n): the products, to side·side results
    n: int  # side + 2

    def turned(self) -> Scheme:
        """For the kernel turned about, which the gradient by the input needs."""
        return replace(self, weigh=self.weigh.flip(1))

    @full_precision()
    def weighed(self, weight: Tensor) -> Tensor:
        """(D, C, 3, 3) → (n·n, D, C)."""
        return (self.weigh @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(-1, *weight.shape[:2])


@lru_cache
def scheme(side: int, dtype: torch.dtype) -> Scheme:
    """The transforms are computed in float64 and rounded once."""
    a, g, b = interpolation(side, 3)
    return Scheme(side, b.to(dtype), torch.kron(g, g).to(dtype), torch.kron(a, a).to(dtype), side + 2)


def best_side(size: int) -> int:
    """The side of tiles that needs the fewest products for a line of ``size`` results: three tiles of 3 for 7, say."""
    return min((4, 3, 2), key=lambda side: -(-size // side) * (side + 2))


class _Buffers:
    """Room for one row of tiles of ``count`` pictures; every view is made once, since making one costs microseconds."""

    def __init__(self, scheme: Scheme, source: Tensor, results: Tensor, count: int) -> None:
        _, self.height, width, channels = source.shape
        n, side, tiles = scheme.n, scheme.side, -(-width // scheme.side)
        self.scheme = scheme
        lines = source.new_empty(count, n, width, channels)
        stretches = source.new_zeros(n, n, tiles, count, channels)  # what no copy reaches is padding
        self.lines, self.stretches = lines.flatten(2), stretches.flatten(2)
        self.factors = source.new_empty(n * n, tiles * count, channels)
        self.by_column = self.factors.view(n, n, -1)
        self.products = source.new_empty(n * n, tiles * count, results.shape[3])
        self.spread = self.products.flatten(1)
        self.rows, self.columns = scheme.enter.expand(count, -1, -1), scheme.enter.expand(n, -1, -1)
        tiles_of = source.new_zeros(side, side, tiles, count, results.shape[3])
        self.results, self.pixels = tiles_of.view(side * side, -1), tiles_of.permute(3, 0, 2, 1, 4)
        self.whole, self.cut = width // side, width - width % side
        self.copies = list(self._overlapping(stretches.permute(3, 0, 2, 1, 4), lines))

    def _overlapping(self, to: Tensor, lines: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(tiles with their neighbours' edges, lines of pictures) pairs of views that are to hold the same."""
        side, whole, cut = self.scheme.side, self.whole, self.cut
        yield to[:, :, :whole, 1:-1], lines[:, :, :cut].view(*lines.shape[:2], whole, side, lines.shape[3])
        if to.shape[2] > whole:
            yield to[:, :, whole, 1 : 1 + lines.shape[2] - cut], lines[:, :, cut:]
        if to.shape[2] > 1:
            yield to[:, :, 1:, 0], lines[:, :, side - 1 : -1 : side]
            yield to[:, :, :-1, -1], lines[:, :, side::side]

    def enter(self, pictures: Tensor, row: int) -> Tensor:
        """The factors (n·n, tiles·count, C) of one row of tiles of (count, H, W, C)."""
        top = row * self.scheme.side - 1
        first, last = max(0, -top), min(self.scheme.n, self.height - top)
        torch.bmm(self.rows[:, :, first:last], pictures[:, top + first : top + last].flatten(2), out=self.lines)
        for to, part in self.copies:
            to.copy_(part)
        torch.bmm(self.columns, self.stretches, out=self.by_column)
        return self.factors

    def beside(self, pictures: Tensor, row: int) -> tuple[int, list[tuple[Tensor, Tensor]]]:
        """How many lines of ``results`` are in the pictures, and (results, pictures) pairs of views of the same."""
        side, whole, cut = self.scheme.side, self.whole, self.cut
        part = pictures[:, row * side : (row + 1) * side]
        lines = part.shape[1]
        pairs = [(self.pixels[:, :lines, :whole], part[:, :, :cut].view(len(part), lines, whole, side, part.shape[3]))]
        if cut < part.shape[2]:
            pairs.append((self.pixels[:, :lines, whole, : part.shape[2] - cut], part[:, :, cut:]))
        return lines * side, pairs


def _walk(scheme: Scheme, source: Tensor, results: Tensor, rows: int) -> Iterator[tuple[Tensor, Tensor, int, _Buffers]]:
    """Every row of tiles of every chunk of pictures, with the buffers to use."""
    down, across = (-(-size // scheme.side) for size in source.shape[1:3])
    count = max(1, min(len(source), rows // across))
    buffers: _Buffers | None = None
    cuts = list(range(count, len(source), count))
    for part, whole in zip(source.tensor_split(cuts), results.tensor_split(cuts)):
        if buffers is None or len(part) < count:
            buffers = _Buffers(scheme, part, whole, len(part))
        for row in range(down):
            yield part, whole, row, buffers


@full_precision()
def convolve(source: Tensor, kernels: Tensor, scheme: Scheme, rows: int = _ROWS) -> Tensor:
    """(N, H, W, C) by ``kernels`` (n·n, C, D) → (N, H, W, D), in products of about ``rows`` rows."""
    results = source.new_empty(*source.shape[:3], kernels.shape[2])
    for part, to, row, buffers in _walk(scheme, source, results, rows):
        torch.bmm(buffers.enter(part, row), kernels, out=buffers.products)
        used, pairs = buffers.beside(to, row)
        torch.mm(scheme.leave[:used], buffers.spread, out=buffers.results[:used])
        for tiles, pictures in pairs:
            pictures.copy_(tiles)
    return results


@full_precision()
def correlate(source: Tensor, upstream: Tensor, scheme: Scheme, rows: int = _ROWS) -> Tensor:
    """The gradient (3, 3, D, C) by the kernel, from the input (N, H, W, C) and the gradient (N, H, W, D)."""
    kernels = source.new_empty(scheme.n**2, upstream.shape[3], source.shape[3])
    beta = 0.0  # the first product overwrites what was in the memory
    back = scheme.leave.t().contiguous()
    for part, gradient, row, buffers in _walk(scheme, source, upstream, rows):
        used, pairs = buffers.beside(gradient, row)
        for tiles, pictures in pairs:
            tiles.copy_(pictures)
        torch.mm(back[:, :used], buffers.results[:used], out=buffers.spread)
        kernels.baddbmm_(buffers.products.transpose(1, 2), buffers.enter(part, row), beta=beta)
        beta = 1.0
    return (scheme.weigh.t() @ kernels.flatten(1)).view(3, 3, *kernels.shape[1:])


def _last(x: Tensor) -> Tensor:
    """(N, C, H, W) → (N, H, W, C), without a copy where the memory is so already."""
    return x.permute(0, 2, 3, 1).contiguous()


class Convolution(torch.autograd.Function):
    """A 3×3 convolution with stride and padding 1 of (N, C, H, W) by (D, C, 3, 3), in channels_last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """→ (N, D, H, W)."""
        ctx.save_for_backward(x, weight)
        plan = scheme(best_side(max(x.shape[2:])), x.dtype)
        return convolve(_last(x), plan.weighed(weight).transpose(1, 2), plan).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The input passes the transform once more: to keep its factors would be 2.25 times its memory."""
        x, weight = ctx.saved_tensors
        plan, upstream, to_x, to_weight = scheme(best_side(max(x.shape[2:])), x.dtype), _last(grad), None, None
        if ctx.needs_input_grad[0]:
            to_x = convolve(upstream, plan.turned().weighed(weight), plan).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            to_weight = correlate(_last(x), upstream, plan).permute(2, 3, 0, 1)
        return to_x, to_weight
