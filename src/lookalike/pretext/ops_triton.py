"""The operations of ops.py as Triton kernels: one to four for all views of a batch, whatever is drawn for each of them.

A program makes some pixels of one view. It reads what happens to that view from two tables, so examples need no order
and no groups, and a view depends on nothing but its canvas and its lines there. The first kernel crops, and changes
colours up to the contrast, which needs the mean luma of the picture; the second goes on from there; two more blur those
that blur. Means are put together from sums of tiles in their order, not by atomics: the same bytes every time.
Arithmetic is fp32; results are those of ops.py up to rounding, which ``tests/support/views.py`` bounds.
"""

from __future__ import annotations

from typing import cast

import torch
import triton
from torch import Tensor

from lookalike.core.devices import transfer
from lookalike.core.kernels import device_of
from lookalike.pretext import ops
from lookalike.pretext.ops import STILL, Plan, Style
from lookalike.pretext.ops_kernels import blur, crop, plain, recolour

WORK = "views are made"
KERNELS = {"lookalike::plain_views": 1, "lookalike::view_crops": 1}
KERNELS |= {"lookalike::view_colours": 1, "lookalike::blur_views": 2}
"""How many kernels each operator starts."""

_BLOCK = 512  # pixels of a program: 4 a thread


def _grid(views: int, size: int) -> tuple[int, tuple[int]]:
    """Programs a view, and all of them: one long row, as the other axes of a grid are short."""
    tiles = triton.cdiv(size * size, _BLOCK)
    return tiles, (views * tiles,)


def _fp32(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _compiled(size: int, **more: int) -> dict[str, int]:
    """What kernels are compiled for."""
    return {"SIZE": size, "BLOCK": _BLOCK, "num_warps": 4, **more}


# ---- operators ----


@torch.library.custom_op("lookalike::plain_views", mutates_args=())
def plain_views(pixels: Tensor, marks: Tensor, numbers: Tensor, size: int) -> Tensor:
    """(B, S, S, 3) views that are cropped, perhaps gray or solarised, and normalised."""
    out: Tensor = _views(pixels, marks, numbers, size)
    tiles, grid = _grid(len(marks), size)
    with device_of(pixels):
        plain[grid](pixels, marks, numbers, out, tiles, *pixels.shape[2:], **_compiled(size))
    return out


@plain_views.register_fake
def _views(pixels: Tensor, marks: Tensor, numbers: Tensor, size: int) -> Tensor:
    return _fp32(pixels, len(marks), size, size, 3)


@torch.library.custom_op("lookalike::view_crops", mutates_args=())
def view_crops(pixels: Tensor, marks: Tensor, numbers: Tensor, size: int, gray_first: bool) -> tuple[Tensor, Tensor]:
    """Planes (B, 3, S, S) up to the contrast, and the sums (B, tiles) of their luma."""
    planes, sums = _planes_and_sums(pixels, marks, numbers, size, gray_first)
    tiles, grid = _grid(len(marks), size)
    compiled = _compiled(size, GRAY_FIRST=gray_first)
    with device_of(pixels):
        crop[grid](pixels, marks, numbers, planes, sums, tiles, *pixels.shape[2:], **compiled)
    return planes, sums


@view_crops.register_fake
def _planes_and_sums(
    pixels: Tensor, marks: Tensor, numbers: Tensor, size: int, gray_first: bool
) -> tuple[Tensor, Tensor]:
    return _fp32(pixels, len(marks), 3, size, size), _fp32(pixels, len(marks), _grid(1, size)[0])


@torch.library.custom_op("lookalike::view_colours", mutates_args=())
def view_colours(planes: Tensor, sums: Tensor, marks: Tensor, numbers: Tensor, gray_first: bool) -> Tensor:
    """(B, S, S, 3) finished views, but what is to be blurred is in it as planes (3, S, S), for ``blur_views``."""
    size = planes.shape[-1]
    out: Tensor = _views(planes, marks, numbers, size)
    tiles, grid = _grid(len(marks), size)
    compiled = _compiled(size, GRAY_FIRST=gray_first, TILES=triton.next_power_of_2(tiles))
    with device_of(planes):
        recolour[grid](planes, sums, marks, numbers, out, tiles, **compiled)
    return out


@torch.library.custom_op("lookalike::blur_views", mutates_args=("planes", "out"))
def blur_views(planes: Tensor, out: Tensor, blurring: Tensor, marks: Tensor, numbers: Tensor, radius: int) -> None:
    """Finish the views numbered ``blurring`` (R,) of what ``view_colours`` gave; ``planes`` are used up."""
    size = planes.shape[-1]
    tiles, grid = _grid(len(blurring), size)
    compiled = _compiled(size, RADIUS=min(radius, size - 1))
    with device_of(planes):
        for down in (False, True):
            blur[grid](planes, out, blurring, marks, numbers, tiles, **compiled, DOWN=down)


view_colours.register_fake(lambda planes, sums, marks, *_: _fp32(planes, len(marks), *planes.shape[-2:], 3))
blur_views.register_fake(lambda *_: None)


# ---- views ----


def views(pixels: Tensor, plan: Plan, style: Style) -> Tensor:
    """(B, S, S, 3) the views of a plan from canvases (C, 3, H, W) uint8; B is a multiple of C, which come in turn."""
    pixels = pixels.contiguous()
    canvas = torch.arange(len(plan.flip)) % len(pixels)
    marks, numbers, blurring = transfer(tables(plan, canvas, (pixels.shape[2], pixels.shape[3]), style), pixels.device)
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


def trial() -> None:
    """Run on the GPU once; raises what Triton raises where it cannot."""
    pixels, box = torch.zeros(1, 3, 4, 4, dtype=torch.uint8, device="cuda"), torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    views(pixels, Plan.crops(box), Style(4, 0, True, False, (0.0,) * 3, (1.0,) * 3))
