"""How fast the package's own loop trains on a GPU, and where the time goes; the loop is ``loop.train``, unchanged."""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.parts import PARTS, marked
from benchmarks.records import Record, Records, flags, spread
from benchmarks.scenes import jpegs
from lookalike.data.formats.arrays import Arrays
from lookalike.data.loader import Loaded, Loader
from lookalike.data.pool import cores
from lookalike.data.source import open_source
from lookalike.models.image import ResNet
from lookalike.models.vit import ViT
from lookalike.recipes import RECIPES
from lookalike.recipes.recipe import Length, Recipe
from lookalike.train import loop
from lookalike.train.loop import GRAPHS
from lookalike.train.run import Run
from lookalike.train.watch import Meter

HELD = 2048  # canvases in memory, of 192 KiB each


@dataclass
class Plan:
    """How a run is measured; ``seconds`` bound the windows alone."""

    warmup: int = 12
    steps: int = 8  # of a window
    seconds: float = 7.0
    windows: int = 9  # at most
    looks: bool = True  # whether it is profiled, and its waits are counted, after the windows
    switches: dict[str, bool] = field(default_factory=dict)  # of torch, set in the first step, after the package's own


@dataclass
class Found:
    """What is known after a run."""

    rates: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)  # shares of the time in which the host was given data
    idle: list[float] = field(default_factory=list)  # and of that in which the GPU waited between steps
    memory: int = 0
    reserved: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    trace: Record = field(default_factory=dict)
    flags: Record = field(default_factory=dict)

    def record(self) -> Record:
        return {
            "pairs_per_second": spread(self.rates),
            "host_in_data": spread(self.waited),
            "waited_for_data": spread(self.idle),
            "peak_bytes": self.memory,
            "reserved_bytes": self.reserved,
            "waits_a_step": self.waits.total() / 2,
            "waits": dict(self.waits.most_common(12)),
            **self.trace,
            "flags": self.flags,
        }


class Script:
    """Told at every step that it begins; measures, and says when it is enough."""

    def __init__(self, plan: Plan, batch: int, meters: list[Meter], mark: list[Callable[[str], Any]]) -> None:
        self.plan, self.batch, self.meters, self.mark = plan, batch, meters, mark
        self.found = Found()
        self.going = self._script()

    def more(self) -> bool:
        return next(self.going, None) is not None

    def _script(self) -> Iterator[bool]:
        plan, found = self.plan, self.found
        switch(**plan.switches)
        for _ in range(plan.warmup):
            yield True
        settled()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        found.flags = flags()
        end = time.perf_counter() + plan.seconds
        while not found.rates or (time.perf_counter() < end and len(found.rates) < plan.windows):
            began, waited, idle = time.perf_counter(), self._waited(), self._idle()
            for _ in range(plan.steps):
                yield True
            settled()
            passed = time.perf_counter() - began
            found.rates.append(plan.steps * self.batch / passed)
            found.waited.append((self._waited() - waited) / passed)
            found.idle.append((self._idle() - idle) / passed)
        if torch.cuda.is_available():
            found.memory, found.reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        if plan.looks:
            yield from self._looks()

    def _waited(self) -> float:
        return sum(meter.reading for meter in self.meters)

    def _idle(self) -> float:
        return sum(meter.idle or 0.0 for meter in self.meters)

    def _looks(self) -> Iterator[bool]:
        with waits(self.found.waits):
            for _ in range(2):
                yield True
        settled()
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.mark[0] = torch.profiler.record_function
        with torch.profiler.profile(activities=activities, acc_events=True) as profile:
            began = time.perf_counter()
            for _ in range(2):
                yield True
            settled()
            wall = time.perf_counter() - began
        self.mark[0] = nullcontext
        self.found.trace = traced(profile, 2, wall)


@contextmanager
def waits(found: Counter[str]) -> Iterator[None]:
    """Counts, by line of the package, where the host waits for the GPU."""
    if not torch.cuda.is_available():
        yield
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in said:
        if "called a synchronizing" in str(warning.message):
            found[f"{Path(warning.filename).name}:{warning.lineno}"] += 1


