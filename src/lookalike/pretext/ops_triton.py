"""The operations of ops.py as Triton kernels: one to four for all views of a batch, whatever happens to each of them.

A program makes some pixels of one view. It reads what happens to that view from two tables, so examples need no order
and no groups, and a view depends on nothing but its canvas and its lines there. The first kernel crops, and changes
colours up to the contrast, which wants the mean luma of the picture; the second goes on from there; two more blur those
that blur. Means are put together from sums of tiles in their order, not by atomics: the same bytes every time.
Arithmetic is fp32; results are those of ops.py up to rounding, which ``tests/views.py`` bounds.
"""

from __future__ import annotations

import warnings
from typing import cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from lookalike.core.devices import sent
from lookalike.pretext import ops
from lookalike.pretext.plan import STILL, Plan, Style

KERNELS = {
    "lookalike::plain_views": 1,
    "lookalike::view_crops": 1,
    "lookalike::view_colours": 1,
    "lookalike::blur_views": 2,
}
"""How many kernels each operator starts."""

_BLOCK = 512  # pixels of a program: 4 a thread
_WARPS = 4

MARKS, NUMBERS = tl.constexpr(10), tl.constexpr(27)  # columns of the tables
CANVAS, TALL, WIDE, FLIP, GRAY, BLUR, SOLARIZE, UNTIL, SINCE, HUE = (tl.constexpr(i) for i in range(10))
BEGIN, END, SCALE, REACH = (tl.constexpr(i) for i in (0, 2, 4, 6))  # two columns each, rows of the canvas first
SIGMA, STEPS, MEAN, RATE = (tl.constexpr(i) for i in (8, 9, 21, 24))  # 1, 4 times 3, 3 and 3; the rate is 1 / std


# ---- what programs share ----


@triton.jit
def _luma(red: tl.tensor, green: tl.tensor, blue: tl.tensor) -> tl.tensor:
    return red * 0.2989 + green * 0.587 + blue * 0.114  # ops.luma


@triton.jit
def _clamped(value: tl.tensor, low: tl.tensor, high: tl.tensor) -> tl.tensor:
    return tl.minimum(tl.maximum(value, low), high)


@triton.jit
def _wave(hue: tl.tensor, offset: tl.tensor, chroma: tl.tensor, low: tl.tensor, top: tl.tensor) -> tl.tensor:
    """A colour's clipped triangle over the wheel."""
    return _clamped(tl.abs(tl.abs(hue + chroma * offset) - 3 * chroma) + (low - chroma), low, top)


@triton.jit
def _recoloured(
    red: tl.tensor,
    green: tl.tensor,
    blue: tl.tensor,
    level: tl.tensor,
    first: tl.tensor,
    stop: tl.tensor,
    hue_at: tl.tensor,
    steps: tl.tensor,
) -> tl.tensor:
    """Some of the four steps of the colours: ops.adjust, and at ``hue_at`` ops.shift_hue."""
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
            shift = _luma(red, green, blue) * three + level * two
            red = _clamped(red * one + shift, 0.0, 1.0)
            green = _clamped(green * one + shift, 0.0, 1.0)
            blue = _clamped(blue * one + shift, 0.0, 1.0)
    return red, green, blue


@triton.jit
def _grayed(red: tl.tensor, green: tl.tensor, blue: tl.tensor, gray: tl.tensor) -> tl.tensor:
    if gray != 0:
        red = _luma(red, green, blue)
        green = red
        blue = red
    return red, green, blue


@triton.jit
def _finish(
    out: tl.tensor,
    mark: tl.tensor,
    number: tl.tensor,
    place: tl.tensor,
    inside: tl.tensor,
    red: tl.tensor,
    green: tl.tensor,
    blue: tl.tensor,
) -> None:
    """Solarise and normalise, into ``out`` with colours last."""
    if tl.load(mark + SOLARIZE) != 0:
        red, green, blue = tl.minimum(red, 1 - red), tl.minimum(green, 1 - green), tl.minimum(blue, 1 - blue)
    at = out + 3 * place
    tl.store(at, (red - tl.load(number + MEAN)) * tl.load(number + RATE), mask=inside)
    tl.store(at + 1, (green - tl.load(number + MEAN + 1)) * tl.load(number + RATE + 1), mask=inside)
    tl.store(at + 2, (blue - tl.load(number + MEAN + 2)) * tl.load(number + RATE + 2), mask=inside)


