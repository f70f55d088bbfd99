"""Canvases a second from a prepared cache beside torchvision's ImageFolder with a DataLoader; see docs/results.md.

    python benchmarks/prepared.py DATA CACHE [--side 128] [--rounds 5] [--seconds 4]

CACHE is what ``lookalike prepare DATA --size SIDE --out CACHE`` made. The three are measured in turn, each round:
ImageFolder + RandomResizedCrop(SIDE) on PIL + DataLoader(2 workers), which makes one view; the cache in the first pass
of a process over it, where checksums are compared; and in a later pass. Both give batches of 128 pictures of SIDE px.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torchvision
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lookalike.data.loader import Loader
from lookalike.data.order import Order
from lookalike.data.source import open_source

BATCH = 128


def rate(batches: Iterable[object], seconds: float) -> float:
    """Pictures a second; the first batch, in which workers start, is not counted."""
    iterator, count = iter(batches), 0
    next(iterator)
    began = time.perf_counter()
    for _ in iterator:
        count += BATCH
        if time.perf_counter() - began > seconds:
            break
    return count / (time.perf_counter() - began)


def image_folder(data: Path, side: int) -> Iterator[object]:
    """What a torchvision user writes."""
    train = data / "train" if (data / "train").is_dir() else data
    views = v2.Compose([v2.RandomResizedCrop(side, (0.2, 1.0)), v2.PILToTensor()])
    return iter(DataLoader(ImageFolder(train, views), BATCH, shuffle=True, num_workers=2, drop_last=True))


def cache(loader: Loader, epoch: int) -> Iterator[object]:
    """One epoch of a run."""
    order = Order(len(loader), BATCH, seed=epoch)
    return loader.batches(order.rows(step) for step in range(order.steps_per_epoch))


def main() -> None:
    """Print one line a round, and the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )
    rows: list[tuple[float, float, float]] = []
    for number in range(options.rounds):
        theirs = rate(image_folder(options.data, options.side), options.seconds)
        loader = Loader(open_source(options.cache), options.side, workers=0)
        first, later = (rate(cache(loader, epoch), options.seconds) for epoch in (0, 1))
        rows.append((theirs, first, later))
        print(f"round {number}: ImageFolder {theirs:.0f}/s, first pass {first:.0f}/s, later {later:.0f}/s", flush=True)
    ratios = [(first / theirs, later / theirs) for theirs, first, later in rows]
    medians = [statistics.median(column) for column in zip(*rows)]
    print(
        f"median of {options.rounds}: ImageFolder {medians[0]:.0f}/s, first pass {medians[1]:.0f}/s, later "
        f"{medians[2]:.0f}/s; ratios {statistics.median(r[0] for r in ratios):.1f} "
        f"({min(r[0] for r in ratios):.1f} to {max(r[0] for r in ratios):.1f}) and "
        f"{statistics.median(r[1] for r in ratios):.1f} "
        f"({min(r[1] for r in ratios):.1f} to {max(r[1] for r in ratios):.1f})"
    )


if __name__ == "__main__":
    main()
