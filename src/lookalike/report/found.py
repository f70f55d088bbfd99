"""A page of pictures with what is there beside what was found: boxes, masks, points."""

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
from lookalike.evaluation.scenes import Detections, pasted
from lookalike.report.page import page, photo
from lookalike.report.tables import facts, shown

SIDE = 236  # pixels of the longer side of a picture on the page
SURE = 0.5  # scores below are not drawn
_COLOURS = (  # of classes, told apart by people who see no red or no green, too (Okabe & Ito 2008)
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)
_LEFT, _RIGHT, _MIDDLE = (86, 180, 233), (230, 159, 0), (255, 255, 255)  # sides of a body
_SHEER = 0.45  # how much of a mask hides what is below


def write_page(
    path: Path,
    title: str,
    lead: str,
    asked: Annotated,
    found: Sequence[Detections],
    settings: Mapping[str, str],
    most: int,
) -> None:
    """Up to ``most`` of the pictures that were asked, evenly: on the left what is there, on the right what was found.

    Raises UserError where it cannot be written.
    """
    rows = range(0, len(asked.scenes), max(1, -(-len(asked.scenes) // most)))
    panels = [_panel(asked, asked.scenes[row], found[row]) for row in rows]
    parts = [
        f"<h1>{shown(title)}</h1>",
        f'<p class="lead">{shown(lead)}</p>',
        f'<p class="quiet">{len(panels)} of the {len(asked.scenes)} pictures that were asked, drawn by a rule, not '
        f"chosen. Left: what is there. Right: what was found with a score of {SURE:g} or more, else the surest.</p>",
        f'<div class="pairs">{"".join(panels)}</div>',
        "<h2>How it was tuned</h2>",
        facts(settings),
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page(title, parts).encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): choose another --page") from None


def _panel(asked: Annotated, scene: Scene, seen: Detections) -> str:
    """Both pictures side by side, as one."""
    drawn = pair(asked, scene, seen)
    words = f"{scene.path}: {_said(asked, scene, seen)}"
    return f'<div class="panel">{photo(drawn, words)}<p class="quiet">{shown(words)}</p></div>'


def _said(asked: Annotated, scene: Scene, seen: Detections) -> str:
    """How many objects there are and were found, in words for those who do not see the picture."""
    return f"{len(scene)} there, {len(_sure(seen))} found"


def pair(asked: Annotated, scene: Scene, seen: Detections) -> Image.Image:
    """The picture twice: with its objects, and with those that were found."""
    photo = _photo(asked, scene)
    scale = photo.width / scene.width
    there = Canvas(photo, scale)
    there.masks(
        [outline.mask(photo.height, photo.width) if outline else None for outline in scene.outlines], scene.labels
    )
    for row in range(len(scene)):
        name = asked.classes[scene.labels[row]]
        there.box(scene.boxes[row], int(scene.labels[row]), f"{name}{' (crowd)' if scene.crowd[row] else ''}")
        there.body(scene.points[row], asked)
    was = Canvas(photo, scale)
    sure = _sure(seen)
    if seen.masks is not None:
        some = Detections(seen.boxes[sure] * scale, seen.labels[sure], seen.scores[sure], seen.masks[sure])
        was.masks(list(pasted(some, photo.height, photo.width)), some.labels)
    for row in sure:
        label = int(seen.labels[row])
        was.box(seen.boxes[row], label, f"{asked.classes[label]} {seen.scores[row]:.2f}")
        if seen.points is not None:
            was.body(np.concatenate([seen.points[row, :, :2], np.full((len(asked.joints), 1), 2.0)], 1), asked)
    both = Image.new("RGB", (2 * photo.width + 4, photo.height), "white")
    both.paste(there.image, (0, 0))
    both.paste(was.image, (photo.width + 4, 0))
    return both


def _sure(seen: Detections) -> npt.NDArray[np.int64]:
    """Rows that are drawn: those with a high score, else the surest."""
    rows = np.flatnonzero(seen.scores >= SURE)
    return rows if len(rows) else np.arange(min(1, len(seen.scores)))


def _photo(asked: Annotated, scene: Scene) -> Image.Image:
    try:
        canvas = decode(Local(asked.root).whole(scene.path), SIDE)
        return upright(canvas.pixels, canvas.height, canvas.width, SIDE)
    except Unreadable:
        return Image.new("RGB", (SIDE, max(1, round(SIDE * scene.height / scene.width))), "gray")


class Canvas:
    """A photo that is drawn on; ``scale`` from the picture's pixels to its own."""

    def __init__(self, photo: Image.Image, scale: float) -> None:
        self.image, self.scale = photo.copy(), scale
        self._font = ImageFont.load_default(11)

    def masks(self, masks: Sequence[npt.NDArray[np.bool_] | None], labels: npt.NDArray[np.int64]) -> None:
        """Sheer colour where they are."""
        pixels = np.asarray(self.image, dtype=np.float32).copy()
        for mask, label in zip(masks, labels):
            if mask is not None:
                pixels[mask] += _SHEER * (np.array(_colour(int(label))) - pixels[mask])
        self.image = Image.fromarray(pixels.round().astype(np.uint8))

    def box(self, box: npt.NDArray[np.float64], label: int, words: str) -> None:
        """A frame and its name."""
        draw, colour = ImageDraw.Draw(self.image), _colour(label)
        left, top, right, bottom = (float(side) for side in box * self.scale)
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=2)
        place = (left + 2, top + 1 if top < 14 else top - 13)
        draw.rectangle(draw.textbbox(place, words, self._font), fill=colour)
        draw.text(place, words, "black", self._font)

    def body(self, points: npt.NDArray[np.float64], asked: Annotated) -> None:
        """Lines between known points (K, 3), and the points: left blue, right orange."""
        draw = ImageDraw.Draw(self.image)
        where = [(float(x), float(y)) for x, y in points[:, :2] * self.scale]
        for a, b in asked.bones:
            if points[a, 2] > 0 and points[b, 2] > 0:
                draw.line((*where[a], *where[b]), fill=_side(asked.joints[b]), width=2)
        for (x, y), known, name in zip(where, points[:, 2], asked.joints):
            if known > 0:
                draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill=_side(name), outline="black")


def _colour(label: int) -> tuple[int, int, int]:
    return _COLOURS[label % len(_COLOURS)]


def _side(joint: str) -> tuple[int, int, int]:
    return _LEFT if "left" in joint.lower() else _RIGHT if "right" in joint.lower() else _MIDDLE
