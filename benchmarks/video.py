"""Videos: what a frame costs, how long steps wait for clips read from files, and what is learned from motion.

    python examples/strips.py ../shared/data/weizmann/data/actions FRAMES
    python benchmarks/video.py cost  --data FRAMES
    python benchmarks/video.py learns --data FRAMES --steps 400

``cost`` encodes the frames as .mp4 first. ``learns`` trains ``small`` (two views of one frame) and ``video_moco`` (of
two frames) on the same frames of six performers, with equal views, steps and seeds, and asks about the other three.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import torch

from lookalike.core.devices import keep_freed
from lookalike.core.progress import silent
from lookalike.data.formats.disk import Local
from lookalike.data.loader import GIB, Loader
from lookalike.data.order import order_of
from lookalike.data.source import open_source
from lookalike.data.video.decoder import VideoDecoders, VideoFile, frame_index
from lookalike.metrics.fewshot import interval
from lookalike.metrics.knn import Knn
from lookalike.metrics.probe import LinearProbe
from lookalike.metrics.retrieval import ranking
from lookalike.recipes import recipe_named
from lookalike.recipes.recipe import Length, Recipe
from lookalike.train.loop import backward, batches, new_learner
from lookalike.train.pretrain import pretrain
from lookalike.train.trained import PartFeatures, labelled_parts, load
from lookalike.train.watch import Meter

SIDE, PERFORMERS, EACH = 64, 9, 8


def encoded(frames: Path, out: Path, gop: int) -> None:
    """Every folder of frames as an .mp4 of 25 frames a second."""
    source = open_source(f"frames:{frames}")
    writers: dict[str, tuple[av.container.OutputContainer, object]] = {}
    for row in range(len(source)):
        video = source.paths[row].rpartition("#t=")[0]
        if video not in writers:
            path = out / f"{video}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            container = av.open(path, "w")
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
            stream.codec_context.gop_size = gop
            writers[video] = container, stream
        container, stream = writers[video]
        pixels = source.example(row, SIDE).pixels.permute(1, 2, 0).contiguous().numpy()
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
    for container, stream in writers.values():
        container.mux(stream.encode())
        container.close()


def median_ms(seconds: Sequence[float]) -> str:
    """Median and the middle half, in milliseconds."""
    low, middle, high = (1e3 * part for part in statistics.quantiles(seconds, n=4))
    return f"{middle:.3f} ms ({low:.3f} to {high:.3f})"


def frames(folder: Path) -> None:
    """The index, a frame that follows, a frame anywhere in an open file, and one in a file that is not open."""
    disk, spent = Local(folder), {name: [] for name in ("index", "next frame", "any frame, open", "any frame, opened")}
    chance, decoders = random.Random(0), VideoDecoders(disk)
    for path in sorted(folder.rglob("*.mp4")):
        name = str(path.relative_to(folder))
        began = time.process_time()
        with disk.file(name) as file:
            index = frame_index(file)
        spent["index"].append(time.process_time() - began)
        video, count = VideoFile(decoders, name, index), len(index.ticks)

        def timed(what: str, number: int, video: VideoFile = video) -> None:
            began = time.process_time()
            video.read(number)
            spent[what].append(time.process_time() - began)

        timed("any frame, opened", chance.randrange(count))
        for _ in range(10):
            timed("any frame, open", chance.randrange(count))
        video.read(0)
        for number in range(1, count):
            timed("next frame", number)
    for what, seconds in spent.items():
        print(f"{what}: {median_ms(seconds)}, n = {len(seconds)}", flush=True)


def waiting(folder: Path, name: str, steps: int) -> None:
    """How long steps wait, and what they take, with clips in memory and read from files in each step."""
    source = open_source(folder)
    recipe = recipe_named(name, len(source), SIDE)
    shares: dict[str, list[float]] = {}
    for _ in range(3):
        for what, memory, workers in (("in memory", GIB, 0), ("files, 0 workers", 0, 0), ("files, 2 workers", 0, 2)):
            shares.setdefault(what, []).append(share(Loader(source, recipe.canvas, memory, workers), recipe, steps))
    for what, waits in shares.items():
        print(
            f"{name}, {what}: waited {statistics.median(waits):.1%} of the time ({min(waits):.1%} to {max(waits):.1%})"
        )


def share(loader: Loader, recipe: Recipe, steps: int) -> float:
    """Of the time of some steps, how much they waited for data."""
    order, meter = order_of(loader.source, recipe.batch, 0, None), Meter()
    learner = new_learner(recipe, loader).train()
    optimizer = recipe.optimizer.build(learner, recipe.batch)
    for batch in meter.over(batches(loader, recipe, order, 0, steps, meter)):
        optimizer.zero_grad()
        outcome = backward(learner, learner, batch, recipe)
        optimizer.step()
        learner.advance(outcome, batch, 0.0)
    return meter.data_share()


def divided(frames: Path, tested: Sequence[int], file: Path) -> Path:
    """A list of the videos whose split says which performers are tested: their number is that of the folder over 8."""
    with file.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(("path", "label", "split"))
        for path in sorted({file.parent for file in frames.resolve().rglob("*.png")}):
            rows.writerow((path, path.parent.name, "test" if int(path.name) // EACH in tested else "train"))
    return file


def measured(run: Path, data: str, untrained: bool = False) -> dict[str, float]:
    """By frame and by video: kNN, probe and mean average precision."""
    scores = {}
    trained = load(run, untrained)
    both = [PartFeatures.of(trained, part, "backbone", 0, silent, "parts") for part in labelled_parts(trained, data)]
    for unit, k, seconds in (("frame", 20, None), ("video", 3, math.inf)):
        reference, query = (part.in_clips(seconds) for part in both)
        table = (reference.features, reference.labels, query.features, query.labels)
        scores[f"{unit} knn"] = Knn(k).accuracy(*table)
        scores[f"{unit} map"] = ranking(*table).retrieved().mean_average_precision
        scores[f"{unit} probe"] = LinearProbe().fit(*table[:2]).accuracy(*table[2:])
    return scores


def learns(frames: Path, names: Sequence[str], steps: int, folds: Sequence[int], out: Path) -> None:
    """One line for each fold and recipe as JSON, and at the end means with 95 % intervals over folds."""
    table: dict[str, list[dict[str, float]]] = {}
    for fold in folds:
        data = f"frames:{divided(frames, range(3 * fold, 3 * fold + 3), out / f'fold{fold}.csv')}"
        count = len(open_source(data))
        for name in names:
            base = recipe_named(name, count, SIDE)
            # Gray and larger crops for all of them: clothes and the light say who moves, arms how.
            view = replace(base.pretext.first, gray=1.0, scale=(0.5, 1.0))
            recipe = replace(base, pretext=replace(base.pretext, first=view), length=Length(steps=steps), seed=fold)
            run = out / f"{name}-{fold}"
            pretrain(data, run, replace(recipe, checkups=0), workers=0, quiet=True)
            rows = {name: measured(run, data)} | ({"untrained": measured(run, data, True)} if name == names[0] else {})
            for what, row in rows.items():
                table.setdefault(what, []).append(row)
                print(
                    json.dumps({"fold": fold, "recipe": what, **{key: round(x, 4) for key, x in row.items()}}),
                    flush=True,
                )
    for what, rows in table.items():
        for key in rows[0]:
            mean, half = interval([row[key] for row in rows])
            print(f"{what}, {key}: {mean:.1%} ± {half:.1%} (n = {len(rows)} folds)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "learns"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--gop", type=int, default=12)
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=["small", "video_moco"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed()
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        if options.what == "learns":
            learns(options.data, options.recipes, options.steps, options.folds, out)
            return
        encoded(options.data, out, options.gop)
        frames(out)
        for name in ("video_moco", "video_moco_clips"):
            waiting(out, name, options.steps)


if __name__ == "__main__":
    main()
