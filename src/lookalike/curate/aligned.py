"""Whether one picture is an edited copy of another: laid over each other, mirrored or cut where that fits best."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.core.devices import full_precision
from lookalike.core.progress import Progress, silent

SIDE = 48  # px of the small gray canvases that are compared
_REACH = 3  # px around a pixel whose mean is taken off: what is left is detail, which a plain ground has none of
_MARGIN = 4  # px of a part's edge that are not compared: a border would shine through
_SCALES = tuple(0.5 ** (i / 9) for i in range(9))  # sides of a part over the whole: 1 to 0.54 in steps of 8 %
_LEAST = 0.4  # side of the smallest part over the whole, where shapes differ
_NEARBY = (-2, -1, 0, 1, 2)  # px by which the fine search changes the coarse one's height and width
_PROMISING = 0.3  # agreement at half the pixels, from which the fine search is worth its time
_CHUNK = 512  # pairs at a time: 150 MB


class _Fit(NamedTuple):
    """The best of what was tried for P pairs, all (P,)."""

    score: Tensor
    inner: Tensor  # which of the pair is the part
    height: Tensor  # of the part in the other, in pixels
    width: Tensor


@torch.no_grad()
@full_precision()
def likeness(canvases: Tensor, sizes: Tensor, pairs: Tensor, parts: bool = True, progress: Progress = silent) -> Tensor:
    """(P,) up to 1: how well the ``pairs`` (P, 2) of N pictures agree in detail, where they agree best.

    ``canvases`` uint8 (N, 48, 48) are gray, ``sizes`` (N, 2) height and width. One of two is mirrored, and with
    ``parts`` scaled and cut from the other, in 38 ways at all places at 24 px, then nearby at 48 px. The measure is the
    correlation of what is left when each pixel's surroundings are taken off, so that brightness, contrast, colour and a
    plain ground count for nothing (normalised cross-correlation, Lewis 1995).
    """
    scores = torch.empty(len(pairs))  # at once: small ones between large blocks would keep malloc from reusing these
    for start in range(0, len(pairs), _CHUNK):
        some = pairs[start : start + _CHUNK]
        fine = torch.stack([_detail(canvases[some[:, side]]) for side in (0, 1)])
        fit = _coarse(F.avg_pool2d(fine, 2), sizes[some].double(), parts)
        scores[start : start + len(some)] = _refined(fine, fit)
        progress("comparing pixels", min(start + _CHUNK, len(pairs)), len(pairs))
    return scores


def _detail(canvases: Tensor) -> Tensor:
    """(P, S, S) without the mean of each pixel's surroundings."""
    pixels = canvases.float()[:, None]
    return (pixels - F.avg_pool2d(F.pad(pixels, (_REACH,) * 4, mode="replicate"), 2 * _REACH + 1, 1))[:, 0]


def _coarse(canvases: Tensor, sizes: Tensor, parts: bool) -> _Fit:
    """The best of all places and scales of (2, P, S, S)."""
    count, side = canvases.shape[1:3]
    whole = torch.full((count,), side)
    best = _Fit(_agreement(canvases[1], canvases[0], whole, whole), torch.zeros(count, dtype=torch.long), whole, whole)
    shape = (sizes[..., 1] / sizes[..., 0]).T  # (2, P) width over height
    for inner in (0, 1) if parts else ():
        wider = shape[inner] / shape[1 - inner]
        for scale in _SCALES:
            width = (scale * side * wider.clamp(max=1)).round().long()
            height = (scale * side / wider.clamp(min=1)).round().long()
            score = _agreement(canvases[1 - inner], canvases[inner], height, width)
            found = _Fit(score, torch.full_like(width, inner), height, width)
            wins = (score > best.score) & (torch.minimum(height, width) >= _LEAST * side)
            best = _Fit(*(torch.where(wins, new, old) for new, old in zip(found, best)))
    return best


def _refined(canvases: Tensor, fit: _Fit) -> Tensor:
    """(P,) the best agreement near a fit at half the pixels; of what does not promise much, that of the fit."""
    best, side = fit.score.clone(), canvases.shape[-1]
    some = (fit.score >= _PROMISING).nonzero()[:, 0]
    if not len(some):  # of which MKL can make no transform
        return best
    inner, height, width = fit.inner[some], 2 * fit.height[some], 2 * fit.width[some]
    ground, part = canvases[1 - inner, some], canvases[inner, some]
    best[some] = -1.0
    for change in _NEARBY:
        high, wide = ((length + change).clamp(1, side) for length in (height, width))
        best[some] = torch.maximum(best[some], _agreement(ground, part, high, wide))
    return best


def _agreement(ground: Tensor, part: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """(P,) the highest correlation of the inside of each part (P, S, S), made so large, with a window of its ground.

    All places are tried at once, by Fourier transforms of one size; what sizes do stands in tables.
    """
    side = ground.shape[-1]
    resize, sums = _tables(side)
    trim = _trim(side)
    inside = part[:, trim : side - trim, trim : side - trim]
    down, across = resize[height], resize[width].mT
    used = down.sum(2, keepdim=True) * across.sum(1, keepdim=True)  # 1 where the part is
    area = used.sum((1, 2), keepdim=True)
    both = down @ torch.stack([inside, inside.flip(-1)]) @ across  # (2, P, S, S)
    both = both - used * (both.sum((-1, -2), keepdim=True) / area)
    energy = (both * both).sum((-1, -2), keepdim=True)
    both = both * ((energy + area).rsqrt() * (energy > area))  # as with a gray level of noise; a plain part has none
    totals, squares = sums[height] @ torch.stack([ground, ground * ground]) @ sums[width].mT
    spread = (squares - totals * totals / area).clamp_min(0) + area
    places = sums[height].amax(2)[:, :, None] * sums[width].amax(2)[:, None, :]
    product = torch.fft.irfft2(torch.fft.rfft2(ground) * torch.fft.rfft2(both).conj(), s=(side, side))
    score: Tensor = (product * spread.rsqrt() * places).flatten(2).amax((0, 2))
    return score


def _trim(side: int) -> int:
    return _MARGIN * side // SIDE


@cache
def _tables(side: int) -> tuple[Tensor, Tensor]:
    """For each length of a part in a ground of so many pixels: what resizes its inside, and what sums up windows.

    (S + 1, S, S - 2 trim) with zeros where the inside ends, and (S + 1, S, S) with zeros where no window begins.
    """
    full = side - 2 * _trim(side)
    resize, sums = torch.zeros(side + 1, side, full), torch.zeros(side + 1, side, side)
    for length in range(side + 1):
        inside = max(1, round(length * full / side))
        resize[length, :inside] = F.interpolate(
            torch.eye(full)[None, None], (inside, full), mode="bilinear", antialias=True
        )[0, 0]
        for start in range(side - inside + 1):
            sums[length, start, start : start + inside] = 1
    return resize, sums
