"""Pretraining: the loop, readable aloud, and what stands around it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike import checkpoint, optimize
from lookalike.data.loader import Loader
from lookalike.data.order import Order
from lookalike.dist import autocast, device, placed
from lookalike.learn.learner import Learner
from lookalike.pace import Due, Waiting
from lookalike.pretext.image import Canvases
from lookalike.recipe import Recipe
from lookalike.run import Run
from lookalike.seeding import reseed
from lookalike.signals import Signals
from lookalike.trouble import BAD_DATA, Trouble
from lookalike.types import Batch

CheckUp = Callable[[Learner], dict[str, float]]


class Pulse(NamedTuple):
    """What a running training tells whoever shows it."""

    step: int
    total: int
    loss: float
    chance: float  # log(K + 1), the loss of a guess
    top1: float
    images_per_second: float
    seconds_per_step: float
    metrics: dict[str, float]  # of the last check-up


class Finished(NamedTuple):
    """A run at its end, or where a signal stopped it."""

    step: int
    total: int
    learner: Learner
    waited: float  # share of the time in which the step waited for data
    signal: int | None


def batches(loader: Loader, recipe: Recipe, order: Order, start: int, stop: int) -> Iterator[Batch]:
    """The two views of every step from ``start`` on: a pure function of the recipe and the data."""
    rows_of_steps = (order.rows(step) for step in range(start, stop))
    where = device()
    for step, (rows, pixels, sizes) in enumerate(loader.batches(rows_of_steps), start):
        rows, canvases = rows.to(where), Canvases(pixels.to(where), sizes.to(where))
        yield Batch(rows, *recipe.pretext(canvases, rows, recipe.seed, order.epoch(step)))


def train(
    recipe: Recipe,
    run: Run,
    loader: Loader,
    checkup: CheckUp = lambda _: {},
    watch: Callable[[Pulse], None] = lambda _: None,
    save_every: int | None = None,
) -> Finished:
    """Train ``recipe`` in ``run`` from its newest checkpoint, or from the start, to its end or to a signal."""
    order = Order(len(loader), recipe.batch, recipe.seed)
    learner = placed(recipe.build(len(loader)))
    optimizer = recipe.optimizer.build(learner.encoder, recipe.batch)
    step = resume(run, learner, optimizer)
    total = steps_of(recipe, order)
    due = Due(total, recipe.checkups, save_every)
    chance = math.log(recipe.dictionary.size + 1)
    metrics: dict[str, float] = {}
    watched = Waiting(batches(loader, recipe, order, step, total))
    learner.train()

    with Signals() as signals:
        for step, batch in enumerate(watched, step + 1):  # noqa: B020  (steps count on from the checkpoint)
            reseed(recipe.seed, step)
            optimize.apply(recipe.schedule, optimizer, (step - 1) / total)
            with autocast(recipe.precision, device()):
                outcome = learner(batch)
            optimizer.zero_grad()
            outcome.loss.backward()
            refuse_not_finite(outcome.loss, learner, step)
            optimizer.step()
            if due.log(step):
                pulse = Pulse(
                    step,
                    total,
                    outcome.loss.item(),
                    chance,
                    outcome.top1().item(),
                    watched.rate(recipe.batch),
                    watched.pace,
                    metrics,
                )
            learner.advance(outcome, batch, step / total)
            if due.log(step):
                run.log(step, loss=pulse.loss, top1=pulse.top1, lr=optimizer.param_groups[0]["lr"])
                run.pace(step, images_per_s=pulse.images_per_second, data_wait=watched.share())
                watch(pulse)
            if due.checkup(step) and (found := checkup(learner)):
                run.log(step, **(metrics := found))
            if due.save(step) or signals.received:
                run.sync()
                due.saved(lambda: checkpoint.save(run.checkpoints, step, learner, optimizer))  # noqa: B023
            if signals.received:
                break
    return Finished(step, total, learner, watched.share(), signals.received)


def resume(run: Run, learner: Learner, optimizer: torch.optim.Optimizer) -> int:
    """Restore the newest whole checkpoint, if there is one; the steps that are done."""
    path, damaged = checkpoint.newest(run.checkpoints)
    for reason in damaged:
        run.note(f"passed over a damaged checkpoint: {reason}")
    step = checkpoint.load(path, learner, optimizer) if path else 0
    run.rewind(step)
    return step


def refuse_not_finite(loss: Tensor, learner: Learner, step: int) -> None:
    """Stop before a loss or a gradient that is not a number reaches the weights."""
    gradients = torch.nn.utils.get_total_norm(p.grad for p in learner.encoder.parameters() if p.grad is not None)
    if not bool(torch.isfinite(loss + gradients)):
        raise Trouble(
            f"the loss is {loss.item()}, the norm of its gradient {gradients.item()}, at step {step}: the weights are "
            f"as after step {step - 1}; lower --optimizer.lr and start again with --overwrite",
            BAD_DATA,
        )


def steps_of(recipe: Recipe, order: Order) -> int:
    """The steps of the whole run, which ``--minutes`` has fixed by now."""
    total = recipe.length.total(order.steps_per_epoch)
    if total is None:
        raise ValueError("minutes are measured before training: see measured()")
    return total


def measured(recipe: Recipe, loader: Loader, reserve: float = 0.0, probes: int = 12) -> Recipe:
    """The recipe with minutes turned into steps, by timing steps of a throw-away copy of the run.

    The run itself then starts at step 0 with its length known, so that a resume repeats it exactly. ``reserve`` is how
    many seconds of the minutes belong to other work, before and after.
    """
    minutes = recipe.length.minutes
    if minutes is None or recipe.length.steps is not None:
        return recipe
    began = time.perf_counter()
    order = Order(len(loader), recipe.batch, recipe.seed)
    learner = placed(recipe.build(len(loader))).train()
    optimizer = recipe.optimizer.build(learner.encoder, recipe.batch)
    marks: list[float] = []
    for batch in batches(loader, recipe, order, 0, probes):
        with autocast(recipe.precision, device()):
            outcome = learner(batch)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        learner.advance(outcome, batch, 0.0)
        marks.append(time.perf_counter())
        if marks[-1] - began > 0.1 * 60 * minutes:
            break
    durations = [after - before for before, after in zip([began, *marks], marks)]
    steps = steps_within(60 * minutes - (time.perf_counter() - began) - reserve, durations)
    return replace(recipe, length=replace(recipe.length, steps=steps))


def steps_within(seconds: float, durations: Sequence[float]) -> int:
    """How many steps take ``seconds``, by the median of some; 1 where there is no time left, so that a run exists."""
    return max(1, int(seconds / statistics.median(durations)))
