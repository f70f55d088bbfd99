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
"""The agreement that is asked for where pictures are too few to calibrate: that of clothing160 with planted copies."""

EDITED = ImageView(SIDE, (0.4, 1.0), jitter=0.5, brightness=0.4, contrast=0.4, saturation=0.4, gray=0.1, blur=0.2)
"""What an edited copy is taken to be: cut, mirrored, other colours, blurred."""

_SAMPLE, _FEWEST = 300, 40
_FROM, _TO = 8, 24  # the nearest are left out, since they may be copies; those from here on are others that look alike
_TAIL = 0.02  # the share of others from which their tail is taken to fall off as an exponential
_SIDE = 96  # px of the pictures that are edited
_GRID = np.linspace(0.5, 0.99, 99)


class Threshold(NamedTuple):
    """From which agreement on pictures are the same, and how that is known."""

    value: float
    words: str


class Calibration(NamedTuple):
    """How well pictures of a person agree with edited views of themselves (V,), and with similar others (M,)."""

    views: Scores
    others: Scores

    def threshold(self, scores: Scores, precision: float) -> Threshold:
        """For pairs that agree as ``scores`` (P,) say, of which so large a share should be right."""
        if len(self.views) < _FEWEST:
            few = f"{len(self.views)} pictures are too few to calibrate"
            return Threshold(
                DEFAULT, f"pictures are the same from an agreement of {DEFAULT:g}: the default, since {few}"
            )
        value = lowest(self.others, scores, precision)
        found, wrong = int((scores >= value).sum()), len(scores) * float(tail(self.others, np.array([value]))[0])
        agree = float((self.views >= value).mean())
        missed = ", so most edited copies are not found" if agree < 0.5 else ""
        pairs = f"{found:,} pair{'s' if found != 1 else ''}"
        more = "" if precision < 0.9 else "; --precision 0.5 lists more"
        return Threshold(
            value,
            f"pictures are the same from an agreement of {value:.2f}: {pairs}, of which about {wrong:.1f} "
            f"merely look alike, as {len(self.others):,} other pairs of your pictures tell; {agree:.0%} of edited "
            f"views of them agree so well{missed}{more}",
        )


def calibrated(pictures: PictureSource, seen: Survey, vectors: Tensor, progress: Progress = silent) -> Calibration:
    """From up to 300 pictures, each beside an edited view of itself, and beside 16 that its embedding calls similar."""
    rows = seen.good[random_rows(len(seen.good), _SAMPLE).numpy()]
    if len(rows) < _FEWEST:
        return Calibration(np.zeros(len(rows)), np.zeros(0))
    return Calibration(_views(pictures, seen, rows, progress), _others(seen, vectors, rows, progress))


def lowest(others: Scores, scores: Scores, precision: float) -> float:
    """The lowest agreement at which at most ``1 - precision`` of what is found are others that look alike.

    How many of P pairs with ``scores`` that are is P times the ``tail`` of ``others``: the false discovery rate
    (Benjamini and Hochberg 1995). Where copies are rare, more agreement is asked for, whoever compares the pairs.
    """
    found = len(scores) - np.searchsorted(np.sort(scores), _GRID)
    good = np.flatnonzero((found > 0) & (len(scores) * tail(others, _GRID) <= (1 - precision) * found))
    return float(_GRID[good[0]] if len(good) else _GRID[-1])


def tail(others: Scores, values: Scores) -> Scores:
    """The share of pairs of others that agree so well; its last fiftieth as an exponential in Fisher's z.

    Or what is rarer than one in M would be said never to happen.
    """
    z, at = np.arctanh(np.clip(others, -0.999, 0.999)), np.arctanh(values)
    start = np.quantile(z, 1 - _TAIL)
    scale = max(1e-3, float((z[z >= start] - start).mean()))
    seen = 1 - np.searchsorted(np.sort(z), at) / len(z)
    return np.asarray(np.where(at < start, seen, _TAIL * np.exp(-(np.maximum(at, start) - start) / scale)))


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
