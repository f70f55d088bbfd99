"""From a folder of photos to training batches at 128 px: lookalike against torchvision with PIL.

    python benchmarks/loading.py [--data ../shared/data] [--workers 2] [--rounds 5] [--json loading.json]

torchvision is ``ImageFolder`` + ``RandomResizedCrop`` (PIL) + ``ToTensor`` in a ``DataLoader`` with persistent workers.
lookalike streams (``--memory 0``): every epoch opens, checks, decodes and resizes every file again, as a first epoch
does. Its batches are uint8 canvases, of which views are made on the device, so a line says what it costs with the same
kind of crop made of every canvas in the main process. Each contestant runs alone in a process of its own, on the same
files in its own shuffled order; rounds alternate between the contestants. The time runs from the first batch, when all
workers are under way, through ``--pictures`` more: starting them is no part of it. Files come from the page cache, as
they do for data sets smaller than memory: this compares work, not disks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from lookalike.data.loader import Loader
from lookalike.data.order import Order
from lookalike.data.source import open_source
from lookalike.pretext.image import ImageView

FOLDERS = ("imagenette128", "clothing_small")
BATCH = 64
SCALE = (0.2, 1.0)  # area of the crop


class Job(NamedTuple):
    """What every contestant is options for."""

    folder: Path
    side: int
    workers: int
    pictures: int  # after so many the clock stops


def torchvision_pil(job: Job) -> Iterator[int]:
    chain = transforms.Compose([transforms.RandomResizedCrop(job.side, SCALE), transforms.ToTensor()])
    loader = DataLoader(
        ImageFolder(str(job.folder / "train"), chain),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=job.workers,
        persistent_workers=job.workers > 0,
        multiprocessing_context="fork" if job.workers else None,  # as lookalike's
    )
    while True:
        for pixels, _ in loader:
            yield len(pixels)


def canvases(job: Job, memory: int = 0) -> Iterator[int]:
    loader = Loader(open_source(job.folder, "train"), job.side, memory, job.workers)
    order = Order(len(loader), BATCH, seed=0)
    for batch in loader.batches(order.rows(step) for step in count()):
        yield len(batch.rows)


def cached(job: Job) -> Iterator[int]:
    loader = Loader(open_source(job.folder, "train"), job.side, workers=job.workers)
    order = Order(len(loader), BATCH, seed=0)
    for batch in loader.batches(order.rows(step) for step in count()):
        yield len(batch.rows)


def cropped(job: Job) -> Iterator[int]:
    loader = Loader(open_source(job.folder, "train"), job.side, 0, job.workers)
    order, view = Order(len(loader), BATCH, seed=0), ImageView(job.side, SCALE, flip=0)
    for batch in loader.batches(order.rows(step) for step in count()):
        view(batch.material, batch.rows, 0, 0, 0)
        yield len(batch.rows)


CONTESTANTS: dict[str, Callable[[Job], Iterator[int]]] = {
    "torchvision": torchvision_pil,
    "canvases": canvases,
    "canvases and crops": cropped,
    "canvases in memory": cached,
}


def rate(name: str, job: Job) -> float:
    """Pictures a second."""
    torch.set_num_threads(1)
    batches = CONTESTANTS[name](job)
    next(batches)
    start, done = time.perf_counter(), 0
    for size in batches:
        done += size
        if done >= job.pictures:
            return done / (time.perf_counter() - start)
    raise RuntimeError("the batches ended")


def alone(name: str, job: Job) -> float:
    """The same in a process of its own."""
    with ProcessPoolExecutor(1, get_context("forkserver")) as pool:
        return pool.submit(rate, name, job).result()


def compare(job: Job, rounds: int) -> dict[str, list[float]]:
    """Prints the table of one folder."""
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name in CONTESTANTS:
            rates[name].append(alone(name, job))
    base = statistics.median(rates["torchvision"])
    print(f"\n{job.folder.name}, {job.side} px, pictures/s: median of {rounds} alternating rounds (min to max)")
    for name, values in rates.items():
        middle = statistics.median(values)
        print(
            f"  {name:20s} {middle:9.0f}  ({min(values):.0f} to {max(values):.0f})  {middle / base:6.2f} x torchvision"
        )
    return rates


def installed(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"


def main() -> None:
    parser = argparse.ArgumentParser(description="From a folder of photos to training batches.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--pictures", type=int, default=6000, help="a round of each contestant")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    versions = ", ".join(installed(name) for name in ("torch", "torchvision", "pillow", "simplejpeg"))
    print(f"{len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, {versions}")
    rates = {
        name: compare(Job(options.data / name, options.side, options.workers, options.pictures), options.rounds)
        for name in FOLDERS
        if (options.data / name).is_dir()
    }
    if options.json:
        options.json.write_text(json.dumps({"versions": versions, "pictures_per_second": rates}, indent=2) + "\n")


if __name__ == "__main__":
    main()
