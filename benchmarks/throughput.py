"""End to end training speed from pictures: lookalike, lightly and plain PyTorch, in turn, on the same files.

    python -m benchmarks.throughput --data ../shared/data/cifar10 --json throughput.json
    python -m benchmarks.throughput --data ../shared/data/imagenette128/train --network resnet50 --batch 64
    python -m benchmarks.throughput --method moco_v3 --from prepared

All train the same method by the same network: CIFAR-10's ResNet-18 (3x3 stem, no pooling) at 32 px, or ResNet-50 or
ViT-tiny at 128 px, with a head of one hidden layer (InstDisc: none), the same views, batch 256, and plain SGD 0.06,
fp32 weights; MoCo has K 4,096, temperature 0.1, momentum 0.99. ``benchmarks/rivals.py`` is what others do (lightly has
no example of MoCo v3 or InstDisc); ours is ``lookalike.train.loop.train`` itself with a recipe of 200 epochs that ends
after the measured steps. Saving is off, since the examples save nothing.

What stays different is each one's way: lightly normalises a batch as one group in contiguous memory, and all others
make views in two workers. lookalike normalises in groups of 64 and shuffles the keys' groups, uses channels_last (and
bf16 where the processor computes in it), keeps decoded pictures in memory and makes views in the training process. It
may read them from parquet or from its own cache (``--from``); others read files.

Every measurement is a fresh process, so that thread pools do not meet. A round is each side once (with --ablate
lightly's loop in channels_last, too), and the machine's convolution peak, so that a share of the peak is of the same
minute. Ratios are taken round by round. "busy" is the share of the threads' time that the training process got
(workers are not in it). A round beside which others computed, or whose steps were uneven, is marked as disturbed; it
stays in the medians, and the summary then says that it is no result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.rivals import (
    DIM,
    LIGHTLY_COMMIT,
    LR,
    MOMENTUM,
    NETWORKS,
    TEMPERATURE,
    WORKERS,
    Job,
    Rival,
    lightly,
    plain,
)
from lookalike.core.devices import computes_in_bf16
from lookalike.curate.prepare import prepare
from lookalike.data.loader import Loaded, Loader
from lookalike.data.source import open_source
from lookalike.learn.dictionary import InBatch, Queue
from lookalike.learn.keys import EndToEnd, Momentum
from lookalike.learn.objective import InfoNCE
from lookalike.learn.optim import SGD
from lookalike.models.encoder import MLP
from lookalike.pretext.image import OneView, TwoViews
from lookalike.recipes.family import instdisc, moco_v3
from lookalike.recipes.images import moco_cifar
from lookalike.recipes.recipe import Recipe
from lookalike.train.loop import train
from lookalike.train.run import Run
from lookalike.types import Batch

METHODS = {
    "moco": ("lightly", "plain PyTorch"),
    "simclr": ("lightly", "plain PyTorch"),
    "moco_v3": ("plain PyTorch",),
    "instdisc": ("plain PyTorch",),
}
"""Who has code of it, beside ours."""

STAGES = ((64, 32), (128, 16), (256, 8), (512, 4))  # channels and side of ResNet-18's 3x3 convolutions
MOST_OTHERS, MOST_UNEVEN = 0.1, 1.25  # cores, and slowest step over fastest: beyond them a round is disturbed


# ---- lookalike ----


class Watched(Loader):
    """The loader of a run that ends early; ``marks`` holds when each batch was asked for."""

    def begin(self, steps: int) -> None:
        self.marks: list[float] = []
        self.clocks: list[float] = []
        self.left = steps

    def batches(self, rows_of_steps: Iterable[Tensor]) -> Generator[Loaded, None, None]:
        for pixels in super().batches(rows_of_steps):
            self.note()
            if len(self.marks) > self.left:
                return
            yield pixels

    def note(self) -> None:
        self.marks.append(time.perf_counter())
        self.clocks.append(time.process_time())


def recipe_of(job: Job, examples: int) -> Recipe:
    """The method with the network, views, head, batch and plain SGD of the other sides."""
    network = NETWORKS[job.network]
    head = MLP((network.features, DIM))
    recipe = replace(
        moco_cifar.fitted(examples),
        model=network.model,
        pretext=TwoViews(network.view),
        canvas=network.view.size,
        head=head,
        keys=Momentum(MOMENTUM),
        dictionary=Queue(job.queue),
        objective=InfoNCE(TEMPERATURE),
        optimizer=SGD(LR, 0.0, 0.0),
        batch=job.batch,
        group=job.group,
        precision=job.precision,  # type: ignore[arg-type]
    )
    if job.method == "simclr":
        both = InBatch(queries=True)
        return replace(
            recipe,
            head=replace(head, norm="hidden"),
            keys=EndToEnd(),
            dictionary=both,
            objective=InfoNCE(TEMPERATURE, weight=0.5),
        )
    if job.method == "moco_v3":
        keys = Momentum(MOMENTUM, symmetric=True, shuffle=False)
        heads = {"head": replace(head, norm="all"), "predictor": replace(head, norm="hidden", bias=False)}
        return replace(recipe, **heads, keys=keys, dictionary=moco_v3.dictionary, objective=moco_v3.objective)
    if job.method == "instdisc":
        parts = {"keys": instdisc.keys, "dictionary": instdisc.dictionary, "objective": instdisc.objective}
        return replace(recipe, **parts, head=MLP((DIM,)), pretext=OneView(network.view))
    return recipe


def ours(job: Job) -> dict[str, Any]:
    began = time.perf_counter()
    source = open_source(job.source)
    loader = Watched(source, NETWORKS[job.network].view.size, workers=WORKERS)
    loader.begin(job.warmup + job.steps)
    ready = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder, Run(Path(folder) / "run") as run:
        train(recipe_of(job, len(source)), run, loader, save_every=1 << 40)
        first = json.loads(run.metrics.read_text().splitlines()[0])
    return speed(job, loader.marks, loader.clocks) | {"ready": ready, "loss": first["loss"]}


def speed(job: Job, marks: list[float], clocks: list[float]) -> dict[str, Any]:
    """Images a second over the steps after the warm-up, and the share of the cores' time that the process got."""
    marks, clocks = marks[job.warmup :], clocks[job.warmup :]
    seconds = marks[-1] - marks[0]
    return {
        "images_per_second": job.batch * job.steps / seconds,
        "busy": (clocks[-1] - clocks[0]) / seconds / job.threads,
        "seconds_per_step": [after - before for before, after in pairwise(marks)],
    }


