"""Kernels that make views in Triton: see ops_triton.py, which starts them. They do to pixels what ops.py does."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import constexpr, tensor

MARKS, NUMBERS = tl.constexpr(10), tl.constexpr(27)  # columns of the tables
CANVAS, TALL, WIDE, FLIP, GRAY, BLUR, SOLARIZE, UNTIL, SINCE, HUE = (tl.constexpr(i) for i in range(10))
BEGIN, END, SCALE, REACH = (tl.constexpr(i) for i in (0, 2, 4, 6))  # two columns each, rows of the canvas first
SIGMA, STEPS, MEAN, RATE = (tl.constexpr(i) for i in (8, 9, 21, 24))  # 1, 4 times 3, 3 and 3; the rate is 1 / std


# ---- what programs share; ``colour`` is red, green and blue ----


@triton.jit
def _pixels(view: tensor, tiles: tensor, SIZE: constexpr, BLOCK: constexpr) -> tensor:
    """Which pixels of its view a program makes, which of them exist, and where the view begins."""
    place = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    return place, place < SIZE * SIZE, view.to(tl.int64) * (3 * SIZE * SIZE)


@triton.jit
def _luma(colour: tensor) -> tensor:
    return colour[0] * 0.2989 + colour[1] * 0.587 + colour[2] * 0.114  # ops.luma


@triton.jit
def _clamped(value: tensor, low: tensor, high: tensor) -> tensor:
    return tl.minimum(tl.maximum(value, low), high)


@triton.jit
def _wave(hue: tensor, offset: tensor, chroma: tensor, low: tensor, top: tensor) -> tensor:
    """A colour's clipped triangle over the wheel."""
    return _clamped(tl.abs(tl.abs(hue + chroma * offset) - 3 * chroma) + (low - chroma), low, top)


@triton.jit
def _recoloured(colour: tensor, level: tensor, first: tensor, stop: tensor, hue_at: tensor, steps: tensor) -> tensor:
    """Some of the four steps of the colours: ops.adjust, and at ``hue_at`` ops.shift_hue."""
    red, green, blue = colour
    for step in range(first, stop):
        one, two, three = (tl.load(steps + 3 * step), tl.load(steps + 3 * step + 1), tl.load(steps + 3 * step + 2))
        if step == hue_at:
            top, low = tl.maximum(red, tl.maximum(green, blue)), tl.minimum(red, tl.minimum(green, blue))
            chroma = top - low
            hue = tl.abs(green + blue - red + top - 2 * low)
            hue = tl.where(green < blue, -hue, hue)
            red = _wave(hue, one, chroma, low, top)
            green = _wave(hue, two, chroma, low, top)
            blue = _wave(hue, three, chroma, low, top)
        else:
            shift = _luma((red, green, blue)) * three + level * two
            red = _clamped(red * one + shift, 0.0, 1.0)
            green = _clamped(green * one + shift, 0.0, 1.0)
            blue = _clamped(blue * one + shift, 0.0, 1.0)
    return red, green, blue


@triton.jit
def _grayed(colour: tensor, gray: tensor) -> tensor:
    red, green, blue = colour
    if gray != 0:
        red = _luma(colour)
        green = red
        blue = red
    return red, green, blue


@triton.jit
def _finish(out: tensor, mark: tensor, number: tensor, place: tensor, inside: tensor, colour: tensor) -> None:
    """Solarise and normalise, into ``out`` with colours last."""
    red, green, blue = colour
    if tl.load(mark + SOLARIZE) != 0:
        red, green, blue = tl.minimum(red, 1 - red), tl.minimum(green, 1 - green), tl.minimum(blue, 1 - blue)
    at = out + 3 * place
    tl.store(at, (red - tl.load(number + MEAN)) * tl.load(number + RATE), mask=inside)
    tl.store(at + 1, (green - tl.load(number + MEAN + 1)) * tl.load(number + RATE + 1), mask=inside)
    tl.store(at + 2, (blue - tl.load(number + MEAN + 2)) * tl.load(number + RATE + 2), mask=inside)