@triton.jit
def _planes(planes: tl.tensor, at: tl.tensor, inside: tl.tensor, AREA: tl.constexpr) -> tl.tensor:
    red = tl.load(planes + at, mask=inside, other=0.0)
    green = tl.load(planes + AREA + at, mask=inside, other=0.0)
    return red, green, tl.load(planes + 2 * AREA + at, mask=inside, other=0.0)


@triton.jit
def _to_planes(
    planes: tl.tensor,
    at: tl.tensor,
    inside: tl.tensor,
    red: tl.tensor,
    green: tl.tensor,
    blue: tl.tensor,
    AREA: tl.constexpr,
) -> None:
    tl.store(planes + at, red, mask=inside)
    tl.store(planes + AREA + at, green, mask=inside)
    tl.store(planes + 2 * AREA + at, blue, mask=inside)


# ---- crop ----


@triton.jit
def _weight(pixel: tl.tensor, centre: tl.tensor, reach: tl.tensor, begin: tl.tensor, end: tl.tensor) -> tl.tensor:
    """Of a pixel of the canvas: the triangle times the part of it that lies in the box."""
    covered = tl.minimum(pixel + 1.0, end) - tl.maximum(pixel, begin)
    return tl.maximum(reach - tl.abs(pixel + 0.5 - centre), 0.0) * _clamped(covered, 0.0, 1.0)


