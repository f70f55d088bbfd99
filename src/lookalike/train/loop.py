"""Pretraining: the loop, readable aloud, and what stands around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lookalike.core import dist
from lookalike.core.devices import Later, device, exact, full_precision, moved, placed, sent, uploaded
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.memory import keep_freed
from lookalike.core.seeding import reseed
from lookalike.data.loader import Loads
from lookalike.data.order import Order
from lookalike.data.video.naming import filmed
from lookalike.data.windows import order_of
from lookalike.learn import optim
from lookalike.learn.learner import Learner, Outcome
from lookalike.models.text import Transformer
from lookalike.models.vit import ViT
from lookalike.recipes.recipe import Recipe, uneven
from lookalike.train import checkpoint
from lookalike.train.meter import Beside, Due, Timed, Waiting
from lookalike.train.replay import Work, repeated
from lookalike.train.run import Run
from lookalike.train.signals import Signals
from lookalike.types import Batch, View

_ADVICE = "no checkpoint holds it; lower --optimizer.lr and start again with --overwrite"

CheckUp = Callable[[Learner], dict[str, float]]


class Pulse(NamedTuple):
    """What a running training tells whoever shows it."""

    step: int
    total: int
    loss: float
    guess: float  # the loss of scoring all entries alike: log(K + 1) for InfoNCE
    measures: dict[str, float]  # the pretext accuracy ``top1``, the error of ``pixels``: those that the recipe has
    images_per_second: float
    seconds_per_step: float
    metrics: dict[str, float]  # of the last check-up


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
    loader: Loads, recipe: Recipe, order: Order, start: int, stop: int, data: Timed | None = None
) -> Iterator[Batch]:
    """This rank's share of the two views of every step from ``start`` on: a pure function of recipe and data.

    ``data`` adds up how long material was waited for.
    """
    data, seed, film = data or Timed(), recipe.seed, filmed(loader.source)

    def examples(step: int) -> Tensor:
        return order.rows(step, dist.rank(), dist.world())

    steps = range(start, stop)
    reads = (recipe.pretext.reads(film, examples(step), seed, order.epoch(step)) for step in steps)
    for step, loaded in enumerate(data.over(loader.batches(reads)), start):
        rows = examples(step)
        first, second = recipe.pretext(moved(loaded.material), rows, seed, order.epoch(step))
        # Where labels teach, a picture that stands in for one that cannot be read brings its own.
        known = loader.shown(rows) if recipe.objective.supervised else rows
        index = known if dist.world() > 1 else sent([known], device())[0]  # ranks tell each other by it what they send
        query = uploaded(first)
        yield Batch(index, query, query if second is first else uploaded(second))


def views_at(loader: Loads, recipe: Recipe, rows: Tensor, epoch: int) -> tuple[View, View]:
    """The two views that ``epoch`` draws of the examples at ``rows`` (B,)."""
    reads = recipe.pretext.reads(filmed(loader.source), rows, recipe.seed, epoch)
    loaded = next(iter(loader.batches([reads])))
    return recipe.pretext(moved(loaded.material), rows, recipe.seed, epoch)


def train(
    recipe: Recipe,
    run: Run,
    loader: Loads,
    checkup: CheckUp = lambda _: {},
    watch: Callable[[Pulse], None] = lambda _: None,
    save_every: int | None = None,
    pause: Callable[[int], bool] = lambda _: False,
) -> Finished:
    """Train ``recipe`` in ``run`` from its newest checkpoint, or from the start, to its end or to a signal.

    It also stops, saved, after a step for which ``pause`` says so.
    """
    keep_freed()
    order = order_of(loader.source, recipe.batch, recipe.seed, recipe.window)
    learner = begun(recipe, loader)
    optimizer = recipe.optimizer.build(learner, recipe.batch)
    step = resume(run, learner, optimizer)
    total, total_at = steps_of(recipe, order), partial(recipe.length.total_at, order.steps_per_epoch)
    if step < total:
        run.go_on(recipe)
    due = Due(total_at, recipe.checkups, save_every)
    watched = Watched.of(recipe, loader, order, step, total)
    work, finite = work_of(dist.distributed(learner), learner, recipe), Finite(learner, optimizer)
    learner.train()

    with Signals() as signals, exact(attends(recipe)):
        for step, batch in enumerate(watched, step + 1):  # noqa: B020  (steps count on from the checkpoint)
            reseed(recipe.seed, step)
            optim.apply(recipe.schedule, optimizer, (step - 1) / total_at(step))
            optimizer.zero_grad()
            outcome = work(batch)
            finite.refuse_other(outcome.loss, step)
            optimizer.step()
            pulse = watched.pulse(step, outcome) if due.log(step) else None
            learner.advance(outcome, batch, step / total_at(step))
            if pulse is not None:
                watched.log(run, pulse, optimizer.param_groups[0]["lr"])
                watch(pulse)
            if due.checkup(step) and (found := checked(learner, checkup)):
                watched.metrics = found
                run.log(step, **found)
            save, paused, signal = dist.largest([due.save(step), pause(step), signals.received or 0])
            if save or paused or signal:
                finite.refuse_to_keep(step)
                run.sync()
                due.saved(lambda: checkpoint.save(run.checkpoints, step, learner, optimizer))  # noqa: B023
            if paused or signal:
                return watched.finished(step, learner, int(signal) or None)
    return watched.finished(step, learner, None)


def attends(recipe: Recipe) -> bool:
    """Whether a network is one of our transformers, whose attention is deterministic on GPUs only if torch is strict.

    All their other kernels are so either way, as those of ResNets are; networks of others may have some that are not.
    """
    return isinstance(recipe.model, ViT | Transformer)


def begun(recipe: Recipe, loader: Loads) -> Learner:
    """A learner with its initial weights, where it will train; refuses what cannot be trained so."""
    if reason := uneven(recipe, dist.world()):
        raise UserError(reason)
    learner = placed(recipe.build(len(loader)))
    if recipe.objective.supervised:
        labels = loader.source.labels
        if bool((labels < 0).any()):
            raise UserError(f"{recipe.name} learns from labels, and some examples have none", BAD_DATA)
        learner.labels = torch.unique(labels, return_inverse=True)[1].to(device())  # numbered from 0, in their order
    return learner


def work_of(model: nn.Module, learner: Learner, recipe: Recipe) -> Work:
    """What a step does with a batch: ``backward``, which a GPU repeats by itself where it can."""
    return repeated(lambda batch: backward(model, learner, batch, recipe), learner, recipe)


@full_precision()
def backward(model: nn.Module, learner: Learner, batch: Batch, recipe: Recipe) -> Outcome:
    """Add the gradient of a batch, slice by slice; the keys of all slices are made first, as their shuffle asks."""
    made = learner.keys.made(batch) if recipe.slices > 1 else ()
    keys = zip(*(key.chunk(recipe.slices) for key in made)) if made else [()] * recipe.slices
    outcomes = []
    for number, (part, its_keys) in enumerate(zip(batch.slices(recipe.slices), keys), 1):
        with dist.silent(model) if number < recipe.slices else nullcontext():
            outcome = model(part, its_keys)
            (outcome.loss / recipe.slices).backward()
        outcomes.append(outcome)
    return Outcome.of_slices(outcomes)


def checked(learner: Learner, checkup: CheckUp) -> dict[str, float]:
    """A check-up by the first rank; what it fits is everybody's."""
    found = dist.on_first_rank(lambda: checkup(learner))
    if learner.encoder.whitening is not None:
        dist.copy_from_first(list(learner.encoder.whitening.buffers()))
    return found


