"""The short way for the picture that nearly every photo is: an ordinary JPEG, by its header straight to few pixels.

What this way does not know for certain it leaves to Pillow, so it never refuses a file and never has the last word on
one. Both decode with libjpeg-turbo at the same scale: the pixels are equal bit for bit, in a third of the time at
128 px, since Pillow's header costs as much as the pixels and each of them passes through its memory twice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from PIL import Image

try:  # it has no wheels for rare processors
    import simplejpeg
except ImportError:  # pragma: no cover
    simplejpeg = None

ORIENTATION = 0x0112  # the EXIF tag
_SIZES = (
    0xC0,
    0xC1,
    0xC2,
)  # SOF of baseline, extended and progressive Huffman coding; the others are Pillow's to judge
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/"


class Frame(NamedTuple):
    """A JPEG's size in pixels as it is stored, and its EXIF orientation."""

    height: int
    width: int
    orientation: int


def frame(data: bytes) -> Frame | None:
    """What the header says, if the file is a JPEG of 8 bits, gray or of three colours, and nothing is odd about it."""
    if simplejpeg is None or data[:3] != b"\xff\xd8\xff":
        return None
    place, orientation = 2, 1
    while place + 10 <= len(data) and data[place] == 0xFF:
        marker, end = data[place + 1], place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in _SIZES:
            return _frame(data[place + 4 : end], orientation)
        if not (0xE0 <= marker <= 0xEF or marker in (0xC4, 0xDB, 0xDD, 0xFE)):
            return None
        if marker == 0xE1:
            exif = data[place + 4 : end]
            if exif.startswith(_XMP) or (read := _orientation(exif)) is None:
                return None  # XMP may hold an orientation too
            orientation = read
        place = end
    return None


def _frame(segment: bytes, orientation: int) -> Frame | None:
    """The size that a SOF segment states."""
    if len(segment) < 6 or segment[0] != 8 or segment[5] not in (1, 3):
        return None
    return Frame(int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big"), orientation)


def _orientation(segment: bytes) -> int | None:
    """The orientation in an APP1 segment, 1 where it has none; None where it is damaged."""
    if not segment.startswith(_EXIF):
        return 1
    exif = Image.Exif()
    try:
        exif.load(segment)
        orientation = exif.get(ORIENTATION, 1)
    except Exception:
        return None
    return orientation if isinstance(orientation, int) else None


def reduction(height: int, width: int, side: int) -> int:
    """By which of 8, 4, 2 and 1 to divide while decoding: what is left still covers the canvas.

    Below 1 libjpeg computes fewer frequencies, a low pass that leaves 45 dB to a full decode on photos of 400 x 533 at
    128 px (the choice between a triangle and Lanczos makes 39 dB), in two thirds of the time.
    """
    scale = min(height, width) // side
    return next(divisor for divisor in (8, 4, 2, 1) if divisor <= max(scale, 1))


def pixels(data: bytes, size: Frame, side: int) -> Any | None:
    """(H, W, 3) uint8, reduced for a canvas of ``side``; None where the decoder finds anything to complain about."""
    divisor = reduction(size.height, size.width, side)
    least = (-(-size.height // divisor), -(-size.width // divisor))
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1])
    except (ValueError, RuntimeError):
        return None
