"""Optimizers and schedules as values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn


def _learning(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


@dataclass(frozen=True)
class SGD:
    """SGD with momentum; ``lr`` is for 256 examples and grows linearly with the batch (Goyal et al. 2017).

    Weight decay falls on every parameter, BatchNorm and biases included, as in MoCo's published code.
    """

    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def build(self, module: nn.Module, batch: int) -> torch.optim.Optimizer:
        """An optimizer of the parameters of ``module`` that learn."""
        lr = self.lr * batch / 256
        return _noted(torch.optim.SGD(_learning(module), lr, self.momentum, weight_decay=self.weight_decay))


@dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov & Hutter 2019); ``lr`` is for 256 examples; only matrices and kernels decay."""

    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)

    def build(self, module: nn.Module, batch: int) -> torch.optim.Optimizer:
        """An optimizer of the parameters of ``module`` that learn."""
        matrices = [p for p in _learning(module) if p.dim() > 1]
        rest = [p for p in _learning(module) if p.dim() <= 1]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
        lr = self.lr * batch / 256
        return _noted(torch.optim.AdamW(groups, lr, self.betas, weight_decay=self.weight_decay))


def _noted(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Note the full learning rate of each group, which schedules scale."""
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


class Schedule(Protocol):
    """The learning rate over a run, as a share of the full one."""

    def share(self, progress: float) -> float:
        """``progress`` runs from 0 to 1."""
        ...


@dataclass(frozen=True)
class Cosine:
    """Half a cosine down to zero after a linear rise over the share ``warmup`` of the run (SGDR, arXiv 1608.03983)."""

    warmup: float = 0.0

    def share(self, progress: float) -> float:
        """In [0, 1]."""
        if progress < self.warmup:
            return progress / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


@dataclass(frozen=True)
class Steps:
    """The rate is multiplied by ``factor`` at each share of the run in ``at``."""

    at: tuple[float, ...] = (0.6, 0.8)
    factor: float = 0.1

    def share(self, progress: float) -> float:
        """In (0, 1]."""
        return self.factor ** sum(progress >= at for at in self.at)


def apply(schedule: Schedule, optimizer: torch.optim.Optimizer, progress: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * schedule.share(progress)
