"""Heads: from features to the embedding that is contrasted."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class MLP:
    """Linear layers of these widths with ReLU between: ``MLP((128,))`` is MoCo v1's, ``MLP((2048, 128))`` v2's."""

    widths: tuple[int, ...] = (128,)

    def build(self, features: int) -> nn.Sequential:
        """(B, features) → (B, widths[-1])."""
        layers: list[nn.Module] = []
        for before, after in zip((features, *self.widths), self.widths):
            layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers[:-1])
