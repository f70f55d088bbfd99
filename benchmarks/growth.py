"""How cost grows: with the dictionary, its width, the batch, the picture, processes, and the data; a table and a plot.

    python -m benchmarks.growth --out growth [--only keys,batch] [--toy]

``small`` on made pictures in memory, so that no file is read. What is timed is the package's own step, embedding, kNN,
and checkpoints, in this process; processes and starts are commands of their own. FOLDER/growth.jsonl has a line a
measurement and is what the table and the plot are drawn from. About ten minutes on two cores, which nothing else uses.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch.nn.functional import normalize

from benchmarks.records import Records, machine
from lookalike.core.devices import keep_freed
from lookalike.core.seeding import reseed
from lookalike.curate.prepare import prepare
from lookalike.data.formats.arrays import Arrays
from lookalike.data.loader import Loader
from lookalike.data.order import Order
from lookalike.learn.dictionary import Queue
from lookalike.learn.learner import Learner
from lookalike.metrics.knn import Knn
from lookalike.models.encoder import MLP
from lookalike.recipes.images import resized, small
from lookalike.recipes.recipe import Recipe
from lookalike.report.charts import Axis
from lookalike.train import checkpoint
from lookalike.train.loop import backward, batches, new_learner
from lookalike.train.trained import Trained

PICTURES, WARM, STEPS = 4096, 4, 12
Point = tuple[float, float, list[float]]  # x, the median, and what it is the median of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help=f"sections, with commas between: {', '.join(SECTIONS)}")
    parser.add_argument("--toy", action="store_true", help="two small sizes of each, to see that it runs")
    asked = parser.parse_args()
    keep_freed()
    path = asked.out / "growth.jsonl"
    Records(path, "machine").add("machine", **machine(), threads=torch.get_num_threads())
    for name in asked.only.split(",") if asked.only else SECTIONS:
        axis, unit, points = SECTIONS[name]
        for x, value, every in points(asked.toy):
            Records(path, name).add(f"{x:g}", x=x, axis=axis, unit=unit, value=value, least=min(every), most=max(every))
    found = [record for record in Records.read(path) if "value" in record]
    (asked.out / "growth.md").write_text(table(found))
    (asked.out / "growth.svg").write_text(plot(found))


# ---- a step ----


def pictures(side: int = 32, count: int = PICTURES) -> Loader:
    noise = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Loader(Arrays(noise, None, []), side, workers=0)


def fitted(recipe: Recipe = small, side: int = 32) -> Recipe:
    return recipe.fitted(PICTURES, side)


def steps(recipe: Recipe, loader: Loader, count: int = STEPS) -> tuple[Learner, list[float]]:
    """Milliseconds of steps as ``loop.train`` takes them, after some that are not counted."""
    learner = new_learner(recipe, loader).train()
    optimizer = recipe.optimizer_of(learner)
    order, marks = Order(len(loader), recipe.batch, 0), [time.perf_counter()]
    for step, batch in enumerate(batches(loader, recipe, order, 0, WARM + count), 1):
        reseed(0, step)
        optimizer.zero_grad()
        outcome = backward(learner, learner, batch, recipe)
        optimizer.step()
        learner.advance(outcome, batch, 0.5)
        float(outcome.loss.detach())
        marks.append(time.perf_counter())
    return learner, [1000 * (after - before) for before, after in pairwise(marks)][WARM:]


def point(x: float, values: Sequence[float]) -> Point:
    return x, statistics.median(values), list(values)


def keys(toy: bool) -> Iterator[Point]:
    """Milliseconds a step by the keys of the queue."""
    loader = pictures()
    for size in (256, 1024) if toy else (256, 4096, 65_536, 1_048_576, 4_194_304):
        yield point(size, steps(replace(fitted(), dictionary=Queue(size)), loader)[1])


def width(toy: bool) -> Iterator[Point]:
    loader = pictures()
    for dim in (32, 64) if toy else (32, 128, 512, 2048):
        yield point(dim, steps(replace(fitted(), head=MLP((dim,))), loader)[1])


def batch(toy: bool) -> Iterator[Point]:
    """Pictures a second."""
    loader = pictures()
    for size in (16, 32) if toy else (16, 32, 64, 128, 256, 512, 1024):
        yield point(size, [1000 * size / ms for ms in steps(replace(fitted(), batch=size), loader)[1]])


def side(toy: bool) -> Iterator[Point]:
    for pixels in (32, 48) if toy else (32, 48, 64, 96, 128):
        recipe = replace(resized(fitted(), pixels), canvas=pixels)
        yield point(pixels, [1000 * recipe.batch / ms for ms in steps(recipe, pictures(pixels, 1024))[1]])


# ---- before and after training ----


def stall(toy: bool) -> Iterator[Point]:
    """Seconds of a checkpoint by the keys of its queue, on the disk of the temporary folder."""
    loader = pictures()
    for size in (256, 1024) if toy else (4096, 65_536, 1_048_576, 4_194_304):
        recipe = replace(fitted(), dictionary=Queue(size))
        learner = new_learner(recipe, loader)
        optimizer = recipe.optimizer_of(learner)
        with tempfile.TemporaryDirectory() as folder:
            yield point(size, [took(checkpoint.save, Path(folder), 1, learner, optimizer) for _ in range(3)])


def embedding(toy: bool) -> Iterator[Point]:
    """Pictures a second, of frozen networks, by the side of the picture."""
    for pixels in (32, 48) if toy else (32, 64, 128):
        loader, recipe = pictures(pixels, 2048), replace(resized(fitted(), pixels), canvas=pixels)
        model = Trained(recipe, new_learner(recipe, loader).encoder, 1)
        model.features(loader, torch.arange(256))
        yield point(pixels, [len(loader) / took(model.features, loader) for _ in range(3)])


def neighbours(toy: bool) -> Iterator[Point]:
    """Seconds of 1,000 queries by the rows that they are compared with, of 256 numbers."""
    made = torch.Generator().manual_seed(0)
    for rows in (1000, 2000) if toy else (10_000, 100_000, 1_000_000):
        known = normalize(torch.randn(rows, 256, generator=made), dim=1)
        labels, asked = torch.arange(rows) % 10, known[:1000] + 0.01
        yield point(rows, [took(Knn().predict, known, labels, asked) for _ in range(3)])


def took(work: Callable[..., object], *arguments: object) -> float:
    """Seconds."""
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


# ---- whole commands ----


def start(toy: bool) -> Iterator[Point]:
    """Seconds from the command to the end of its first step, by the pictures, which are one prepared folder."""
    for count in (64, 128) if toy else (1000, 10_000, 50_000):
        with tempfile.TemporaryDirectory() as folder:
            data = made(Path(folder), count)
            yield point(count, [first_step(data, Path(folder) / f"run{i}") for i in range(1 if toy else 3)])


def made(folder: Path, count: int) -> Path:
    """Pictures that are prepared."""
    noise = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    prepare(noise, folder / "data", 32, workers=0)
    return folder / "data"


def first_step(data: Path, run: Path) -> float:
    words = ["pretrain", str(data), "--out", str(run), "--steps", "1000", "--checkups", "0", "--quiet"]
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "lookalike", *words], stderr=subprocess.DEVNULL)
    try:
        while not (run / "metrics.jsonl").is_file() or "loss" not in (run / "metrics.jsonl").read_text():
            if process.poll() is not None:
                raise RuntimeError(f"it ended with {process.returncode}")
            time.sleep(0.005)
        return time.perf_counter() - began
    finally:
        process.kill()
        process.wait()


def processes(toy: bool) -> Iterator[Point]:
    """Pictures a second of a batch of 256 by processes that share the cores of this machine."""
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        data = made(Path(folder), 128 if toy else PICTURES)
        for count in (1,) if toy else [2**i for i in range(int(math.log2(cores)) + 1)]:
            yield point(count, rates(data, Path(folder) / f"run{count}", count, max(1, cores // count), toy))


def rates(data: Path, run: Path, count: int, threads: int, toy: bool) -> list[float]:
    """As the command tells them."""
    size = 32 if toy else 256
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    words = ["pretrain", str(data), "--out", str(run), "--steps", "60", "--batch", str(size), "--checkups", "0"]
    surroundings = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, *launch, "-m", "lookalike", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=surroundings)
    return [float(told) for told in re.findall(r"([0-9.,]+) pictures/s", done.stdout + done.stderr)][1:]


SECTIONS: dict[str, tuple[str, str, Callable[[bool], Iterator[Point]]]] = {
    "keys": ("keys in the queue", "ms a step", keys),
    "width": ("numbers a key", "ms a step", width),
    "batch": ("pictures a batch", "pictures/s", batch),
    "side": ("px a side", "pictures/s", side),
    "processes": ("processes", "pictures/s", processes),
    "start": ("pictures", "s to the first step", start),
    "stall": ("keys in the queue", "s a checkpoint", stall),
    "embedding": ("px a side", "pictures/s embedded", embedding),
    "neighbours": ("rows", "s for 1,000 queries", neighbours),
}


# ---- the table and the plot ----


def table(found: Sequence[dict[str, object]]) -> str:
    """Each section as two rows."""
    lines = []
    for name in dict.fromkeys(record["section"] for record in found):
        rows = [record for record in found if record["section"] == name]
        head, cells = [f"{rows[0]['axis']}"], [f"{rows[0]['unit']}"]
        for row in rows:
            head.append(f"{row['x']:,.10g}")
            cells.append(f"{row['value']:,.3g} ({row['least']:,.3g} to {row['most']:,.3g})")
        lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", f"| {' | '.join(cells)} |", ""]
    return "\n".join(lines)


def plot(found: Sequence[dict[str, object]]) -> str:
    """A small picture a section, both axes in logarithms."""
    names, high, wide = list(dict.fromkeys(record["section"] for record in found)), 190, 270
    inside = []
    for number, name in enumerate(names):
        rows = [record for record in found if record["section"] == name]
        left, top = wide * (number % 3), high * (number // 3)
        logs = [(math.log10(float(str(row["x"]))), math.log10(float(str(row["value"])))) for row in rows]
        low, most = math.floor(min(y for _, y in logs)), math.ceil(max(y for _, y in logs) + 1e-9)
        across = Axis(logs[0][0], max(logs[-1][0], logs[0][0] + 1e-9), left + 56, left + wide - 24)
        up = Axis(low, max(most, low + 1), top + high - 46, top + 30)
        corners = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in logs)
        inside.append(f'<polyline points="{corners}" fill="none" stroke="currentColor" stroke-width="1.5"/>')
        for (x, y), row in zip(logs, rows):
            inside.append(f'<circle cx="{across.at(x):.1f}" cy="{up.at(y):.1f}" r="3" fill="currentColor"/>')
            inside.append(word(across.at(x), top + high - 30, f"{row['x']:,.6g}", "middle"))
        for level in range(low, max(most, low + 1) + 1):
            inside.append(word(left + 48, up.at(level), f"{10.0**level:,.6g}", "end"))
        inside.append(word(left + 56, top + 16, f"{rows[0]['unit']} by {rows[0]['axis']}", "start"))
    height = high * -(-len(names) // 3)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {3 * wide} {height}" font-family="sans-serif">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *inside, "</svg>", ""])


def word(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="10" dy="3" text-anchor="{anchor}">{words}</text>'


if __name__ == "__main__":
    main()
