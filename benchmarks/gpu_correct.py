"""Whether a GPU computes what the processor computes: losses, gradients, views, features, bytes."""

from __future__ import annotations

import copy
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.records import Records
from benchmarks.scenes import jpegs, photos, sentences
from lookalike.core import dist
from lookalike.core.devices import exact, material_to_device
from lookalike.core.seeding import reseed
from lookalike.data.formats.arrays import Arrays
from lookalike.data.loader import Loads
from lookalike.data.order import order_of
from lookalike.data.source import open_source, reference_and_query
from lookalike.metrics.knn import Knn
from lookalike.metrics.probe import LinearProbe
from lookalike.models.norm import _GroupedBatchNorm
from lookalike.pretext import image
from lookalike.recipes import RECIPES
from lookalike.recipes.modality import loader, modality_of, new_tokenizer
from lookalike.recipes.recipe import Recipe
from lookalike.train import trained
from lookalike.train.loop import backward, batches, has_own_attention, new_learner, views_at
from lookalike.types import Batch, Canvases, View

STEPS, BATCH, EXAMPLES, SIDE = 10, 64, 256, 32
PICTURES = (
    *("small", "tiny", "digits", "small_moco_v1", "small_moco_v2", "small_instdisc", "small_instdisc_softmax"),
    *("small_simclr", "small_moco_v3", "small_moco_v3_vit", "small_nnclr", "small_supcon"),
    *("small_masked_moco", "small_mae"),
)
OTHERS = ("simcse", "moco_text", "text_pairs", "mlm", "video_moco", "video_moco_clips", "moco_captions")


@dataclass(frozen=True)
class Way:
    """Where and in which precision something is computed."""

    device: str
    precision: str = "fp32"
    double: bool = False


EXACT, PLAIN = Way("cpu", double=True), Way("cpu")


@contextmanager
def on(way: Way) -> Iterator[None]:
    """Inside, the package computes there; products in fp32 are not rounded to TF32."""
    matmul, conv = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with patch.dict(os.environ, {"LOOKALIKE_DEVICE": way.device, "LOOKALIKE_PRECISION": way.precision}):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, conv


# ---- ten steps ----


def losses(records: Records, gpu: str, deadline: float, toy: bool) -> None:
    """Ten steps of every small recipe, four ways."""
    ways = {"gpu fp32": Way(gpu), "gpu bf16": Way(gpu, "bf16")}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tiny", "small_simclr", "moco_text") if toy else (*PICTURES, *OTHERS):
            if time.time() > deadline:
                records.add(name, skipped="no time left")
                continue
            try:
                recipe, reads = material(name, Path(folder))
            except Exception as error:  # an extra is not there
                records.add(name, skipped=f"{type(error).__name__}: {error}"[:200])
                continue
            try:
                compared(records, name, recipe, reads, ways, 3 if toy else STEPS)
            except Exception as error:
                records.add(name, failed=f"{type(error).__name__}: {error}"[:500])


def compared(records: Records, name: str, recipe: Recipe, reads: Loads, ways: dict[str, Way], steps: int) -> None:
    """One recipe: the largest error of a loss, the error of the first gradient, and whether rounding explains them.

    All ways see the same views, which are compared by themselves, and have a smooth activation: where the last bit
    differs, a value beside ReLU's kink turns a gradient on or off, which is no error of arithmetic.
    """
    with on(PLAIN):
        made = list(batches(reads, recipe, order_of(reads.source, recipe.batch, 0, None), 0, steps))
    with smooth():
        truth, plain = ran(recipe, reads, EXACT, made), ran(recipe, reads, PLAIN, made)
        found: dict[str, Any] = {"cpu fp32": errors(plain, truth)}
        began = time.time()
        for way, where in ways.items():
            found[way] = errors(ran(recipe, reads, where, made), truth)
    usual, ours = found["cpu fp32"], found["gpu fp32"]
    explained = all(ours[part] <= 5 * max(usual[part], 1e-6) for part in ("loss", "gradient"))
    records.add(name, explained=explained, errors=found, losses=truth[0], gpu_seconds=round(time.time() - began, 2))


@contextmanager
def smooth() -> Iterator[None]:
    """Softplus wherever ReLU is, also where it is part of a kernel."""
    normalised = _GroupedBatchNorm.forward

    def apart(norm: Any, x: Tensor, residual: Tensor | None = None, activate: bool = False) -> Tensor:
        out = normalised(norm, x)
        if residual is not None:
            out = out + residual
        return F.softplus(out) if activate or residual is not None else out

    def softplus(x: Tensor, inplace: bool = False) -> Tensor:
        return F.softplus(x)

    with patch.object(_GroupedBatchNorm, "forward", apart), patch.object(F, "relu", softplus):
        yield


