"""Pictures of pictures: thumbnails in a grid, with words beneath."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Resampling
from torch import Tensor

from lookalike.core.seeding import uniforms

GAP, LINE = 8, 14
PAPER, INK = "white", (60, 60, 60)


class Tile(NamedTuple):
    """One picture of a sheet, and what is written beneath it."""

    image: Image.Image
    words: str = ""


def random_rows(count: int, most: int) -> Tensor:
    """At most ``most`` of ``count`` rows in an order that is random and always the same."""
    rows = torch.arange(count)
    return rows[uniforms(0, 0, rows, 3, 1)[:, 0].argsort()][:most]


def upright(pixels: Tensor, height: int, width: int, side: int) -> Image.Image:
    """A canvas uint8 (3, S, S) in the shape of its picture, of at most ``side`` pixels; small ones are enlarged."""
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return image.resize(size, Resampling.NEAREST if max(height, width) <= side // 2 else Resampling.LANCZOS)


def sheet(tiles: Sequence[Tile], columns: int, side: int, title: str = "") -> bytes:
    """A PNG of ``tiles`` in rows of ``columns``, each in a square of ``side`` pixels."""
    line = LINE if any(tile.words for tile in tiles) else 0
    rows, head = -(-len(tiles) // columns), 2 * LINE if title else 0
    size = columns * (side + GAP) + GAP, head + rows * (side + line + GAP) + GAP
    paper, font = Image.new("RGB", size, PAPER), ImageFont.load_default(11)
    draw = ImageDraw.Draw(paper)
    draw.text((GAP, GAP), _printable(title), INK, font)
    for i, (image, words) in enumerate(tiles):
        left, top = GAP + i % columns * (side + GAP), head + GAP + i // columns * (side + line + GAP)
        paper.paste(image, (left + (side - image.width) // 2, top + (side - image.height) // 2))
        draw.text((left, top + side + 1), _shortened(_printable(words), side, font), INK, font)
    file = io.BytesIO()
    paper.save(file, "PNG")
    return file.getvalue()


def _shortened(words: str, side: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The end of the words, as far as it fits: of a path, the file's name."""
    if font.getlength(words) <= side:
        return words
    while words and font.getlength("…" + words) > side:
        words = words[1:]
    return "…" + words


def _printable(words: str) -> str:
    """One line of what any font can draw."""
    return "".join(letter if letter.isprintable() else "?" for letter in words)
