"""In words, for the person who trains: is the data enough to learn from, what was learned, and what comes next."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.data.example import Source, labels_in
from lookalike.data.loader import Loads
from lookalike.data.order import some_rows
from lookalike.data.source import Data
from lookalike.data.video.source import in_videos
from lookalike.metrics.accuracy import Evidence
from lookalike.models.encoder import Encoder, embed
from lookalike.recipes.modality import modality_of
from lookalike.recipes.recipe import Recipe
from lookalike.train.loop import views_at
from lookalike.train.trained import initial

FEW = 1000
"""Examples below which little is learned from nothing."""

_MOST, _LEAST, _SECONDS, _CHUNK = 1000, 100, 5.0, 50  # examples that are looked for again, and for how long
_DRAW = 4
_EPOCH = (1 << 31) - 1  # whose views no run has seen
EASY = 0.98  # a share that is found by any network
_LOOKED, _SIDE, _EQUAL, _ALIKE = 500, 16, 0.02, 0.5  # pictures looked at, their side, how far apart, how many of them

FINDS = {
    "pictures": "finds a picture again from another view",
    "frames": "finds the video of a frame from another frame",
    "clips": "finds the video of a clip from another clip",
    "pairs": "finds the other half of a pair",
    "captioned pictures": "finds the caption of a picture",
}
"""What a recipe's two views teach, by its kind of examples; two views of a sentence are one without dropout."""


# ---- before ----


def doubts(recipe: Recipe, loader: Loads) -> Iterator[str]:
    """Why little may come of learning from this data, and what to do instead."""
    names, remedy = (
        modality_of(recipe).examples,
        "or start from public weights or a run on many others: --init-from MODEL",
    )
    if len(loader) < FEW:
        yield (
            f"{len(loader):,} {names} are few to learn from without labels: do not expect much below {FEW:,}; "
            f"add more, which need no labels, {remedy}"
        )
    if names == "pictures" and (alike := nearly_equal(loader)) >= _ALIKE:
        yield (
            f"{alike:.0%} of the pictures nearly equal another one, so there is little to tell apart: leave out "
            f"repeats (frames of videos have recipes of their own: video_moco), {remedy}"
        )


def nearly_equal(loader: Loads) -> float:
    """The share of some pictures, shrunk, that have another within a fiftieth of the range of a pixel."""
    material = next(iter(loader.batches([some_rows(len(loader), _LOOKED, _DRAW)]))).material
    small = F.adaptive_avg_pool2d(material.pixels.float() / 255, _SIDE).flatten(1)
    apart = torch.cdist(small, small).fill_diagonal_(torch.inf) / small.shape[1] ** 0.5
    return float((apart.amin(1) < _EQUAL).double().mean()) if len(small) > 1 else 0.0


# ---- after ----


def learned(recipe: Recipe, loader: Loads, encoder: Encoder) -> Iterator[str]:
    """How often an example is found again from another view, measured without labels, by the network and untrained."""
    names = modality_of(recipe).examples
    if recipe.objective.supervised or names not in FINDS:
        return
    after, before = found_again(recipe, loader, encoder, initial(recipe))
    numbers = f"{after.mean:.1%} ({before.mean:.1%} untrained, chance {after.chance:.1%})"
    finds, gain = f"{FINDS[names]} among {len(after.each):,}", after.gain(before)
    if gain.mean > gain.half:
        yield f"learned: {finds}: {numbers}"
    elif before.mean >= EASY:
        yield f"{finds}: {numbers}, which tells nothing here: it is too easy"
    elif recipe.keys.directions == 0:
        yield f"{finds}: {numbers}, which this recipe does not train: the loss and labels tell what it learned"
    else:
        yield f"nothing was learned: {finds}: {numbers}, no better than untrained; train longer, or on more {names}"


def found_again(recipe: Recipe, loader: Loads, *encoders: Encoder) -> list[Evidence]:
    """For each encoder, which examples' first view is nearest to the second view of the same example, or video.

    A thousand examples, or as many as five seconds allow, but a hundred. Modes and random numbers stay as they were.
    """
    rows, views = two_views(recipe, loader, encoders, _MOST, _SECONDS)
    return [found_among(loader.source.paths, rows, *pair) for pair in views]


def two_views(
    recipe: Recipe, loader: Loads, encoders: Sequence[Encoder], most: int, seconds: float = math.inf
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Rows (N,) of some examples and, of each encoder, the heads' unit rows (N, D) of two views, of an epoch that no
    run has. After so many ``seconds`` a hundred examples are enough.
    """
    views: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in encoders]
    began, done = time.perf_counter(), list[Tensor]()
    for rows in torch.split(some_rows(len(loader), most, _DRAW), _CHUNK):
        first, second = views_at(loader, recipe, rows, _EPOCH)
        second = views_at(loader, recipe, rows, _EPOCH - 1)[0] if second is first else second
        for encoder, (ones, others) in zip(encoders, views):
            ones.append(embed(encoder, [first], "head"))
            others.append(embed(encoder, [second], "head"))
        done.append(rows)
        if len(done) * _CHUNK >= _LEAST and time.perf_counter() - began > seconds:
            break
    return torch.cat(done), [(torch.cat(ones), torch.cat(others)) for ones, others in views]


def found_among(paths: Sequence[str], rows: Tensor, first: Tensor, second: Tensor) -> Evidence:
    """Which rows (N, D) of first views are nearest to the second view of the same example, or video."""
    videos = in_videos([paths[row] for row in rows.tolist()])
    owner = torch.arange(len(rows)) if videos is None else videos
    guess = float((owner[:, None] == owner).double().mean())
    nearest = (first @ second.T).argmax(1)
    return Evidence((owner[nearest] == owner).double(), "examples", guess, videos)


def next_command(recipe: Recipe, source: Source, data: Data, run: Path) -> str:
    """What a person would do now."""
    names, folder = modality_of(recipe).examples, shlex.quote(str(run))
    on = shlex.quote(str(data)) if isinstance(data, str | Path) else "DATA"
    if names == "captioned pictures":
        return f"next: lookalike evaluate captions {folder} {on}"
    if len(labels_in(source)) > 1:
        return f"next: lookalike evaluate knn {folder} {on}{' --clip inf' if names in ('frames', 'clips') else ''}"
    query = "'A SENTENCE'" if modality_of(recipe).tokenizes else "PICTURE"
    return f"next: lookalike search {folder} {query}, or with labels lookalike evaluate knn {folder} LABELLED"
