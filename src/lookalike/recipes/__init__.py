"""Recipes by name."""

from __future__ import annotations

from collections.abc import Callable

from lookalike.core.errors import UserError, meant
from lookalike.recipes.captions import moco_captions
from lookalike.recipes.digits import digits
from lookalike.recipes.family import FAMILY, small_moco_v3, twin_of
from lookalike.recipes.images import moco_cifar, moco_v1, moco_v2, small
from lookalike.recipes.masked import MASKED, small_mae
from lookalike.recipes.recipe import Recipe
from lookalike.recipes.text import TEXT
from lookalike.recipes.tiny import tiny
from lookalike.recipes.video import video_moco, video_moco_clips, video_moco_r3d

RECIPES: dict[str, Callable[[int, int], Recipe]] = {
    **{
        recipe.__name__: recipe
        for recipe in (small, moco_v1, moco_v2, moco_cifar, *FAMILY, *MASKED, digits, tiny, *TEXT)
    },
    **{f"small_{recipe.__name__}": twin_of(recipe) for recipe in (moco_v1, moco_v2, *FAMILY, *MASKED)},
    "small_moco_v3": small_moco_v3,
    "small_mae": small_mae,
    **{recipe.__name__: recipe for recipe in (video_moco, video_moco_clips, video_moco_r3d, moco_captions)},
}
"""Each is called with the number of examples and the side of the pictures in pixels, 0 for text."""


def recipe_named(name: str, examples: int, side: int) -> Recipe:
    """The recipe of that name for this data; an unknown name is refused with the nearest one."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}; {meant(name, RECIPES)}")
    return RECIPES[name](examples, side)