def settled() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def traced(profile: torch.profiler.profile, steps: int, wall: float) -> Record:
    """Kernels, their time and the host's time a step, by part; the kernels that take most of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    spans = sorted(
        (event["ts"], event["ts"] + event["dur"], event["name"])
        for event in events
        if event.get("cat") == "user_annotation" and event["name"] in PARTS
    )
    launched = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    count: Counter[str] = Counter()
    took: defaultdict[str, float] = defaultdict(float)
    copies: Counter[str] = Counter()
    kernels: defaultdict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") not in ("kernel", "gpu_memcpy", "gpu_memset"):
            continue
        part = part_at(spans, launched.get(event["args"].get("correlation"), -1.0))
        took[part] += event["dur"]
        if event["cat"] == "kernel":
            count[part] += 1
            kernels[event["name"][:110]].append(event["dur"])
        else:
            copies[event["name"][:60]] += 1
    host: defaultdict[str, float] = defaultdict(float)
    for start, end, part in spans:
        host[part] += end - start
    heavy = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:14]
    return {
        "launches_a_step": count.total() / steps,
        "launches": {part: count[part] / steps for part in PARTS},
        "gpu_ms": {part: round(took[part] / 1e3 / steps, 3) for part in PARTS},
        "host_ms": {part: round(host[part] / 1e3 / steps, 3) for part in PARTS},
        "busy": sum(took.values()) / 1e6 / wall,
        "copies": {name: many / steps for name, many in copies.most_common(6)},
        "kernels": {name: {"ms": round(sum(took) / 1e3 / steps, 3), "n": len(took) / steps} for name, took in heavy},
    }


def part_at(spans: list[tuple[float, float, str]], when: float) -> str:
    """The part in which something was launched."""
    return next((part for start, end, part in spans if start <= when <= end), "loop")


# ---- runs ----


def measured(recipe: Recipe, loader: Loader, plan: Plan) -> Found:
    """Train for as long as the plan says."""
    meters: list[Meter] = []
    mark: list[Callable[[str], Any]] = [nullcontext]
    script = Script(plan, recipe.batch, meters, mark)
    found = loader.batches

    class Noted(Meter):
        def __init__(self) -> None:
            super().__init__()
            meters.append(self)

    def batches(rows_of_steps: Iterable[Tensor]) -> Generator[Loaded[Any], None, None]:
        asked = iter(found(rows_of_steps))
        while script.more():
            yield next(asked)
        asked.close()

    recipe = replace(recipe, length=Length(steps=1 << 20), checkups=0)
    with ExitStack() as stack:
        run = stack.enter_context(Run(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"))
        stack.enter_context(patch.object(loader, "batches", batches))
        stack.enter_context(patch.object(loop, "Meter", Noted))
        stack.enter_context(marked(lambda part: mark[0](part)))
        loop.train(recipe, run, loader, save_every=1 << 40)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return script.found


def published(name: str, batch: int, toy: bool, precision: str = "bf16") -> Recipe:
    """A recipe at a batch; for a trial on a processor a hundredth of its size."""
    recipe = replace(RECIPES[name].fitted(1_281_167, 224), batch=batch, precision=precision)  # type: ignore[arg-type]
    if not toy:
        return recipe
    pretext = recipe.pictures
    second = pretext.second and replace(pretext.second, size=32)
    vit = isinstance(recipe.model, ViT)
    return replace(
        recipe,
        pretext=replace(pretext, first=replace(pretext.first, size=32), second=second),
        canvas=40,
        model=ViT(48, 2, 3, 8, frozen_patches=True) if vit else ResNet("resnet18"),
        batch=8,
        group=4,
        precision="fp32",
    )


def in_memory(side: int, count: int) -> Loader:
    """Canvases that need no decoding."""
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    return Loader(Arrays(pixels, None, []), side, budget=1 << 40, workers=0)


TOY = Plan(warmup=2, steps=1, seconds=0.0)


def speed(records: Records, gpu: str, deadline: float, toy: bool, **_: Any) -> None:
    """Both networks with canvases in memory, as they are; then with every kernel started by the host, by part."""
    for batch in (8,) if toy else (256, 512):
        for name in ("moco_v2", "moco_v3_vit"):
            one(records, f"{name}, batch {batch}", deadline, published(name, batch, toy), toy, Plan(looks=False))
    for name in ("moco_v2", "moco_v3_vit"):
        recipe, brief = published(name, 256, toy), Plan(seconds=3.0, windows=4)
        with patch.dict(os.environ, {GRAPHS: "0"}):
            one(records, f"{name}, batch {recipe.batch}, no graph", deadline, recipe, toy, brief)


def one(
    records: Records,
    label: str,
    deadline: float,
    recipe: Recipe,
    toy: bool,
    plan: Plan,
    loader: Loader | None = None,
    **also: Any,
) -> None:
    if time.time() > deadline:
        records.add(label, skipped="no time left")
        return
    try:
        loader = loader or in_memory(recipe.canvas, 16 if toy else HELD)
        records.add(
            label,
            **measured(
                recipe, loader, replace(plan, warmup=TOY.warmup, steps=TOY.steps, seconds=TOY.seconds) if toy else plan
            ).record(),
            **also,
        )
    except Exception as error:
        records.add(label, failed=f"{type(error).__name__}: {error}"[:600])
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def files(records: Records, gpu: str, deadline: float, toy: bool, data: Path | None = None, **_: Any) -> None:
    """From JPEG files, which are decoded anew each time by as many workers as there are cores."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        size = jpegs(Path(folder), 16 if toy else 3000, 1 if toy else cores())
        records.add(
            "files of 500 x 375 written", count=16 if toy else 3000, mean_bytes=size, seconds=time.time() - began
        )
        places = {"500 x 375": folder} | ({"the folder given": str(data)} if data is not None and data.exists() else {})
        for label, place in places.items():
            for workers in (0,) if toy else (16, 2) if label == "500 x 375" else (16,):
                recipe = published("moco_v2", 256, toy)
                loader = Loader(open_source(place), recipe.canvas, budget=0, workers=min(workers, cores()))
                if not toy and workers > 2:
                    records.add(f"{label}: decoding alone", workers=loader.workers, **decoding(loader, 4.0))
                also = {"workers": loader.workers, "files": len(loader)}
                plan = Plan(warmup=6, steps=6, seconds=9.0 if workers > 2 else 5.0, windows=6, looks=False)
                one(
                    records,
                    f"{label}: moco_v2, batch 256, {workers} workers",
                    deadline,
                    recipe,
                    toy,
                    plan,
                    loader,
                    **also,
                )


