"""A caller's own settings of torch, put aside while this library computes: they are neither used nor changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch

from lookalike.core.devices import full_precision


@contextmanager
def isolated() -> Iterator[None]:
    """torch inside as in a fresh process, after as the caller had it; around calls of the Python API, nested or not.

    Put aside are the default dtype and device, disabled gradients, inference mode, autocast, products of float32 in
    fewer bits on a processor, and the state of the global generators. The dtype and the products belong to the whole
    process: other threads see them as they are inside, and whoever draws from the generators in another thread
    changes what is drawn inside. The number of threads stays the caller's.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(full_precision())
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_float32())
        stack.enter_context(_generators())
        yield


@contextmanager
def _float32() -> Iterator[None]:
    """New tensors in float32, and its products computed in it."""
    dtype, mkldnn = torch.get_default_dtype(), cast(Any, torch.backends.mkldnn)
    settings = [(kind, kind.fp32_precision) for kind in (mkldnn.matmul, mkldnn.conv)]
    coarse = [(kind, precision) for kind, precision in settings if precision not in ("none", "ieee")]
    torch.set_default_dtype(torch.float32)
    for kind, _ in coarse:
        kind.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        for kind, precision in coarse:
            kind.fp32_precision = precision


@contextmanager
def _generators() -> Iterator[None]:
    """The caller's random numbers go on after as if nothing had been drawn or seeded inside."""
    cpu = torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
