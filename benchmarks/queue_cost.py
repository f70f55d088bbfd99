"""What a longer queue costs: seconds of a step at K 65,536 against K 4,096, and memory at K 1,048,576 against 65,536.

    python benchmarks/queue_cost.py --json queue_cost.json

Time: one ResNet-18 (CIFAR stem, batch 256, as in throughput.py) takes single steps with either queue in turn, in one
process; the ratio is taken pair by pair, and the order within a pair alternates. A step is mostly convolution, so the
part that depends on K (look up, loss both ways, absorb) is also timed alone and told as a share of the step.

Memory: fresh processes, one a K, which train a small encoder for some steps and save a checkpoint; the high-water mark
(VmHWM) is told after each stage. The queue itself grows by 4 D (K' - K) bytes; the goal allows 64 MiB more.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from throughput import describe, machine, spread
from torch.nn import functional as F

from lookalike.core.devices import device
from lookalike.learn.dictionary import Dictionary, Queue
from lookalike.learn.learner import Learner
from lookalike.models.encoder import MLP
from lookalike.models.image import SmallResNet
from lookalike.recipes.images import moco_cifar
from lookalike.recipes.recipe import Recipe
from lookalike.train import checkpoint
from lookalike.types import Batch

DIM, EXAMPLES, MIB = 128, 50_000, 1 << 20
SHORT, LONG, HUGE = 4096, 65_536, 1_048_576
TIME_GOAL, MEMORY_GOAL = 1.05, 64 * MIB


def recipe_of(size: int, batch: int) -> Recipe:
    return replace(moco_cifar.fitted(EXAMPLES), head=MLP((512, DIM)), dictionary=Queue(size), batch=batch)


def views(batch: int) -> Batch:
    """Noise in the encoder's format: what is in the pictures does not change the time."""
    first, second = (
        {"pixels": torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)} for _ in range(2)
    )
    return Batch(torch.arange(batch), first, second)


def step(recipe: Recipe, learner: Learner, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One step as ``lookalike.train.loop.train`` takes it."""
    outcome = learner(batch)
    if not bool(torch.isfinite(outcome.loss)):
        raise SystemExit("the loss is not finite")
    optimizer.zero_grad()
    outcome.loss.backward()
    optimizer.step()
    learner.advance(outcome, batch, 0.0)


# ---- time ----


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def dictionary_alone(recipe: Recipe, dictionary: Dictionary, batch: int, repeats: int = 15) -> float:
    """Seconds of what depends on K in a step."""
    query = F.normalize(torch.randn(batch, DIM), dim=1).requires_grad_()
    key, index = F.normalize(torch.randn(batch, DIM), dim=1), torch.arange(batch)

    def run() -> None:
        loss = recipe.objective(query, dictionary.look_up(query, key, index))
        loss.backward()  # type: ignore[no-untyped-call]
        dictionary.absorb(query, key, index)

    run()
    return statistics.median(seconds(run) for _ in range(repeats))


def compare_time(asked: argparse.Namespace) -> dict[str, Any]:
    """Steps with either queue in turn on the same encoder."""
    torch.manual_seed(0)
    recipe, batch = recipe_of(SHORT, asked.batch), views(asked.batch)
    learner = recipe.build(EXAMPLES).to(device(), memory_format=torch.channels_last).train()
    optimizer = recipe.optimizer.build(learner.encoder, recipe.batch)
    dictionaries: dict[int, Dictionary] = {size: Queue(size).build(DIM, EXAMPLES) for size in (SHORT, LONG)}

    def steps(size: int) -> None:
        learner.dictionary = dictionaries[size]
        for _ in range(asked.steps):
            step(recipe, learner, optimizer, batch)

    for size in dictionaries:
        steps(size)
    print(f"\nsteps of ResNet-18, batch {asked.batch}, {asked.steps} a side and round", flush=True)
    rounds: list[dict[int, float]] = []
    for number in range(1, asked.rounds + 1):
        order = (SHORT, LONG) if number % 2 else (LONG, SHORT)
        rounds.append({size: seconds(lambda size=size: steps(size)) / asked.steps for size in order})  # type: ignore[misc]
        now = rounds[-1]
        print(f"round {number}: {now[SHORT]:.3f} s, {now[LONG]:.3f} s, ratio {now[LONG] / now[SHORT]:.4f}", flush=True)
    alone = {size: dictionary_alone(recipe, dictionary, asked.batch) for size, dictionary in dictionaries.items()}
    return told_time(rounds, alone)


def told_time(rounds: list[dict[int, float]], alone: dict[int, float]) -> dict[str, Any]:
    """The table of times, printed and kept."""
    ratios = [now[LONG] / now[SHORT] for now in rounds]
    for size in (SHORT, LONG):
        print(f"  K {size:>9,}: {spread([now[size] for now in rounds], '.3f')} s a step")
    middle = statistics.median(ratios)
    verdict = "met" if middle <= TIME_GOAL else "NOT met"
    print(f"  ratio {spread(ratios, '.4f')}; goal at most {TIME_GOAL}: {verdict}")
    added = (alone[LONG] - alone[SHORT]) / statistics.median(now[SHORT] for now in rounds)
    print(
        f"  alone, what depends on K takes {1e3 * alone[SHORT]:.1f} ms at {SHORT:,} and {1e3 * alone[LONG]:.1f} ms at "
        f"{LONG:,}: {added:+.2%} of the step"
    )
    return {
        "seconds_per_step": {str(size): [now[size] for now in rounds] for size in (SHORT, LONG)},
        "ratios": ratios,
        "ratio": {"median": middle, "least": min(ratios), "most": max(ratios)},
        "dictionary_alone_seconds": {str(size): value for size, value in alone.items()},
        "dictionary_alone_share_added": added,
        "goal_met": middle <= TIME_GOAL,
    }


# ---- memory ----


def high_water() -> int:
    """Bytes of this process's largest resident size so far.

    ``ru_maxrss`` of a process that was forked and then ran another program keeps the parent's mark, VmHWM does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def child(size: int, asked: argparse.Namespace) -> None:
    """In a fresh process: the high-water mark after each stage, as one line of JSON."""
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    recipe = replace(recipe_of(size, asked.batch), model=SmallResNet(), head=MLP((256, DIM)))
    batch, marks = views(asked.batch), {"start": high_water()}
    learner = recipe.build(EXAMPLES).to(device(), memory_format=torch.channels_last).train()
    optimizer = recipe.optimizer.build(learner.encoder, recipe.batch)
    marks["build"] = high_water()
    for _ in range(asked.memory_steps):
        step(recipe, learner, optimizer, batch)
    marks["train"] = high_water()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder), 1, learner, optimizer)
        marks["save"] = high_water()
        path, _ = checkpoint.newest(Path(folder))
        if path is not None:
            checkpoint.load(path, learner, optimizer)
        marks["resume"] = high_water()
    print(json.dumps(marks), flush=True)


