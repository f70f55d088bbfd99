"""How weights that a run begins with may move: which of them learn, how fast, and what BatchNorm normalises by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lookalike.core.errors import Bounded, Factor, Probability
from lookalike.models.norm import keep_statistics
from lookalike.models.norm import norms as all_norms


@dataclass(frozen=True)
class Movement(Bounded):
    """Of a backbone; the defaults let everything move, as a network that begins at random does.

    A *stage* is a child of the network, or of one of its sequences, in the order in which they were made.
    """

    statistics: Literal["batch", "kept"] = "batch"  # kept: BatchNorm stays as it was, by its running statistics
    share: Probability = 1.0  # of the stages that learn, the last ones; their gradients alone cost time
    weights: Literal["all", "norms"] = "all"  # norms: scale and shift of the norms alone (TENT, arXiv 2006.10726)
    fall: Factor = 1.0  # the rate of a stage, over that of the next (ULMFiT, arXiv 1801.06146)
    rest: Probability = 0.0  # share of the run in which the head learns alone (arXiv 2202.10054)

    def settle(self, backbone: nn.Module) -> None:
        """Let only what may learn have gradients, and keep the statistics that are to stay."""
        if self.statistics == "kept":
            keep_statistics(backbone)
        parts = list(stages(backbone))
        for part in parts[: len(parts) - round(self.share * len(parts))]:
            part.requires_grad_(False)
        if self.weights == "norms":
            learning = {id(p) for norm in all_norms(backbone) for p in norm.parameters() if p.requires_grad}
            for parameter in backbone.parameters():
                parameter.requires_grad_(id(parameter) in learning)

    def spread(self, optimizer: torch.optim.Optimizer, backbone: nn.Module) -> torch.optim.Optimizer:
        """The same optimizer with a group for each stage, in whose rate and rest it differs."""
        if self.fall == 1 and self.rest == 0:
            return optimizer
        depth = {
            id(p): number for number, part in enumerate(reversed(list(stages(backbone)))) for p in part.parameters()
        }
        groups, optimizer.param_groups = optimizer.param_groups, []
        for group in groups:
            by_depth: dict[int, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                by_depth.setdefault(depth.get(id(parameter), -1), []).append(parameter)  # -1: no part of the backbone
            for number, parameters in sorted(by_depth.items()):
                own = {"lr": group["lr"] * self.fall ** max(0, number), "rest": self.rest if number >= 0 else 0.0}
                optimizer.param_groups.append({**group, "params": parameters, **own})
        return optimizer


def stages(backbone: nn.Module) -> Iterator[nn.Module]:
    """The parts of a backbone with weights, first to last."""
    net = getattr(backbone, "net", backbone)
    for child in net.children():
        parts = child.children() if isinstance(child, nn.Sequential | nn.ModuleList) else [child]
        yield from (part for part in parts if next(part.parameters(), None) is not None)
