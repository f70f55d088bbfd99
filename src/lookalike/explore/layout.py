"""The map: a place in the plane for each row of embeddings, so that rows lie beside their nearest: t-SNE on a grid."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.core.devices import full_precision, isolated
from lookalike.core.progress import Progress, silent
from lookalike.metrics.knn import largest, products

NAME = "t-SNE of 50 principal components by each row's 15 nearest"
"""What the page says of the map."""
FIRST = "two principal components, while the map is drawn"
VERSION = 2  # of the arithmetic: maps that another one made are made anew

_AXES, _FITTED = 50, 20_000  # principal components in which neighbours are looked for, and rows that decide them
_NEIGHBOURS = 15
_TIGHT, _LOOSE, _AGAIN = 100, 300, 60  # rounds with neighbours drawn 12 times as much, after those, from an old map
_EXAGGERATION = 12.0
_CELL, _CELLS = 0.5, 512  # of the grid: its side in units of the map, and how many a side at most

Places = npt.NDArray[np.float32]


class Edges(NamedTuple):
    """Who attracts whom: ``heads`` and ``tails`` (E,), both ways, ``weights`` (E,) that sum to 1."""

    heads: Tensor
    tails: Tensor
    weights: Tensor


@isolated()
def layout(vectors: npt.NDArray[np.float32], start: Places | None = None, progress: Progress = silent) -> Places:
    """(N, 2) places for unit rows (N, F), around 0; they and the ``start`` (N, 2) decide it, nothing is random.

    t-SNE (van der Maaten & Hinton 2008) with equal weights for the nearest rows, begun with principal components
    (Kobak & Berens 2019), the repulsion as a field on a grid by Fourier transforms (FIt-SNE, arXiv 1712.09005).
    Costs N² products of 50 numbers for the neighbours, then 400 rounds in N.
    """
    rows = torch.from_numpy(vectors)
    axes = components(rows)
    if len(rows) <= _NEIGHBOURS:
        return np.asarray(axes[:, :2].numpy(), np.float32)
    edges = neighbours(F.normalize(axes, dim=1), progress)
    if start is None:
        places, plan = (
            axes[:, :2] * (1e-2 / axes[:, 0].std().clamp_min(1e-12)),
            [_EXAGGERATION] * _TIGHT + [1.0] * _LOOSE,
        )
    else:
        places, plan = torch.from_numpy(start), [1.0] * _AGAIN
    places, speed, gains = places.contiguous(), torch.zeros_like(places), torch.ones_like(places)
    rate = max(len(rows) / _EXAGGERATION, 12.5) / (1 if start is None else 4)
    for done, exaggeration in enumerate(plan):
        force = exaggeration * attraction(places, edges) + repulsion(places)
        gains = torch.where(speed * force > 0, gains + 0.2, gains * 0.8).clamp_min(0.01)
        speed = (0.5 if exaggeration > 1 else 0.8) * speed + 4 * rate * gains * force
        places = places + speed
        progress("drawing the map", done + 1, len(plan))
    return np.asarray((places - places.mean(0)).numpy(), np.float32)


@full_precision()
def components(rows: Tensor) -> Tensor:
    """(N, 50 at most) principal components of rows (N, F), each axis signed so that its largest loading is positive."""
    if len(rows) < 2:
        return rows.new_zeros(len(rows), 2)
    some = rows[:: -(-len(rows) // _FITTED)]
    mean = some.mean(0)
    _, axes = torch.linalg.eigh(((some - mean).T @ (some - mean)).double())
    axes = axes.flip(1)[:, : max(2, min(_AXES, len(some) - 1))]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    found = (rows - mean) @ axes.float()
    return F.pad(found, (0, max(0, 2 - found.shape[1])))


def neighbours(rows: Tensor, progress: Progress = silent) -> Edges:
    """From each unit row (N, F) to its nearest, and back."""
    k, found, done = min(_NEIGHBOURS, len(rows) - 1), list[Tensor](), 0
    for cosines in products(rows, rows):
        own = torch.arange(len(cosines))
        cosines[own, done + own] = -torch.inf
        found.append(largest(cosines, k)[1])
        done += len(cosines)
        progress("looking for neighbours", done, len(rows))
    near, rows_of = torch.cat(found).flatten(), torch.arange(len(rows)).repeat_interleave(k)
    weights = torch.full((2 * len(near),), 1 / (2 * len(near)))
    order = (heads := torch.cat([rows_of, near])).argsort(stable=True)  # memory is met in order
    return Edges(heads[order], torch.cat([near, rows_of])[order], weights)


def attraction(places: Tensor, edges: Edges) -> Tensor:
    """(N, 2) the sum over the edges of each row of weight · difference / (1 + distance²)."""
    apart = places[edges.tails] - places[edges.heads]
    drawn = apart * (edges.weights / (1 + apart.square().sum(1)))[:, None]
    heads, count = edges.heads.numpy(), len(places)  # bincount adds in one order, whatever the threads
    sums = [np.bincount(heads, weights=drawn[:, axis].numpy(), minlength=count) for axis in range(2)]
    return torch.from_numpy(np.stack(sums, 1)).float()


def repulsion(places: Tensor) -> Tensor:
    """(N, 2) the sum over all rows of difference / (1 + distance²)², by the sum over all pairs of 1 / (1 + distance²).

    Rows are spread over the four cells around them, and the field is read from there: within a per cent or so.
    """
    low = places.amin(0)
    width = float((places.amax(0) - low).max())
    cells = int(min(_CELLS, max(32, 16 * -(-width // (16 * _CELL)) + 16)))
    step = max(width / (cells - 2), 1e-6)
    at = (places - low) / step
    corner = at.long().clamp(0, cells - 2)
    part = at - corner
    index = torch.stack([corner[:, 0] * cells + corner[:, 1] + a * cells + b for a in (0, 1) for b in (0, 1)])
    share = torch.stack([(part[:, 0] - (1 - a)).abs() * (part[:, 1] - (1 - b)).abs() for a in (0, 1) for b in (0, 1)])
    density = np.bincount(index.flatten().numpy(), weights=share.flatten().numpy(), minlength=cells**2)
    field = _field(torch.from_numpy(density).float().view(cells, cells), step).flatten(1)
    near = torch.tensor([[a, b] for a in (0, 1) for b in (0, 1)]) * step
    own = (share * ((1 / (1 + torch.cdist(near, near).square())) @ share)).sum(
        0
    )  # of a row spread over cells on itself
    mass, forces = ((field[0, index] * share).sum(0) - own).sum(), (field[1:, index] * share).sum(1)
    return -forces.T / mass.clamp_min(1e-12)


def _field(density: Tensor, step: float) -> Tensor:
    """(3, G, G) of a density (G, G): the sum of the kernels, and minus the force along both axes."""
    cells = len(density)
    away = torch.fft.fftfreq(2 * cells, 1 / (2 * cells)) * step
    x, y = away[:, None], away[None]
    kernel = 1 / (1 + x.square() + y.square())
    kernels = torch.fft.rfft2(torch.stack([kernel, -x * kernel.square(), -y * kernel.square()]))
    spread = torch.fft.rfft2(density, (2 * cells, 2 * cells))
    field: Tensor = torch.fft.irfft2(kernels * spread, (2 * cells, 2 * cells))[:, :cells, :cells]
    return field
