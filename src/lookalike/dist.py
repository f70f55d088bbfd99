"""Where this process stands among those that torchrun started."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def device() -> torch.device:
    """The one place that decides where tensors live: this process's accelerator, else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def placed(module: Module) -> Module:
    """The module on that device, its kernels in the memory layout that convolutions are fastest in."""
    moved: Module = module.to(device()).to(memory_format=torch.channels_last)
    return moved


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
