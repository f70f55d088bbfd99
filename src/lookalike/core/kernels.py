"""Kernels in Triton, which is not installed everywhere and slow to import."""

from __future__ import annotations

import importlib
import importlib.util
from functools import lru_cache
from types import ModuleType


@lru_cache
def built(name: str) -> ModuleType | None:
    """The module of that name in this package, when the first tensor on a GPU asks; None where it cannot run."""
    if importlib.util.find_spec("triton") is None:
        return None
    found = importlib.import_module(f"lookalike.{name}")
    return found if found.works() else None
