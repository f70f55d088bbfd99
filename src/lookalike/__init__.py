"""Learns, without labels, which things look alike: the names that other code may rely on.

They are imported when they are first asked for: ``import lookalike`` alone costs milliseconds, torch costs seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lookalike.pretraining import pretrain
    from lookalike.recipe import Recipe
    from lookalike.recipes import RECIPES, recipe_named
    from lookalike.searching import search
    from lookalike.trained import embed_data as embed
    from lookalike.trained import load
    from lookalike.trouble import Trouble

    __version__: str

__all__ = ["RECIPES", "Recipe", "Trouble", "__version__", "embed", "load", "pretrain", "recipe_named", "search"]

_HOMES = {
    "RECIPES": ("lookalike.recipes", "RECIPES"),
    "Recipe": ("lookalike.recipe", "Recipe"),
    "Trouble": ("lookalike.trouble", "Trouble"),
    "embed": ("lookalike.trained", "embed_data"),
    "load": ("lookalike.trained", "load"),
    "pretrain": ("lookalike.pretraining", "pretrain"),
    "recipe_named": ("lookalike.recipes", "recipe_named"),
    "search": ("lookalike.searching", "search"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("lookalike")
    if name not in _HOMES:
        raise AttributeError(f"module 'lookalike' has no attribute {name!r}")
    if name != "Trouble":
        import_module("lookalike.trouble").refuse_platform()
    module, own_name = _HOMES[name]
    return getattr(import_module(module), own_name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
