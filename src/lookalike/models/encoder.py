"""The encoder: a backbone whose features are evaluated, under a head whose unit-norm embedding is trained."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookalike.core.devices import Precision, autocast, full_precision, wide
from lookalike.models.text import TransformerBackbone
from lookalike.models.vit import ViTBackbone
from lookalike.models.winograd import fewer_products

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


class Encoder(nn.Module):
    """``backbone`` maps a view to features (B, F); ``head`` maps features to what is contrasted.

    ``whitening``, if any, is the last layer of what is evaluated; what is trained does not pass through it.
    Products run in ``precision`` in training mode and in ``evaluated_in`` in evaluation mode; results are fp32 or
    better.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        whitening: Whitening | None = None,
        precision: Precision = "fp32",
        evaluated_in: Precision = "fp32",
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.whitening = fewer_products(backbone), head, whitening
        self.precision, self.evaluated_in = precision, evaluated_in

    def computing(self) -> AbstractContextManager[object]:
        """The context for this network and for what continues its products: predictors, decoders."""
        kind = next(self.parameters()).device.type
        return autocast(self.precision if self.training else self.evaluated_in, kind)

    def raw(self, **view: Tensor) -> Tensor:
        """(B, F) backbone output, neither whitened nor of unit norm."""
        with self.computing():
            return wide(self.backbone(**view))

    def features(self, **view: Tensor) -> Tensor:
        """(B, F) backbone output, whitened: what is evaluated, exported and searched."""
        features = self.raw(**view)
        return self.whitening(features) if self.whitening is not None else features

    def project(self, **view: Tensor) -> Tensor:
        """(B, D) the head's output, before it is normalised."""
        with self.computing():
            return wide(self.head(self.backbone(**view)))

    def tokens(self, **view: Tensor) -> Tensor:
        """The last layer of a transformer for each of its tokens: (B, N, F) of pictures, (T, F) of text."""
        with self.computing():
            if isinstance(self.backbone, TransformerBackbone):
                return self.backbone.tokens(**view)
            return self._transformer().tokens(**view)

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """(B, D) what ``project`` makes of a view, from its tokens."""
        with self.computing():
            return wide(self.head(self._transformer().pooled(tokens)))

    def _transformer(self) -> ViTBackbone:
        if not isinstance(self.backbone, ViTBackbone):
            raise ValueError("only a vision transformer has tokens")
        return self.backbone

    def forward(self, **view: Tensor) -> Tensor:
        """(B, D) unit-norm embedding."""
        return unit(self.project(**view))


def unit(rows: Tensor) -> Tensor:
    """Rows of unit norm, in fp32 or better whatever the products ran in."""
    return F.normalize(wide(rows), dim=1)
