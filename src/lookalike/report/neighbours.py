"""Pictures for the report of a run: what its views look like, and what lies near to what."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lookalike.core.devices import full_precision
from lookalike.core.progress import Progress, silent
from lookalike.curate.sheet import random_rows, upright
from lookalike.data.example import PictureSource
from lookalike.data.loader import Loader
from lookalike.report.page import GAP, PictureRow, side_by_side
from lookalike.train.loop import views_at
from lookalike.train.trained import Trained

TILE, FRAME = 64, 4
RIGHT, WRONG = (0, 158, 115, 255), (213, 94, 0, 255)  # told apart by people who see no green, too
_BYTES = 100_000_000  # of canvases that a report decodes
_MOST = 2000  # pictures among which it looks for neighbours


class Sample:
    """Some examples of a source in memory, with the features of a run; the draw depends on the number of rows alone."""

    def __init__(self, trained: Trained, source: PictureSource, progress: Progress = silent) -> None:
        """Unreadable pictures are left out."""
        canvas = trained.recipe.canvas
        rows = random_rows(len(source), min(_MOST, max(16, _BYTES // (3 * canvas**2))))
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

    def pictures(self, chosen: Tensor) -> list[Tensor]:
        """Each uint8 (3, S, S): the examples ``chosen`` (N,) as evaluations encode them."""
        displayable = self.trained.recipe.pictures.displayable
        views = self.trained.views(self.loader, self.rows[chosen])
        return [pixels.cpu() for view in views for pixels in displayable(view, view)[0]]

    def some(self, count: int) -> Tensor:
        """``count`` pictures: of each class in turn if there are labels, else the first; the order is random."""
        labels = self.labels.tolist()
        if len(set(labels)) < 2:
            return torch.arange(len(self))[:count]
        turns = [labels[:i].count(label) for i, label in enumerate(labels)]
        return torch.tensor(sorted(range(len(self)), key=lambda i: (turns[i], labels[i]))[:count])


def views(sample: Sample, count: int = 10) -> list[PictureRow]:
    """Three rows: pictures as they are, and both views as the run's first epoch drew them."""
    chosen = sample.some(count)
    recipe = sample.trained.recipe
    first, second = recipe.pictures.displayable(*views_at(sample.loader, recipe, sample.rows[chosen], 0))
    rows = {"picture": sample.pictures(chosen), "first view": list(first.cpu()), "second view": list(second.cpu())}
    return [picture_row(name, pixels, f"{name} of {len(chosen)} examples") for name, pixels in rows.items()]


def neighbours(sample: Sample, queries: int = 10, each: int = 8) -> tuple[list[PictureRow], float | None]:
    """For some pictures of the sample the nearest others in it; and ``agreement`` over all of them."""
    each = max(0, min(each, len(sample) - 1))
    nearest = nearest_others(sample.features, each)
    rows = []
    for i in sample.some(queries).tolist():
        near = nearest[i]
        agree = [None] * each if sample.labels[i] < 0 else (sample.labels[near] == sample.labels[i]).tolist()
        names = ", ".join(name for name in map(sample.name, near.tolist()) if name)
        alt = f"{sample.name(i) or 'a picture'} and its nearest: {names or 'unlabelled pictures'}"
        pictures = sample.pictures(torch.cat([torch.tensor([i]), near]))
        rows.append(picture_row(sample.name(i), pictures, alt, [None, *agree], apart=3 * GAP))
    return rows, agreement(sample.labels, nearest)


@full_precision()
def nearest_others(features: Tensor, each: int, chunk: int = 512) -> Tensor:
    """(N, each) for unit rows (N, F) the nearest other rows, nearest first."""
    nearest = []
    for start in range(0, len(features), chunk):
        cosine = features[start : start + chunk] @ features.T
        cosine.diagonal(start).fill_(-torch.inf)
        nearest.append(cosine.topk(each).indices)
    return torch.cat(nearest)


def agreement(labels: Tensor, nearest: Tensor) -> float | None:
    """The share of neighbours that have the label of the row they are near to; None without labels."""
    known = labels >= 0
    if not bool(known.any()) or not nearest.numel():
        return None
    return float((labels[nearest] == labels[:, None])[known].double().mean())


def picture_row(
    name: str, pictures: Sequence[Tensor], alt: str, right: Sequence[bool | None] | None = None, apart: int = 0
) -> PictureRow:
    """Pictures uint8 (3, S, S) side by side, framed where ``right`` is a bool; ``apart`` pixels set the first off."""
    marks = right or [None] * len(pictures)
    return PictureRow(name, side_by_side([framed(*pair) for pair in zip(pictures, marks)], apart), alt)


def framed(picture: Tensor, right: bool | None) -> Image.Image:
    """One picture, enlarged by whole pixels or reduced to about ``TILE``, in the middle of room for a frame."""
    width = picture.shape[-1]
    side = width * (TILE // width) or TILE
    colour = (0, 0, 0, 0) if right is None else RIGHT if right else WRONG
    tile = Image.new("RGBA", (side + 2 * FRAME, side + 2 * FRAME), colour)
    tile.paste(upright(picture, width, width, side), (FRAME, FRAME))
    if right is False:  # a corner, for whom colours are not enough
        ImageDraw.Draw(tile).polygon([(0, 0), (side // 3, 0), (0, side // 3)], fill=WRONG)
    return tile
