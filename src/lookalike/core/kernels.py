"""Kernels in Triton, which is not installed everywhere and slow to import."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from contextlib import AbstractContextManager
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor


@lru_cache
def load(name: str) -> ModuleType | None:
    """The module of that name in this package, at the first tensor on a GPU; None where its kernels cannot run.

    Its ``trial`` runs one of them, which takes a C compiler and a GPU that Triton knows. Without a GPU there is nothing
    to try: tensors without data (``meta``) start no kernel.
    """
    if importlib.util.find_spec("triton") is None:
        return None
    module = importlib.import_module(f"lookalike.{name}")
    if torch.cuda.is_available():
        try:
            module.trial()
        except Exception as error:  # of Triton, of its compiler and of drivers: any class
            reason = (str(error) or type(error).__name__).splitlines()[0]
            warnings.warn(f"{module.WORK} without Triton, more slowly: {reason}", stacklevel=2)
            return None
    return module


def device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Inside, kernels start on the tensor's GPU, whichever is the current one."""
    context: AbstractContextManager[object] = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return context
