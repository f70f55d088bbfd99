"""How old the keys are that a dictionary keeps, and how far the network has moved since it made them.

Which example and which views made a stored key follows from the step alone. So the step is made again with the weights
of today, in training mode, and each key is compared with the one that is stored: a drift of exactly these keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.core.devices import exact, full_precision
from lookalike.core.seeding import reseed
from lookalike.data.loader import Loads
from lookalike.data.order import order_of
from lookalike.learn.dictionary import (
    BankOfKeys,
    Dictionary,
    MemoryBank,
    Neighbours,
    Queue,
    QueueEach,
    QueueOfEach,
    QueueOfKeys,
)
from lookalike.learn.keys import Momentum, QueryEncoder
from lookalike.learn.learner import Learner
from lookalike.recipes.recipe import Recipe
from lookalike.train.loop import batches, has_own_attention
from lookalike.types import Batch

_CLOSE, _APART = 0.9, 0.5  # cosines of keys that still say the same, and that no longer do


class Drift(NamedTuple):
    """Keys of one age."""

    age: int  # steps since they were made
    cosine: float  # the mean of those with the keys that the network makes of the same views today


def oldest(recipe: Recipe, examples: int) -> int:
    """Steps since the oldest entry was made that a query is scored against; 0 where none outlives its step."""
    if isinstance(recipe.dictionary, MemoryBank):
        return 0 if recipe.dictionary.momentum == 1 else max(1, examples // recipe.batch)
    return recipe.filling(examples) if isinstance(recipe.dictionary, Queue) else 0


def ages(recipe: Recipe, examples: int) -> str:
    """What queries are scored against and how old it is, in the words of the dictionary."""
    steps, entry = oldest(recipe, examples), recipe.contrast()
    if isinstance(recipe.dictionary, MemoryBank):
        share = f"{1 - recipe.dictionary.momentum:.0%} of the way to what the network makes of its example"
        moves = f"Once an epoch a row goes {share}, so it is about {aged(steps)}."
        return f"Queries are scored against rows: {entry}. {moves if steps else 'They never change.'}"
    if not steps:
        return f"Queries are scored against the {entry}, made in the same step: none is old."
    each = "each of " if isinstance(recipe.dictionary, QueueEach) else "the "
    use = f"the nearest in a {entry}" if isinstance(recipe.dictionary, Neighbours) else f"{each}{entry}"
    old = f"{aged(steps)}, {steps * recipe.batch / max(1, examples):.2g} of a pass over the data"
    return f"Queries are scored against {use}. {recipe.batch:,} examples a step renew it: its oldest key is {old}."


def aged(steps: int) -> str:
    """An age in words."""
    return "just made" if steps == 0 else f"{steps:,} step{'s' * (steps > 1)} old"


@full_precision()
def drifts(recipe: Recipe, learner: Learner, loader: Loads, step: int, count: int = 4) -> list[Drift]:
    """The drift of stored keys of about ``count`` ages, newest first; ``learner`` is the one saved after ``step``.

    Its running statistics move. An empty list where nothing is kept.
    """
    depth = min(oldest(recipe, len(loader)), step)
    order = order_of(loader.source, recipe.batch, recipe.seed, recipe.window)
    learner.train()
    found = []
    for age in sorted({round(i * (depth - 1) / (count - 1)) for i in range(count)}) if depth else ():
        batch = next(batches(loader, recipe, order, step - age - 1, step - age))
        reseed(recipe.seed, step - age)
        with torch.no_grad(), exact(has_own_attention(recipe)):
            made = keys_made(learner, batch)
        later = [order.rows(number) for number in range(step - age, step)]
        kept, again = stored(learner.dictionary, batch, made, later)
        if len(kept):
            found.append(Drift(age, float(F.cosine_similarity(kept.float(), again.float()).double().mean())))
    return found


def keys_made(learner: Learner, batch: Batch) -> Tensor:
    """(N, D) what a step would give the dictionary."""
    pairs = learner.keys.pairs(QueryEncoder(learner.encoder, learner.predictor), batch)
    some = pairs[:1] if learner.dictionary.one_view else pairs
    return torch.cat([learner.keys.absorbed(query, key) for query, key in some])


def stored(dictionary: Dictionary, batch: Batch, made: Tensor, later: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What a dictionary still holds of the keys that it absorbed before the examples of ``later`` steps, and those of
    ``made`` in their place.
    """
    if isinstance(dictionary, BankOfKeys):
        held = ~torch.isin(batch.index, torch.cat([*later, batch.index[:0].cpu()]).to(batch.index.device))
        return dictionary.stored(batch.index[held]), made[held]
    if isinstance(dictionary, QueueOfEach):  # of the first direction, as of the other
        dictionary, made = dictionary.queues[0], made.chunk(2)[0]  # type: ignore[assignment]
    assert isinstance(dictionary, QueueOfKeys)
    size, newer = len(dictionary.keys), len(later) * len(made)
    count, end = max(0, min(len(made), size - newer)), int(dictionary.oldest) - newer
    places = torch.arange(end - count, end, device=dictionary.keys.device) % size
    return dictionary.keys[places], made[len(made) - count :]


def words(found: Sequence[Drift], recipe: Recipe) -> Iterator[str]:
    """What the drift means."""
    if not found:
        return
    kind = "rows" if isinstance(recipe.dictionary, MemoryBank) else "keys"
    maker = "the twin" if isinstance(recipe.keys, Momentum) else "the network"
    yield (
        f"Made again today of the same views, they agree with the stored {kind} to a cosine of "
        f"{', '.join(f'{one.cosine:.3f} ({aged(one.age)})' for one in found)}; 1 would be no change."
    )
    if found[-1].cosine >= _CLOSE:
        yield f"So {maker} moves slowly enough: old {kind} still say what new ones would."
    elif found[-1].cosine >= _APART or kind == "rows":
        yield f"So {maker} has moved while they waited: the oldest {kind} are somewhat stale."
    else:
        yield f"So the oldest {kind} are stale: a lower learning rate, a higher momentum or a shorter queue would help."
