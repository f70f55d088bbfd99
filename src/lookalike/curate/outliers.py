"""``lookalike outliers``: what is far from everything, and pictures that are plain, dark, blurred or odd in size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from lookalike.core.progress import Progress, silent
from lookalike.curate.aligned import SIDE
from lookalike.curate.same import nearest, pictured
from lookalike.curate.survey import Survey, sharpness, survey
from lookalike.curate.table import Finding, Table

Values = npt.NDArray[np.float64]

NEIGHBOURS = 10
"""Others whose mean cosine says how far a row is from everything."""

_RARE, _FEW = 0.02, 3  # the share of rows, and how many at least, that may be odd in one way
_ODD = 3.5  # deviations from the median from which a value is odd (Iglewicz and Hoaglin 1993)


def outlying(
    table: Table, seen: Survey | None = None, workers: int | None = None, progress: Progress = silent
) -> list[Finding]:
    """Rows that are odd, the oddest first, each with why and its nearest rows; ``seen`` where it was surveyed already.

    A row is odd where a measure is 3.5 deviations or more from its median over the table, on the side that is said; a
    deviation is the median one over 0.6745, and no less than what is worth a word. With z deviations the score is
    z / (z + 3.5): from 0.5 on. What more than one in fifty rows have is no oddity but a second kind, as photos across
    among upright ones; a row must be odder than that. It is listed once, for what is oddest.
    """
    seen = seen or survey([pictured(table)], workers, progress, SIDE)
    vectors, good = table.vectors, np.isin(np.arange(len(table)), seen.good)
    near = nearest(vectors, NEIGHBOURS, progress)
    best: dict[int, Finding] = {}
    for reason, values, least in _measures(seen, _distance(vectors, near)):
        z = deviations(values, good, least)
        for row in np.flatnonzero(good & (z >= _ODD) & (values >= _crowd(values, good) + least)).tolist():
            found = Finding(row, float(z[row] / (z[row] + _ODD)), reason, tuple(near[row, :3].tolist()))
            best[row] = max(best.get(row, found), found, key=lambda finding: finding.score)
    return sorted(best.values(), key=lambda finding: (-finding.score, finding.row))


def _crowd(values: Values, good: npt.NDArray[np.bool_]) -> float:
    """What at least so many have, in values of the ``good`` ones, that it is no oddity."""
    rare = max(_FEW, round(_RARE * int(good.sum())))
    return float(np.sort(values[good])[-1 - rare]) if good.sum() > rare else -np.inf


def _distance(vectors: torch.Tensor, near: npt.NDArray[np.int64]) -> Values:
    """(N,) one minus the mean cosine with the nearest."""
    if not near.shape[1]:
        return np.zeros(len(vectors))
    cosines = [(vectors[near[:, k]] * vectors).sum(1) for k in range(near.shape[1])]
    return 1 - torch.stack(cosines).double().mean(0).numpy()


def _measures(seen: Survey, distance: Values) -> list[tuple[str, Values, float]]:
    """(why, (N,) what is odd where it is large, the least deviation): of 255, in logarithms, or in cosines."""
    canvases = seen.canvases.reshape(len(seen.sizes), -1)
    bright, contrast = canvases.mean(1), canvases.std(1)
    shape = np.log(seen.sizes.clip(1))
    aspect, pixels = shape[:, 1] - shape[:, 0], shape.sum(1)
    return [
        ("far from everything", distance, 0.02),
        ("dark", -bright, 12),
        ("bright", bright, 12),
        ("nearly uniform", -np.log(contrast + 1), 0.2),
        ("blurred", -np.log(sharpness(seen) + 0.1), 0.2),
        ("very small", -pixels, 0.2),
        ("very large", pixels, 0.2),
        ("very wide", aspect, 0.1),
        ("very tall", -aspect, 0.1),
    ]


def deviations(values: Values, good: npt.NDArray[np.bool_], least: float) -> Values:
    """(N,) how many deviations each value lies above the median of the ``good`` ones (modified z-score)."""
    if not good.any():
        return np.zeros(len(values))
    middle = np.median(values[good])
    return np.asarray((values - middle) / max(least, float(np.median(np.abs(values[good] - middle))) / 0.6745))
