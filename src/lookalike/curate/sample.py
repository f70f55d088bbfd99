"""Pictures for the page, as PNG data URIs: what the views look like, and what lies near to what."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lookalike.core.devices import full_precision
from lookalike.core.progress import Progress, silent
from lookalike.core.seeding import uniforms
from lookalike.data.loader import Loader
from lookalike.data.source import PictureSource
from lookalike.train.loop import views_at
from lookalike.train.trained import Trained

TILE, GAP, FRAME = 64, 6, 4
RIGHT, WRONG = (0, 158, 115, 255), (213, 94, 0, 255)  # told apart by people who see no green, too
_BYTES = 100_000_000  # of canvases that a report decodes
_MOST = 2000  # pictures among which it looks for neighbours


class Strip(NamedTuple):
    """One row of pictures of the page."""

    name: str
    png: bytes
    width: int
    height: int
    alt: str

    def uri(self) -> str:
        """The picture for ``src=``."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


class Neighbours(NamedTuple):
    """Queries with what lies nearest to them, and over all pictures the share of neighbours with the query's label."""

    strips: list[Strip]
    among: int  # pictures
    each: int  # neighbours of a query
    agreement: float | None


class Sample:
    """Some pictures of a source in memory, with the features of a run."""

    def __init__(self, trained: Trained, source: PictureSource, progress: Progress = silent, most: int = _MOST) -> None:
        """A draw that the number of rows alone decides; unreadable pictures are left out."""
        canvas = trained.recipe.canvas
        count = min(most, max(16, _BYTES // (3 * canvas**2)))
        rows = drawn(len(source), count)
        self.trained = trained
        self.loader = Loader(source, canvas, 0, workers=0, max_bad=1.0)  # all rows: a view may read others
        features = trained.features(self.loader, rows, "backbone", progress, "embedding for the report")
        good = torch.tensor([row not in self.loader.bad_rows for row in rows.tolist()], dtype=torch.bool)
        self.rows, self.labels = rows[good], source.labels[rows[good]]
        self.classes = list(source.classes)
        self.features = features[good]

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, i: int) -> str:
        """The class of picture ``i``, or an empty text."""
        label = int(self.labels[i])
        return (self.classes[label] if label < len(self.classes) else str(label)) if label >= 0 else ""

    def whole(self, chosen: Tensor) -> Tensor:
        """uint8 (N, 3, S, S) of the examples ``chosen`` (N,) as evaluations encode them."""
        shown = self.trained.recipe.pictures.displayable
        return torch.cat([shown(view, view)[0] for view in self.trained.views(self.loader, self.rows[chosen])]).cpu()

    def some(self, count: int) -> Tensor:
        """``count`` pictures: of each class in turn if there are labels, else the first; the order is random."""
        seen: dict[int, int] = {}
        turn = []
        for label in self.labels.tolist():
            turn.append(seen.get(label, 0))
            seen[label] = turn[-1] + 1
        order = sorted(range(len(self)), key=lambda i: (turn[i], int(self.labels[i])) if len(seen) > 1 else (0, i))
        return torch.tensor(order[:count])


def drawn(count: int, most: int) -> Tensor:
    """At most ``most`` of ``count`` rows in an order that is random and always the same."""
    rows = torch.arange(count)
    return rows[uniforms(0, 0, rows, 3, 1)[:, 0].argsort()][:most]


def views(sample: Sample, count: int = 10) -> list[Strip]:
    """Three strips: pictures as they are, and both views as the run's first epoch drew them."""
    chosen = sample.some(count)
    recipe = sample.trained.recipe
    first, second = recipe.pictures.displayable(*views_at(sample.loader, recipe, sample.rows[chosen], 0))
    rows = {"picture": sample.whole(chosen), "first view": first.cpu(), "second view": second.cpu()}
    return [strip(name, list(pixels), alt=f"{name} of {len(chosen)} examples") for name, pixels in rows.items()]


def neighbours(sample: Sample, queries: int = 10, each: int = 8) -> Neighbours:
    """For some pictures of the sample, the nearest others in it."""
    each = max(0, min(each, len(sample) - 1))
    nearest = nearest_others(sample.features, each)
    strips = []
    for i in sample.some(queries).tolist():
        near = nearest[i]
        agree = [None] * each if sample.labels[i] < 0 else (sample.labels[near] == sample.labels[i]).tolist()
        names = ", ".join(name for name in map(sample.name, near.tolist()) if name)
        pictures = list(sample.whole(torch.cat([torch.tensor([i]), near])))
        alt = f"{sample.name(i) or 'a picture'} and its nearest: {names or 'unlabelled pictures'}"
        strips.append(strip(sample.name(i), pictures, [None, *agree], alt, apart=True))
    return Neighbours(strips, len(sample), each, agreement(sample.labels, nearest))


@full_precision()
def nearest_others(features: Tensor, each: int, chunk: int = 512) -> Tensor:
    """(N, each) for unit rows (N, F) the nearest other rows, nearest first."""
    found = []
    for start in range(0, len(features), chunk):
        cosine = features[start : start + chunk] @ features.T
        here = torch.arange(len(cosine))
        cosine[here, start + here] = -torch.inf
        found.append(cosine.topk(each).indices)
    return torch.cat(found)


def agreement(labels: Tensor, nearest: Tensor) -> float | None:
    """The share of neighbours that have the label of the row they are near to; None without labels."""
    known = labels >= 0
    if not bool(known.any()) or not nearest.numel():
        return None
    return float((labels[nearest] == labels[:, None])[known].double().mean())


def strip(
    name: str,
    pictures: Sequence[Tensor],
    right: Sequence[bool | None] = (),
    alt: str = "",
    apart: bool = False,
) -> Strip:
    """Pictures uint8 (3, S, S) side by side, framed where ``right`` is a bool; ``apart`` sets the first off."""
    tiles = [tile(picture, mark) for picture, mark in zip(pictures, [*right, *[None] * len(pictures)])]
    side, space = tiles[0].width, 3 * GAP if apart else 0
    sheet = Image.new("RGBA", (len(tiles) * (side + GAP) - GAP + space, side))
    for i, made in enumerate(tiles):
        sheet.paste(made, (i * (side + GAP) + (space if i else 0), 0))
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return Strip(name, file.getvalue(), sheet.width, sheet.height, alt)


def tile(picture: Tensor, right: bool | None) -> Image.Image:
    """One picture, enlarged by whole pixels or reduced to about ``TILE``, in the middle of room for a frame."""
    image = Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()))
    if image.width <= TILE:
        side, how = image.width * (TILE // image.width), Image.Resampling.NEAREST
    else:
        side, how = TILE, Image.Resampling.LANCZOS
    made = Image.new(
        "RGBA", (side + 2 * FRAME, side + 2 * FRAME), (0, 0, 0, 0) if right is None else RIGHT if right else WRONG
    )
    made.paste(image.resize((side, side), how), (FRAME, FRAME))
    if right is False:  # a corner, for whom colours are not enough
        ImageDraw.Draw(made).polygon([(0, 0), (side // 3, 0), (0, side // 3)], fill=WRONG)
    return made
