"""What safety costs: the share of a run's processor time that goes into checks, checkpoints and logs.

    python benchmarks/safety.py --data ../shared/data/cifar10 --steps 200

Processor time, since it does not count what else the machine does. Checkpoints are due as always, once a minute, or
sooner with ``--save-every``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import lookalike
import lookalike.train.length
from lookalike.core.devices import processor
from lookalike.train.guard import Guard, StepGuard
from lookalike.train.loop import train
from lookalike.train.run import Run
from lookalike.train.watch import Log

PARTS = {
    "loss, gradient, spread": (StepGuard, ("look",)),
    "state": (Guard, ("check_state",)),
    "checkpoints": (Run, ("save",)),
    "logs": (Log, ("step", "checkup")),
}


def timed(method: Callable[..., Any], spent: Counter[str], name: str) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        began = time.process_time()
        try:
            return method(*args, **options)
        finally:
            spent[name] += time.process_time() - began  # type: ignore[assignment]

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--save-every", type=int)
    args = parser.parse_args()
    spent: Counter[str] = Counter()
    for name, (owner, methods) in PARTS.items():
        for method in methods:
            setattr(owner, method, timed(getattr(owner, method), spent, name))
    whole = [0.0]

    def training(*inputs: Any, **options: Any) -> Any:
        began = time.process_time()
        done = train(*inputs, **options)
        whole[0] += time.process_time() - began
        return done

    lookalike.train.length.train = training  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        how: dict[str, Any] = {"recipe": args.recipe, "steps": args.steps, "save_every": args.save_every}
        lookalike.pretrain(args.data, Path(folder) / "run", quiet=True, **how)
    shares = {name: round(100 * seconds / whole[0], 3) for name, seconds in spent.items()}
    about = {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({**vars(args), **about, "seconds": round(whole[0], 1), "percent": shares}))
    print(f"{sum(shares.values()):.2f} % of the processor time of {args.steps} steps")


if __name__ == "__main__":
    main()