@triton.jit
def _planes(planes: tensor, at: tensor, inside: tensor, AREA: constexpr) -> tensor:
    red = tl.load(planes + at, mask=inside, other=0.0)
    green = tl.load(planes + AREA + at, mask=inside, other=0.0)
    return red, green, tl.load(planes + 2 * AREA + at, mask=inside, other=0.0)


@triton.jit
def _to_planes(planes: tensor, at: tensor, inside: tensor, colour: tensor, AREA: constexpr) -> None:
    tl.store(planes + at, colour[0], mask=inside)
    tl.store(planes + AREA + at, colour[1], mask=inside)
    tl.store(planes + 2 * AREA + at, colour[2], mask=inside)


# ---- crops ----


@triton.jit
def _weight(pixel: tensor, centre: tensor, reach: tensor, begin: tensor, end: tensor) -> tensor:
    """Of a pixel of the canvas: the triangle times the part of it that lies in the box."""
    covered = tl.minimum(pixel + 1.0, end) - tl.maximum(pixel, begin)
    return tl.maximum(reach - tl.abs(pixel + 0.5 - centre), 0.0) * _clamped(covered, 0.0, 1.0)


@triton.jit
def _cropped(
    pixels: tensor, mark: tensor, number: tensor, place: tensor, height: tensor, width: tensor, SIZE: constexpr
) -> tensor:
    """Some pixels of a view: the weighted mean of what lies within reach, both ways at once."""
    top, left = tl.load(number + BEGIN), tl.load(number + BEGIN + 1)
    bottom, right = tl.load(number + END), tl.load(number + END + 1)
    reach_y, reach_x = tl.load(number + REACH), tl.load(number + REACH + 1)
    y, x = place // SIZE, place % SIZE
    x = tl.where(tl.load(mark + FLIP) != 0, SIZE - 1 - x, x)
    centre_y = top + (y.to(tl.float32) + 0.5) * tl.load(number + SCALE)
    centre_x = left + (x.to(tl.float32) + 0.5) * tl.load(number + SCALE + 1)
    first_y, first_x = tl.floor(centre_y - reach_y - 0.5) + 1.0, tl.floor(centre_x - reach_x - 0.5) + 1.0
    area = height * width
    canvas = pixels + tl.load(mark + CANVAS).to(tl.int64) * 3 * area
    red, green = tl.zeros(place.shape, tl.float32), tl.zeros(place.shape, tl.float32)
    blue, total = tl.zeros(place.shape, tl.float32), tl.zeros(place.shape, tl.float32)
    for down in range(tl.load(mark + TALL)):
        row = first_y + down
        by_row = _weight(row, centre_y, reach_y, top, bottom)
        for across in range(tl.load(mark + WIDE)):
            column = first_x + across
            weight = by_row * _weight(column, centre_x, reach_x, left, right)
            used = weight > 0.0
            at = row.to(tl.int32) * width + column.to(tl.int32)
            red += weight * tl.load(canvas + at, mask=used, other=0).to(tl.float32)
            green += weight * tl.load(canvas + area + at, mask=used, other=0).to(tl.float32)
            blue += weight * tl.load(canvas + 2 * area + at, mask=used, other=0).to(tl.float32)
            total += weight
    scale = 1.0 / (total * 255.0)
    return red * scale, green * scale, blue * scale


@triton.jit
def plain(
    pixels: tensor,
    marks: tensor,
    numbers: tensor,
    out: tensor,
    tiles: tensor,
    height: tensor,
    width: tensor,
    SIZE: constexpr,
    BLOCK: constexpr,
) -> None:
    """Views without jitter and blur, at once."""
    view = tl.program_id(0) // tiles
    place, inside, begin = _pixels(view, tiles, SIZE, BLOCK)
    mark, number = marks + view * MARKS, numbers + view * NUMBERS
    colour = _grayed(_cropped(pixels, mark, number, place, height, width, SIZE), tl.load(mark + GRAY))
    _finish(out + begin, mark, number, place, inside, colour)


