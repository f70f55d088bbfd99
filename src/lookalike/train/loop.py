"""Pretraining: the loop, readable aloud, and what stands around it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lookalike.core import dist
from lookalike.core.devices import (
    device,
    exact,
    full_precision,
    keep_freed,
    material_to_device,
    module_to_device,
    one_thread_beside_a_gpu,
    transfer,
    view_to_device,
)
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.seeding import reseed
from lookalike.data.loader import Loads
from lookalike.data.order import Order, order_of
from lookalike.learn import optim
from lookalike.learn.dictionary import InBatch, Queue
from lookalike.learn.labelled import Classes
from lookalike.learn.learner import Learner, Outcome
from lookalike.models.text import Transformer, TwoTowers
from lookalike.models.vit import ViT
from lookalike.pretext.image import TwoViews, ViewPair
from lookalike.recipes.modality import Examples
from lookalike.recipes.recipe import Recipe, uneven
from lookalike.train.guard import StepGuard
from lookalike.train.run import Run
from lookalike.train.watch import Due, Log, Meter, Signals, StepReport
from lookalike.types import Batch, View

Measure = Callable[[Learner], dict[str, float]]
Work = Callable[[Batch], Outcome]

GRAPHS = "LOOKALIKE_GRAPHS"
"""Environment variable: 0 has every kernel started anew, to look at one."""

_WARM = 3  # steps that are made as usual first: libraries start, and kernels are compiled


class Finished(NamedTuple):
    """A run at its end, or where a signal stopped it."""

    step: int
    total: int
    learner: Learner
    waited: float  # share of the time in which the step waited for data
    views: float  # share of the time in which views were made of it
    signal: int | None

    def __repr__(self) -> str:
        return f"Finished(step {self.step:,} of {self.total:,}{', stopped by a signal' if self.signal else ''})"


def batches(
    loader: Loads, recipe: Recipe, order: Order, start: int, stop: int, meter: Meter | None = None
) -> Iterator[Batch]:
    """This rank's share of the two views of every step from ``start`` on: a pure function of recipe and data.

    ``meter`` adds up how long material was waited for.
    """
    meter, examples = meter or Meter(), Examples(recipe, loader)

    def rows_of(step: int) -> Tensor:
        return order.rows(step, dist.rank(), dist.world())

    reads = (examples.training(rows_of(step), order.epoch(step)) for step in range(start, stop))
    for step, loaded in enumerate(meter.reads(loader.batches(reads)), start):
        rows = rows_of(step)
        first, second = recipe.pretext(material_to_device(loaded.material), rows, recipe.seed, order.epoch(step))
        # Where labels teach, a picture that stands in for one that cannot be read brings its own.
        known = loader.shown(rows) if recipe.objective.supervised else rows
        # Ranks tell each other by it what they send, so theirs stays on the host.
        index = known.repeat(recipe.pairs)
        index = index if dist.world() > 1 else transfer([index], device())[0]
        query = view_to_device(first)
        yield Batch(index, query, query if second is first else view_to_device(second))


def views_at(loader: Loads, recipe: Recipe, rows: Tensor, epoch: int) -> tuple[View, View]:
    """The first two views that ``epoch`` draws of the examples at ``rows`` (B,)."""
    loaded = next(iter(loader.batches([Examples(recipe, loader).training(rows, epoch)])))
    pretext = replace(recipe.pretext, pairs=1) if isinstance(recipe.pretext, TwoViews) else recipe.pretext
    return pretext(material_to_device(loaded.material), rows, recipe.seed, epoch)


def train(
    recipe: Recipe,
    run: Run,
    loader: Loads,
    checkup: Measure = lambda _: {},
    watch: Callable[[StepReport], None] = lambda _: None,
    save_every: int | None = None,
    pause: Callable[[int], bool] = lambda _: False,
    skips: int = 0,
) -> Finished:
    """Train ``recipe`` in ``run`` from its newest checkpoint, or from the start, to its end or to a signal.

    It also stops, saved, after a step for which ``pause`` says so. ``skips`` steps whose loss or gradient is not finite
    are passed over.
    """
    keep_freed()
    order = order_of(loader.source, recipe.batch, recipe.seed, recipe.window)
    learner = new_learner(recipe, loader).train()
    optimizer = recipe.optimizer_of(learner)
    step, signal = run.resume(learner, optimizer), 0.0
    total_at = partial(recipe.length.total_at, order.steps_per_epoch)
    total = total_at()
    if step < total:
        run.go_on(recipe)
    due = Due(total_at, recipe.checkups, save_every)
    run.note_missing([done for done in range(1, step + 1) if due.log(done)])
    guard = StepGuard(learner, optimizer, run, loader.source.paths, skips)
    log = Log(run, watch, meter := Meter(), recipe, len(loader), total)
    work = work_of(dist.distributed(learner), learner, recipe)

    with Signals() as signals, exact(has_own_attention(recipe)), one_thread_beside_a_gpu():
        coming = meter.over(batches(loader, recipe, order, step, total, meter))
        for step, batch in enumerate(coming, step + 1):  # noqa: B020  (steps count on from the checkpoint)
            reseed(recipe.seed, step)
            dist.doing(f"step {step}")
            optim.apply(recipe.schedule, optimizer, (step - 1) / total_at(step))
            optimizer.zero_grad()
            outcome, sound = guard.step(step, work, batch)
            if sound:
                optimizer.step()
                if due.log(step):
                    log.step(step, outcome, optimizer.param_groups[0]["lr"])
                learner.advance(outcome, batch, step / total_at(step))
            if due.checkup(step):
                guard.check_state(step)
                log.checkup(step, run_checkup(learner, checkup))
            save, paused, signal = dist.largest([due.save(step), pause(step), signals.received or 0])
            if save or paused or signal:
                guard.check_state(step)
                due.saved(partial(run.save, step, learner, optimizer))
            if paused or signal:
                break
    return Finished(step, total, learner, meter.data_share(), meter.views_share(), int(signal) or None)


def has_own_attention(recipe: Recipe) -> bool:
    """Whether a network is one of our transformers, whose attention is deterministic on GPUs only if torch is strict.

    All their other kernels are so either way, as those of ResNets for pictures are. Torch has no such gradient of the
    average pool in three dimensions, so clips on a GPU are not exact; networks of others may have such kernels, too.
    """
    return isinstance(recipe.model, ViT | Transformer | TwoTowers)


def new_learner(recipe: Recipe, loader: Loads) -> Learner:
    """A learner with its initial weights, where it will train; refuses what cannot be trained so."""
    if reason := uneven(recipe, dist.world()):
        raise UserError(reason)
    learner = module_to_device(recipe.build(len(loader)))
    if recipe.objective.supervised:
        labels = loader.source.labels
        if bool((labels < 0).any()):
            raise UserError(f"{recipe.name} learns from labels, and some examples have none", BAD_DATA)
        learner.labels = torch.unique(labels, return_inverse=True)[1].to(device())  # numbered from 0, in their order
    return learner


def work_of(model: nn.Module, learner: Learner, recipe: Recipe) -> Work:
    """What a step does with a batch: ``backward``, which a GPU repeats by itself where it can."""

    def work(batch: Batch) -> Outcome:
        return backward(model, learner, batch, recipe)

    return Replayed(work, learner) if can_repeat(recipe) else work


@full_precision()
def backward(model: nn.Module, learner: Learner, batch: Batch, recipe: Recipe) -> Outcome:
    """Add the gradient of a batch, slice by slice; the keys of all slices are made first, as their shuffle asks."""
    keys = learner.keys.precomputed(batch) if recipe.slices > 1 else ()
    sliced = zip(*(key.chunk(recipe.slices) for key in keys)) if keys else [()] * recipe.slices
    outcomes = []
    for number, (part, part_keys) in enumerate(zip(batch.slices(recipe.slices), sliced), 1):
        with dist.no_sync(model) if number < recipe.slices else nullcontext():
            outcome = model(part, part_keys)
            (outcome.loss / recipe.slices).backward()
        outcomes.append(outcome)
    return Outcome.of_slices(outcomes)


def run_checkup(learner: Learner, checkup: Measure) -> dict[str, float]:
    """A check-up by the first rank; what it fits is everybody's."""
    metrics = dist.on_first_rank(lambda: checkup(learner))
    if learner.encoder.whitening is not None:
        dist.copy_from_first(list(learner.encoder.whitening.buffers()))
    return metrics


