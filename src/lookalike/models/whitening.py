"""Decorrelated features: what a cosine between features needs to weigh every direction alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lookalike.core.devices import full_precision

_RIDGE = 1e-4  # of the largest variance: directions far below it hold rounding, not pictures


class Whitening(nn.Module):
    """A linear map after the backbone, fitted to the features (N, F) of some examples; the identity until then.

    A contrastive backbone puts most variance into a few directions, which then decide every cosine. Labels are not
    used, and no gradient trains it. Features of whole pictures fit it well, those of augmented views do not: colour and
    crop then pass for content (docs/results.md).
    """

    mean: Tensor
    map: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("map", torch.eye(features))

    @torch.no_grad()
    @full_precision()
    def fit(self, features: Tensor) -> None:
        """Centre and decorrelate ``features`` (N, F), which are not normalised."""
        variances, directions = torch.linalg.eigh(torch.cov(features.double().T))
        scale = (variances.clamp_min(0) + _RIDGE * variances[-1]).clamp_min(1e-30).rsqrt()
        self.mean.copy_(features.double().mean(0))
        self.map.copy_(directions * scale)

    @full_precision()  # bf16 would drown the small directions
    def forward(self, features: Tensor) -> Tensor:
        """(B, F) → (B, F): over what it was fitted to, zero mean and (smallest directions apart) unit covariance."""
        return (features.to(self.mean.dtype) - self.mean) @ self.map
