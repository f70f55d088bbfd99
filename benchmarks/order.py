"""What the order of an epoch costs: time a row and memory at a million, a hundred million and a billion rows.

    python benchmarks/order.py [--lengths 1000000 100000000 1000000000] [--batch 256] [--rounds 7] [--json order.json]

Each length runs in a process of its own, which asks for the rows of consecutive steps, as training does, at places
spread over an epoch, and for a stretch of a million positions at once. Memory is how far the largest resident set rises
above what it was before. A stored permutation (``torch.randperm``) takes 8 bytes a row; it is measured beside it where
it fits. Lengths just above a power of four walk most: 4^n + 1 is the worst case, 4^n the best.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from lookalike.data.order import Order, permuted

STRETCH = 1_000_000
STEPS = 200


def peak() -> float:
    """MB of memory at once, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(work: Callable[[], object], rows: int, rounds: int) -> list[float]:
    """ns a row."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(1e9 * (time.perf_counter() - start) / rows)
    return times


def cost(length: int, batch: int, rounds: int, stored: bool) -> dict[str, list[float]]:
    """What one length costs."""
    torch.set_num_threads(1)
    if stored:
        before = peak()
        return {"ns a row": timed(lambda: torch.randperm(length), length, 1), "MB": [peak() - before]}
    order = Order(length, batch, seed=0)
    order.rows(0)
    before = peak()
    places = iter(range(0, order.steps_per_epoch, max(1, order.steps_per_epoch // (rounds + 1))))

    def a_stretch() -> None:
        first = next(places)
        for step in range(first, first + STEPS):
            order.rows(step)

    by_step = timed(a_stretch, batch * STEPS, rounds)
    memory = peak() - before
    positions = torch.arange(length - STRETCH, length)
    return {
        "ns a row": by_step,
        "MB": [memory],
        "ns a row by the million": timed(lambda: permuted(positions, length, 0, 0), STRETCH, rounds),
    }


def alone(length: int, batch: int, rounds: int, stored: bool = False) -> dict[str, list[float]]:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(cost, length, batch, rounds, stored).result()


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of the order of an epoch.")
    parser.add_argument("--lengths", type=int, nargs="+", default=[10**6, 10**8, 10**9])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--stored", type=int, default=10**8, help="the largest length to store a permutation of")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, Python {platform.python_version()}, 1 thread, steps of {options.batch}")
    print("rows, then medians (min to max): computed a step at a time | a million at a time | stored")
    everything: dict[int, dict[str, dict[str, list[float]]]] = {}
    for length in options.lengths:
        measured = everything[length] = {"computed": alone(length, options.batch, options.rounds)}
        cells = [_cell(measured["computed"]["ns a row"], measured["computed"]["MB"])]
        cells.append(_cell(measured["computed"]["ns a row by the million"]))
        if length <= options.stored:
            measured["stored"] = alone(length, options.batch, 1, stored=True)
            cells.append(_cell(measured["stored"]["ns a row"], measured["stored"]["MB"]))
        print(f"{length:13,d}  " + " | ".join(cells), flush=True)
    if options.json:
        options.json.write_text(json.dumps(everything, indent=2) + "\n")


def _cell(times: list[float], memory: list[float] | None = None) -> str:
    text = f"{statistics.median(times):.0f} ns a row ({min(times):.0f} to {max(times):.0f})"
    return f"{text}, {memory[0]:.1f} MB" if memory else text


if __name__ == "__main__":
    main()
