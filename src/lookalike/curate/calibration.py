"""From how well two pictures must agree to be called the same, as the person's own pictures show it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike.core.progress import Progress, silent
from lookalike.core.seeding import uniforms
from lookalike.curate.aligned import SIDE, likeness
from lookalike.curate.survey import Numbers, Survey, gray_canvas, largest, random_rows
from lookalike.data.example import PictureSource
from lookalike.metrics.knn import products
from lookalike.pretext.image import Draws, ImageView
from lookalike.types import Canvases

Scores = npt.NDArray[np.float64]

DEFAULT = 0.84
"""The agreement that is asked for where pictures are too few to calibrate: that of clothing160 at 0.95."""

PRIOR = 0.05
"""The share of pictures that is taken to have a copy: the fewer have one, the more of what is found is wrong."""

EDITED = ImageView(SIDE, (0.4, 1.0), jitter=0.5, brightness=0.4, contrast=0.4, saturation=0.4, gray=0.1, blur=0.2)
"""What an edited copy is taken to be: cut, mirrored, other colours, blurred."""

_SAMPLE, _FEWEST = 300, 40
_FROM, _TO = 8, 24  # the nearest are left out, since they may be copies; those from here on are others that look alike
_CANDIDATES = 2  # pairs a picture that are compared as part and whole, each once for both
_TAIL = 0.02  # the share of others from which their tail is taken to fall off as an exponential
_SIDE = 96  # px of the pictures that are edited
_GRID = np.linspace(0.5, 0.99, 99)


class Threshold(NamedTuple):
    """From which agreement on pictures are the same, and how that is known."""

    value: float
    words: str


def calibrated(
    pictures: PictureSource, seen: Survey, vectors: Tensor, precision: float, progress: Progress = silent
) -> Threshold:
    """The lowest agreement that gives a ``precision``, from up to 300 pictures.

    Each is compared with an edited view of itself, and with 16 that its embedding calls similar.
    """
    rows = seen.good[random_rows(len(seen.good), _SAMPLE).numpy()]
    if len(rows) < _FEWEST:
        few = f"{len(rows)} pictures are too few to calibrate"
        return Threshold(DEFAULT, f"pictures are the same from an agreement of {DEFAULT:g}: the default, since {few}")
    views, others = _views(pictures, seen, rows, progress), _others(seen, vectors, rows, progress)
    value = lowest(views, others, precision)
    share = f"{(views >= value).mean():.0%} of {len(views)} edited views of your pictures agree so well with them"
    wrong = f"{int((others >= value).sum())} of {len(others):,} pairs of others that look similar"
    why = f"about {precision:.0%} of what is found is right if one in {1 / PRIOR:.0f} pictures has a copy"
    return Threshold(value, f"pictures are the same from an agreement of {value:.2f}: {share}, and {wrong}; {why}")


def lowest(views: Scores, others: Scores, precision: float) -> float:
    """The lowest agreement at which so large a share of what is found are copies.

    ``views`` (V,) is how well pictures agree with their copies, ``others`` (M,) with similar ones. The tail of the
    others is an exponential in Fisher's z, or what is rarer than one in M would be said never to happen.
    """
    z, tail = np.arctanh(np.clip(others, -0.999, 0.999)), np.arctanh(_GRID)
    start = np.quantile(z, 1 - _TAIL)
    scale = max(1e-3, float((z[z >= start] - start).mean()))
    share = np.sort(z)
    empirical = 1 - np.searchsorted(share, tail) / len(share)
    wrong = _CANDIDATES * np.where(tail < start, empirical, _TAIL * np.exp(-(np.maximum(tail, start) - start) / scale))
    right = PRIOR * (views[:, None] >= _GRID).mean(0)
    good = np.flatnonzero((right > 0) & (right >= precision * (right + wrong)))
    return float(_GRID[good[0]] if len(good) else _GRID[-1])


def _views(pictures: PictureSource, seen: Survey, rows: Numbers, progress: Progress) -> Scores:
    """(V,) how well each agrees with a random view of it, of the shape that was cut."""
    side = largest(pictures, _SIDE)
    pixels = torch.stack([pictures.example(row, side).pixels for row in rows.tolist()])
    sizes, numbers = torch.from_numpy(seen.sizes[rows]), torch.arange(len(rows))
    shown = EDITED.displayable(EDITED(Canvases(pixels, sizes), numbers, 0, 0, 0)).permute(0, 2, 3, 1).numpy()
    boxes = EDITED.plan(uniforms(0, 0, numbers, 0, Draws.COUNT), sizes, (side, side)).boxes
    cut = (boxes[:, 2:4] / side * sizes).round().long().clamp_min(1)  # in pixels of the picture
    views = torch.stack([torch.from_numpy(gray_canvas(view, SIDE).copy()) for view in shown])
    both = torch.cat([torch.from_numpy(seen.canvases[rows]), views]), torch.cat([sizes, cut])
    pairs = torch.stack([numbers, numbers + len(rows)], 1)
    return likeness(*both, pairs, progress=progress).double().numpy()


def _others(seen: Survey, vectors: Tensor, rows: Numbers, progress: Progress) -> Scores:
    """(M,) how well they agree with rows that are near, though not among the nearest."""
    pairs = []
    for row, cosines in zip(rows.tolist(), (row for block in products(vectors[rows], vectors) for row in block)):
        cosines[row] = -torch.inf
        near = cosines.topk(min(_TO, len(cosines) - 1)).indices[_FROM:]
        pairs.append(torch.stack([torch.full_like(near, row), near], 1))
    canvases, sizes = torch.from_numpy(seen.canvases), torch.from_numpy(seen.sizes)
    return likeness(canvases, sizes, torch.cat(pairs), progress=progress).double().numpy()
