"""3×3 convolutions with fewer multiplications, for processors whose fast type is fp32 (Winograd 1980; Lavin & Gray 2016).

A tile of 4×4 results of a 3×3 convolution takes 36 products instead of 144: ``A ((G w) * (B x))`` along rows and columns,
where * goes element by element and, over channels, is 36 matrix products. Those run at the speed of any matrix product,
so what is saved is time. The matrices come from interpolation at a few points, which decide how rounding grows. Tiles
are made and used up in chunks that stay in the cache; nothing but the input is kept for the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import torch
from numpy.polynomial import polynomial
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
    """A (outputs, n), G (n, taps), B (n, n) in float64, n = outputs + taps - 1 (Toom-Cook; arXiv 1509.09308, section 4)."""
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
    n: int

    def turned(self) -> Scheme:
        """For the kernel turned about, which the gradient by the input needs."""
        return replace(self, weigh=self.weigh.flip(1))

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


class _Chunk:
    """Buffers in which ``count`` pictures pass row of tiles by row of tiles; channels are innermost everywhere."""

    def __init__(self, scheme: Scheme, like: Tensor, count: int) -> None:
        _, self.height, width, channels = like.shape
        n, side, tiles = scheme.n, scheme.side, -(-width // scheme.side)
        self.scheme = scheme
        self.lines = like.new_empty(count, n, width, channels)
        self.tiles = like.new_zeros(n, n, tiles, count, channels)  # what no copy reaches is padding
        self.factors = like.new_empty(n * n, tiles * count, channels)
        to, whole, cut = self.tiles.permute(3, 0, 2, 1, 4), width // side, width - width % side
        copies = [
            (to[:, :, :whole, 1:-1], self.lines[:, :, :cut].unflatten(2, (whole, side))),
            (to[:, :, whole:, 1 : 1 + width - cut], self.lines[:, :, None, cut:]),
            (to[:, :, 1:, 0], self.lines[:, :, side - 1 : -1 : side]),
            (to[:, :, : tiles - 1, -1], self.lines[:, :, side::side]),
        ]
        self.copies = [pair for pair in copies if pair[0].numel()]

    def enter(self, pictures: Tensor, row: int) -> Tensor:
        """The factors (n·n, tiles·count, C) of one row of tiles of (count, H, W, C)."""
        n, top = self.scheme.n, row * self.scheme.side - 1
        first, last = max(0, -top), min(n, self.height - top)
        lines = pictures[:, top + first : top + last].flatten(2)
        torch.bmm(self.scheme.enter[:, first:last].expand(len(lines), -1, -1), lines, out=self.lines.flatten(2))
        for to, part in self.copies:
            to.copy_(part)
        torch.bmm(self.scheme.enter.expand(n, -1, -1), self.tiles.flatten(2), out=self.factors.view(n, n, -1))
        return self.factors


class _Results:
    """One row of tiles of results, (side, side, tiles, count, channels), beside the pictures (count, H, W, channels)."""

    def __init__(self, scheme: Scheme, like: Tensor, count: int) -> None:
        _, self.height, width, channels = like.shape
        side = self.side = scheme.side
        self.whole, self.rest = width // side, width % side
        self.flat = like.new_zeros(side * side, (self.whole + (self.rest > 0)) * count * channels)
        self.view = self.flat.view(side, side, -1, count, channels).permute(3, 0, 2, 1, 4)

    def beside(self, pictures: Tensor, row: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The part of ``flat`` that has lines in the pictures, and (tiles, pictures) pairs of views of the same."""
        part = pictures[:, row * self.side : (row + 1) * self.side]
        lines, cut = part.shape[1], self.whole * self.side
        pairs = [
            (self.view[:, :lines, : self.whole], part[:, :, :cut].unflatten(2, (self.whole, self.side))),
            (self.view[:, :lines, self.whole :, : self.rest], part[:, :, None, cut:]),
        ]
        return self.flat[: self.side * lines], [pair for pair in pairs if pair[0].numel()]