def ran(recipe: Recipe, reads: Loads, way: Way, made: Sequence[Batch]) -> tuple[list[float], Tensor]:
    """The losses of all steps, and the gradient of the first."""
    with on(way), exact(has_own_attention(recipe)):
        recipe = replace(recipe, precision=way.precision)  # type: ignore[arg-type]
        learner = new_learner(recipe, reads).train()
        learner = learner.double() if way.double else learner
        optimizer = recipe.optimizer.build(learner, recipe.batch)
        found: list[float] = []
        for step, batch in enumerate(made, 1):
            reseed(0, step)
            batch = Batch(batch.index.to(way.device), *(_there(view, way) for view in (batch.first, batch.second)))
            optimizer.zero_grad()
            outcome = backward(learner, learner, batch, recipe)
            if step == 1:
                first = torch.cat([p.grad.flatten().double().cpu() for p in learner.parameters() if p.grad is not None])
            optimizer.step()
            learner.advance(outcome, batch, step / len(made))
            found.append(float(outcome.loss.detach()))
    return found, first


def _there(view: View, way: Way) -> View:
    wide = {name: part.double() if way.double and part.is_floating_point() else part for name, part in view.items()}
    return {name: part.to(way.device) for name, part in wide.items()}


def errors(found: tuple[list[float], Tensor], truth: tuple[list[float], Tensor]) -> dict[str, Any]:
    """The first loss and the worst, relative where they are above 1; the gradient of the first step as a vector."""
    apart = [abs(a - b) / max(1.0, abs(b)) for a, b in zip(found[0], truth[0])]
    gradient = float((found[1] - truth[1]).norm() / truth[1].norm())
    return {"first": apart[0], "loss": max(apart), "gradient": gradient}


