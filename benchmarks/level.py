"""How much lightly's example learns of CIFAR-10 in so many minutes, by kNN, and how soon lookalike has learned that.

    python -m benchmarks.level lightly --minutes 60 --threads 1 --out level.jsonl
    python -m benchmarks.level "lightly, our encoder" --minutes 60 --threads 1 --out level.jsonl
    python -m benchmarks.level lookalike --minutes 1 --threads 1 --out level.jsonl

lightly's is its examples/pytorch/moco.py (``benchmarks/rivals.py``) with ResNet-18 for CIFAR-10, or with the network of
``small_simclr`` in its place; lookalike is ``lookalike pretrain --minutes``. All are asked alike: 10,000 test pictures
by 50,000 training pictures, k 200, temperature 0.1, by the backbone's means over the picture ("means"), by the same
whitened ("whitened means"), and lookalike by what it evaluates itself ("default") as well. The same networks before
they have learned anything are asked, too, since a network that is wide or deep already tells pictures apart.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.records import Record, Records, machine
from benchmarks.rivals import Job, Rival, backbone, lightly
from benchmarks.throughput import export
from lookalike.data.example import Rows
from lookalike.data.loader import Loader
from lookalike.data.source import Source, open_source
from lookalike.metrics.knn import Knn
from lookalike.models.encoder import Whitening
from lookalike.models.image import SmallResNet
from lookalike.recipes.family import small_simclr
from lookalike.train.pretrain import pretrain
from lookalike.train.trained import Trained, load

SIDES = ("lookalike", "lightly", "lightly, our encoder")
BATCH = 256  # of its example


def features(net: nn.Module, source: Source) -> Tensor:
    """(N, F) what a backbone makes of whole pictures, of zero mean and unit variance by colour."""
    view, rows = small_simclr.pictures.first, list[Tensor]()
    mean, std = (torch.tensor(colours)[:, None, None] for colours in (view.mean, view.std))
    loader = Loader(source, 32, workers=0)
    net.eval()
    with torch.inference_mode():
        for loaded in loader.batches(torch.arange(len(source)).split(BATCH)):
            pixels = (loaded.material.pixels.float() / 255 - mean) / std
            rows.append(getattr(net, "evaluated", net)(pixels.contiguous(memory_format=torch.channels_last)).flatten(1))
    return torch.cat(rows).clone()


def judged(net: nn.Module, train: Source, test: Source) -> Record:
    """kNN of a backbone, in percent."""
    known, asked = features(net, train), features(net, test)
    white = Whitening(known.shape[1])
    white.fit(known[:5000])
    rule, found = Knn(200, 0.1), {}
    for name, change in (("means", lambda rows: rows), ("whitened means", white)):
        one, other = (F.normalize(change(rows), dim=1) for rows in (known, asked))
        found[name] = 100 * rule.accuracy(one, train.labels, other, test.labels)
    return {**found, "numbers": known.shape[1]}


def small() -> nn.Module:
    """The network of ``small_simclr``, of which means over the picture are taken, with random weights."""
    model = small_simclr.model
    assert isinstance(model, SmallResNet)
    return replace(model, grid=1).build(BATCH)[0]


def steps(rival: Rival, minutes: float) -> Iterator[float]:
    """The losses of the steps that begin within the minutes."""
    end = time.monotonic() + 60 * minutes
    for loss in rival.losses():
        yield loss
        if time.monotonic() > end:
            return


def lightly_for(side: str, minutes: float, threads: int, most: int | None, data: str) -> tuple[nn.Module, Record]:
    """lightly's example, trained."""
    net = backbone("resnet18") if side == "lightly" else small()
    with tempfile.TemporaryDirectory() as folder:
        export(Path(data), Path(folder) / "files", most)
        numbers = {"threads": threads, "batch": BATCH, "queue": 4096, "group": BATCH, "warmup": 0, "steps": 0}
        job = Job(side, f"{folder}/files", "", **numbers, precision="fp32", network="resnet18", method="moco")
        began = time.monotonic()
        losses = list(steps(lightly(job, given=net), minutes))
    return net, {"steps": len(losses), "batch": BATCH, "minutes": (time.monotonic() - began) / 60, "loss": losses[-1]}


def ours_for(minutes: float, seed: int, train: Rows) -> tuple[Trained, Record]:
    """lookalike's default, trained."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"checkups": 0, "seed": seed}
        done = pretrain(train, f"{folder}/run", recipe=small_simclr.name, minutes=minutes, settings=settings)
        return load(f"{folder}/run"), {"steps": done.step, "minutes": (time.monotonic() - began) / 60}


def by_default(model: Trained, train: Source, test: Source) -> float:
    """kNN of what lookalike itself evaluates, in percent."""
    known, asked = (F.normalize(model.features(model.loader(part)), dim=1) for part in (train, test))
    return 100 * Knn(200, 0.1).accuracy(known, train.labels, asked, test.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--examples", type=int, help="train on and ask so few, for a trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("level.jsonl"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(asked.seed)
    records = Records(asked.out, asked.side)
    train, test = (
        Rows(source, torch.arange(asked.examples or len(source)))
        for source in (open_source(asked.data, part) for part in ("train", "test"))
    )
    if asked.side == "lookalike":
        model, about = ours_for(asked.minutes, asked.seed, train)
        about |= {"default": by_default(model, train, test)}
        net = small()
        net.load_state_dict(model.encoder.backbone.state_dict())
    else:
        net, about = lightly_for(asked.side, asked.minutes, asked.threads, asked.examples, asked.data)
    fresh = backbone("resnet18") if asked.side == "lightly" else small()
    records.add(
        "trained", **about, **judged(net, train, test), seed=asked.seed, threads=asked.threads, machine=machine()
    )
    records.add("untrained", **judged(fresh, train, test))


if __name__ == "__main__":
    main()