def marks_of(size: int, asked: argparse.Namespace) -> dict[str, int]:
    """The marks of a fresh process."""
    options = {"batch": asked.batch, "memory-steps": asked.memory_steps, "threads": asked.threads}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, str(Path(__file__).resolve()), "--child", str(size), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"K {size:,} failed ({done.returncode}):\n{done.stderr[-4000:]}")
    marks: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return marks


def compare_memory(asked: argparse.Namespace) -> dict[str, Any]:
    """The growth of every stage's mark beyond the growth of the queue, printed and kept; the least of some rounds."""
    queue = 4 * DIM * (HUGE - LONG)
    print(f"\nhigh-water marks in MiB, SmallResNet, batch {asked.batch}, {asked.memory_steps} steps", flush=True)
    found = [{size: marks_of(size, asked) for size in (LONG, HUGE)} for _ in range(asked.memory_rounds)]
    kept: dict[str, Any] = {"queue_growth": queue, "rounds": [{str(k): v for k, v in now.items()} for now in found]}
    print(
        f"  the queue itself grows by {queue / MIB:.0f}; until the end of   K {LONG:,}   K {HUGE:,}   beyond the queue"
    )
    for stage in found[0][LONG]:
        beyond = [now[HUGE][stage] - now[LONG][stage] - queue for now in found]
        small, large = (statistics.median(now[size][stage] for now in found) / MIB for size in (LONG, HUGE))
        print(f"    {stage:8s} {small:8.0f} {large:8.0f}   {spread([part / MIB for part in beyond], '+.0f')}")
        kept[stage] = {"beyond_queue": statistics.median(beyond)}
    train = kept["train"]["beyond_queue"]
    kept["goal_met"] = train <= MEMORY_GOAL
    verdict = "met" if kept["goal_met"] else "NOT met"
    print(f"  goal at most {MEMORY_GOAL // MIB} MiB beyond the queue, building and training: {verdict}")
    return kept


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="What a longer queue costs in time and memory.",
        epilog="example: python benchmarks/queue_cost.py --json queue_cost.json",
    )
    parser.add_argument("--rounds", type=int, default=10, help="pairs of timed steps (%(default)s)")
    parser.add_argument("--steps", type=int, default=1, help="steps a side and round (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="(%(default)s)")
    parser.add_argument("--memory-rounds", type=int, default=3, help="pairs of fresh processes (%(default)s)")
    parser.add_argument("--memory-steps", type=int, default=3, help="steps of each (%(default)s)")
    parser.add_argument("--only", choices=("time", "memory"), help="leave the other out")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    asked = arguments().parse_args()
    if asked.child:
        return child(asked.child, asked)
    torch.set_num_threads(asked.threads)
    about = machine(asked.threads)
    print(describe(about), flush=True)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(asked).items()}
    whole: dict[str, Any] = {"machine": about, "settings": settings}
    if asked.only != "memory":
        whole["time"] = compare_time(asked)
    if asked.only != "time":
        whole["memory"] = compare_memory(asked)
    if asked.json:
        asked.json.write_text(json.dumps(whole, indent=2) + "\n")
        print(f"written to {asked.json}")
    return None


if __name__ == "__main__":
    main()
