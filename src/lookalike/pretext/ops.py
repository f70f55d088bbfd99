"""Picture operations on whole batches, each example with its own parameters.

They work on *planes*: (3, B, H, W) float32 in [0, 1], colour first, so that one colour of a whole batch lies together
in memory, which made channel arithmetic 1.5 times faster than (B, 3, H, W). ``tests/pretext/test_ops.py`` holds each
one to torchvision's result. What returns ``None`` changes its planes in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lookalike.core.devices import full_precision, transfer

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""The four colour changes, numbered as ``torchvision.transforms.ColorJitter`` numbers them."""

TRIES = 10
"""How often torchvision's RandomResizedCrop draws before it falls back to a centre crop."""

STILL = 4  # the group of examples whose colours stay; groups 0 to 3 change their hue as the first to fourth of the ops

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's rounding of ITU-R 601
_BYTE = 255.0
_LARGE = 128 * 128  # pixels of a canvas from which on a loop over pictures beats one product of the batch


# ---- where to crop ----


def crop_boxes(sizes: Tensor, draws: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """(B, 4) float64 top, left, height, width of RandomResizedCrop in pixels of pictures of ``sizes`` (B, 2).

    ``draws`` (B, 22): area and aspect ratio of each of the 10 tries, then top and left.
    """
    whole = sizes.double()
    tries = draws[:, : 2 * TRIES].double().reshape(-1, TRIES, 2)
    area = whole.prod(1, keepdim=True) * (scale[0] + (scale[1] - scale[0]) * tries[..., 0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + (high - low) * tries[..., 1]).exp()
    sides = torch.stack([(area / aspect).sqrt().round(), (area * aspect).sqrt().round()], 2)  # (B, TRIES, 2)
    fits = ((sides > 0) & (sides <= whole[:, None])).all(2)
    first = fits.double().argmax(1)
    chosen = sides[torch.arange(len(sides), device=sides.device), first]
    origin = (draws[:, 2 * TRIES : 2 * TRIES + 2].double() * (whole - chosen + 1)).floor()
    box = torch.cat([origin, chosen], 1)
    return torch.where(fits.any(1, keepdim=True), box, _centre_boxes(whole, ratio))


def _centre_boxes(whole: Tensor, ratio: tuple[float, float]) -> Tensor:
    """torchvision's fallback when no try fits: the largest centred box whose aspect ratio is allowed."""
    height, width = whole.unbind(1)
    tall = torch.where(width / height < ratio[0], (width / ratio[0]).round(), height)
    wide = torch.where(width / height > ratio[1], (height * ratio[1]).round(), width)
    side = torch.stack([tall, wide], 1)
    return torch.cat([((whole - side) / 2).floor(), side], 1)


def centre_squares(sizes: Tensor, share: float = 1.0) -> Tensor:
    """(B, 4) float64 centred squares whose side is ``share`` of the short side (Resize 256, CenterCrop 224: 0.875)."""
    whole = sizes.double()
    side = (share * whole.amin(1, keepdim=True)).round().clamp_min(1).expand(-1, 2)
    return torch.cat([((whole - side) / 2).round(), side], 1)


def on_canvas(boxes: Tensor, sizes: Tensor, canvas: tuple[int, int]) -> Tensor:
    """The boxes (B, 4) of pictures of ``sizes`` where a canvas (H, W) holds them, whole and squashed."""
    # The product first: with sizes equal to the canvas, the division gives the integers back exactly.
    side = torch.tensor(canvas, dtype=boxes.dtype, device=boxes.device)
    return boxes * side.repeat(2) / sizes.to(boxes).repeat(1, 2)


# ---- resampling, as one matrix for rows and one for columns ----


class Axes(NamedTuple):
    """Where the pixels of crops come from; rows of pictures first, columns second, all in pixels over the reach."""

    centre: Tensor  # (2, B, out) of every pixel of the result
    pixel: Tensor  # (2, B, in) the middle of every pixel of the canvas
    covered: Tensor  # (2, B, in) the part of it that lies in the box

    def at(self, part: slice) -> Axes:
        """Those of some examples."""
        return Axes(self.centre[:, part], self.pixel[:, part], self.covered[:, part])


def axes(boxes: Tensor, canvas: tuple[int, int], out: int, flip: Tensor | None = None) -> Axes:
    """How ``boxes`` (B, 4) of a canvas (H, W) become ``out`` pixels square, mirrored where ``flip`` (B,).

    A box may end inside a pixel, which then counts by the part that is covered.
    """
    begin, length = boxes.T.reshape(2, 2, -1, 1)
    end, scale = begin + length, length / out
    reach = scale.clamp_min(1)  # half the width of the triangle: the larger of the two pixels
    place = (torch.arange(out, dtype=boxes.dtype, device=boxes.device) + 0.5) * scale
    centre = begin + place
    if flip is not None:
        centre[1] = torch.where(flip[:, None], end[1] - place[1], centre[1])
    pixel = torch.arange(max(canvas), dtype=boxes.dtype, device=boxes.device)
    covered = (torch.minimum(pixel + 1, end) - torch.maximum(pixel, begin)).clamp_(0, 1)
    return Axes(centre.div_(reach), (pixel + 0.5) / reach, covered)


def resize_weights(axes: Axes) -> Tensor:
    """(2, B, out, in): antialiased bilinear, as PIL and torchvision, one matrix for rows and one for columns."""
    weights = axes.pixel[:, :, None] - axes.centre[:, :, :, None]
    weights.abs_().sub_(1).clamp_max_(0).mul_(axes.covered[:, :, None])  # upside down: the division turns it
    return weights.div_(weights.sum(3, keepdim=True))


@full_precision()
def cropped(pixels: Tensor, axes: Axes) -> Tensor:
    """Planes (3, B, out, out) in [0, 1] of what ``axes`` picks from uint8 ``pixels`` (B, 3, H, W)."""
    count, _, height, width = pixels.shape
    down, across = resize_weights(axes).unbind(0)
    down = down / _BYTE
    result = torch.empty(3, count, *down.shape[1:2] * 2, device=pixels.device)
    if pixels.device.type == "cpu" and height * width >= _LARGE:
        return _cropped_singly(pixels, axes, down, across, result)
    # One product for the rows of all three colours, and the larger products are the faster ones.
    narrow = torch.bmm(pixels.float().view(count, 3 * height, width), across[..., :width].mT)
    for colour, into in zip(narrow.view(count, 3, height, -1).unbind(1), result.unbind(0)):
        torch.bmm(down[..., :height], colour, out=into)
    return result


def _cropped_singly(pixels: Tensor, axes: Axes, down: Tensor, across: Tensor, result: Tensor) -> Tensor:
    """``cropped`` without multiplying what lies outside of the boxes, which pays off for large pictures."""
    inside = axes.covered > 0
    first, count = inside.int().argmax(2), inside.sum(2)
    for i, (top, left, tall, wide) in enumerate(torch.cat([first, count]).T.tolist()):
        rows, columns = slice(top, top + tall), slice(left, left + wide)
        part = pixels[i, :, rows, columns].float() @ across[i, :, columns].T
        result[:, i] = down[i, :, rows] @ part
    return result


# ---- blur ----


def blurred(planes: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian of ``sigma`` (B,) pixels cut at ``radius`` with mirrored borders: torchvision's ``gaussian_blur``."""
    radius = min(radius, planes.shape[-1] - 1)
    taps = (torch.arange(-radius, radius + 1, device=planes.device) / sigma[:, None]).square_().mul_(-0.5).exp_()
    taps /= taps.sum(1, keepdim=True)
    weights = taps.T[:, :, None, None].unbind(0)
    return _slid(_slid(planes, weights, radius, 2), weights, radius, 3)


def _slid(planes: Tensor, weights: Sequence[Tensor], radius: int, axis: int) -> Tensor:
    """The planes convolved along one axis; one pass per tap."""
    margin = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
    wide, size = pad(planes, margin, "reflect"), planes.shape[axis]
    result = wide.narrow(axis, 0, size) * weights[0]
    for tap, weight in enumerate(weights[1:], 1):
        result.addcmul_(wide.narrow(axis, tap, size), weight)
    return result


# ---- colour ----


def luma(planes: Tensor) -> Tensor:
    """(B, H, W) brightness as the eye sees it."""
    red, green, blue = planes.unbind(0)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def blend_weights(kind: Tensor, factor: Tensor) -> Tensor:
    """(3, ...) the weights of ``adjust`` for brightness, contrast or saturation, by ``kind``, scaled by ``factor``."""
    rest = 1 - factor
    return torch.stack([factor, torch.where(kind == CONTRAST, rest, 0), torch.where(kind == SATURATION, rest, 0)])


def adjust(planes: Tensor, weights: Tensor) -> None:
    """Blend each pixel, the picture's mean luma and the pixel's luma by ``weights`` (3, B): torchvision's ``adjust_*``.

    Brightness, contrast and saturation move a picture away from black, from its mean luma and from its own luma.
    """
    own, mean, each = weights.unsqueeze(2)
    gray = luma(planes).flatten(1)
    level = gray.mean(1, keepdim=True).mul_(mean)
    view = planes.flatten(2)
    torch.addcmul(gray.mul_(each).add_(level), view, own, out=view).clamp_(0, 1)


def hue_offsets(turns: Tensor) -> Tensor:
    """(3, B) offsets of ``shift_hue`` for ``turns`` (B,): sixths of the wheel from the peaks of red, green and blue."""
    peaks = torch.tensor([0.0, 2.0, 4.0], device=turns.device)[:, None]
    return torch.remainder(6 * turns - peaks + 3, 6) - 3


def shift_hue(planes: Tensor, offsets: Tensor) -> None:
    """Rotate the hue by ``hue_offsets`` (3, B) on the HSV wheel: torchvision's ``adjust_hue``, without a division.

    With top >= middle >= low and chroma c = top - low, hue times c in [-3c, 3c] is green + blue - red + top - 2 low,
    signed as green - blue; red, green and blue peak at 0, 2c and -2c of it, and each is a clipped triangle wave.
    """
    flat = planes.flatten(2)
    red, green, blue = flat.unbind(0)
    top, low = flat.amax(0), flat.amin(0)
    chroma = top - low
    hue = (green + blue).sub_(red).add_(top).sub_(low, alpha=2)
    hue.copysign_(green - blue)
    torch.addcmul(hue, chroma, offsets[:, :, None], out=flat)
    flat.abs_().sub_(chroma * 3).abs_().add_(low - chroma).clamp_(low, top)


def grayed(planes: Tensor) -> Tensor:
    """The luma in all three planes: torchvision's ``rgb_to_grayscale``."""
    return luma(planes).expand_as(planes)


def solarized(planes: Tensor) -> Tensor:
    """Invert what is brighter than one half (PIL's threshold of 128 in bytes)."""
    return torch.minimum(planes, 1 - planes)


# ---- in and out of the encoder's format ----


def normalised(planes: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(B, H, W, 3), which is (B, 3, H, W) in channels_last; the planes are used up."""
    out = torch.empty(*planes.shape[1:], len(planes), device=planes.device)
    for plane, shift, scale, into in zip(planes.unbind(0), mean, std, out.unbind(3)):
        torch.div(plane.sub_(shift), scale, out=into)
    return out


def displayable(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Normalised (B, 3, H, W) back to uint8."""
    shift, scale = (torch.tensor(v, device=pixels.device)[:, None, None] for v in (mean, std))
    return (pixels.float() * scale + shift).mul_(_BYTE).round_().clamp_(0, _BYTE).to(torch.uint8)


# ---- what happens to each example of a batch, decided before any pixel is computed ----


class Plan(NamedTuple):
    """What happens to each of B examples, on the CPU: the code that runs depends on it."""

    boxes: Tensor  # (B, 4) float32 top, left, height, width on the canvas
    flip: Tensor  # (B,) bool, as the next three
    gray: Tensor
    blur: Tensor
    solarize: Tensor
    group: Tensor  # (B,) when the hue changes, 0 to 3, or STILL
    kinds: Tensor  # (B, 3) brightness, contrast and saturation in their order
    factors: Tensor  # (B, 4) by number of the operation; the hue in turns
    sigma: Tensor  # (B,) pixels

    def ordered(self, order: Tensor) -> Plan:
        """The same for the examples in another order."""
        return Plan(*(field.index_select(0, order) for field in self))

    @classmethod
    def crops(cls, boxes: Tensor) -> Plan:
        """Nothing but that ``boxes`` (B, 4) are cropped."""
        count = len(boxes)
        no, one = torch.zeros(count, dtype=torch.bool), torch.ones(count)
        group, kinds = torch.full((count,), STILL), torch.arange(3).expand(count, 3)
        return cls(boxes, no, no, no, no, group, kinds, one[:, None].expand(count, 4), one)


class Style(NamedTuple):
    """What views of one kind have in common."""

    size: int
    radius: int  # pixels that the blur reaches to each side
    plain: bool  # whether no example of any batch changes its colours' hue, contrast, ... or blurs
    gray_first: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Numbers(NamedTuple):
    """The numbers of a plan that pixels are computed with, on their device, where they come in one copy."""

    order: Tensor  # (B,) int64, the places of the examples as they were
    boxes: Tensor  # (B, 4)
    flip: Tensor  # (B,) bool
    blends: Tensor  # (3, 3, B) for each of three steps the weights of ``adjust``
    hues: Tensor  # (3, B)
    sigma: Tensor  # (B,)
    indices: Tensor  # (R,) int64 of examples that change, slice by slice

    @classmethod
    def of(cls, plan: Plan, order: Tensor, indices: Tensor, device: torch.device) -> Numbers:
        """Those of a plan."""
        blends = blend_weights(plan.kinds, plan.factors.gather(1, plan.kinds)).permute(2, 0, 1).contiguous()
        hues = hue_offsets(plan.factors[:, HUE])
        return cls(*transfer([order, plan.boxes, plan.flip, blends, hues, plan.sigma, indices], device))


class Selection(NamedTuple):
    """Some examples of a slice: those in ``place``, or where they are not side by side those at some indices."""

    place: slice
    indices: slice | None  # which of ``Numbers.indices``

    def change(self, planes: Tensor, numbers: Numbers, operation: Callable[[Tensor], Tensor]) -> None:
        """Apply ``operation`` to these examples of (3, B, H, W), and to no other."""
        if self.indices is None:  # no copies
            part = planes[:, self.place]
            part.copy_(operation(part))
        else:
            index = numbers.indices[self.indices]
            planes.index_copy_(1, index, operation(planes.index_select(1, index)))

    def of(self, values: Tensor, numbers: Numbers) -> Tensor:
        """Theirs, of (B,)."""
        return values[self.place] if self.indices is None else values.index_select(0, numbers.indices[self.indices])


class GroupSlice(NamedTuple):
    """Consecutive examples of one group, and which of them change how."""

    place: slice
    group: int
    gray: Selection | None
    blur: Selection | None
    solarize: Selection | None


def group_slices(plan: Plan, places: Iterator[slice]) -> tuple[list[GroupSlice], Tensor]:
    """The slices of a plan, whose examples are in the order of their groups, and the indices of their selections."""
    slices, indices, count = [], [plan.group.new_empty(0)], 0
    for place in places:
        selections: list[Selection | None] = []
        for where in (plan.gray, plan.blur, plan.solarize):
            index = where[place].nonzero()[:, 0]
            if len(index) == 0:
                selections.append(None)
            elif int(index[-1] - index[0]) < len(index):
                selections.append(Selection(slice(int(index[0]), int(index[-1]) + 1), None))
            else:
                selections.append(Selection(slice(0, 0), slice(count, count + len(index))))
                indices.append(index)
                count += len(index)
        slices.append(GroupSlice(place, int(plan.group[place.start]), *selections))
    return slices, torch.cat(indices)
