"""Recipes by name."""

from __future__ import annotations

from collections.abc import Mapping

from lookalike.core.errors import UserError, meant
from lookalike.recipes.adapt import ADAPT
from lookalike.recipes.family import FAMILY, small_mae, small_moco_v3, small_simclr, smaller, wide_simclr
from lookalike.recipes.images import VIDEO, digits, moco_cifar, moco_v1, moco_v2, small, tiny
from lookalike.recipes.recipe import Recipe
from lookalike.recipes.text import TEXT

_PUBLISHED = (moco_v1, moco_v2, *FAMILY)

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *(small, *_PUBLISHED, moco_cifar, digits, tiny, *TEXT),
        *(*map(smaller, _PUBLISHED), small_moco_v3, small_mae, small_simclr),  # the later of one name counts
        wide_simclr,
        *VIDEO,
        *ADAPT,
    )
}
"""As they are published; ``recipe.fitted(examples, side)`` is what a run on some data is."""


def recipe_of(name: str) -> Recipe:
    """The recipe of that name; an unknown one is refused with the nearest."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}; {meant(name, RECIPES)}")
    return RECIPES[name]


def recipe_named(name: str, examples: int, side: int) -> Recipe:
    """The recipe of that name for so many examples of ``side`` pixels, 0 for text. Raises UserError."""
    return recipe_of(name).fitted(examples, side)
