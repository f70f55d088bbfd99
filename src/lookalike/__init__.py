"""Learns, without labels, which things look alike: the names that other code may rely on.

They are imported when they are first asked for: ``import lookalike`` alone costs milliseconds, torch costs seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lookalike.core.errors import UserError
    from lookalike.curate.search import search
    from lookalike.recipes import RECIPES, recipe_named
    from lookalike.recipes.recipe import Recipe
    from lookalike.train.pretrain import pretrain
    from lookalike.train.trained import embed_data as embed
    from lookalike.train.trained import load

    __version__: str

__all__ = ["RECIPES", "Recipe", "UserError", "__version__", "embed", "load", "pretrain", "recipe_named", "search"]

_HOMES = {
    "RECIPES": ("lookalike.recipes", "RECIPES"),
    "Recipe": ("lookalike.recipes.recipe", "Recipe"),
    "UserError": ("lookalike.core.errors", "UserError"),
    "embed": ("lookalike.train.trained", "embed_data"),
    "load": ("lookalike.train.trained", "load"),
    "pretrain": ("lookalike.train.pretrain", "pretrain"),
    "recipe_named": ("lookalike.recipes", "recipe_named"),
    "search": ("lookalike.curate.search", "search"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("lookalike")
    if name not in _HOMES:
        raise AttributeError(f"module 'lookalike' has no attribute {name!r}")
    if name != "UserError":
        import_module("lookalike.core.errors").refuse_platform()
    module, own_name = _HOMES[name]
    return getattr(import_module(module), own_name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
