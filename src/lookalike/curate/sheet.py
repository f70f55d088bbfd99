"""Pictures of pictures: thumbnails in a grid, with words beneath."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Resampling
from torch import Tensor

GAP, LINE = 8, 14
PAPER, INK = "white", (60, 60, 60)


class Tile(NamedTuple):
    """One picture of a sheet, and what is written beneath it."""

    image: Image.Image
    words: str = ""


def upright(pixels: Tensor, height: int, width: int, side: int) -> Image.Image:
    """A canvas uint8 (3, S, S) in the shape of its picture, of at most ``side`` pixels; small ones are enlarged."""
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return image.resize(size, Resampling.NEAREST if max(height, width) < side // 2 else Resampling.LANCZOS)


def sheet(tiles: Sequence[Tile], columns: int, side: int, title: str = "") -> bytes:
    """A PNG of ``tiles`` in rows of ``columns``, each in a square of ``side`` pixels."""
    worded = LINE if any(tile.words for tile in tiles) else 0
    rows, head = -(-len(tiles) // columns), 2 * LINE if title else 0
    size = columns * (side + GAP) + GAP, head + rows * (side + worded + GAP) + GAP
    made, font = Image.new("RGB", size, PAPER), ImageFont.load_default(11)
    draw = ImageDraw.Draw(made)
    draw.text((GAP, GAP), _plain(title), INK, font)
    for i, tile in enumerate(tiles):
        left, top = GAP + i % columns * (side + GAP), head + GAP + i // columns * (side + worded + GAP)
        image = tile.image
        made.paste(image, (left + (side - image.width) // 2, top + (side - image.height) // 2))
        draw.text((left, top + side + 1), _fitted(_plain(tile.words), side, font), INK, font)
    file = io.BytesIO()
    made.save(file, "PNG")
    return file.getvalue()


def _fitted(words: str, side: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The end of the words, as far as it fits: of a path, the file's name."""
    if font.getlength(words) <= side:
        return words
    while words and font.getlength("…" + words) > side:
        words = words[1:]
    return "…" + words


def _plain(words: str) -> str:
    """One line of what any font can draw."""
    return "".join(letter if letter.isprintable() else "?" for letter in words)
