"""How weights that a run begins with may move: which of them learn, how fast, and what BatchNorm normalises by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lookalike.core.devices import full_precision
from lookalike.core.errors import Bounded, Factor, Limit, Probability, UserError
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
    lora: Annotated[int, Limit(0, 4096)] = 0  # rank of what attention learns, in place of all (LoRA, arXiv 2106.09685)
    fall: Factor = 1.0  # the rate of a stage, over that of the next (ULMFiT, arXiv 1801.06146)
    rest: Probability = 0.0  # share of the run in which the head learns alone (arXiv 2202.10054)

    def settle(self, backbone: nn.Module) -> None:
        """Let only what may learn have gradients, and keep the statistics that are to stay. Raises UserError."""
        if self.statistics == "kept":
            keep_statistics(backbone)
        parts = list(stages(backbone))
        for part in parts[: len(parts) - round(self.share * len(parts))]:
            part.requires_grad_(False)
        if self.weights == "norms":
            learning = {id(p) for norm in all_norms(backbone) for p in norm.parameters() if p.requires_grad}
            for parameter in backbone.parameters():
                parameter.requires_grad_(id(parameter) in learning)
        if self.lora:
            if self.weights == "all":
                backbone.requires_grad_(False)
            self._lower(parts[len(parts) - round(self.share * len(parts)) :])

    def _lower(self, parts: list[nn.Module]) -> None:
        """Give the matrices of attention in these parts what they learn."""
        if not (found := [one for part in parts for one in attending(part)]):
            raise UserError(
                f"tuned.lora {self.lora} moves attention, and there is none in what may learn of this network: "
                "leave it out, or begin with a transformer (timm:vit_small_patch16_224), all of it by --tuned.share 1"
            )
        for layer, name in found:
            weight = getattr(layer, name)
            parametrize.register_parametrization(layer, name, LowRank(weight.shape[0], weight.shape[1], self.lora))

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


class LowRank(nn.Module):
    """A matrix W (M, N) plus ``up @ down`` of low rank, which is 0 at first (LoRA, arXiv 2106.09685, section 4.1).

    Their scale is 1, as the paper's where α is the rank. Attention reads the sum, so it may compute as it likes.
    """

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.empty(rank, columns)), nn.Parameter(torch.zeros(rows, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    @full_precision()
    def forward(self, weight: Tensor) -> Tensor:
        """(M, N) the sum."""
        return weight + self.up @ self.down


def attending(part: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The matrices of attention in a network, or a part of one: queries, keys, values and projection, once each."""
    blocks = [block for block in part.modules() if "attention" in type(block).__name__.lower()]
    for layer in dict.fromkeys(layer for block in blocks for layer in block.modules()):
        if isinstance(layer, nn.Linear):
            yield layer, "weight"
        elif isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None:
            yield layer, "in_proj_weight"


def merge(backbone: nn.Module) -> nn.Module:
    """The plain network, in place: each sum becomes the weight, under its own name."""
    for layer in list(backbone.modules()):
        if parametrize.is_parametrized(layer):
            for name in list(layer.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(layer, name)
    return backbone


def stages(backbone: nn.Module) -> Iterator[nn.Module]:
    """The parts of a backbone with weights, first to last."""
    net = getattr(backbone, "net", backbone)
    for child in net.children():
        parts = child.children() if isinstance(child, nn.Sequential | nn.ModuleList) else [child]
        yield from (part for part in parts if next(part.parameters(), None) is not None)
