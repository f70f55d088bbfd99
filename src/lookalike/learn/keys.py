"""Who makes the keys: the columns of figure 2 in the MoCo paper, as one field of a recipe."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lookalike.models.encoder import Encoder
from lookalike.seeding import hashed, scramble
from lookalike.types import Batch, View

Pair = tuple[Tensor, Tensor]
"""Queries (B, D), which carry gradient, and the keys (B, D) of the same examples."""


class Keys(nn.Module, ABC):
    """Turns two views of each example into (query, key) pairs."""

    @abstractmethod
    def pairs(self, query: Callable[..., Tensor], batch: Batch) -> list[Pair]:
        """One pair, or two when both views are queries; ``query`` encodes a view with gradient."""

    @abstractmethod
    def follow(self, encoder: Encoder, progress: float) -> None:
        """Move what makes the keys after the optimizer step; ``progress`` runs from 0 to 1 over the run."""


@dataclass(frozen=True)
class Momentum:
    """Keys from a slowly moving twin of the encoder (MoCo, arXiv 1911.05722, section 3.2)."""

    momentum: float = 0.999
    symmetric: bool = False  # both views are queries: twice the cost of a step (MoCo v3, arXiv 2104.02057)
    shuffle: bool = True  # keys are normalised in other groups than their queries (shuffling BN, section 3.3)

    def build(self, encoder: Encoder) -> MomentumKeys:
        """A twin that starts as a copy of ``encoder``."""
        return MomentumKeys(self, encoder)


class MomentumKeys(Keys):
    """Holds the twin: it gets no gradient, and its parameters are the moving average of the encoder's."""

    def __init__(self, spec: Momentum, encoder: Encoder) -> None:
        super().__init__()
        self.spec = spec
        self.twin = copy.deepcopy(encoder).requires_grad_(False)
        self.twin.whitening = None  # nobody evaluates the twin

    def pairs(self, query: Callable[..., Tensor], batch: Batch) -> list[Pair]:
        """The first view asks for the second and, if symmetric, the second for the first."""
        pairs = [(query(**batch.first), self._encode(batch.second, batch.index))]
        if self.spec.symmetric:
            pairs.append((query(**batch.second), self._encode(batch.first, batch.index)))
        return pairs

    @torch.no_grad()
    def _encode(self, view: View, index: Tensor) -> Tensor:
        if not self.spec.shuffle:
            keys: Tensor = self.twin(**view)
            return keys
        order = shuffled(index)
        keys = self.twin(**{name: part[order] for name, part in view.items()})
        return keys[order.argsort()]

    @torch.no_grad()
    def follow(self, encoder: Encoder, progress: float) -> None:
        """Average the parameters, head included, in one fused pass; BatchNorm's buffers are the twin's own."""
        torch._foreach_lerp_(list(self.twin.parameters()), list(encoder.parameters()), 1 - self.spec.momentum)


def shuffled(index: Tensor) -> Tensor:
    """A permutation (B,) that depends on the rows of the batch alone: equal on every process, and no state to save."""
    salt = scramble(index.sum() + hashed(len(index)))
    return scramble(index + salt).argsort(stable=True)
