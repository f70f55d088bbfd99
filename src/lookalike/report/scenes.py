"""Photos beside their masks and what a network said: the page of ``lookalike evaluate segment``."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from lookalike.curate.sample import GAP, Strip
from lookalike.curate.sheet import upright
from lookalike.evaluation.segment import Segmented
from lookalike.report.page import page, sheet
from lookalike.report.tables import shown

_SIDE = 300  # px of the long side of a panel
_VOID = (128, 128, 128)


def scenes_page(found: Segmented, title: str, lead: str) -> str:
    """One self-contained page."""
    strips = [
        strip(path, [picture, painted(truth, found.classes.ids, picture), painted(guess, found.classes.ids, picture)])
        for path, picture, truth, guess in seen(found)
    ]
    return page(
        title,
        [
            f"<h1>{shown(title)}</h1>",
            f'<p class="lead">{shown(lead)}</p>',
            "<h2>Classes</h2>",
            legend(found),
            "<h2>Pictures</h2>",
            sheet(strips, "photo, mask, what the network says"),
        ],
    )


def seen(found: Segmented) -> Sequence[tuple[str, Image.Image, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Path, photo, and the numbers of mask and guess as masks have them."""
    ids = np.array(found.classes.ids)
    rows = []
    for one, example in found.predictions:
        photo = upright(example.pixels, example.height, example.width, _SIDE)
        rows.append((example.path, photo, one.truth.numpy(), ids[one.guess.numpy()]))
    return rows


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


def strip(path: str, panels: Sequence[Image.Image]) -> Strip:
    """Panels side by side."""
    width, height = panels[0].size
    made = Image.new("RGBA", (len(panels) * (width + GAP) - GAP, height))
    for i, panel in enumerate(panels):
        made.paste(panel, (i * (width + GAP), 0))
    file = io.BytesIO()
    made.save(file, "PNG", optimize=True)
    return Strip("", file.getvalue(), made.width, made.height, f"{path}: photo, mask, and what the network says")


def legend(found: Segmented) -> str:
    """Colour, number and intersection over union of each class."""
    rows = ""
    for place, number in sorted(enumerate(found.classes.ids), key=lambda pair: pair[1]):
        value = found.scores.iou.get(number)
        fill = "#{:02x}{:02x}{:02x}".format(*colour(place))
        patch = f'<svg width="14" height="14" aria-hidden="true"><rect width="14" height="14" fill="{fill}"/></svg>'
        words = "not in the pictures that were asked" if value is None else f"{100 * value:.1f} %"
        rows += f"<tr><th scope='row'>{patch} class {number}</th><td>{words}</td></tr>"
    return f'<table class="facts"><tbody>{rows}</tbody></table>'
