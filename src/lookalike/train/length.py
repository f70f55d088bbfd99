"""How long a run goes on: measured where it is asked in minutes, corrected on its way, made longer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lookalike.core import dist
from lookalike.core.errors import UserError
from lookalike.data.loader import Loads
from lookalike.data.order import order_of
from lookalike.recipes.recipe import Length, Recipe
from lookalike.train import checkpoint
from lookalike.train.loop import Finished, Pulse, steps_of, train
from lookalike.train.minutes import Budget, Clock, budget, expected
from lookalike.train.monitor import Checkup
from lookalike.train.run import Run


def spent(
    recipe: Recipe, length: Length, loader: Loads, checkup: Checkup, tell: Callable[[str], None], began: float
) -> Budget:
    """What the minutes of ``length``, which count from ``began``, are spent on."""
    assert length.minutes is not None
    tell(f"measuring how many steps {length.minutes:g} minutes allow")
    return budget(recipe, loader, length.minutes, checkup.seconds(), began)


def extended(
    recipe: Recipe, longer: Length, run: Run, loader: Loads, checkup: Checkup, began: float
) -> tuple[Recipe, Clock | None]:
    """Make a run longer from its newest checkpoint on, and record it; one that is so long already goes on.

    ``longer`` is its length in all, but minutes are more than it has.
    """
    order = order_of(loader.source, recipe.batch, recipe.seed, recipe.window)
    done, total = dist.on_first_rank(lambda: checkpoint.newest_step(run.checkpoints)), steps_of(recipe, order)
    new, clock, how_long = longer.total(order.steps_per_epoch), None, ""
    if new is None:
        if done < total and recipe.length.longer_by() == longer.minutes:
            return recipe, None
        found = spent(recipe, longer, loader, checkup, run.tell, began)
        new = total + found.more(total).enough().steps
        clock = Clock(found, new, earlier=total - done)
        how_long = f", in {expected(clock.whole)}"
    if new < total:
        raise UserError(f"{run.folder} is {total} steps long, and --extend asks for {new} in all: name more")
    if new > total:
        run.go_on(recipe)  # says what else has changed, before it is the recipe that says so
        recipe = changed(recipe, run, done, new, longer.minutes)
        run.note(f"made longer after step {done:,}: {new:,} steps instead of {total:,}{how_long}")
    return recipe, clock


def to_the_end(
    recipe: Recipe,
    run: Run,
    loader: Loads,
    checkup: Checkup,
    watch: Callable[[Pulse], None],
    save_every: int | None,
    clock: Clock | None,
) -> Finished:
    """Train, to a signal or to the end; a run that would miss its minutes gets another length on the way.

    It takes it up as a resumed run does, from a checkpoint and what is on record, so that killing it changes nothing.
    """
    timed = checkup.__call__ if clock is None else clock.timed(checkup.__call__)
    off = clock.off if clock is not None and dist.first() else _never
    while True:
        done = train(recipe, run, loader, timed, watch, save_every, off)
        if clock is None or done.signal or done.step == done.total:
            return done
        step, total, new = done.step, done.total, dist.agree(clock.total)
        del done  # and its learner: the next one wants the memory
        recipe = changed(recipe, run, step, new)
        speed = "slower" if new < total else "faster"
        run.note(f"{speed} than was measured: from step {step:,} on {new:,} steps instead of {total:,}, to end in time")


def changed(recipe: Recipe, run: Run, done: int, total: int, minutes: float | None = None) -> Recipe:
    """The recipe of a run that is ``total`` steps long when ``done`` are done, on record."""
    recipe = replace(recipe, length=recipe.length.changed(done, total, minutes))
    dist.on_first_rank(lambda: run.write_recipe(recipe))
    return recipe


def _never(step: int) -> bool:
    return False
