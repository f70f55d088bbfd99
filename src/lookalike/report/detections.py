"""Pictures with their annotated objects beside the detected ones: the page of boxes, masks and key points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from lookalike.core.errors import UserError
from lookalike.core.files import write_atomically
from lookalike.curate.sheet import upright
from lookalike.data.annotations.record import Annotated, Scene
from lookalike.data.formats.disk import Local
from lookalike.data.image.decode import Unreadable, decode
from lookalike.evaluation.scenes import Seen, pasted
from lookalike.report.page import facts, page, picture, shown, side_by_side

SIDE = 236  # pixels of the longer side of a picture on the page
SURE = 0.5  # scores below are not drawn
_COLOURS = (  # of classes, told apart by people who see no red or no green, too (Okabe & Ito 2008)
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)
_LEFT, _RIGHT, _MIDDLE = (86, 180, 233), (230, 159, 0), (255, 255, 255)  # sides of a body
_OPACITY = 0.45  # of a mask


def write_page(
    path: Path, title: str, lead: str, truth: Annotated, seen: Sequence[Seen], settings: Mapping[str, str], most: int
) -> None:
    """Up to ``most`` of the pictures of ``truth``, evenly spaced: annotated on the left, detected on the right.

    Raises UserError where it cannot be written.
    """
    rows = range(0, len(truth.scenes), max(1, -(-len(truth.scenes) // most)))
    panels = [_panel(truth, truth.scenes[row], seen[row]) for row in rows]
    choice = "All" if len(panels) == len(truth.scenes) else f"{len(panels)} evenly spaced ones of the"
    parts = [
        f"<h1>{shown(title)}</h1>",
        f'<p class="lead">{shown(lead)}</p>',
        f'<p class="quiet">{choice} {len(truth.scenes)} test pictures. Left: the annotations. Right: the detections '
        f"with a score of at least {SURE:g}; where there are none, the one with the highest score.</p>",
        f'<div class="pairs">{"".join(panels)}</div>',
        "<h2>Settings</h2>",
        facts(settings),
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page(title, parts).encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): choose another --page") from None


def _panel(truth: Annotated, scene: Scene, seen: Seen) -> str:
    """Both pictures side by side, with the numbers of objects for those who do not see them."""
    words = f"{scene.path}: {len(scene)} annotated, {len(_sure(seen))} detected"
    return f'<div class="panel">{picture(pair(truth, scene, seen), words)}<p class="quiet">{shown(words)}</p></div>'


def pair(truth: Annotated, scene: Scene, seen: Seen) -> Image.Image:
    """The picture twice: with its annotated objects, and with the detected ones."""
    photo = _photo(truth, scene)
    images = [annotated(photo, truth, scene), detected(photo, truth, scene, seen)]
    row = side_by_side([image.convert("RGBA") for image in images])
    return Image.alpha_composite(Image.new("RGBA", row.size, "white"), row).convert("RGB")


def annotated(photo: Image.Image, truth: Annotated, scene: Scene) -> Image.Image:
    """The photo with the objects that the files state."""
    drawing = Drawing(photo, photo.width / scene.width)
    masks = [outline.mask(photo.height, photo.width) if outline else None for outline in scene.outlines]
    drawing.masks(masks, scene.labels)
    for box, label, crowd, points in zip(scene.boxes, scene.labels, scene.crowd, scene.points):
        drawing.box(box, int(label), f"{truth.classes[label]}{' (crowd)' if crowd else ''}")
        drawing.body(points, truth)
    return drawing.image


def detected(photo: Image.Image, truth: Annotated, scene: Scene, seen: Seen) -> Image.Image:
    """The photo with the surest of what a detector reports."""
    drawing, sure = Drawing(photo, photo.width / scene.width), _sure(seen)
    if seen.masks is not None:
        surest = Seen(seen.boxes[sure] * drawing.scale, seen.labels[sure], seen.scores[sure], seen.masks[sure])
        drawing.masks(list(pasted(surest, photo.height, photo.width)), surest.labels)
    for row in sure:
        label = int(seen.labels[row])
        drawing.box(seen.boxes[row], label, f"{truth.classes[label]} {seen.scores[row]:.2f}")
        if seen.points is not None:
            known = np.full((len(truth.joints), 1), 2.0)
            drawing.body(np.concatenate([seen.points[row, :, :2], known], 1), truth)
    return drawing.image


def _sure(seen: Seen) -> npt.NDArray[np.int64]:
    """Rows that are drawn: those with a high score, else the surest."""
    rows = np.flatnonzero(seen.scores >= SURE)
    return rows if len(rows) else np.arange(min(1, len(seen.scores)))


def _photo(truth: Annotated, scene: Scene) -> Image.Image:
    try:
        canvas = decode(Local(truth.root).whole(scene.path), SIDE)
        return upright(canvas.pixels, canvas.height, canvas.width, SIDE)
    except Unreadable:
        return Image.new("RGB", (SIDE, max(1, round(SIDE * scene.height / scene.width))), "gray")


class Drawing:
    """A copy of a photo to draw on; ``scale`` from the picture's pixels to the photo's."""

    def __init__(self, photo: Image.Image, scale: float) -> None:
        self.image, self.scale = photo.copy(), scale
        self._font = ImageFont.load_default(11)

    def masks(self, masks: Sequence[npt.NDArray[np.bool_] | None], labels: npt.NDArray[np.int64]) -> None:
        """Masks (H, W) in the colours of their classes, half transparent."""
        pixels = np.asarray(self.image, dtype=np.float32).copy()
        for mask, label in zip(masks, labels):
            if mask is not None:
                pixels[mask] += _OPACITY * (np.array(_colour(int(label))) - pixels[mask])
        self.image = Image.fromarray(pixels.round().astype(np.uint8))

    def box(self, box: npt.NDArray[np.float64], label: int, words: str) -> None:
        """A frame and its name."""
        draw, colour = ImageDraw.Draw(self.image), _colour(label)
        left, top, right, bottom = (float(side) for side in box * self.scale)
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=2)
        place = (left + 2, top + 1 if top < 14 else top - 13)
        draw.rectangle(draw.textbbox(place, words, self._font), fill=colour)
        draw.text(place, words, "black", self._font)

    def body(self, points: npt.NDArray[np.float64], truth: Annotated) -> None:
        """Known points (K, 3) and the bones between them: left blue, right orange."""
        draw = ImageDraw.Draw(self.image)
        where = [(float(x), float(y)) for x, y in points[:, :2] * self.scale]
        for a, b in truth.bones:
            if points[a, 2] > 0 and points[b, 2] > 0:
                draw.line((*where[a], *where[b]), fill=_side(truth.joints[b]), width=2)
        for (x, y), known, name in zip(where, points[:, 2], truth.joints):
            if known > 0:
                draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill=_side(name), outline="black")


def _colour(label: int) -> tuple[int, int, int]:
    return _COLOURS[label % len(_COLOURS)]


def _side(joint: str) -> tuple[int, int, int]:
    return _LEFT if "left" in joint.lower() else _RIGHT if "right" in joint.lower() else _MIDDLE
