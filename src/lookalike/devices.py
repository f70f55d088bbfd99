"""Where tensors live, and in which precision products are computed: the one place that decides.

Autocast surrounds the calls of encoders, heads, predictors and decoders, and nothing else. Everything that is not a
network (views, objectives, statistics, optimizers, evaluations) is ``full_precision``, whoever calls it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from lookalike.trouble import USAGE, Trouble, meant
from lookalike.types import Material

Precision = Literal["fp32", "bf16"]
"""Of the products of a network; its sums, and whatever is computed of its results, are never narrower than fp32."""

Kind = Literal["cpu", "cuda", "mps"]
"""Of a device; mps was never run."""

DEVICE, PRECISION = "LOOKALIKE_DEVICE", "LOOKALIKE_PRECISION"
"""Environment variables: the device, and the precision that ``auto`` stands for."""

Module = TypeVar("Module", bound=nn.Module)
M = TypeVar("M", bound=Material)


def device() -> torch.device:
    """What ``LOOKALIKE_DEVICE`` names, else this process's GPU, else the processor. Raises Trouble."""
    kind = _chosen(DEVICE, get_args(Kind))
    if kind is None:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    elif kind == "cuda" and not torch.cuda.is_available():
        raise Trouble("no CUDA device is here: give --device cpu, or see torch.cuda.is_available()", USAGE)
    elif kind == "mps" and not torch.backends.mps.is_available():
        raise Trouble("no Apple GPU is here: give --device cpu", USAGE)
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)


def _chosen(variable: str, choices: tuple[str, ...]) -> str | None:
    """The value of an environment variable, if it is set. Raises Trouble."""
    value = os.environ.get(variable, "")
    if value and value not in choices:
        hint = meant(value, choices, f"there are {', '.join(choices)}")
        raise Trouble(f"{variable} is {value!r}; {hint}", USAGE)
    return value or None


def placed(module: Module) -> Module:
    """The module on that device, its kernels in the memory layout that convolutions are fastest in."""
    moved: Module = module.to(device())
    kernels = {parameter.dim() for parameter in moved.parameters()}
    if 5 in kernels:  # of clips; a network has one kind or the other
        return moved.to(memory_format=torch.channels_last_3d) if 4 not in kernels else moved
    return moved.to(memory_format=torch.channels_last)


def moved(material: M) -> M:
    """What was read, on that device."""
    return type(material)(*(part.to(device()) for part in material))


# ---- precision ----


def computes_in_bf16(where: torch.device) -> bool:
    """Whether products in bf16 are faster there: AVX-512 BF16 or AMX on a processor, Ampere or newer on a GPU.

    Elsewhere a processor emulates them: on AVX2 they were measured at a fifth to a tenth of the speed of fp32.
    """
    if where.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if where.type == "mps":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def processor() -> str:
    """The kind of processor, as far as it decides which kernels run: AVX2, or AVX512 with bf16, say."""
    capability = str(torch.backends.cpu.get_cpu_capability())
    return f"{capability} with bf16" if computes_in_bf16(torch.device("cpu")) else capability


def accelerator() -> str | None:
    """The name of the GPU, where one is used. Raises Trouble."""
    kind = device().type
    return torch.cuda.get_device_name(device()) if kind == "cuda" else None if kind == "cpu" else kind


def resolved(precision: str) -> Precision:
    """What ``auto`` stands for: ``LOOKALIKE_PRECISION``, else what is faster on the device. Raises Trouble."""
    if precision == "auto":
        precision = named_precision() or ("bf16" if computes_in_bf16(device()) else "fp32")
    return cast("Precision", precision)


def named_precision() -> str | None:
    """What ``LOOKALIKE_PRECISION`` says. Raises Trouble."""
    return _chosen(PRECISION, get_args(Precision))


def autocast(precision: Precision, kind: str) -> AbstractContextManager[object]:
    """The context in which a network on a ``kind`` of device runs, whatever context its caller is in."""
    return full_precision() if precision == "fp32" else torch.autocast(kind, torch.bfloat16)


@contextmanager
def full_precision() -> Iterator[None]:
    """No autocast inside, on any kind of device. Also a decorator, but not of generators."""
    open_ = [kind for kind in get_args(Kind) if torch.is_autocast_enabled(kind)]
    for kind in open_:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        for kind in open_:
            torch.set_autocast_enabled(kind, True)


def wide(numbers: Tensor) -> Tensor:
    """The same in fp32, or in double precision where they are."""
    return numbers if numbers.dtype == torch.float64 else numbers.float()
