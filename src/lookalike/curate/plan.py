"""What pretraining would do with some data by default and why, and what it has to do it with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from lookalike.core.devices import accelerator, device, processor, resolved
from lookalike.data.loader import GIB, Loader
from lookalike.data.pool import cores
from lookalike.data.source import Data, PictureSource, Rows, native_side, open_source
from lookalike.learn.dictionary import Queue
from lookalike.recipes.recipe import Recipe
from lookalike.train.length import pace, probe
from lookalike.train.pretrain import Request, recipe_for

_EXTRAS = {
    "tensorboard": "[log]",
    "fsspec": "[remote]",
    "tokenizers": "[text]",
    "av": "[video]",
}


class Training(NamedTuple):
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


def planned(data: Data, split: str | None, timed: bool, workers: int) -> Training:
    """What pretrain would do; raises UserError where it would refuse."""
    source = open_source(data, split)
    recipe = recipe_for(Request(data, Path()), source)
    seconds = _seconds_per_step(recipe, source, workers) if timed else None
    steps = len(source) // recipe.batch
    minutes = None if seconds is None else steps * seconds / 60
    size = len(source) * 3 * recipe.canvas**2 / GIB
    return Training(
        recipe.name,
        len(source),
        _queue(recipe),
        recipe.batch,
        recipe.pictures.first.size,
        recipe.canvas,
        size,
        minutes,
        list(_reasons(recipe, source, size, minutes)),
    )


def _reasons(recipe: Recipe, source: PictureSource, size: float, minutes: float | None) -> Iterator[str]:
    """Why these settings."""
    steps = len(source) // recipe.batch
    where = "a GPU" if device().type != "cpu" else "no GPU"
    yield f"{recipe.name}, since there is {where} and there are {len(source):,} pictures"
    yield f"batches of {recipe.batch}, which make {steps:,} steps an epoch"
    if (queue := _queue(recipe)) is not None:
        share = f"{queue / len(source):.0%} of all"
        yield f"a queue of {queue:,}, which holds keys of the last {queue / recipe.batch:.0f} steps: {share}"
    yield (
        f"crops of {recipe.pictures.first.size} px from canvases of {recipe.canvas} px, "
        f"since the median short side is {native_side(source)} px"
    )
    keep = "kept in memory" if size <= 4 else "more than the 4 GiB of --memory: prepare them once, or raise it"
    yield f"{size:.2f} GiB of canvases: {keep}"
    if minutes is not None:
        length = recipe.length
        epochs = length.epochs or (length.minutes or 0) / minutes
        yield f"about {minutes:.2g} minutes an epoch on this machine; by default {epochs:.3g} epochs"


def _queue(recipe: Recipe) -> int | None:
    """The keys of a queue, None for another dictionary."""
    return recipe.dictionary.size if isinstance(recipe.dictionary, Queue) else None


def _seconds_per_step(recipe: Recipe, source: PictureSource, workers: int, seconds: float = 5.0) -> float:
    """As minutes are measured, by a throw-away copy of the run on few of the pictures."""
    few = Rows(source, torch.arange(len(source))[: 4 * recipe.batch])
    return pace(probe(replace(recipe, window=None), Loader(few, recipe.canvas, workers=workers, max_bad=1.0), seconds))


def about_machine() -> dict[str, str]:
    """What this machine has, for a report without data."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return {
        "lookalike": version("lookalike"),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "processor": f"{cores()} cores, {processor()}",
        "device": f"{accelerator() or device()}, computes in {resolved('auto')}",
        "memory": f"{memory:.1f} GiB",
        "extras": ", ".join(f"{name} {_version_of(name, extra)}" for name, extra in _EXTRAS.items()),
    }


def _version_of(name: str, extra: str) -> str:
    """The version of a package, or how to get it."""
    if find_spec(name) is None:
        return f"missing ({extra})"
    try:
        return version(name)
    except PackageNotFoundError:
        return "present"
