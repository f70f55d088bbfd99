"""Decorrelated features: what a cosine between features needs to weigh every direction alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_FORGETS = 0.01  # share of a new batch in the running statistics, once a hundred have been seen
_RIDGE = 1e-3  # of the largest variance: directions below it hold rounding, not pictures


class Whitening(nn.Module):
    """Running mean and covariance of features (B, F), as BatchNorm keeps them, and the map that whitens by them.

    A contrastive backbone puts most variance into a few directions, which then decide every cosine. Labels are not
    used, and nothing is trained.
    """

    running_mean: Tensor
    running_covariance: Tensor
    batches: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_covariance", torch.eye(features))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def observe(self, features: Tensor) -> None:
        """Take the statistics of a training batch in; a plain mean over the first hundred batches."""
        found = features.detach().to(self.running_mean.dtype)
        self.batches += 1
        share = (1 / self.batches).clamp_min(_FORGETS).to(found.dtype)
        self.running_mean.lerp_(found.mean(0), share)
        self.running_covariance.lerp_(torch.cov(found.T), share)

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) → (B, F) with zero mean and, but for the smallest directions, unit covariance."""
        variances, directions = torch.linalg.eigh(self.running_covariance.double())
        scale = (variances.clamp_min(0) + _RIDGE * variances[-1]).rsqrt()
        return ((features.double() - self.running_mean) @ (directions * scale)).to(features.dtype)
