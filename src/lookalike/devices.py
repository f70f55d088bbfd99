"""Where tensors live, and in which precision products are computed: the one place that decides."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
from torch import nn

from lookalike.types import Material

Module = TypeVar("Module", bound=nn.Module)
M = TypeVar("M", bound=Material)


def device() -> torch.device:
    """The one place that decides where tensors live: this process's accelerator, else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


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


def computes_in_bf16(where: torch.device) -> bool:
    """Whether products in bf16 are faster there: AVX-512 BF16 or AMX on a processor, Ampere or newer on a GPU.

    Elsewhere a processor emulates them: on AVX2 they were measured at a fifth to a tenth of the speed of fp32.
    """
    if where.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(precision: str, where: torch.device) -> torch.autocast:
    """The context in which encoders run, for a recipe's ``precision``: auto, fp32 or bf16."""
    wanted = computes_in_bf16(where) if precision == "auto" else precision == "bf16"
    return torch.autocast(where.type, torch.bfloat16, enabled=wanted)