# ---- a step that a GPU repeats by itself ----


def can_repeat(recipe: Recipe) -> bool:
    """Whether every step is the same kernels with the same numbers from the host, on tensors of the same shapes.

    Texts have other lengths each step, a bank that draws is told the step by the host, and ranks wait for each other.
    """
    pictures = isinstance(recipe.pretext, ViewPair) and isinstance(recipe.dictionary, Queue | InBatch | Classes)
    return pictures and device().type == "cuda" and dist.world() == 1 and os.environ.get(GRAPHS) != "0"


class Replayed:
    """A forward and backward pass, recorded once as a CUDA graph; what it gives is overwritten by the next call.

    A ResNet-50 step starts about 900 kernels, which took the host longer than the GPU took to run them
    (docs/results.md).
    """

    def __init__(self, work: Work, module: nn.Module) -> None:
        self._work, self._module = work, module
        # One stream for all: where gradients add up is decided by the stream of the pass that first met a parameter.
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch) -> Outcome:
        """The outcome of a batch, whose gradients are in the module after it."""
        self._calls += 1
        if self._calls <= _WARM:
            return self._as_usual(batch)
        if self._graph is None:
            self._record(batch)
        assert self._graph is not None
        for static, part in zip(_parts(self._batch), _parts(batch)):
            static.copy_(part)
        self._graph.replay()
        for parameter, gradient in self._gradients:  # the loop has let go of them
            parameter.grad = gradient
        return self._outcome

    def _as_usual(self, batch: Batch) -> Outcome:
        using = torch.cuda.current_stream()
        self._stream.wait_stream(using)
        with torch.cuda.stream(self._stream):
            outcome = self._work(batch)
        using.wait_stream(self._stream)
        return outcome

    def _record(self, batch: Batch) -> None:
        """Nothing is computed: kernels are written down, with the memory that they use."""
        self._batch = Batch(batch.index.clone(), _copied(batch.first), _copied(batch.second))
        if batch.second is batch.first:
            self._batch = self._batch._replace(second=self._batch.first)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._outcome = self._work(self._batch)
        self._gradients = [(p, p.grad) for p in self._module.parameters() if p.grad is not None]
        self._graph = graph


def _copied(view: View) -> View:
    return {name: part.clone() for name, part in view.items()}


def _parts(batch: Batch) -> Iterator[Tensor]:
    """All tensors of a batch, each once."""
    yield batch.index
    yield from batch.first.values()
    if batch.second is not batch.first:
        yield from batch.second.values()
