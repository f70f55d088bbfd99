"""The same backbone trained with labels: the baseline that transfer is measured against."""

from __future__ import annotations

from dataclasses import replace

from lookalike.learn.labelled import Classes, CrossEntropy, Labelled
from lookalike.models.heads import MLP
from lookalike.pretext.image import OneView
from lookalike.recipes.recipe import Recipe


def with_labels(recipe: Recipe, classes: int) -> Recipe:
    """``recipe`` as a classifier: its model, first view, batches, optimizer, schedule and length, but one linear layer
    and cross entropy. A step sees one view of each example, where momentum contrast encodes two.
    """
    return replace(
        recipe,
        name=f"supervised_{recipe.name}",
        pretext=OneView(recipe.pictures.first, whole=recipe.pictures.whole),
        head=MLP((classes,)),
        predictor=None,
        reconstruction=None,
        keys=Labelled(),
        dictionary=Classes(classes),
        objective=CrossEntropy(),
    )
