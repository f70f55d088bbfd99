"""How long a run goes on: measured where that is given in minutes, corrected on its way, made longer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

import torch

from lookalike.core import dist
from lookalike.core.devices import device, exact, one_thread_beside_a_gpu
from lookalike.core.errors import UserError
from lookalike.data.loader import Loads
from lookalike.data.order import order_of
from lookalike.learn.learner import Learner
from lookalike.recipes.recipe import Length, Recipe
from lookalike.train import checkpoint
from lookalike.train.loop import (
    Finished,
    Measure,
    batches,
    has_own_attention,
    new_learner,
    train,
    work_of,
)
from lookalike.train.run import Run
from lookalike.train.trained import Checkup
from lookalike.train.watch import Meter, StepReport

LEAST = 30
"""Steps below which a run in minutes is refused: it would be over before it has learned anything."""

_PROBES, _FEWEST, _SHARE = 48, 3, 0.1  # steps that are timed, at most and at least; their share of the minutes
_FASTER = 0.95  # of the time on twice the threads: what fewer must reach, since what is measured varies by that
_LOOKS = 16  # how often a run compares when it will end with when it should
_TOLERANCE, _PATIENCE = 0.03, 0.15  # of the minutes, and of what is to come: by how much it may miss them before
# that is mended, which costs a checkpoint: what is far may yet come right by itself
_EXPECTED = 0.1  # of the minutes: by how much a run is said to miss them; tests/train/test_minutes.py has when it does


# ---- minutes in steps ----


class Budget(NamedTuple):
    """What the minutes of a run are spent on, in seconds."""

    whole: float
    before: float  # listing, decoding and measuring: spent
    checkup: float  # each
    checkups: int
    step: float  # each

    @property
    def steps(self) -> int:
        """Those for which time is left."""
        return max(0, int((self.whole - self.before - self.checkups * self.checkup) / self.step))

    def enough(self) -> Budget:
        """Itself; raises UserError with the minutes that would do where too few steps are left."""
        if self.steps >= LEAST:
            return self
        reserved = self.before + self.checkups * self.checkup
        need = _round_up((reserved + 1.2 * LEAST * self.step) / 60)  # by a fifth more: the fastest steps were timed
        raise UserError(
            f"{self.whole / 60:g} minutes are {self.steps} steps here: one takes {_short(self.step)} s, "
            f"getting started took {_short(self.before)} s, {self.checkups} check-ups of {_short(self.checkup)} s are "
            f"to come; {LEAST} steps need about {need:g} minutes: --minutes {need:g}, fewer --checkups, or --steps"
        )

    def more(self, total: int) -> Budget:
        """That of further steps after ``total``: check-ups are even over the whole run, so some are past."""
        share = self.steps / (total + max(1, self.steps))
        return self._replace(checkups=max(1, round(share * self.checkups)))


def budget(recipe: Recipe, length: Length, loader: Loads, checkup: Checkup, run: Run, start: float) -> Budget:
    """How the minutes of ``length``, which count from ``start``, are spent, by timing a check-up and some steps.

    It leaves as many threads set as steps are fastest on.
    """
    assert length.minutes is not None
    run.tell(f"measuring how many steps {length.minutes:g} minutes allow")
    whole, checkup_seconds = 60 * length.minutes, checkup.seconds()
    step = fastest(lambda share: pace(probe(recipe, loader, share * whole)), run.threads)
    if (threads := torch.get_num_threads()) < run.threads:
        why = "steps are faster so, as they are where other programs compute, or where steps are small"
        run.tell(f"{threads} of {run.threads} threads: {why}")
    before = time.perf_counter() - start
    return Budget(*dist.agree((whole, before, checkup_seconds, max(1, recipe.checkups), step)))


def fastest(timed: Callable[[float], float], most: int) -> float:
    """Seconds that a step takes on the number of threads that it is fastest on: ``most``, or half, or half of that.

    So many are set after. ``timed`` says how long a step takes on those that are set, in a share of the minutes. More
    are slower where steps are small, or where other programs compute, since all wait for the thread that these hold up:
    beside one such program two of two made too few steps in a minute to begin, and one made 90 (docs/results.md).
    """
    torch.set_num_threads(most)
    best = timed(_SHARE)
    alone = device().type == "cpu" and dist.world() == 1
    while alone and (threads := torch.get_num_threads()) > 1:
        torch.set_num_threads(threads // 2)
        if (now := timed(_SHARE / 4)) > _FASTER * best:
            torch.set_num_threads(threads)
            break
        best = now
    return best


def probe(recipe: Recipe, loader: Loads, seconds: float) -> list[float]:
    """How many seconds each of the first steps takes, of a throw-away copy of the run.

    There are 48, or fewer where those would take more than ``seconds``, but at least 3.
    """
    order = order_of(loader.source, recipe.batch, recipe.seed, recipe.window)
    learner = new_learner(recipe, loader).train()
    optimizer = recipe.optimizer_of(learner)
    work = work_of(dist.distributed(learner), learner, recipe)
    marks, loss = [time.perf_counter()], torch.zeros(())
    with exact(has_own_attention(recipe)), one_thread_beside_a_gpu():
        for batch in Meter().over(batches(loader, recipe, order, 0, _PROBES)):
            optimizer.zero_grad()
            outcome = work(batch)
            optimizer.step()
            learner.advance(outcome, batch, 0.0)
            loss.item()  # waits for a GPU, one step late, as training does
            loss = outcome.loss.detach().clone()
            marks.append(time.perf_counter())
            if dist.largest([timed_enough(marks, seconds)])[0]:
                break
    return [after - before for before, after in pairwise(marks)]


def timed_enough(marks: Sequence[float], seconds: float) -> bool:
    """Whether one more step like the last would end after ``seconds``; ``marks`` are the beginning and all ends."""
    return len(marks) > _FEWEST and 2 * marks[-1] - marks[-2] - marks[0] > seconds


def pace(durations: Sequence[float]) -> float:
    """Seconds a step takes by the fastest quarter of some: what else a machine does makes steps slower, never faster.

    The first, which allocates and compiles, does not count. Neighbours count together, since data that comes in bursts
    makes single steps fast.
    """
    steady = durations[1:] or durations
    size = max(1, len(steady) // 12)
    means = sorted(fmean(steady[i : i + size]) for i in range(0, len(steady) - size + 1, size))
    return fmean(means[: max(1, len(means) // 4)])


def expected(seconds: float) -> str:
    """How long a run will take, in words."""
    least, most = ((1 + side * _EXPECTED) * seconds / 60 for side in (-1, 1))
    return f"{_short(least)} to {_short(most)} minutes"


def _short(number: float) -> str:
    """With two digits, or all that are before the point."""
    return f"{number:.2g}" if number < 99.5 else f"{number:.0f}"


def _round_up(minutes: float) -> float:
    """To whole minutes, or to the second digit where there are less than ten."""
    scale = 1.0 if minutes >= 10 else 10.0 ** (1 - math.floor(math.log10(minutes)))
    return math.ceil(minutes * scale) / scale


# ---- on its way ----


class Clock:
    """Whether a run is due to end in time; where it is not, ``total`` is how many steps it should have.

    What it goes by is the pace since it last looked; check-ups are counted apart, since few of them take long.
    """

    def __init__(
        self, budget: Budget, total: int, earlier: int = 0, now: Callable[[], float] = time.perf_counter
    ) -> None:
        """Of ``total`` steps ``earlier`` are to come that the minutes are not for: they get their own time."""
        self.total, self._now = total, now
        self._often, self._checkup = budget.checkups / total, budget.checkup
        self.whole = budget.whole + earlier * (budget.step + self._often * budget.checkup)
        self._ends = now() + self.whole - budget.before
        self._checked = 0.0  # seconds in check-ups
        self._last: tuple[int, float, float] | None = None  # step, time and ``_checked`` of the last look

    def timed(self, checkup: Measure) -> Measure:
        """The same check-up, whose time is noted."""

        def call(learner: Learner) -> dict[str, float]:
            start = self._now()
            metrics = checkup(learner)
            self._checkup = self._now() - start
            self._checked += self._checkup
            return metrics

        return call

    def off(self, step: int) -> bool:
        """Whether the run, when ``step`` is done, is due to end too early or too late; looks now and then."""
        now = self._now()
        if self._last is None:  # the time that it takes to begin, or to go on, is that of no step
            self._last = (step, now, self._checked)
        done, at, checked = self._last
        if now - at < self.whole / _LOOKS or step in (done, self.total):
            return False
        self._last = (step, now, self._checked)
        each, rest = (now - at - (self._checked - checked)) / (step - done), self.total - step
        left = self._ends - now - max(1, round(self._often * rest)) * self._checkup
        allowed = _TOLERANCE * self.whole + _PATIENCE * rest * each
        return abs(left - rest * each) > allowed and self._corrected(step, int(left / each))

    def _corrected(self, step: int, more: int) -> bool:
        """Let ``more`` steps follow, at least half and at most twice those that were to come; whether others do now."""
        rest, before = self.total - step, self.total
        self.total = step + min(2 * rest, max((rest + 1) // 2, more))
        if self.total != before:
            self._last = None
        return self.total != before


def train_to_end(
    recipe: Recipe,
    run: Run,
    loader: Loads,
    checkup: Checkup,
    watch: Callable[[StepReport], None],
    save_every: int | None,
    clock: Clock | None,
    skips: int = 0,
) -> Finished:
    """Train, to a signal or to the end; a run that would miss its minutes gets another length on the way.

    It takes it up as a resumed run does, from a checkpoint and what is on record, so that killing it changes nothing.
    """
    if clock is None:
        return train(recipe, run, loader, checkup.__call__, watch, save_every, skips=skips)
    pause = clock.off if dist.first() else lambda _: False
    while True:
        done = train(recipe, run, loader, clock.timed(checkup.__call__), watch, save_every, pause, skips)
        if done.signal or done.step == done.total:
            return done
        step, total, new = done.step, done.total, dist.agree(clock.total)
        del done  # and its learner: the next one wants the memory
        recipe = record_length(recipe, run, step, new)
        speed = "slower" if new < total else "faster"
        run.note(f"{speed} than was measured: from step {step:,} on {new:,} steps instead of {total:,}, to end in time")


# ---- made longer ----


def extend(
    recipe: Recipe, longer: Length, run: Run, loader: Loads, checkup: Checkup, start: float
) -> tuple[Recipe, Clock | None]:
    """Make a run longer from its newest checkpoint on, and record it; one that is so long already goes on.

    ``longer`` is its length in all, but minutes are more than it has.
    """
    order = order_of(loader.source, recipe.batch, recipe.seed, recipe.window)
    done = dist.on_first_rank(lambda: checkpoint.newest_step(run.checkpoints))
    total = recipe.length.total_at(order.steps_per_epoch)
    new, clock, how_long = longer.total(order.steps_per_epoch), None, ""
    if new is None:
        if done < total and recipe.length.longer_by() == longer.minutes:
            return recipe, None
        seconds = budget(recipe, longer, loader, checkup, run, start)
        new = total + seconds.more(total).enough().steps
        clock = Clock(seconds, new, earlier=total - done)
        how_long = f", in {expected(clock.whole)}"
    if new < total:
        raise UserError(f"{run.folder} is {total} steps long, and --extend asks for {new} in all: name more")
    if new > total:
        run.go_on(recipe)  # says what else has changed, before it is the recipe that says so
        recipe = record_length(recipe, run, done, new, longer.minutes)
        run.note(f"made longer after step {done:,}: {new:,} steps instead of {total:,}{how_long}")
    return recipe, clock


def record_length(recipe: Recipe, run: Run, done: int, total: int, minutes: float | None = None) -> Recipe:
    """The recipe of a run that is ``total`` steps long when ``done`` are done, on record."""
    recipe = replace(recipe, length=recipe.length.changed(done, total, minutes))
    dist.on_first_rank(lambda: run.write_recipe(recipe))
    return recipe