@triton.jit
def crop(
    pixels: tensor,
    marks: tensor,
    numbers: tensor,
    planes: tensor,
    sums: tensor,
    tiles: tensor,
    height: tensor,
    width: tensor,
    SIZE: constexpr,
    BLOCK: constexpr,
    GRAY_FIRST: constexpr,
) -> None:
    """Views up to their contrast, and the sum of their luma there, tile by tile."""
    view = tl.program_id(0) // tiles
    place, inside, begin = _pixels(view, tiles, SIZE, BLOCK)
    mark, number = marks + view * MARKS, numbers + view * NUMBERS
    colour = _cropped(pixels, mark, number, place, height, width, SIZE)
    if GRAY_FIRST:
        colour = _grayed(colour, tl.load(mark + GRAY))
    colour = _recoloured(colour, 0.0, 0, tl.load(mark + UNTIL), tl.load(mark + HUE), number + STEPS)
    tl.store(sums + tl.program_id(0), tl.sum(tl.where(inside, _luma(colour), 0.0), 0))
    _to_planes(planes + begin, place, inside, colour, SIZE * SIZE)


# ---- colours and blur ----


@triton.jit
def recolour(
    planes: tensor,
    sums: tensor,
    marks: tensor,
    numbers: tensor,
    out: tensor,
    tiles: tensor,
    SIZE: constexpr,
    BLOCK: constexpr,
    GRAY_FIRST: constexpr,
    TILES: constexpr,
) -> None:
    """Views from their contrast on; those that blur are left in planes, within the memory of their results."""
    view = tl.program_id(0) // tiles
    place, inside, begin = _pixels(view, tiles, SIZE, BLOCK)
    mark, number = marks + view * MARKS, numbers + view * NUMBERS
    tile = tl.arange(0, TILES)
    level = tl.sum(tl.load(sums + view * tiles + tile, mask=tile < tiles, other=0.0), 0) * (1.0 / (SIZE * SIZE))
    colour = _planes(planes + begin, place, inside, SIZE * SIZE)
    colour = _recoloured(colour, level, tl.load(mark + SINCE), 4, tl.load(mark + HUE), number + STEPS)
    if not GRAY_FIRST:
        colour = _grayed(colour, tl.load(mark + GRAY))
    if tl.load(mark + BLUR) != 0:
        _to_planes(out + begin, place, inside, colour, SIZE * SIZE)
    else:
        _finish(out + begin, mark, number, place, inside, colour)


@triton.jit
def _mirrored(index: tensor, SIZE: constexpr) -> tensor:
    index = tl.abs(index)
    return SIZE - 1 - tl.abs(SIZE - 1 - index)


@triton.jit
def blur(
    planes: tensor,
    out: tensor,
    blurring: tensor,
    marks: tensor,
    numbers: tensor,
    tiles: tensor,
    SIZE: constexpr,
    RADIUS: constexpr,
    BLOCK: constexpr,
    DOWN: constexpr,
) -> None:
    """Along one axis: across from the planes in the memory of results to ``planes``, then down into the results."""
    view = tl.load(blurring + tl.program_id(0) // tiles)
    place, inside, begin = _pixels(view, tiles, SIZE, BLOCK)
    number = numbers + view * NUMBERS
    source = planes + begin if DOWN else out + begin
    y, x = place // SIZE, place % SIZE
    rate = 1.0 / tl.load(number + SIGMA)
    red, green = tl.zeros(place.shape, tl.float32), tl.zeros(place.shape, tl.float32)
    blue, total = tl.zeros(place.shape, tl.float32), 0.0
    for tap in range(-RADIUS, RADIUS + 1):
        away = tap * rate
        weight = tl.exp(-0.5 * away * away)
        total += weight
        at = _mirrored(y + tap, SIZE) * SIZE + x if DOWN else y * SIZE + _mirrored(x + tap, SIZE)
        r, g, b = _planes(source, at, inside, SIZE * SIZE)
        red += weight * r
        green += weight * g
        blue += weight * b
    scale = 1.0 / total
    blurred = (red * scale, green * scale, blue * scale)
    if DOWN:
        _finish(out + begin, marks + view * MARKS, number, place, inside, blurred)
    else:
        _to_planes(planes + begin, place, inside, blurred, SIZE * SIZE)
