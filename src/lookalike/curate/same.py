"""Which pictures of a table are the same picture: equal, saved again, or edited."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike.core.devices import full_precision
from lookalike.core.errors import UserError
from lookalike.core.progress import Progress, counted, silent
from lookalike.curate.aligned import SIDE, likeness
from lookalike.curate.calibration import Threshold, calibrated
from lookalike.curate.survey import Numbers, Survey, near_pairs, survey
from lookalike.curate.table import Table
from lookalike.data.example import PictureSource
from lookalike.data.video.source import video_of
from lookalike.metrics.knn import largest, products

BYTES, PIXELS, HASH, EMBEDDING = range(4)
REASONS = ("equal bytes", "equal pixels", "perceptual hash", "embedding")
"""Why two are the same, in the order in which it is asked."""

NEAREST = 8  # rows of each whose pixels are compared as they are: 99 of 100 edited copies are among them
_FIRST = 3  # of those, rows of which each may be a part of the other, which takes ten times as long
_ENOUGH = 0.95  # agreement from which no part of either is looked for
_EQUAL = 0.97  # agreement from which all pixels are compared
_LARGE = 1024  # px at which that is done
_WIDE = 256  # features from which neighbours are first looked for among fewer
_AGAIN = 4  # times as many, which are compared again


class Same(NamedTuple):
    """N pictures, and which of them are the same."""

    seen: Survey
    exact: Numbers  # (N,) the first row with the same bytes, which is itself where there is no other
    pairs: Numbers  # (P, 2) of such first rows, that are the same though not in bytes
    scores: npt.NDArray[np.float64]  # (P,) up to 1, how well they agree
    reasons: Numbers  # (P,) into REASONS
    threshold: Threshold


def same_pictures(
    table: Table, precision: float = 0.95, workers: int | None = None, progress: Progress = silent
) -> Same:
    """Look at every picture once, and compare those that may be the same; raises UserError.

    Equal bytes are equal. Else pairs come from perceptual hashes and from the nearest embeddings, and count where
    their details agree (``likeness``) so well that by ``Calibration`` a share of ``precision`` of them is right. About
    5 ms a picture, and 5 KB.
    """
    pictures = pictured(table)
    seen = survey([pictures], workers, progress, SIDE)
    exact = _exact(seen)
    vectors = table.vectors
    calibration = calibrated(pictures, seen, vectors, progress)
    firsts = np.intersect1d(exact, seen.good)
    hashed = _distinct(exact[near_pairs(seen)])
    ranked = nearest(vectors[firsts], NEAREST, progress)
    near = [_distinct(_beside(firsts, ranked[:, :count])) for count in (NEAREST, _FIRST)]
    pairs = _apart(np.unique(np.concatenate([hashed, *near]), axis=0), pictures)
    scores = _scores(seen, pairs, near[1], progress)
    threshold = calibration.threshold(scores, precision)
    pairs, scores = pairs[scores >= threshold.value], scores[scores >= threshold.value]
    reasons = np.where(_among(pairs, hashed), HASH, EMBEDDING)
    equal = [_equal_pixels(pictures, seen, *pair) if score >= _EQUAL else False for pair, score in zip(pairs, scores)]
    reasons[np.array(equal, np.bool_)] = PIXELS
    return Same(seen, exact, pairs, scores, reasons, threshold)


def pictured(table: Table) -> PictureSource:
    """The pictures of a table; raises UserError where it has none."""
    if table.pictures is None:
        raise UserError(f"{table.name} is a table of text, and this looks at pictures: name a table of pictures")
    return table.pictures


def _exact(seen: Survey) -> Numbers:
    exact = np.arange(len(seen.sizes))
    key = np.stack([seen.content.view(np.int64), *seen.sizes.T, seen.lengths], 1)[seen.good]
    _, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
    exact[seen.good] = seen.good[first[inverse.reshape(-1)]]
    return exact


@torch.no_grad()
@full_precision()
def nearest(vectors: Tensor, k: int, progress: Progress = silent) -> Numbers:
    """(N, K) the K <= k nearest other rows of each, nearest first, in blocks of products: 130 MB beside ``vectors``.

    Of more than 256 features, four times as many are found by their 256 directions of most variance, and then
    compared in full.
    """
    k, few = min(k, len(vectors) - 1), vectors
    if k < 1:
        return np.empty((len(vectors), 0), np.int64)
    if wide := vectors.shape[1] > _WIDE and len(vectors) > 4 * _WIDE:
        some = vectors[:: -(-len(vectors) // 20_000)]
        few = vectors @ torch.linalg.eigh(some.T @ some)[1][:, -_WIDE:]
    found, done = [], counted(progress, "comparing embeddings", len(vectors))
    for start, cosines in _blocks(few):
        rows = torch.arange(start, start + len(cosines))
        cosines[torch.arange(len(rows)), rows] = -torch.inf
        values, columns = largest(cosines, min(k * _AGAIN, len(vectors) - 1) if wide else k)
        if wide:
            values = torch.einsum("bf,bkf->bk", vectors[rows], vectors[columns])
        found.append(columns.gather(1, values.argsort(dim=1, descending=True, stable=True)[:, :k]))
        done(len(rows))
    return torch.cat(found).numpy()


def _blocks(vectors: Tensor) -> Iterator[tuple[int, Tensor]]:
    start = 0
    for cosines in products(vectors, vectors):
        yield start, cosines
        start += len(cosines)


def _beside(rows: Numbers, ranked: Numbers) -> Numbers:
    """(P, 2) each row beside those that ``ranked`` (M, K) names by their places."""
    return np.stack([np.repeat(rows, ranked.shape[1]), rows[ranked.reshape(-1)]], 1)


def _distinct(pairs: Numbers) -> Numbers:
    """Each pair once, the lower row first."""
    pairs = np.sort(pairs.reshape(-1, 2), axis=1)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)


def _apart(pairs: Numbers, pictures: PictureSource) -> Numbers:
    """Without the frames of one video, which are alike by nature."""
    films: dict[str, int] = {}
    film = np.array([films.setdefault(video_of(path), len(films)) for path in pictures.paths], np.int64)
    return np.asarray(pairs[film[pairs[:, 0]] != film[pairs[:, 1]]])


def _scores(seen: Survey, pairs: Numbers, parts: Numbers, progress: Progress) -> npt.NDArray[np.float64]:
    """(P,) agreement as they are, and of those among ``parts`` that do not agree enough, as part and whole."""
    canvases, sizes = torch.from_numpy(seen.canvases), torch.from_numpy(seen.sizes)
    scores = likeness(canvases, sizes, torch.from_numpy(pairs), False, progress).numpy().astype(np.float64)
    rest = np.flatnonzero((scores < _ENOUGH) & _among(pairs, parts))
    scores[rest] = likeness(canvases, sizes, torch.from_numpy(pairs[rest]), True, progress).numpy()
    return scores


def _among(pairs: Numbers, others: Numbers) -> npt.NDArray[np.bool_]:
    """(P,) which pairs are among others."""
    base = int(max(pairs.max(initial=0), others.max(initial=0))) + 1
    return np.isin(pairs @ (base, 1), others @ (base, 1))


def _equal_pixels(pictures: PictureSource, seen: Survey, one: int, other: int) -> bool:
    """Whether two are of one size, and all of their pixels equal; of large pictures, at 1024 px."""
    if (seen.sizes[one] != seen.sizes[other]).any():
        return False
    side = min(_LARGE, int(seen.sizes[one].max()), getattr(pictures, "own", _LARGE))
    return torch.equal(*(pictures.example(int(row), side).pixels for row in (one, other)))
