"""What pretraining would do with some data: its default settings and why, and the views of ``lookalike preview``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from lookalike.core.devices import device
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import write_atomically
from lookalike.curate.sheet import Tile, random_rows, sheet, upright
from lookalike.data.example import PictureSource, Rows
from lookalike.data.loader import GIB, Loader
from lookalike.data.source import Data, native_side, open_source
from lookalike.learn.dictionary import Queue
from lookalike.recipes.recipe import Recipe
from lookalike.train.length import pace, probe
from lookalike.train.loop import views_at
from lookalike.train.pretrain import Request, recipe_for

_TILE = 160  # px of a picture of the preview


class TrainingPlan(NamedTuple):
    """What pretraining would do by default."""

    recipe: str
    examples: int
    queue: int | None  # keys, where there is a queue
    batch: int
    crop: int
    canvas: int
    gigabytes: float  # of canvases
    minutes_an_epoch: float | None  # as measured, None where it was not
    reasons: list[str]

    def lines(self) -> Iterator[str]:
        """The settings, and a reason for each."""
        queue = f"a queue of {self.queue:,} keys, " if self.queue else ""
        settings = f"batches of {self.batch}, {queue}{self.crop} px crops"
        yield f"by default, pretrain would use recipe {self.recipe}: {settings}"
        yield from (f"  {reason}" for reason in self.reasons)


def plan_pretraining(data: Data, split: str | None, timed: bool, workers: int) -> TrainingPlan:
    """What pretrain would do; ``timed`` trains for some seconds. Raises UserError where pretrain would refuse."""
    source = open_source(data, split)
    recipe = recipe_for(Request(data, Path()), source)
    steps = len(source) // recipe.batch
    minutes = steps * _seconds_per_step(recipe, source, workers) / 60 if timed else None
    size = len(source) * 3 * recipe.canvas**2 / GIB
    crop, reasons = recipe.pictures.first.size, list(_reasons(recipe, source, size, minutes))
    return TrainingPlan(
        recipe.name, len(source), _queue(recipe), recipe.batch, crop, recipe.canvas, size, minutes, reasons
    )


def _reasons(recipe: Recipe, source: PictureSource, size: float, minutes: float | None) -> Iterator[str]:
    """Why these settings."""
    examples = len(source)
    where = "there is no GPU" if device().type == "cpu" else "there is a GPU"
    yield f"recipe {recipe.name}: {where}, and there are {examples:,} pictures"
    yield f"batches of {recipe.batch}: {examples // recipe.batch:,} steps per epoch"
    if (queue := _queue(recipe)) is not None:
        share = f"{queue / examples:.0%} of the pictures"
        yield f"queue of {queue:,} keys: those of the last {queue / recipe.batch:.0f} steps, {share}"
    crop = f"{recipe.pictures.first.size} px crops, cut from pictures stored at {recipe.canvas} px"
    yield f"{crop}: the median short side is {native_side(source)} px"
    keep = "they are kept in memory" if size <= 4 else "prepare them once, or raise --memory above its 4 GiB"
    yield f"all pictures at that size take {size:.2f} GiB: {keep}"
    if minutes is not None:
        epochs = recipe.length.epochs or (recipe.length.minutes or 0) / minutes
        time = f"{60 * minutes:.2g} s" if minutes < 1 else f"{minutes:.2g} minutes"
        yield f"an epoch takes about {time} on this machine; the default length is {epochs:,.0f} epochs"


def _queue(recipe: Recipe) -> int | None:
    """The keys of a queue, None for another dictionary."""
    return recipe.dictionary.size if isinstance(recipe.dictionary, Queue) else None


def _seconds_per_step(recipe: Recipe, source: PictureSource, workers: int, seconds: float = 5.0) -> float:
    """As minutes are measured, by a throw-away copy of the run on few of the pictures."""
    few = Rows(source, torch.arange(len(source))[: 4 * recipe.batch])
    return pace(probe(replace(recipe, window=None), Loader(few, recipe.canvas, workers=workers, max_bad=1.0), seconds))


def preview(source: PictureSource, recipe: Recipe, out: Path, count: int = 12, epoch: int = 0) -> int:
    """Write a PNG of up to ``count`` rows as (picture, query view, key view), the very views that ``epoch`` draws.

    How many rows it has: which they are, the number of rows decides; unreadable ones are left out. Raises UserError.
    """
    rows = random_rows(len(source), 4 * count)
    few = Loader(Rows(source, rows), recipe.canvas, workers=0, max_bad=1.0)
    good = torch.tensor([i for i in range(len(rows)) if i not in few.bad_rows])[:count]
    if not len(good):
        raise UserError(f"none of {len(rows)} pictures can be read, first {source.paths[int(rows[0])]}", BAD_DATA)
    pictures = next(iter(few.batches([good]))).material
    # From all rows again, since a view may read others than its own.
    loader = Loader(source, recipe.canvas, 0, workers=0, max_bad=1.0)
    views = recipe.pictures.displayable(*views_at(loader, recipe, rows[good], epoch))
    tiles: list[Tile] = []
    for i, row in enumerate(rows[good].tolist()):
        height, width = pictures.sizes[i].tolist()
        tiles.append(Tile(upright(pictures.pixels[i], height, width, _TILE), source.paths[row]))
        tiles += [Tile(upright(v[i].cpu(), 1, 1, _TILE), name) for v, name in zip(views, ("query view", "key view"))]
    size = recipe.pictures.first.size
    title = f"Recipe {recipe.name}, epoch {epoch}: each picture and its two views of {size} px"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, sheet(tiles, 6 if len(good) > 1 else 3, _TILE, title))
    return len(good)