class Watched:
    """Iterates the batches of a run and keeps what a pulse tells of it."""

    def __init__(self, recipe: Recipe, total: int, examples: int, waiting: Waiting) -> None:
        self.recipe, self.total, self.waiting = recipe, total, waiting
        self.guess = recipe.guess(examples)
        self.metrics: dict[str, float] = {}

    @classmethod
    def of(cls, recipe: Recipe, loader: Loads, order: Order, start: int, total: int) -> Watched:
        """The steps from ``start`` to ``total``."""
        data = Timed()
        coming = Beside(batches(loader, recipe, order, start, total, data))
        return cls(recipe, total, len(loader), Waiting(coming, data))

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.waiting)

    def share(self) -> float:
        """The share of the time in which the step waited for data."""
        return self.waiting.share()

    def log(self, run: Run, pulse: Pulse, lr: float) -> None:
        """Into metrics.jsonl what repeats exactly, and beside it what depends on the hour."""
        run.log(pulse.step, loss=pulse.loss, **pulse.measures, lr=lr)
        run.pace(pulse.step, images_per_s=pulse.images_per_second, data_wait=self.share())

    def finished(self, step: int, learner: Learner, signal: int | None) -> Finished:
        """The run as it is left after ``step``."""
        return Finished(step, self.total, learner, self.share(), self.waiting.views(), signal)

    def pulse(self, step: int, outcome: Outcome) -> Pulse:
        """After a step and before ``advance``; the means over ranks."""
        parts = {"loss": outcome.loss.detach(), **outcome.measures()}
        stacked = torch.stack([part.to(outcome.loss.dtype) for part in parts.values()])
        means = dict(zip(parts, dist.mean(stacked).tolist()))
        rate, pace = self.waiting.rate(self.recipe.batch), self.waiting.pace
        return Pulse(step, self.total, means.pop("loss"), self.guess, means, rate, pace, self.metrics)


