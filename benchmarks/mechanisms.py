"""What a step of each recipe costs, and what two processes gain: same encoder, same batch, fresh process each time.

    python benchmarks/mechanisms.py --json mechanisms.json            # every small recipe, one process
    python benchmarks/mechanisms.py --sizes 1024 4096 16384           # queue, bank and batch of equal size
    python benchmarks/mechanisms.py --processes                       # two processes of one thread against one

Pictures are noise and stay in memory; making the views is part of the step, as in training. Rounds go through all rows
in turn, so that a slow minute falls on all of them; times are medians over rounds of the median step, with the least
and the most. Memory is the high-water mark of the process above what it needs to import and build.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lookalike.core import dist
from lookalike.core.devices import module_to_device
from lookalike.core.seeding import reseed
from lookalike.learn.dictionary import InBatch, MemoryBank, Queue
from lookalike.learn.keys import EndToEnd, Momentum, Stored
from lookalike.learn.objective import InfoNCE
from lookalike.pretext.image import OneView
from lookalike.recipes import RECIPES
from lookalike.recipes.recipe import Recipe
from lookalike.train.loop import backward
from lookalike.types import Batch, Canvases

EXAMPLES = 50_000
RECIPE_ROWS = [name for name in RECIPES if name.startswith("small")]


def mechanism(kind: str, size: int) -> Recipe:
    """``small`` with one of the three dictionaries at ``size`` entries; that of a batch needs a batch as large.

    ``wide`` is a queue beside a batch as large, for what an example costs where steps are as long.
    """
    small = replace(RECIPES["small"].fitted(EXAMPLES, 32), objective=InfoNCE(0.1))
    if kind in ("queue", "wide"):
        batch = size if kind == "wide" else small.batch
        return replace(small, keys=Momentum(0.99), dictionary=Queue(size), batch=batch)
    if kind == "bank":
        one = OneView(small.pretext.first, whole=small.pretext.whole)
        return replace(small, pretext=one, keys=Stored(), dictionary=MemoryBank(draws=size))
    return replace(small, keys=EndToEnd(symmetric=False), dictionary=InBatch(), batch=size)


def named(row: str) -> Recipe:
    """A recipe by its name, or ``queue:4096``, ``bank:4096``, ``batch:4096``."""
    kind, colon, size = row.partition(":")
    return mechanism(kind, int(size)) if colon else RECIPES[row].fitted(EXAMPLES, 32)


def batches(recipe: Recipe, canvases: Canvases) -> Iterator[Batch]:
    """This rank's share of batches of noise."""
    step = 0
    while True:
        rows = dist.share((torch.arange(recipe.batch) + step * recipe.batch) % EXAMPLES)
        here = rows % len(canvases.pixels)
        picked = Canvases(canvases.pixels[here], canvases.sizes[here])
        yield Batch(rows.repeat(recipe.pairs), *recipe.pretext(picked, rows, 0, 0))
        step += 1


def measure(row: str, steps: int) -> dict[str, float]:
    """Median seconds of a step and MiB that it needs, of this rank."""
    recipe = named(row)
    learner = module_to_device(recipe.build(EXAMPLES)).train()
    learner.labels = torch.arange(EXAMPLES) % 10
    optimizer, model = recipe.optimizer.build(learner, recipe.batch), dist.distributed(learner)
    side = recipe.canvas
    pixels = torch.randint(0, 256, (4096, 3, side, side), dtype=torch.uint8)
    source = batches(recipe, Canvases(pixels, torch.full((4096, 2), side)))
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for step in range(steps + 2):
        began = time.perf_counter()
        reseed(0, step)
        batch = next(source)
        optimizer.zero_grad()
        outcome = backward(model, learner, batch, recipe)
        optimizer.step()
        learner.advance(outcome, batch, 0.0)
        seconds.append(time.perf_counter() - began)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": statistics.median(seconds[2:]), "memory": grown, "batch": recipe.batch}


def child(row: str, steps: int, threads: int) -> None:
    """One measurement, printed; a rank of two where torchrun's variables are set."""
    torch.set_num_threads(threads)
    with dist.together():
        found = measure(row, steps)
        if dist.first():
            print(json.dumps(found))


def fresh(row: str, steps: int, threads: int, world: int = 1) -> dict[str, float]:
    """A measurement in ``world`` new processes."""
    command = [sys.executable, __file__, "--child", row, "--steps", str(steps), "--threads", str(threads)]
    with tempfile.TemporaryDirectory() as folder:
        workers = []
        for rank in range(world):
            ranks = {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"}
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)} | (ranks if world > 1 else {})
            with (Path(folder) / str(rank)).open("w") as out:
                workers.append(subprocess.Popen(command, env=environment, stdout=out))
        if any(worker.wait() for worker in workers):
            raise SystemExit(f"measuring {row} failed")
        found: dict[str, float] = json.loads((Path(folder) / "0").read_text())
    return found


def table(rows: list[str], rounds: int, steps: int, threads: int, world: int = 1) -> dict[str, dict[str, Any]]:
    """Every row in turn, ``rounds`` times."""
    found: dict[str, list[dict[str, float]]] = {row: [] for row in rows}
    for _ in range(rounds):
        for row in rows:
            found[row].append(fresh(row, steps, threads, world))
    result = {}
    for row, rounds_of in found.items():
        each = [1000 * one["seconds"] for one in rounds_of]
        batch, memory = rounds_of[0]["batch"], max(one["memory"] for one in rounds_of)
        result[row] = {"ms": statistics.median(each), "least": min(each), "most": max(each), "MiB": memory}
        result[row] |= {"batch": batch, "ms_an_example": statistics.median(each) / batch}
        print(
            f"{row:24} {statistics.median(each):8.1f} ms a step ({min(each):.1f} to {max(each):.1f}) of {batch:.0f}, "
            f"{result[row]['ms_an_example']:6.2f} ms an example, {memory:6.0f} MiB",
            flush=True,
        )
    return result


def efficiency(rows: list[str], rounds: int, steps: int) -> dict[str, Any]:
    """How much faster two processes of one thread are than one, as a share of twice as fast."""
    result = {}
    for row in rows:
        ratios = []
        for _ in range(rounds):
            alone, both = (fresh(row, steps, 1, world)["seconds"] for world in (1, 2))
            ratios.append(alone / both / 2)
        result[row] = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        middle = statistics.median(ratios)
        print(
            f"{row:24} two processes: {middle:.0%} of twice as fast ({min(ratios):.0%} to {max(ratios):.0%})",
            flush=True,
        )
    return result


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sizes", type=int, nargs="*", default=[])
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--rows", nargs="*", default=RECIPE_ROWS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child, asked.steps, asked.threads)
        return
    if asked.processes:
        found = efficiency(asked.rows, asked.rounds, asked.steps)
    else:
        sizes = [f"{kind}:{size}" for size in asked.sizes for kind in ("queue", "bank", "batch", "wide")]
        found = table(sizes or asked.rows, asked.rounds, asked.steps, asked.threads)
    if asked.json:
        asked.json.write_text(
            json.dumps({"threads": asked.threads, "torch": torch.__version__, "rows": found}, indent=2)
        )


if __name__ == "__main__":
    main()
