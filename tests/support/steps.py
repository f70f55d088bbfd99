"""Steps of a recipe in double precision, on as many ranks as call: what one process and two are compared by."""

from __future__ import annotations

from typing import Any

from lookalike.core import dist
from lookalike.core.seeding import reseed
from lookalike.data.loader import Loads
from lookalike.data.order import order_of
from lookalike.recipes.recipe import Recipe
from lookalike.train import checkpoint
from lookalike.train.loop import backward, batches
from lookalike.types import View


def in_double(recipe: Recipe, reads: Loads, steps: int) -> dict[str, Any]:
    """The losses of all steps, and the whole state after them."""
    learner = recipe.build(len(reads)).double().train()
    optimizer, order = recipe.optimizer.build(learner, recipe.batch), order_of(reads.source, recipe.batch, 0, None)
    model, losses = dist.distributed(learner), []
    for step, batch in enumerate(batches(reads, recipe, order, 0, steps), 1):
        reseed(dist.rank(), step)  # another on each rank: nothing draws from a generator
        batch = batch._replace(first=_double(batch.first), second=_double(batch.second))
        optimizer.zero_grad()
        outcome = backward(model, learner, batch, recipe)
        optimizer.step()
        learner.advance(outcome, batch, step / steps)
        losses.append(float(dist.mean(outcome.loss)))
    state = {part: value.detach().numpy().copy() for part, value in checkpoint.whole_state(learner).items()}
    return {"losses": losses, **state}


def _double(view: View) -> View:
    return {name: part.double() if part.is_floating_point() else part for name, part in view.items()}
