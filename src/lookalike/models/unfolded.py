"""Convolutions of pictures of few pixels as products of matrices, on processors.

``unfold`` writes out the pixels that each result sees, one row a result: (results, k·k·C). That times the kernel is the
convolution, and its transpose times the gradient is the gradient of the kernel, which oneDNN makes at a tenth to a half
of this speed where pictures have few pixels (docs/results.md). Where they are so few that every result sees the border,
``Inside`` leaves that out: 16 products of a pixel and a tap in place of 36 at 2 × 2 pixels. Sums are fp32 inside a
product either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lookalike.core.devices import wide

_CACHED = 1 << 20  # numbers that are unfolded at a time, about: they are used up while they lie in the cache


class Ways(NamedTuple):
    """Which products of a convolution are made of unfolded pictures; the others are torch's."""

    forward: bool = False
    by_input: bool = False
    by_weight: bool = False


def unfold(x: Tensor, kernel: int, stride: int) -> Tensor:
    """(N, H, W, C), padded to ⌈H / stride⌉ · ⌈W / stride⌉ results each → (N · results, kernel · kernel · C)."""
    count, height, width, channels = x.shape
    if kernel == 1:
        return x[:, ::stride, ::stride].reshape(-1, channels)
    before, both = (kernel - 1) // 2, kernel - 1
    padded = x.new_zeros(count, height + both, width + both, channels)
    padded[:, before : before + height, before : before + width] = x
    by_picture, by_line, by_pixel, _ = padded.stride()
    down, across = ((side - 1) // stride + 1 for side in (height, width))
    # Pixels of a line lie side by side, so that kernel · C numbers are copied at a time.
    shape, steps = (count, down, across, kernel, kernel * channels), (by_picture, stride * by_line, stride * by_pixel)
    return padded.as_strided(shape, (*steps, by_line, 1)).reshape(count * down * across, -1)


def convolve(x: Tensor, matrix: Tensor, kernel: int, stride: int) -> Tensor:
    """(N, H, W, C) by (kernel · kernel · C, D) → (N, ⌈H / stride⌉, ⌈W / stride⌉, D)."""
    down, across = ((side - 1) // stride + 1 for side in x.shape[1:3])
    out = x.new_empty(len(x), down, across, matrix.shape[1])
    count = max(1, _CACHED // (down * across * len(matrix)))
    for part, to in zip(torch.split(x, count), torch.split(out, count)):
        torch.mm(unfold(part, kernel, stride), matrix, out=to.view(-1, matrix.shape[1]))
    return out


def correlate(x: Tensor, upstream: Tensor, kernel: int, stride: int) -> Tensor:
    """The gradient (D, kernel · kernel · C) by the kernel, from the input and the gradient (N, ..., D)."""
    channels, pixels = upstream.shape[3], upstream.shape[1] * upstream.shape[2]
    rows = max(_CACHED // (kernel**2 * x.shape[3]), 4 * channels)  # what is added up is passed over once a part
    count = max(1, rows // pixels)
    parts = zip(torch.split(x, count), torch.split(upstream, count))
    products = (to.reshape(-1, channels).t() @ unfold(part, kernel, stride) for part, to in parts)
    total = next(products)
    if count < len(x):
        total = wide(total)
        for product in products:
            total += product
    return total.to(x.dtype)


def spread(upstream: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
    """The gradient (N, H, W, C) by the input of a convolution of stride 2, from that by its results (N, h, w, D).

    Four pixels lie between a result and the next ones, and one to four taps lead back to each: one product of 2 · 2
    results with a matrix of those taps, 7 of whose 16 blocks are zero, makes all four.
    """
    (count, down, across, _), channels = upstream.shape, weight.shape[1]
    if weight.shape[2] == 1:
        out = upstream.new_zeros(count, height, width, channels)
        out[:, ::2, ::2] = convolve(upstream, weight.flatten(1), 1, 1)
        return out
    taps = weight.new_zeros(2, 2, len(weight), 2, 2, channels)  # of which result, to which pixel
    for (i, p, y), (j, q, x) in product(((0, 0, 1), (0, 1, 2), (1, 1, 0)), repeat=2):
        taps[i, j, :, p, q] = weight[:, :, y, x]
    pixels = convolve(upstream, taps.view(4 * len(weight), -1), 2, 1).view(count, down, across, 2, 2, channels)
    return pixels.transpose(2, 3).reshape(count, 2 * down, 2 * across, channels)[:, :height, :width]


def _last(x: Tensor) -> Tensor:
    """(N, C, H, W) → (N, H, W, C), without a copy where the memory is so already."""
    return x.permute(0, 2, 3, 1).contiguous()


class Unfolded(torch.autograd.Function):
    """A convolution of (N, C, H, W) by (D, C, k, k), k 1 or 3, stride 1 or 2, padded by k // 2, in channels_last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, ways: Ways) -> Tensor:
        """→ (N, D, ⌈H / stride⌉, ⌈W / stride⌉)."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.ways, kernel = stride, ways, weight.shape[2]
        if not ways.forward:
            return torch.conv2d(x, weight, None, stride, kernel // 2)
        matrix = weight.permute(2, 3, 1, 0).reshape(-1, len(weight))
        return convolve(_last(x), matrix, kernel, stride).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The input is unfolded once more: to keep it would take k² times its memory."""
        x, weight = ctx.saved_tensors
        stride, ways, kernel, wanted = ctx.stride, ctx.ways, weight.shape[2], ctx.needs_input_grad[:2]
        rest = [wanted[0] and not ways.by_input, wanted[1] and not ways.by_weight, False]
        to_x = to_weight = None
        if any(rest):
            settings = (None, [stride] * 2, [kernel // 2] * 2, [1, 1], False, [0, 0], 1, rest)
            to_x, to_weight, _ = torch.ops.aten.convolution_backward(grad, x, weight, *settings)
        upstream = _last(grad)
        if wanted[0] and ways.by_input:
            turned = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(-1, weight.shape[1])
            back = convolve(upstream, turned, kernel, 1) if stride == 1 else spread(upstream, weight, *x.shape[2:])
            to_x = back.permute(0, 3, 1, 2)
        if wanted[1] and ways.by_weight:
            flat = correlate(_last(x), upstream, kernel, stride)
            to_weight = flat.view(len(weight), kernel, kernel, -1).permute(0, 3, 1, 2)
        return to_x, to_weight, None, None


# ---- without the border ----

Place = tuple[slice, slice]


class Span(NamedTuple):
    """Pixels of a row or column, and for each result that sees these and no others the taps of a kernel of 3."""

    pixels: slice
    taps: list[slice]


class Window(NamedTuple):
    """Pixels of a picture, and for each result that sees these and no others its taps."""

    pixels: Place
    taps: list[Place]


def spans(side: int, stride: int) -> list[Span]:
    """What the ⌈side / stride⌉ results along a side see, in their order."""
    found: list[Span] = []
    for first in range(-1, side - 1, stride):
        pixels = slice(max(0, first), min(side, first + 3))
        if not found or found[-1].pixels != pixels:
            found.append(Span(pixels, []))
        found[-1].taps.append(slice(pixels.start - first, pixels.stop - first))
    return found


class Inside(torch.autograd.Function):
    """A convolution of (N, C, H, W) by (D, C, 3, 3), stride 1 or 2, padded by 1: of the pixels that are there.

    Results that see the same pixels are one product, of these with the taps of all. Spans have to be alike: sides of 1
    and 2, and 3 at stride 2.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        """→ (N, D, ⌈H / stride⌉, ⌈W / stride⌉)."""
        down, across = spans(x.shape[2], stride), spans(x.shape[3], stride)
        pairs = product(down, across)
        ctx.seen = [Window((r.pixels, c.pixels), list(product(r.taps, c.taps))) for r, c in pairs]
        ctx.grid = len(down), len(across), len(down[0].taps), len(across[0].taps)
        ctx.save_for_backward(x, weight)
        out = _products(_windows(x, ctx.seen), _matrices(weight, ctx.seen).mT)
        rows, columns, by_row, by_column = ctx.grid
        apart = out.view(rows, columns, len(x), by_row, by_column, len(weight)).permute(2, 0, 3, 1, 4, 5)
        results = apart.reshape(len(x), rows * by_row, columns * by_column, -1).contiguous()  # or a view pixel by pixel
        return results.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """What several products give to the same pixel or tap is added up in fp32."""
        x, weight = ctx.saved_tensors
        rows, columns, by_row, by_column = ctx.grid
        apart = _last(grad).view(len(x), rows, by_row, columns, by_column, -1).permute(1, 3, 0, 2, 4, 5)
        upstream = apart.reshape(rows * columns, len(x), -1)
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            by_window = _products(upstream, _matrices(weight, ctx.seen))
            to_x = _added(by_window, [seen.pixels for seen in ctx.seen], x)
        if ctx.needs_input_grad[1]:
            windows = _windows(x, ctx.seen)
            by_taps = _products(upstream.mT, windows).view(-1, len(weight), windows.shape[2])
            to_weight = _added(by_taps, [place for seen in ctx.seen for place in seen.taps], weight)
        return to_x, to_weight, None


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Pair by pair; torch.bmm of a single pair with transposed factors takes up to five times as long, in bf16."""
    return torch.stack([a @ b for a, b in zip(left, right)])


def _windows(x: Tensor, seen: Sequence[Window]) -> Tensor:
    """(products, N, pixels · C)."""
    rows = _last(x)
    return torch.stack([rows[:, down, across].flatten(1) for (down, across), _ in seen])


def _matrices(weight: Tensor, seen: Sequence[Window]) -> Tensor:
    """(products, results · D, pixels · C)."""
    taps = weight.permute(0, 2, 3, 1)
    return torch.stack([torch.cat([taps[:, down, across].flatten(1) for down, across in places]) for _, places in seen])


def _added(parts: Tensor, places: Sequence[Place], like: Tensor) -> Tensor:
    """The sum of ``parts`` (P, A, pixels · B), each where it belongs in a tensor (A, B, H, W) such as ``like``."""
    rows, kind = like.permute(0, 2, 3, 1), parts.dtype
    if len(places) == 1 and parts.numel() == like.numel():  # all of it, once
        return parts.view(rows.shape).permute(0, 3, 1, 2)
    total = wide(parts[:0]).new_zeros(rows.shape)
    for part, (down, across) in zip(parts, places):
        place = total[:, down, across]
        place += part.view(place.shape)
    return total.to(kind).permute(0, 3, 1, 2)