@triton.jit
def _cropped(
    pixels: tl.tensor,
    mark: tl.tensor,
    number: tl.tensor,
    place: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    SIZE: tl.constexpr,
) -> tl.tensor:
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
def _plain(
    pixels: tl.tensor,
    marks: tl.tensor,
    numbers: tl.tensor,
    out: tl.tensor,
    tiles: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Views without jitter and blur, at once."""
    view = tl.program_id(0) // tiles
    place = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    mark, number = marks + view * MARKS, numbers + view * NUMBERS
    red, green, blue = _cropped(pixels, mark, number, place, height, width, SIZE)
    red, green, blue = _grayed(red, green, blue, tl.load(mark + GRAY))
    to = out + view.to(tl.int64) * (3 * SIZE * SIZE)
    _finish(to, mark, number, place, place < SIZE * SIZE, red, green, blue)


@triton.jit
def _crop(
    pixels: tl.tensor,
    marks: tl.tensor,
    numbers: tl.tensor,
    planes: tl.tensor,
    sums: tl.tensor,
    tiles: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    GRAY_FIRST: tl.constexpr,
) -> None:
    """Views up to their contrast, and the sum of their luma there, tile by tile."""
    view = tl.program_id(0) // tiles
    place = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    inside = place < SIZE * SIZE
    mark, number = marks + view * MARKS, numbers + view * NUMBERS
    red, green, blue = _cropped(pixels, mark, number, place, height, width, SIZE)
    if GRAY_FIRST:
        red, green, blue = _grayed(red, green, blue, tl.load(mark + GRAY))
    until, hue_at = tl.load(mark + UNTIL), tl.load(mark + HUE)
    red, green, blue = _recoloured(red, green, blue, 0.0, 0, until, hue_at, number + STEPS)
    tl.store(sums + tl.program_id(0), tl.sum(tl.where(inside, _luma(red, green, blue), 0.0), 0))
    to = planes + view.to(tl.int64) * (3 * SIZE * SIZE)
    _to_planes(to, place, inside, red, green, blue, SIZE * SIZE)


# ---- colours ----


@triton.jit
def _colour(
    planes: tl.tensor,
    sums: tl.tensor,
    marks: tl.tensor,
    numbers: tl.tensor,
    out: tl.tensor,
    tiles: tl.tensor,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    GRAY_FIRST: tl.constexpr,
    TILES: tl.constexpr,
) -> None:
    """Views from their contrast on; those that blur are left in planes, within the memory of their results."""
    view = tl.program_id(0) // tiles
    place = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    inside = place < SIZE * SIZE
    mark, number = marks + view * MARKS, numbers + view * NUMBERS
    begin = view.to(tl.int64) * (3 * SIZE * SIZE)
    red, green, blue = _planes(planes + begin, place, inside, SIZE * SIZE)
    tile = tl.arange(0, TILES)
    level = tl.sum(tl.load(sums + view * tiles + tile, mask=tile < tiles, other=0.0), 0) * (1.0 / (SIZE * SIZE))
    since, hue_at = tl.load(mark + SINCE), tl.load(mark + HUE)
    red, green, blue = _recoloured(red, green, blue, level, since, 4, hue_at, number + STEPS)
    if not GRAY_FIRST:
        red, green, blue = _grayed(red, green, blue, tl.load(mark + GRAY))
    if tl.load(mark + BLUR) != 0:
        _to_planes(out + begin, place, inside, red, green, blue, SIZE * SIZE)
    else:
        _finish(out + begin, mark, number, place, inside, red, green, blue)


# ---- blur ----


@triton.jit
def _mirrored(index: tl.tensor, SIZE: tl.constexpr) -> tl.tensor:
    index = tl.abs(index)
    return SIZE - 1 - tl.abs(SIZE - 1 - index)


@triton.jit
def _slid(
    planes: tl.tensor,
    number: tl.tensor,
    place: tl.tensor,
    inside: tl.tensor,
    SIZE: tl.constexpr,
    RADIUS: tl.constexpr,
    DOWN: tl.constexpr,
) -> tl.tensor:
    """Planes convolved along one axis."""
    y, x = place // SIZE, place % SIZE
    rate = 1.0 / tl.load(number + SIGMA)
    red, green = tl.zeros(place.shape, tl.float32), tl.zeros(place.shape, tl.float32)
    blue, total = tl.zeros(place.shape, tl.float32), 0.0
    for tap in range(-RADIUS, RADIUS + 1):
        away = tap * rate
        weight = tl.exp(-0.5 * away * away)
        total += weight
        at = _mirrored(y + tap, SIZE) * SIZE + x if DOWN else y * SIZE + _mirrored(x + tap, SIZE)
        r, g, b = _planes(planes, at, inside, SIZE * SIZE)
        red += weight * r
        green += weight * g
        blue += weight * b
    scale = 1.0 / total
    return red * scale, green * scale, blue * scale


@triton.jit
def _blur_across(
    planes: tl.tensor,
    out: tl.tensor,
    blurring: tl.tensor,
    numbers: tl.tensor,
    tiles: tl.tensor,
    SIZE: tl.constexpr,
    RADIUS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """From the planes in the memory of results."""
    view = tl.load(blurring + tl.program_id(0) // tiles)
    place = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    inside = place < SIZE * SIZE
    begin = view.to(tl.int64) * (3 * SIZE * SIZE)
    red, green, blue = _slid(out + begin, numbers + view * NUMBERS, place, inside, SIZE, RADIUS, False)
    _to_planes(planes + begin, place, inside, red, green, blue, SIZE * SIZE)


@triton.jit
def _blur_down(
    planes: tl.tensor,
    out: tl.tensor,
    blurring: tl.tensor,
    marks: tl.tensor,
    numbers: tl.tensor,
    tiles: tl.tensor,
    SIZE: tl.constexpr,
    RADIUS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Into the results."""
    view = tl.load(blurring + tl.program_id(0) // tiles)
    place = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    inside = place < SIZE * SIZE
    begin = view.to(tl.int64) * (3 * SIZE * SIZE)
    mark, number = marks + view * MARKS, numbers + view * NUMBERS
    red, green, blue = _slid(planes + begin, number, place, inside, SIZE, RADIUS, True)
    _finish(out + begin, mark, number, place, inside, red, green, blue)


# ---- operators ----


def _grid(views: int, size: int) -> tuple[int, tuple[int]]:
    """Programs a view, and all of them: one long row, as the other axes of a grid are short."""
    tiles = triton.cdiv(size * size, _BLOCK)
    return tiles, (views * tiles,)


def _room(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


@torch.library.custom_op(
    "lookalike::plain_views",
    mutates_args=(),
    schema="(Tensor pixels, Tensor marks, Tensor numbers, int size) -> Tensor",
)
def plain_views(pixels: Tensor, marks: Tensor, numbers: Tensor, size: int) -> Tensor:
    """(B, S, S, 3) views that are cropped, perhaps gray or solarised, and normalised."""
    out = _room(pixels, len(marks), size, size, 3)
    tiles, grid = _grid(len(marks), size)
    with torch.cuda.device_of(pixels):  # type: ignore[no-untyped-call]
        _plain[grid](
            *(pixels, marks, numbers, out, tiles, *pixels.shape[2:]),
            SIZE=size,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )
    return out


@plain_views.register_fake
def _(pixels: Tensor, marks: Tensor, numbers: Tensor, size: int) -> Tensor:
    return _room(pixels, len(marks), size, size, 3)


@torch.library.custom_op(
    "lookalike::view_crops",
    mutates_args=(),
    schema="(Tensor pixels, Tensor marks, Tensor numbers, int size, bool gray_first) -> (Tensor, Tensor)",
)
def view_crops(pixels: Tensor, marks: Tensor, numbers: Tensor, size: int, gray_first: bool) -> tuple[Tensor, Tensor]:
    """Planes (B, 3, S, S) up to the contrast, and the sums (B, tiles) of their luma."""
    tiles, grid = _grid(len(marks), size)
    planes, sums = _room(pixels, len(marks), 3, size, size), _room(pixels, len(marks), tiles)
    with torch.cuda.device_of(pixels):  # type: ignore[no-untyped-call]
        _crop[grid](
            *(pixels, marks, numbers, planes, sums, tiles, *pixels.shape[2:]),
            SIZE=size,
            BLOCK=_BLOCK,
            GRAY_FIRST=gray_first,
            num_warps=_WARPS,
        )
    return planes, sums


@view_crops.register_fake
def _(pixels: Tensor, marks: Tensor, numbers: Tensor, size: int, gray_first: bool) -> tuple[Tensor, Tensor]:
    return _room(pixels, len(marks), 3, size, size), _room(pixels, len(marks), _grid(1, size)[0])


@torch.library.custom_op(
    "lookalike::view_colours",
    mutates_args=(),
    schema="(Tensor planes, Tensor sums, Tensor marks, Tensor numbers, bool gray_first) -> Tensor",
)
def view_colours(planes: Tensor, sums: Tensor, marks: Tensor, numbers: Tensor, gray_first: bool) -> Tensor:
    """(B, S, S, 3) finished views, but what is to be blurred is in it as planes (3, S, S), for ``blur_views``."""
    size = planes.shape[-1]
    out = _room(planes, len(marks), size, size, 3)
    tiles, grid = _grid(len(marks), size)
    with torch.cuda.device_of(planes):  # type: ignore[no-untyped-call]
        _colour[grid](
            *(planes, sums, marks, numbers, out, tiles),
            SIZE=size,
            BLOCK=_BLOCK,
            GRAY_FIRST=gray_first,
            TILES=triton.next_power_of_2(tiles),
            num_warps=_WARPS,
        )
    return out


@view_colours.register_fake
def _(planes: Tensor, sums: Tensor, marks: Tensor, numbers: Tensor, gray_first: bool) -> Tensor:
    size = planes.shape[-1]
    return _room(planes, len(marks), size, size, 3)


@torch.library.custom_op(
    "lookalike::blur_views",
    mutates_args=("planes", "out"),
    schema="(Tensor(a!) planes, Tensor(b!) out, Tensor blurring, Tensor marks, Tensor numbers, int radius) -> ()",
)
def blur_views(planes: Tensor, out: Tensor, blurring: Tensor, marks: Tensor, numbers: Tensor, radius: int) -> None:
    """Finish the views numbered ``blurring`` (R,) of what ``view_colours`` gave; ``planes`` are used up."""
    size = planes.shape[-1]
    tiles, grid = _grid(len(blurring), size)
    sizes = {"SIZE": size, "RADIUS": min(radius, size - 1), "BLOCK": _BLOCK, "num_warps": _WARPS}
    with torch.cuda.device_of(planes):  # type: ignore[no-untyped-call]
        _blur_across[grid](planes, out, blurring, numbers, tiles, **sizes)
        _blur_down[grid](planes, out, blurring, marks, numbers, tiles, **sizes)


@blur_views.register_fake
def _(planes: Tensor, out: Tensor, blurring: Tensor, marks: Tensor, numbers: Tensor, radius: int) -> None:
    return None


# ---- views ----


def views(pixels: Tensor, plan: Plan, style: Style) -> Tensor:
    """(B, S, S, 3) the views of a plan from canvases (C, 3, H, W) uint8; B is a multiple of C, which come in turn."""
    pixels = pixels.contiguous()
    canvas = torch.arange(len(plan.flip)) % len(pixels)
    marks, numbers, blurring = sent(tables(plan, canvas, (pixels.shape[2], pixels.shape[3]), style), pixels.device)
    if style.plain:
        return cast("Tensor", plain_views(pixels, marks, numbers, style.size))
    planes, sums = view_crops(pixels, marks, numbers, style.size, style.gray_first)
    out = view_colours(planes, sums, marks, numbers, style.gray_first)
    if len(blurring):
        blur_views(planes, out, blurring, marks, numbers, style.radius)
    return cast("Tensor", out)


def tables(plan: Plan, canvas: Tensor, sides: tuple[int, int], style: Style) -> list[Tensor]:
    """What programs read, on the CPU: whole numbers (B, MARKS), fractions (B, NUMBERS), which views blur (R,)."""
    side = torch.tensor(sides)
    begin, length = plan.boxes.view(-1, 2, 2).unbind(1)
    end = torch.minimum(begin + length, side)
    scale = length / style.size
    reach = scale.clamp_min(1)
    taps = (2 * reach).ceil()
    still, when = plan.group == STILL, (plan.kinds == ops.CONTRAST).int().argmax(1)
    contrast = when + (when >= plan.group)  # among four steps, the hue one of them
    ours = [canvas, *taps.unbind(1), plan.flip, plan.gray, plan.blur, plan.solarize]
    until, since = contrast.where(~still, 0), contrast.where(~still, 4)
    marks = torch.stack([part.int() for part in (*ours, until, since, plan.group)], 1)
    ends = torch.tensor([*style.mean, *(1 / part for part in style.std)]).expand(len(canvas), 6)
    numbers = torch.cat([begin, end, scale, reach, plan.sigma[:, None], _steps(plan), ends], 1)
    return [marks, numbers.float(), plan.blur.nonzero()[:, 0].int()]


def _steps(plan: Plan) -> Tensor:
    """(B, 12) three weights for each of four steps, that of the hue where it has its place."""
    blends = ops.blend_weights(plan.kinds, plan.factors.gather(1, plan.kinds)).permute(1, 2, 0)  # (B, 3, 3)
    hues = ops.hue_offsets(plan.factors[:, ops.HUE]).T[:, None]
    step, at = torch.arange(4), plan.group[:, None]
    others = blends.gather(1, (step - (step > at).int()).clamp_max(2)[:, :, None].expand(-1, -1, 3))
    return torch.where((step == at)[:, :, None], hues, others).flatten(1)


def works() -> bool:
    """Whether kernels can be built here, which takes a C compiler and a GPU that Triton knows; says so where not."""
    if not torch.cuda.is_available():
        return True  # tensors without data, for which none is started
    pixels, box = torch.zeros(1, 3, 4, 4, dtype=torch.uint8, device="cuda"), torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    try:
        views(pixels, Plan.crops(box), Style(4, 0, True, False, (0.0,) * 3, (1.0,) * 3))
    except Exception as error:
        warnings.warn(f"views are made without Triton, more slowly: {str(error).splitlines()[0]}", stacklevel=2)
        return False
    return True
