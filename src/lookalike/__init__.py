"""Learns, without labels, which things look alike: the names that other code may rely on.

They are imported when they are first used: ``import lookalike`` alone costs milliseconds, torch costs seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lookalike.core.errors import UserError
    from lookalike.curate.clean import duplicates, labels, leaks, outliers, sample
    from lookalike.curate.search import search
    from lookalike.evaluation.compare import compare
    from lookalike.evaluation.evaluate import evaluate
    from lookalike.recipes import RECIPES, recipe_named
    from lookalike.recipes.parts import part
    from lookalike.recipes.recipe import Recipe
    from lookalike.train.embeddings import embed_data as embed
    from lookalike.train.exported import export
    from lookalike.train.pretrain import pretrain, supervised
    from lookalike.train.trained import load

    __version__: str

__all__ = [
    "RECIPES",
    "Recipe",
    "UserError",
    "__version__",
    "compare",
    "duplicates",
    "embed",
    "evaluate",
    "export",
    "labels",
    "leaks",
    "load",
    "outliers",
    "part",
    "pretrain",
    "recipe_named",
    "sample",
    "search",
    "supervised",
]

_HOMES = {
    "RECIPES": ("lookalike.recipes", "RECIPES"),
    "Recipe": ("lookalike.recipes.recipe", "Recipe"),
    "UserError": ("lookalike.core.errors", "UserError"),
    "compare": ("lookalike.evaluation.compare", "compare"),
    "duplicates": ("lookalike.curate.clean", "duplicates"),
    "embed": ("lookalike.train.embeddings", "embed_data"),
    "evaluate": ("lookalike.evaluation.evaluate", "evaluate"),
    "export": ("lookalike.train.exported", "export"),
    "labels": ("lookalike.curate.clean", "labels"),
    "leaks": ("lookalike.curate.clean", "leaks"),
    "load": ("lookalike.train.trained", "load"),
    "outliers": ("lookalike.curate.clean", "outliers"),
    "part": ("lookalike.recipes.parts", "part"),
    "pretrain": ("lookalike.train.pretrain", "pretrain"),
    "recipe_named": ("lookalike.recipes", "recipe_named"),
    "sample": ("lookalike.curate.clean", "sample"),
    "search": ("lookalike.curate.search", "search"),
    "supervised": ("lookalike.train.pretrain", "supervised"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("lookalike")
    if name not in _HOMES:
        raise AttributeError(f"module 'lookalike' has no attribute {name!r}")
    if name != "UserError":
        import_module("lookalike.core.errors").refuse_platform()
    module, own_name = _HOMES[name]
    value = getattr(import_module(module), own_name)
    return import_module("lookalike.core.errors").naming(value, name) if hasattr(value, "__code__") else value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
