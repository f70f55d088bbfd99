"""FAIR's CIFAR-10 demonstration of MoCo to its end, measured every few epochs, beside its log.

    python -m benchmarks.fair CIFAR10 --out FOLDER [--seed 0] [--epochs 200] [--every 5]

Trains ``moco_cifar`` in a process of its own, keeps a copy of each checkpoint (links, no bytes), and asks it by FAIR's
rule meanwhile: kNN on the head's output, 200 neighbours, temperature 0.1. FOLDER/fair.jsonl has a line an epoch. What
is stopped goes on: the run from its checkpoint, the measures from what the file lacks. kNN takes cores: where few are
free, training waits for it. About 20,000 steps of 512
pictures: minutes on a GPU, days on a processor.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean

from benchmarks.records import Records, machine
from lookalike.evaluation.evaluation import Resources
from lookalike.evaluation.settings import configured
from lookalike.train.checkpoint import published
from lookalike.train.trained import load

PUBLISHED = {
    1: (31.98, 6.96),
    2: (33.5, 7.25),
    5: (38.0, 6.86),
    10: (48.0, 5.99),
    20: (61.4, 4.34),
    30: (67.1, None),
    50: (73.3, None),
    100: (78.1, 2.73),
    150: (81.2, None),
    200: (82.6, 2.27),
}
"""FAIR's log by epoch: kNN in % and the mean loss of the epoch, where its notebook shows them."""
BATCH, PICTURES = 512, 50_000
STEPS = PICTURES // BATCH  # an epoch


def main() -> None:
    asked = arguments().parse_args()
    run, snapshots = asked.out / "run", asked.out / "snapshots"
    records = Records(asked.out / "fair.jsonl", f"seed {asked.seed}")
    records.add("machine", **machine())
    training = subprocess.Popen(command(asked, run))
    seen = {record["step"] for record in Records.read(records.path) if "step" in record}
    while True:
        ended = training.poll() is not None  # before the look, so that the last checkpoint is looked at
        for path in kept(run, snapshots):
            step = int(path.name.removeprefix("step-"))
            if step not in seen:
                measure(records, path.parent.parent, step, asked.data, run)
                seen.add(step)
        if ended:
            raise SystemExit(training.returncode)
        time.sleep(0.2)


def command(asked: argparse.Namespace, run: Path) -> list[str]:
    """``lookalike pretrain``, with a checkpoint every few epochs."""
    words = [sys.executable, "-m", "lookalike", "pretrain", str(asked.data), "--out", str(run)]
    words += ["--recipe", "moco_cifar", "--epochs", str(asked.epochs), "--seed", str(asked.seed), "--checkups", "0"]
    return [*words, "--save-every", str(asked.every * STEPS)]


def kept(run: Path, snapshots: Path) -> list[Path]:
    """Every checkpoint so far, each in a run folder of its own, oldest first."""
    for path in published(run / "checkpoints"):
        home = snapshots / path.name
        if home.exists():
            continue
        new = home.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        try:
            shutil.copytree(path, new / "checkpoints" / path.name, copy_function=os.link)
            for name in ("recipe.json", "environment.json"):
                shutil.copy(run / name, new / name)
        except FileNotFoundError:  # dropped meanwhile, which the next look finds
            continue
        new.rename(home)
    return sorted(snapshots.glob("step-*/checkpoints/step-*"))


def measure(records: Records, folder: Path, step: int, data: str, run: Path) -> None:
    """kNN by FAIR's rule, and the mean of the losses that were logged in the epoch before it."""
    rule = {"layer": "head", "k": 200, "temperature": 0.1, "baselines": "none"}
    value = configured("knn", rule).run(load(folder), data, Resources()).value
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [line["loss"] for line in logged if "loss" in line and step - STEPS < line["step"] <= step]
    epoch = step / STEPS
    theirs = PUBLISHED.get(round(epoch), (None, None)) if epoch == round(epoch) else (None, None)
    loss = round(fmean(losses), 3) if losses else None
    found = {"knn": round(100 * value, 2), "loss": loss, "published_knn": theirs[0], "published_loss": theirs[1]}
    records.add(f"epoch {epoch:g}", step=step, epoch=epoch, **found)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="CIFAR-10: folders, tables, or what lookalike prepare made of them")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run, its checkpoints and fair.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=200, help="of the whole schedule (%(default)s)")
    parser.add_argument("--every", type=int, default=5, help="epochs between two measures (%(default)s)")
    return parser


if __name__ == "__main__":
    main()
