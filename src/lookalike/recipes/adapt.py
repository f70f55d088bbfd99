"""Recipes that begin with a model of others and go on with a person's own pictures: ``adapt``, and what it was chosen
from. The network, and how pictures are seen, are those of the model that ``--init-from`` names: ``following``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lookalike.learn.dictionary import InBatch, MemoryBank, Queue
from lookalike.learn.keys import EndToEnd, Momentum, Stored
from lookalike.learn.objective import InfoNCE
from lookalike.learn.optim import AdamW, Cosine
from lookalike.learn.tuned import Movement
from lookalike.models.encoder import MLP
from lookalike.pretext.image import MOCO_V2, OneView, TwoViews
from lookalike.recipes.recipe import Length, Recipe

adapt = Recipe(
    name="adapt",
    pretext=OneView(MOCO_V2),
    head=MLP(()),
    whiten=True,
    unit_rows=True,
    keys=Stored(),
    dictionary=MemoryBank(momentum=1.0, filled=True),
    objective=InfoNCE(0.1),
    optimizer=AdamW(4e-4, weight_decay=0.0),
    schedule=Cosine(warmup=0.05),
    tuned=Movement(statistics="kept", share=0.55),
    length=Length(minutes=10),
    batch=64,
    held_out=0.1,
    mixtures=(0.5, 1.0),
    checkups=0,
)
"""The start teaches: views of a picture are to find its whitened features, as the frozen start saw it whole, among
those of all pictures. They are stored once, so a step costs one view; BatchNorm keeps the statistics of the start."""

adapt_moco = replace(
    adapt,
    name="adapt_moco",
    pretext=TwoViews(MOCO_V2),
    head=MLP((512, 128)),
    keys=Momentum(0.99),
    dictionary=Queue(1024),
    objective=InfoNCE(0.2),
)
"""Momentum contrast (MoCo v2) from a start that it may leave."""

adapt_instances = replace(adapt, name="adapt_instances", dictionary=MemoryBank(momentum=0.5, filled=True))
"""Every picture its own class (InstDisc, arXiv 1805.01978, equation 2): the stored rows begin as the start's."""

adapt_neighbours = replace(
    adapt, name="adapt_neighbours", dictionary=MemoryBank(momentum=1.0, filled=True, neighbours=5)
)
"""The five pictures that the start finds nearest are positives, too (NNCLR's idea, arXiv 2104.14548)."""

adapt_simclr = replace(
    adapt_moco,
    name="adapt_simclr",
    keys=EndToEnd(),
    dictionary=InBatch(queries=True),
    objective=InfoNCE(0.2, weight=0.5),
)
"""Keys with gradient, all other views of a batch are negatives."""

ADAPT = (adapt, adapt_moco, adapt_instances, adapt_neighbours, adapt_simclr)


def following(recipe: Recipe, start: Recipe, size: int) -> Recipe:
    """``recipe`` with the network of ``start`` and pictures as it knows them: mean, std, and crops of ``size`` pixels.

    Whole pictures are kept half as large again, so that a crop of four ninths of one has its own pixels.
    """
    theirs, views = start.pictures, recipe.pictures
    known: dict[str, Any] = {"size": size, "mean": theirs.first.mean, "std": theirs.first.std}
    second = None if views.second is None else replace(views.second, **known)
    pretext = replace(views, first=replace(views.first, **known), second=second, whole=theirs.whole)
    canvas = start.canvas if start.preprocessing is None else size * 3 // 2
    return replace(recipe, pretext=pretext, canvas=canvas, model=start.model, preprocessing=start.preprocessing)


def taught(recipe: Recipe, width: int) -> Recipe:
    """``recipe`` with the rows of a teacher, ``width`` numbers for each picture, in place of keys of its own making."""
    first = recipe.pictures
    one = OneView(first.first, whole=first.whole) if isinstance(first, TwoViews) else first
    return replace(
        recipe,
        pretext=one,
        head=MLP((*recipe.head.widths[:-1], width)),
        predictor=None,
        reconstruction=None,
        keys=Stored(),
        dictionary=MemoryBank(momentum=1.0, filled=True),
        objective=InfoNCE(0.1),
    )
