"""Outlines of objects as masks: COCO's polygons and run lengths, decoded lazily and at any resolution.

Polygons are filled by the rule of the COCO API (maskApi.c), so that masks equal its own bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.data.decode import MAX_PIXELS

Mask = npt.NDArray[np.bool_]

_FINE = 5  # the COCO API draws boundaries on a grid so many times finer than pixels
_FAR = 1 << 16  # pixels: no picture that can be read is larger
_LONG = 20_000_000  # points of one boundary on the fine grid: more would only fill the memory


@dataclass(frozen=True, eq=False)
class Polygons:
    """Rings (x, y, x, y, ...) in pixels of a picture of ``height`` and ``width``; the object is their union."""

    rings: tuple[npt.NDArray[np.float64], ...]
    height: int
    width: int

    def mask(self, height: int, width: int) -> Mask:
        """(height, width) where the object is, the whole picture resized to that."""
        scale = np.array([width / self.width, height / self.height])
        inside = np.zeros((height, width), dtype=bool)
        for ring in self.rings:
            inside |= filled(ring.reshape(-1, 2) * scale, height, width)
        return inside

    def plain(self) -> Any:
        """As COCO's JSON has it: lists of coordinates."""
        return [ring.tolist() for ring in self.rings]


@dataclass(frozen=True, eq=False)
class Runs:
    """Lengths of runs, without and with the object in turn, down the columns of ``height`` × ``width`` pixels."""

    counts: npt.NDArray[np.int64]
    height: int
    width: int

    def mask(self, height: int, width: int) -> Mask:
        """(height, width) where the object is, by the nearest pixel."""
        inside = np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts)
        whole = inside.reshape(self.width, self.height).T
        if (height, width) == whole.shape:
            return whole
        rows, columns = (((np.arange(n) + 0.5) * m / n).astype(np.int64) for n, m in zip((height, width), whole.shape))
        return whole[rows[:, None], columns]

    def plain(self) -> Any:
        """As COCO's JSON has it: uncompressed run lengths."""
        return {"size": [self.height, self.width], "counts": self.counts.tolist()}


Outline = Polygons | Runs
Box = tuple[float, float, float, float]


def bounds(shape: Outline) -> Box:
    """Left, top, right and bottom of an outline in pixels."""
    if isinstance(shape, Polygons):
        corners = np.concatenate([ring.reshape(-1, 2) for ring in shape.rings])
        left, top, right, bottom = map(float, (*corners.min(0), *corners.max(0)))
        return left, top, right, bottom
    inside = shape.mask(shape.height, shape.width)
    columns, rows = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
    return (columns[0], rows[0], columns[-1] + 1.0, rows[-1] + 1.0) if len(rows) else (0.0, 0.0, 0.0, 0.0)


def outline(plain: Any, height: int, width: int) -> Outline | None:
    """The outline in one annotation of COCO's JSON, of a picture of this size; None where it is none."""
    if isinstance(plain, list):
        plain = [plain] if all(isinstance(number, int | float) for number in plain) else plain
        rings = tuple(ring for part in plain if (ring := _ring(part)) is not None)
        return Polygons(rings, height, width) if rings else None
    if not isinstance(plain, dict) or plain.get("size") != [height, width]:
        return None
    counts = plain.get("counts")
    numbers = uncompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n <= MAX_PIXELS for n in numbers):
        return None
    if not 0 < height * width <= MAX_PIXELS or sum(numbers) != height * width:
        return None
    return Runs(np.array(numbers, dtype=np.int64), height, width)


def _ring(part: Any) -> npt.NDArray[np.float64] | None:
    """Three points or more, none of them far from any picture."""
    try:
        ring = np.array(part, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    fits = ring.ndim == 1 and len(ring) >= 6 and len(ring) % 2 == 0 and bool((np.abs(ring) < _FAR).all())
    return ring if fits else None


def uncompressed(text: str) -> list[int] | None:
    """The run lengths in COCO's string: five bits a letter, low ones first; from the third on, steps from two before.

    None where a letter is none of theirs, the string ends within a number, or a run is negative.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            if counts[-1] < 0:
                return None
            value = shift = 0
    return None if shift else counts


def filled(corners: npt.NDArray[np.float64], height: int, width: int) -> Mask:
    """(height, width) what the ring of ``corners`` (N, 2) encloses: rleFrPoly of maskApi.c, column by column.

    The boundary is walked on a finer grid; each column of pixels that it enters or leaves flips there, so a pixel is
    inside where the number of flips up to it is odd. A ring that would fill the memory encloses nothing.
    """
    points = (_FINE * corners + 0.5).astype(np.int64)
    after = np.roll(points, -1, axis=0)
    if int(np.abs(after - points).max(1).sum()) > _LONG:
        return np.zeros((height, width), dtype=bool)
    x, y = _walked(points, after)
    steps = np.flatnonzero(x[1:] != x[:-1])
    across = (np.where(x[steps + 1] < x[steps], x[steps + 1], x[steps + 1] - 1) + 0.5) / _FINE - 0.5
    down = np.ceil(((np.minimum(y[steps + 1], y[steps]) + 0.5) / _FINE - 0.5).clip(0, height)).astype(np.int64)
    real = (np.floor(across) == across) & (across >= 0) & (across <= width - 1)
    flips = np.bincount(across[real].astype(np.int64) * height + down[real], minlength=height * width)
    inside: Mask = np.cumsum(flips[: height * width]) % 2 == 1
    return inside.reshape(width, height).T


def _walked(
    start: npt.NDArray[np.int64], stop: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every point of the fine grid along each side, ends included: one coordinate counts, the other is rounded."""
    size = np.abs(stop - start)
    flat = size[:, 0] >= size[:, 1]  # sides along which x counts
    leading = np.where(flat, 0, 1)[:, None]
    first, last = (np.take_along_axis(ends, leading, 1)[:, 0] for ends in (start, stop))
    first_other, last_other = (np.take_along_axis(ends, 1 - leading, 1)[:, 0] for ends in (start, stop))
    turned = first > last  # the API walks such sides from their other end, which decides how they are rounded
    base, base_other = np.where(turned, last, first), np.where(turned, last_other, first_other)
    rise = np.where(turned, first_other - last_other, last_other - first_other)
    length = size.max(1)
    side = np.repeat(np.arange(len(start)), length + 1)
    step = np.arange(len(side)) - np.repeat(np.cumsum(length + 1) - (length + 1), length + 1)
    step = np.where(turned[side], length[side] - step, step)
    slope = rise / np.maximum(length, 1)
    count, other = base[side] + step, (base_other[side] + slope[side] * step + 0.5).astype(np.int64)
    return np.where(flat[side], count, other), np.where(flat[side], other, count)