def resume(run: Run, learner: Learner, optimizer: torch.optim.Optimizer) -> int:
    """Restore the newest whole checkpoint, if there is one; the steps that are done."""
    name, damaged = dist.on_first_rank(lambda: checkpoint.newest_name(run.checkpoints))
    for reason in damaged:
        run.note(f"passed over a damaged checkpoint: {reason}")
    step = checkpoint.load(run.checkpoints / name, learner, optimizer) if name else 0
    run.rewind(step)
    return step


class Finite:
    """Stops a run before a loss or a gradient that is not a number reaches a checkpoint.

    On a processor it is read before the weights move. A GPU is not waited for: there it is read one step late, and at
    once before a save.
    """

    def __init__(self, learner: Learner, optimizer: torch.optim.Optimizer) -> None:
        self._learner, self._optimizer = learner, optimizer
        self._learning = [p for p in learner.parameters() if p.requires_grad]
        self._read: Later | None = None
        self._step = 0

    def refuse_other(self, loss: Tensor, step: int) -> None:
        """Look at the loss and the gradients of ``step``. Raises UserError."""
        norm = nn.utils.get_total_norm(p.grad for p in self._learning if p.grad is not None)
        now = Later(torch.stack([loss.detach().to(norm.dtype), norm]))
        self.settle()
        self._read, self._step = now, step
        if now.there():
            self.settle()

    def refuse_to_keep(self, step: int) -> None:
        """Look at the state after ``step``, which an update by finite numbers can make infinite. Raises UserError."""
        self.settle()
        held = [("the optimizer", part) for state in self._optimizer.state.values() for part in state.values()]
        for name, part in [*self._learner.state_dict().items(), *held]:
            if isinstance(part, Tensor) and part.is_floating_point() and not bool(part.isfinite().all()):
                raise UserError(f"{name} is not finite after step {step}: {_ADVICE}", BAD_DATA)

    def settle(self) -> None:
        """Wait for what was looked at. Raises UserError."""
        loss, norm = self._read.values() if self._read is not None else (0.0, 0.0)
        self._read = None
        if not math.isfinite(loss + norm):
            raise UserError(
                f"the loss is {loss}, the norm of its gradient {norm}, at step {self._step}: {_ADVICE}", BAD_DATA
            )


def steps_of(recipe: Recipe, order: Order) -> int:
    """The steps of the whole run, which ``--minutes`` has fixed by now."""
    total = recipe.length.total(order.steps_per_epoch)
    if total is None:
        raise ValueError("minutes are measured before training: see minutes.py")
    return total
