"""Photos beside their masks and what a network predicts: the page of ``lookalike evaluate segment``."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from lookalike.curate.sheet import upright
from lookalike.evaluation.segment import Segmented
from lookalike.report.page import PictureRow, page, sheet, shown, side_by_side, table

_SIDE = 300  # px of the long side of a panel
_VOID = (128, 128, 128)


def segmentation_page(result: Segmented, title: str, lead: str) -> str:
    """One self-contained page."""
    parts = [
        f"<h1>{shown(title)}</h1>",
        f'<p class="lead">{shown(lead)}</p>',
        "<h2>Classes</h2>",
        legend(result),
        "<h2>Pictures</h2>",
        sheet(list(rows(result)), "photo, true mask, predicted mask"),
    ]
    return page(title, parts)


def rows(result: Segmented) -> Iterator[PictureRow]:
    """Photo, true mask and predicted mask of each picture that was kept."""
    ids = np.array(result.classes.ids)
    for one, example in result.seen:
        photo = upright(example.pixels, example.height, example.width, _SIDE)
        masks = (one.truth.numpy(), ids[one.guess.numpy()])
        panels = [photo, *(painted(mask, result.classes.ids, photo) for mask in masks)]
        yield PictureRow("", side_by_side(panels), f"{example.path}: photo, true mask, predicted mask")


def colour(place: int) -> tuple[int, int, int]:
    """Of a class by its place among all: hues far apart, in three shades."""
    hue, shade = place * 0.381966 % 1, (0.85, 0.6, 1.0)[place % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, shade)
    return round(255 * red), round(255 * green), round(255 * blue)


def painted(numbers: npt.NDArray[np.int64], ids: Sequence[int], like: Image.Image) -> Image.Image:
    """A mask in colours, as large as a picture; what is no class is gray."""
    pixels = np.full((*numbers.shape, 3), _VOID, np.uint8)
    for place, number in enumerate(ids):
        pixels[numbers == number] = colour(place)
    return Image.fromarray(pixels).resize(like.size, Image.Resampling.NEAREST)


def legend(result: Segmented) -> str:
    """Colour, number and intersection over union of each class."""
    cells = []
    for place, number in sorted(enumerate(result.classes.ids), key=lambda pair: pair[1]):
        value = result.scores.iou.get(number)
        fill = "#{:02x}{:02x}{:02x}".format(*colour(place))
        patch = f'<svg width="14" height="14" aria-hidden="true"><rect width="14" height="14" fill="{fill}"/></svg>'
        cells.append((f"{patch} class {number}", "not in the test pictures" if value is None else f"{value:.1%}"))
    return table("facts", cells)