# ---- others ----


def other(
    job: Job, made: Callable[[Job], Rival], layout: torch.memory_format = torch.contiguous_format
) -> dict[str, Any]:
    """A rival's steps."""
    began = time.perf_counter()
    rival = made(job)
    ready = time.perf_counter() - began
    marks, clocks, losses = [time.perf_counter()], [time.process_time()], []
    for loss in rival.losses(layout):
        losses.append(loss)
        marks.append(time.perf_counter())
        clocks.append(time.process_time())
        if len(losses) == job.warmup + job.steps:
            break
    return speed(job, marks, clocks) | {"ready": ready, "loss": losses[0]}


def lightly_channels_last(job: Job) -> dict[str, Any]:
    """The ablation: nothing but the memory layout of lightly's loop is another."""
    return other(job, lambda job: lightly(job, torch.channels_last), torch.channels_last)


# ---- what the machine can do ----


def best_of(run: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the fastest of some calls, after one that is not counted."""
    run()
    marks = [time.perf_counter()]
    for _ in range(repeats):
        run()
        marks.append(time.perf_counter())
    return min(after - before for before, after in pairwise(marks))


def peak(job: Job) -> dict[str, Any]:
    """GFLOP/s of ResNet-18's 3x3 convolutions alone, forward and backward, in both memory layouts."""
    dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
    table: dict[str, dict[str, float]] = {}
    for channels, side in STAGES:
        billions = 2 * 9 * channels**2 * side**2 * job.batch / 1e9
        for name, layout in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
            x = torch.randn(job.batch, channels, side, side).to(dtype=dtype, memory_format=layout).requires_grad_()
            w = torch.randn(channels, channels, 3, 3).to(dtype=dtype, memory_format=layout).requires_grad_()
            forward, backward = convolution(x, w)
            table[f"{channels}x{side}x{side} {name}"] = {
                "forward": billions / (took := best_of(forward)),
                "backward": 2 * billions / (back := best_of(backward)),
                "both": 3 * billions / (took + back),
            }
    return {"gflops": max(max(row.values()) for row in table.values()), "table": table}


def convolution(x: Tensor, w: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """A call that goes forward and one that goes backward, to input and weight."""
    out = F.conv2d(x, w, padding=1)
    grad = torch.ones_like(out)

    def forward() -> object:
        with torch.no_grad():
            return F.conv2d(x, w, padding=1)

    return forward, lambda: torch.autograd.grad(out, (x, w), grad, retain_graph=True)


def flops(job: Job, count: int = 16) -> dict[str, Any]:
    """Multiplications and additions a picture of one step: encoder both ways, twin, products with the queue.

    In float64, where convolutions are torch's own: what a quicker algorithm saves does not make the work less.
    """
    from torch.utils.flop_counter import FlopCounterMode

    learner = recipe_of(replace(job, precision="fp32"), 50_000).build(50_000).train().double()
    side = NETWORKS[job.network].view.size
    first, second = ({"pixels": torch.randn(count, 3, side, side).double()} for _ in range(2))
    batch = Batch(torch.arange(count), first, second)
    with FlopCounterMode(display=False) as counter:
        learner(batch).loss.backward()
    by_kind = {str(kind): number / count for kind, number in counter.get_flop_counts()["Global"].items()}
    return {"per_image": counter.get_total_flops() / count, "by_kind": by_kind}


SIDES: dict[str, Callable[[Job], dict[str, Any]]] = {
    "lookalike": ours,
    "lightly": lambda job: other(job, lightly),
    "lightly, channels_last": lightly_channels_last,
    "plain PyTorch": lambda job: other(job, plain),
    "peak": peak,
    "flops": flops,
}


# ---- fresh processes ----


def child(text: str) -> None:
    """In the fresh process: measure, and answer with one line of JSON."""
    job = Job(**json.loads(text))
    warnings.simplefilter("ignore")  # lightly's own deprecations
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    print(json.dumps(SIDES[job.side](job)), flush=True)


def measured(job: Job) -> dict[str, Any]:
    """What a fresh process answers; its complaints are shown if it fails."""
    before = time.perf_counter(), spent_by_all(), spent_by_children()
    command = [sys.executable, "-m", "benchmarks.throughput", "--child", json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{job.side} failed ({done.returncode}):\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    passed, everyone, own = (
        now - then for now, then in zip((time.perf_counter(), spent_by_all(), spent_by_children()), before)
    )
    return answer | {"others": max(0.0, everyone - own) / passed}


def spent_by_all() -> float:
    """Seconds of processor time that the whole machine has spent, those that its host took away included."""
    if not Path("/proc/stat").exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal, *_ = Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / os.sysconf("SC_CLK_TCK")


def spent_by_children() -> float:
    """Seconds of processor time of the measuring processes that have ended, their workers included."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def disturbances(found: dict[str, Any], sides: list[str]) -> list[str]:
    """Why a round is not to be trusted: others computed meanwhile, or one step took far longer than its fellows."""
    reasons = [
        f"others kept {now['others']:.2f} cores busy beside {name}"
        for name, now in {**{side: found[side] for side in sides}, **found["peaks"]}.items()
        if now["others"] > MOST_OTHERS
    ]
    for side in sides:
        steps = found[side]["seconds_per_step"]
        if max(steps) > MOST_UNEVEN * min(steps):
            reasons.append(f"steps of {side} took {min(steps):.1f} to {max(steps):.1f} s")
    return reasons


def export(data: Path, folder: Path, most: int | None) -> None:
    """The training pictures of parquet files as files, byte for byte."""
    import pyarrow.parquet as pq

    files = sorted(data.glob("train-*.parquet")) if data.is_dir() else [data]
    count = 0
    folder.mkdir()
    for file in files:
        for part in pq.ParquetFile(file).iter_batches(columns=[image_column(pq.read_schema(file).names)]):
            for picture in part.column(0).field("bytes"):
                if count == most:
                    return
                content: bytes = picture.as_py()
                suffix = "png" if content.startswith(b"\x89PNG") else "jpg"
                (folder / f"{count:06d}.{suffix}").write_bytes(content)
                count += 1
    if not count:
        raise SystemExit(f"{data}: no train-*.parquet with pictures")


def places(asked: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """The files that others read, and what lookalike reads; ``folder`` is for what has to be made."""
    is_folders = asked.data.is_dir() and any(entry.is_dir() for entry in asked.data.iterdir())
    files = asked.data if is_folders else folder / "files"
    if not is_folders:
        export(asked.data, files, asked.examples)
    if asked.place == "prepared":
        prepare(files, folder / "cache", size=NETWORKS[asked.network].view.size)
    return files, {"files": files, "parquet": asked.data, "prepared": folder / "cache"}[asked.place]


def image_column(names: list[str]) -> str:
    return next((name for name in ("image", "img") if name in names), names[0])


# ---- telling ----


def machine(threads: int) -> dict[str, Any]:
    """What a number depends on besides the code."""
    flags: set[str] = set()
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in lines.items()}
        model, flags = named.get("model name", model), set(named.get("flags", "").split())
    telling = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
    names = ("torch", "torchvision", "lightly", "pillow", "lookalike")
    return {
        "processor": model,
        "flags": {flag: flag in flags for flag in telling},
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in names},
        "lightly_example_commit": LIGHTLY_COMMIT,
        "environment": {
            name: os.environ[name] for name in sorted(os.environ) if name.startswith(("OMP", "KMP", "MKL"))
        },
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def describe(about: dict[str, Any]) -> str:
    flags = ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in about["flags"].items())
    versions = ", ".join(f"{name} {number or 'not installed'}" for name, number in about["versions"].items())
    return (
        f"{about['processor']}, {about['cores_allowed']} of {about['cores']} cores, {about['threads']} thread(s); "
        f"{flags}\n"
        f"Python {about['python']}, {versions}"
    )


def spread(values: list[float], form: str = ".1f") -> str:
    """The median, with the least and the most."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def precision_of(side: str, asked: str) -> str:
    """The type in which a side multiplies; others know fp32 alone."""
    if side != "lookalike" or asked == "fp32":
        return "fp32"
    return "bf16" if asked == "bf16" or computes_in_bf16(torch.device("cpu")) else "fp32"


def one_round(job: Job, sides: list[str], asked: str, per_image: float) -> dict[str, Any]:
    """Every side once, then the peak in each type that was used; shares of it are filled in."""
    found: dict[str, Any] = {side: measured(replace(job, side=side)) for side in sides}
    kinds = sorted({precision_of(side, asked) for side in sides})
    peaks = {kind: measured(replace(job, side="peak", precision=kind)) for kind in kinds}
    for side in sides:
        gflops = found[side]["images_per_second"] * per_image / 1e9
        found[side] |= {"gflops": gflops, "share": gflops / peaks[precision_of(side, asked)]["gflops"]}
    found["peaks"] = peaks
    return found | {"disturbed": disturbances(found, sides)}


def told(number: int, found: dict[str, Any], sides: list[str]) -> str:
    parts = [
        f"{side} {now['images_per_second']:.1f} ({now['share']:.0%} of peak, busy {now['busy']:.0%})"
        for side in sides
        for now in (found[side],)
    ]
    peaks = ", ".join(f"{kind} {peak['gflops']:.0f}" for kind, peak in found["peaks"].items())
    times = ", ".join(f"{times_of(found, side):.3f} x {side}" for side in sides[1:])
    return f"round {number}: {'; '.join(parts)}; peak {peaks} GFLOP/s; {times}" + "".join(
        f"\n  DISTURBED: {reason}" for reason in found["disturbed"]
    )


def times_of(found: dict[str, Any], side: str) -> float:
    """How many times as fast as a side lookalike was in a round."""
    quotient: float = found["lookalike"]["images_per_second"] / found[side]["images_per_second"]
    return quotient


def summary(rounds: list[dict[str, Any]], sides: list[str], asked: str, examples: int) -> dict[str, Any]:
    """The table at the end, printed and kept."""
    kept: dict[str, Any] = {"sides": {}}
    disturbed = sum(bool(found["disturbed"]) for found in rounds)
    print(f"\nmedian of {len(rounds)} rounds (least to most), {disturbed} of them disturbed, none left out")
    if disturbed:
        print("  NOT A RESULT: run it again on an idle machine")
    kept["disturbed_rounds"] = disturbed
    for side in sides:
        rates, shares = ([found[side][name] for found in rounds] for name in ("images_per_second", "share"))
        ready = statistics.median(found[side]["ready"] for found in rounds)
        epoch = ready + examples / statistics.median(rates)
        ratios = [times_of(found, side) for found in rounds]
        kept["sides"][side] = now = {
            "precision": precision_of(side, asked),
            "images_per_second": statistics.median(rates),
            "lookalike_times": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
            "share_of_peak": statistics.median(shares),
            "seconds_until_data_is_ready": ready,
            "first_epoch_seconds": epoch,
        }
        print(
            f"  {side:22s} {now['precision']}  {spread(rates)} images/s;  lookalike {spread(ratios, '.2f')} x;  "
            f"{spread(shares, '.0%')} of peak;  data ready after {ready:.1f} s, a first epoch {epoch:.0f} s"
        )
    return kept


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Training from pictures, images a second: lookalike, lightly and plain PyTorch in turn.",
        epilog="example: python -m benchmarks.throughput --data ../shared/data/cifar10 --json throughput.json",
    )
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data/cifar10"), help="parquet with pictures, or folders of them"
    )
    parser.add_argument("--network", choices=NETWORKS, default="resnet18", help="(%(default)s)")
    parser.add_argument("--method", choices=METHODS, default="moco", help="(%(default)s)")
    parser.add_argument(
        "--from", dest="place", choices=("files", "parquet", "prepared"), default="files",
        help="what lookalike reads; others read files (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds (%(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="measured steps a side and round (%(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (%(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="(%(default)s)")
    parser.add_argument("--queue", type=int, default=4096, help="K (%(default)s)")
    parser.add_argument("--group", type=int, default=64, help="lookalike's BatchNorm group (%(default)s)")
    parser.add_argument("--examples", type=int, help="export only so many pictures, for a trial")
    parser.add_argument("--ours-precision", choices=("fp32", "bf16", "auto"), default="auto", help="(%(default)s)")
    parser.add_argument("--ablate", action="store_true", help="add lightly's loop in channels_last")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    asked = arguments().parse_args()
    if asked.child:
        return child(asked.child)
    about = machine(asked.threads)
    print(describe(about), flush=True)
    ablated = ["lightly, channels_last"] if asked.ablate and "lightly" in METHODS[asked.method] else []
    sides = ["lookalike", *METHODS[asked.method], *ablated]
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        files, source = places(asked, Path(folder))
        examples = len(open_source(files))
        job = Job(
            "flops", str(files), str(source), asked.threads, asked.batch, asked.queue, asked.group,
            asked.warmup, asked.steps, asked.ours_precision, asked.network, asked.method,
        )  # fmt: skip
        counted = measured(job)
        per_image = counted["per_image"]
        print(
            f"{examples} files; batch {asked.batch}, K {asked.queue}; {per_image / 1e9:.2f} GFLOP a picture and step; "
            f"{asked.warmup} + {asked.steps} steps a side; images/s:",
            flush=True,
        )
        rounds: list[dict[str, Any]] = []
        for number in range(1, asked.rounds + 1):
            rounds.append(one_round(job, sides, asked.ours_precision, per_image))
            print(told(number, rounds[-1], sides), flush=True)
    kept = summary(rounds, sides, asked.ours_precision, examples)
    if asked.json:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(asked).items()}
        settings.pop("child")
        whole = {"machine": about, "settings": settings, "flops": counted, "summary": kept, "rounds": rounds}
        asked.json.write_text(json.dumps(whole, indent=2) + "\n")
        print(f"written to {asked.json}")
    return None


if __name__ == "__main__":
    main()