def material(name: str, folder: Path) -> tuple[Recipe, Loads]:
    """A small recipe, and a reader of data for it."""
    data = data_for(name, folder)
    source = data if isinstance(data, Arrays) else open_source(data, find=modality_of(name).find)
    recipe = RECIPES[name].fitted(len(source), SIDE)
    batch = min(recipe.batch, BATCH if name != "video_moco_clips" else 16)
    recipe = replace(recipe, batch=batch, group=min(recipe.group, batch // 4), checkups=0).fitted(len(source))
    tokenizer = new_tokenizer(recipe, source) if modality_of(recipe).tokenizes else None
    return recipe, loader(recipe, source, tokenizer, workers=0)


def data_for(name: str, folder: Path) -> Any:
    """Pictures in memory, or files of another kind."""
    if name in PICTURES:
        return Arrays(photos(EXAMPLES, SIDE, SIDE), torch.arange(EXAMPLES) % 8, [str(i) for i in range(8)])
    if name.startswith("video"):
        return f"frames:{frames(folder / 'frames')}"
    if name == "moco_captions":
        return captioned(folder / "captions")
    text = folder / ("pairs.csv" if name == "text_pairs" else "lines.txt")
    lines = sentences(2 * EXAMPLES)
    if name == "text_pairs":
        text.write_text("first,second\n" + "\n".join(f"{a},{b}" for a, b in zip(lines[::2], lines[1::2])) + "\n")
        return f"{text}:first,second"
    text.write_text("\n".join(lines) + "\n")
    return str(text)


def frames(folder: Path) -> Path:
    """Sixteen videos of sixteen frames."""
    if not folder.exists():
        from PIL import Image

        for video in range(16):
            (folder / f"{video:02d}").mkdir(parents=True)
            wide = photos(1, SIDE, SIDE + 16, video)[0]
            for frame in range(16):
                picture = wide[:, :, frame : frame + SIDE].permute(1, 2, 0).contiguous().numpy()
                Image.fromarray(picture).save(folder / f"{video:02d}" / f"{frame:03d}.png")
    return folder


def captioned(folder: Path) -> str:
    """Pictures with one caption each."""
    jpegs(folder, 128, 1, SIDE, SIDE)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    rows = [f"{name},{said}" for name, said in zip(names, sentences(len(names)))]
    (folder / "captions.csv").write_text("image,caption\n" + "\n".join(rows) + "\n")
    return str(folder)


# ---- views and features ----


def views(records: Records, gpu: str, deadline: float, toy: bool) -> None:
    """The views of a batch on both, at the size of ImageNet, and what is left of it in a copy of the values."""
    count = 8 if toy else 64
    for name in ("small",) if toy else ("moco_v1", "moco_v2", "moco_v3", "simclr"):
        recipe = RECIPES[name].fitted(1 << 20, 32 if toy else 224)
        side = recipe.canvas
        source = Arrays(photos(count, side, side), None, [])
        reads = loader(recipe, source, None, workers=0)
        found = []
        for way in (PLAIN, Way(gpu)):
            with on(way):
                found.append([view["pixels"].cpu() for view in views_at(reads, recipe, torch.arange(count), 3)])
        apart = [float((a - b).abs().max()) for a, b in zip(*found)]
        records.add(name, largest_difference=max(apart), of=float(found[0][0].abs().max()), unit="normalised pixels")
        with on(Way(gpu)):
            records.add(f"{name}, kernels and torch", **both_ways(recipe, 8 if toy else 256))


def both_ways(recipe: Recipe, count: int) -> dict[str, Any]:
    """ms of a call for both views by ops_triton and by operations of torch, one device; how far they lie apart."""
    canvases = material_to_device(
        Canvases(photos(count, recipe.canvas, recipe.canvas), torch.tensor([[375, 500]]).repeat(count, 1))
    )
    rows, found, times = torch.arange(count), [], {}
    for way, kernels in (("kernels", image.kernels_for), ("torch", lambda _: None)):
        with patch.object(image, "kernels_for", kernels):
            found.append([view["pixels"].cpu() for view in recipe.pretext(canvases, rows, 0, 0)])
            began = time.perf_counter()
            for _ in range(10):
                last = recipe.pretext(canvases, rows, 0, 0)
            last[1]["pixels"].flatten()[0].item()  # waits
            times[f"{way}_ms"] = 100 * (time.perf_counter() - began)
    return {**times, "largest_difference": max(float((a - b).abs().max()) for a, b in zip(*found))}


def evaluations(records: Records, gpu: str, deadline: float, toy: bool) -> None:
    """A run trained on the GPU, and what is measured of it there and on the processor."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        done = pretrain(run, gpu, "digits", 10 if toy else 200)
        if done.returncode:
            raise RuntimeError(done.stderr[-800:])
        found = {}
        for where, way in {"cpu": PLAIN, "gpu": Way(gpu), "gpu bf16": Way(gpu, "bf16")}.items():
            with on(way):
                found[where] = measured(run, way.precision)
    for where in ("gpu", "gpu bf16"):
        apart = (found[where]["features"] - found["cpu"]["features"]).abs().max()
        same = (found[where]["nearest"] == found["cpu"]["nearest"]).double().mean()
        both = {f"{part} {side}": found[side][part] for part in ("knn", "probe") for side in ("cpu", where)}
        records.add(f"{where} against cpu", features=float(apart), same_knn_answers=float(same), **both)


def measured(run: Path, precision: str) -> dict[str, Any]:
    """Features of the digits, kNN and probe of them."""
    network = trained.load(run, precision=precision)  # type: ignore[arg-type]
    reference, query = reference_and_query("digits")
    rows, asked = (network.features(network.loader(part, 0)) for part in (reference, query))
    nearest = Knn().predict(rows, reference.labels, asked)
    probe = LinearProbe(decays=(1e-3,)).fit(rows, reference.labels)
    return {
        "features": asked,
        "nearest": nearest,
        "knn": float((nearest == query.labels).double().mean()),
        "probe": probe.accuracy(asked, query.labels),
    }


# ---- bytes ----


def command(run: Path, recipe: str, steps: int, every: int = 10, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "lookalike", "pretrain", "digits", "--out", str(run), "--recipe", recipe,
        "--steps", str(steps), "--save-every", str(every), "--quiet", "--workers", "0", *more,
    ]  # fmt: skip


def surroundings(gpu: str) -> dict[str, str]:
    return {**os.environ, "LOOKALIKE_DEVICE": gpu, "OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def pretrain(run: Path, gpu: str, recipe: str, steps: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(run, recipe, steps), env=surroundings(gpu), capture_output=True, text=True, check=False, timeout=120
    )


def resume(records: Records, gpu: str, deadline: float, toy: bool) -> None:
    """The same command twice, and one that is killed and goes on: the same bytes; all at once, on one card."""
    recipes = {"tiny": 30} if toy else {"tiny": 60, "digits": 60, "moco_cifar": 30, "small_moco_v3_vit": 40}
    with tempfile.TemporaryDirectory() as folder:
        tries = {
            (recipe, part): Try(Path(folder) / f"{recipe}-{part}", recipe, steps, gpu, toy)
            for recipe, steps in recipes.items()
            for part in ("first", "again", "killed")
        }
        for recipe in recipes:
            tries[recipe, "killed"].kill()
        for recipe in recipes:
            if tries[recipe, "killed"].killed:
                tries[recipe, "killed"].start()
        for recipe, steps in recipes.items():
            said = {part: tries[recipe, part].ended() for part in ("first", "again", "killed")}
            first, again, killed = (tries[recipe, part].digest() for part in said)
            wrong = {part: words for part, words in said.items() if words}
            records.add(
                recipe,
                steps=steps,
                same_twice=first == again and first is not None,
                same_after_kill=first == killed and first is not None,
                killed_at=tries[recipe, "killed"].killed or "it had ended before",
                **({"failed": wrong} if wrong else {}),
            )


class Try:
    """One ``lookalike pretrain`` in a process of its own."""

    def __init__(self, run: Path, recipe: str, steps: int, gpu: str, toy: bool) -> None:
        self.run, self.steps, self.gpu = run, steps, gpu
        self.words = command(run, recipe, steps, 10, "--batch", "16" if toy else "64")
        self.killed = ""
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.words, env=surroundings(self.gpu), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def kill(self) -> None:
        """As soon as it has saved; notes after which checkpoint."""
        while self.process.poll() is None:
            if saved := sorted(path.name for path in (self.run / "checkpoints").glob("step-*")):
                self.process.send_signal(signal.SIGKILL)
                self.process.wait()
                self.killed = saved[-1]
                return
            time.sleep(0.02)

    def ended(self) -> str:
        """What it complained of, once it has ended."""
        said = self.process.communicate()[1]
        return said[-500:] if self.process.returncode else ""

    def digest(self) -> str | None:
        """Of the tensors of the last checkpoint."""
        folder = self.run / "checkpoints" / f"step-{self.steps:09d}"
        if not folder.exists():
            return None
        files = (folder / f"{name}.safetensors" for name in ("learner", "optimizer"))
        return " ".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


# ---- NCCL ----


def nccl(records: Records, gpu: str, deadline: float, toy: bool) -> None:
    """The path of several processes with one: DistributedDataParallel and every message, which must change nothing."""
    import torch.distributed as torch_dist

    backend = "nccl" if gpu == "cuda" else "gloo"
    recipe, reads = material("tiny", Path())
    with on(Way(gpu)), tempfile.TemporaryDirectory() as folder:
        if gpu == "cuda":
            torch.cuda.set_device(0)
        torch_dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=0, world_size=1)
        try:
            order = order_of(reads.source, recipe.batch, 0, None)
            batch = next(iter(batches(reads, recipe, order, 0, 1)))
            alone = new_learner(recipe, reads).train()
            other = copy.deepcopy(alone)
            with patch.object(dist, "world", lambda: 2), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                together = dist.distributed(other)
            losses = [
                backward(model, learner, batch, recipe).loss for model, learner in ((alone, alone), (together, other))
            ]
            gradients = [[p.grad for p in one.parameters() if p.grad is not None] for one in (alone, other)]
            same = all(torch.equal(a, b) for a, b in zip(*gradients))
            records.add(
                "DistributedDataParallel", backend=backend, same_loss=bool(losses[0] == losses[1]), same_gradient=same
            )
            rows = torch.randn(8, 4, device=gpu, requires_grad=True)
            gathered = dist._Gather.apply(rows)
            gathered.square().sum().backward()
            told = torch.randn(3, device=gpu)
            before = told.clone()
            torch_dist.all_reduce(told)
            torch_dist.broadcast(told, 0)
            back = torch.empty_like(rows)
            torch_dist.all_to_all_single(back, rows.detach(), [8], [8])
            right = torch.equal(gathered, rows) and torch.equal(rows.grad, 2 * rows) and torch.equal(told, before)
            records.add("messages", backend=backend, right=bool(right and torch.equal(back, rows)))
        finally:
            torch_dist.destroy_process_group()


# ---- every command ----


def commands(records: Records, gpu: str, deadline: float, toy: bool) -> None:
    """The tests that run every command on a device that is no processor, here on this one: who fails, and where."""
    tests = ["tests/core/test_elsewhere.py", *([] if toy else ["tests/train/test_replay.py"])]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:benchmark", *(("-k", "knn or meet") if toy else ())]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        env=surroundings(gpu),
        capture_output=True,
        text=True,
        timeout=max(1.0, deadline - time.time()),
        check=False,
    )
    *lines, last = done.stdout.strip().splitlines() or [""]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    why = [line for line in lines if line.startswith("E  ")]
    found = {"failed": [*failed, *why] or done.stderr[-400:]} if done.returncode else {}
    records.add("commands", said=last, **found)


SECTIONS = {
    "losses": losses,
    "views": views,
    "resume": resume,
    "evaluations": evaluations,
    "nccl": nccl,
    "commands": commands,
}
