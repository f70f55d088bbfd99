"""Thumbnails: many pictures in one JPEG, those that lie together on the map together."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from lookalike.core.errors import UserError
from lookalike.core.files import write_atomically
from lookalike.curate.survey import upright
from lookalike.data.example import Example, PictureSource, Rows
from lookalike.data.preprocessing import Side

PAGE = 1024  # px of the side of a page
SIDES = (32, 128)  # px of a thumbnail: seen from afar, and near
ALONE = (128, 640)  # px of the longer side of a picture that is looked at alone: among others, and large
_SHAPES = 32  # of a byte for each time that the width is twice the height, above 128

Numbers = npt.NDArray[np.int64]
P = ParamSpec("P")
Value = TypeVar("Value")


class OneReader(Rows):
    """All rows of a source, read by one thread at a time: few sources bear two."""

    def __init__(self, source: PictureSource) -> None:
        super().__init__(source, range(len(source)))
        self._lock = threading.Lock()

    @property
    def read(self) -> Callable[[int], bytes] | None:
        """The file of one row, where the source has files; raises Unreadable."""
        read = super().read
        return None if read is None else lambda row: self._alone(read, row)

    def example(self, row: int, side: Side) -> Example:
        """One picture as a canvas."""
        return self._alone(super().example, row, side)

    def size(self, row: int) -> tuple[int, int]:
        """Upright (height, width) in pixels; raises Unreadable."""
        return self._alone(super().size, row)

    def _alone(self, work: Callable[P, Value], *about: P.args, **more: P.kwargs) -> Value:
        with self._lock:
            return work(*about, **more)


class Atlas:
    """Pages of the pictures in some ``order`` (N,) of rows; made when first asked for, kept in ``folder`` if any."""

    def __init__(self, pictures: PictureSource, order: Numbers, folder: Path | None) -> None:
        self._pictures, self._order = pictures, order
        self._most = _finest(pictures)
        self._folder, self._made = folder, dict[tuple[int, int], bytes]()

    def pages(self, side: int) -> int:
        """How many there are of thumbnails of this side."""
        return -(-len(self._order) // (PAGE // side) ** 2)

    def page(self, side: int, number: int) -> bytes:
        """A byte for the shape of each of its pictures, then a JPEG of them, squashed to squares, in rows."""
        file = None if self._folder is None else self._folder / f"{side}-{number}.bin"
        if file is not None and file.is_file():
            return file.read_bytes()
        if (side, number) not in self._made:
            made = self._make(side, number)
            if file is None or not _kept(file, made):
                self._made[side, number] = made
                return made
            return made
        return self._made[side, number]

    def _make(self, side: int, number: int) -> bytes:
        each = PAGE // side
        rows = self._order[number * each**2 : (number + 1) * each**2]
        sheet, shapes = np.zeros((PAGE, PAGE, 3), np.uint8), np.full(len(rows), 128, np.uint8)
        for place, row in enumerate(rows.tolist()):
            example = self._example(row, side)
            top, left = place // each * side, place % each * side
            planes = np.asarray(
                Image.fromarray(example.pixels.permute(1, 2, 0).contiguous().numpy()).resize((side,) * 2)
            )
            sheet[top : top + side, left : left + side] = planes
            shapes[place] = round(min(255, max(1, 128 + _SHAPES * math.log2(example.width / example.height))))
        return shapes.tobytes() + _jpeg(Image.fromarray(sheet[: -(-len(rows) // each) * side]), 80)

    def picture(self, row: int, side: int) -> bytes:
        """One picture as a JPEG: decoded and written anew, so that no byte of a file reaches the browser."""
        example = self._example(row, side)
        return _jpeg(upright(example.pixels, example.height, example.width, side), 88)

    def _example(self, row: int, side: int) -> Example:
        return self._pictures.example(row, min(side, self._most))


def _finest(pictures: PictureSource) -> int:
    """The largest side that a source gives, of those that are wanted: a prepared one has no more pixels than it has."""
    for side in (ALONE[1], 384, 256, 160, SIDES[1], 96, 64, SIDES[0], 16):
        with suppress(UserError):
            if len(pictures):
                pictures.example(0, side)
            return side
    return 8


def _kept(file: Path, data: bytes) -> bool:
    """Whether it could be written: a cache that cannot be is none."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, data)
    except OSError:
        return False
    return True


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def in_order(places: npt.NDArray[np.float32]) -> Numbers:
    """(N,) rows along a curve that keeps neighbours of the map (N, 2) together (Morton 1966), so that pages do."""
    low, high = places.min(0, initial=0), places.max(0, initial=1)
    cells = ((places - low) / np.maximum(high - low, 1e-9) * 65535).astype(np.uint64)
    code = np.zeros(len(places), np.uint64)
    for bit in range(16):
        for axis in range(2):
            code |= (cells[:, axis] >> np.uint64(bit) & np.uint64(1)) << np.uint64(2 * bit + axis)
    return np.argsort(code, kind="stable")


def digest(*parts: bytes | memoryview) -> str:
    """A short name for what is made of these."""
    whole = sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()[:16]