def _chunks(scheme: Scheme, source: Tensor, results: Tensor, rows: int) -> Iterator[tuple[slice, int, _Chunk, _Results]]:
    """Every row of tiles of every chunk of pictures, with the buffers to use."""
    down, across = (-(-size // scheme.side) for size in results.shape[1:3])
    count = max(1, min(len(source), rows // across))
    buffers: tuple[_Chunk, _Results] | None = None
    for start in range(0, len(source), count):
        part = slice(start, min(start + count, len(source)))
        if buffers is None or part.stop - start < count:
            buffers = _Chunk(scheme, source[part], part.stop - start), _Results(scheme, results, part.stop - start)
        for row in range(down):
            yield part, row, *buffers


def convolve(source: Tensor, kernels: Tensor, scheme: Scheme, rows: int = _ROWS) -> Tensor:
    """(N, H, W, C) by ``kernels`` (n·n, C, D) → (N, H, W, D), in products of about ``rows`` rows."""
    results = source.new_empty(*source.shape[:3], kernels.shape[2])
    for part, row, chunk, tiles in _chunks(scheme, source, results, rows):
        flat, pairs = tiles.beside(results[part], row)
        products = torch.bmm(chunk.enter(source[part], row), kernels)
        torch.mm(scheme.leave[: len(flat)], products.flatten(1), out=flat)
        for tile, picture in pairs:
            picture.copy_(tile)
    return results


def correlate(source: Tensor, upstream: Tensor, scheme: Scheme, rows: int = _ROWS) -> Tensor:
    """The gradient (3, 3, D, C) by the kernel, from the input (N, H, W, C) and the gradient (N, H, W, D)."""
    n, wide, deep = scheme.n, upstream.shape[3], source.shape[3]
    kernels = source.new_zeros(n * n, wide, deep)
    for part, row, chunk, tiles in _chunks(scheme, source, upstream, rows):
        flat, pairs = tiles.beside(upstream[part], row)
        for tile, picture in pairs:
            tile.copy_(picture)
        products = (scheme.leave[: len(flat)].t() @ flat).view(n * n, -1, wide)
        kernels.baddbmm_(products.transpose(1, 2), chunk.enter(source[part], row))
    return (scheme.weigh.t() @ kernels.flatten(1)).view(3, 3, wide, deep)


def _last(x: Tensor) -> Tensor:
    """(N, C, H, W) → (N, H, W, C), without a copy where the memory is so already."""
    return x.permute(0, 2, 3, 1).contiguous()


class _Winograd(torch.autograd.Function):
    """A 3×3 convolution with stride and padding 1 of (N, C, H, W) by (D, C, 3, 3), in channels_last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        plan = scheme(best_side(max(x.shape[2:])), x.dtype)
        return convolve(_last(x), plan.weighed(weight).transpose(1, 2), plan).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        plan, upstream, to_x, to_weight = scheme(best_side(max(x.shape[2:])), x.dtype), _last(grad), None, None
        if ctx.needs_input_grad[0]:
            to_x = convolve(upstream, plan.turned().weighed(weight), plan).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            to_weight = correlate(_last(x), upstream, plan).permute(2, 3, 0, 1)
        return to_x, to_weight


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether this was measured to be faster than torch's own convolution, by ... (docs/results.md)."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkl.is_available()
        and min(weight.shape[:2]) >= 64
    )


class WinogradConv2d(nn.Conv2d):
    """A 3×3 convolution with stride and padding 1 that takes the faster of two ways; the state is nn.Conv2d's."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, D, H, W)."""
        if not pays(x, self.weight):
            return super().forward(x)
        return cast("Tensor", _Winograd.apply(x, self.weight))


def _fits(module: nn.Module) -> bool:
    """Whether this is a convolution of the one kind that is rewritten here."""
    return (
        type(module) is nn.Conv2d
        and (module.kernel_size, module.stride, module.padding) == ((3, 3), (1, 1), (1, 1))
        and (module.dilation, module.groups, module.padding_mode) == ((1, 1), 1, "zeros")
        and module.bias is None
    )


def fewer_products(module: nn.Module) -> nn.Module:
    """Replace every 3×3 convolution that fits below ``module``; its weights, names and shapes stay the same."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and _fits(child):
            quick = WinogradConv2d(child.in_channels, child.out_channels, 3, padding=1, bias=False, device="meta")
            quick.weight = child.weight
            setattr(module, name, quick)
        else:
            fewer_products(child)
    return module