def decoding(loader: Loader, seconds: float) -> Record:
    """Pictures a second that come of the loader when nothing else is done."""
    rows = (torch.randint(0, len(loader), (256,)) for _ in iter(int, 1))
    rates, end = [], time.perf_counter() + seconds
    batches = loader.batches(rows)
    for _ in range(3):
        next(batches)
    while time.perf_counter() < end:
        began = time.perf_counter()
        for _ in range(4):
            next(batches)
        rates.append(4 * 256 / (time.perf_counter() - began))
    batches.close()
    return {"pictures_per_second": spread(rates)}


def costs(records: Records, gpu: str, deadline: float, toy: bool, **_: Any) -> None:
    """What determinism, cuDNN's search and TF32 cost or save; each beside the same without, on the same card."""
    brief = Plan(warmup=6, steps=6, seconds=4.0, windows=5, looks=False)
    both = {"deterministic": True}, {"deterministic": False}
    asked: list[tuple[str, str, dict[str, bool]]] = [
        ("moco_v2", "bf16", {}),
        *(("moco_v2", "bf16", settings) for settings in (*both, {"benchmark": True})),
        *(("moco_v2", "fp32", {"tf32": on}) for on in (False, True)),
        *(("moco_v3_vit", "bf16", settings) for settings in both),
    ]
    for name, precision, settings in asked[:2] if toy else asked:
        recipe = published(name, 256, toy, precision)
        said = ", ".join(f"{switch} {'on' if on else 'off'}" for switch, on in settings.items()) or "as it is"
        with restored():
            plan = replace(brief, switches=settings)
            one(records, f"{name}, batch {recipe.batch}, {precision}: {said}", deadline, recipe, toy, plan)


def switch(deterministic: bool | None = None, benchmark: bool | None = None, tf32: bool | None = None) -> None:
    """torch's own, within a run: whatever the package has set before."""
    if deterministic is not None:
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        torch.backends.cudnn.deterministic = deterministic
    if benchmark is not None:
        torch.backends.cudnn.benchmark = benchmark
    if tf32 is not None:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32


@contextmanager
def restored() -> Iterator[None]:
    """The switches as they were, and no word of what is not deterministic."""
    cudnn, matmul, strict = (
        torch.backends.cudnn,
        torch.backends.cuda.matmul,
        torch.are_deterministic_algorithms_enabled(),
    )
    held = (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(strict)
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = held


SECTIONS = {"speed": speed, "files": files, "costs": costs}
