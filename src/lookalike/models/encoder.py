"""The encoder: a backbone whose features are evaluated, under a head whose unit-norm embedding is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookalike.models.text import TransformerBackbone
from lookalike.models.vit import ViTBackbone
from lookalike.models.whitening import Whitening


class Encoder(nn.Module):
    """``backbone`` maps a view to features (B, F); ``head`` maps features to what is contrasted.

    ``whitening``, if any, is the last layer of what is evaluated; what is trained does not pass through it.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, whitening: Whitening | None = None) -> None:
        super().__init__()
        self.backbone, self.head, self.whitening = backbone, head, whitening

    def features(self, **view: Tensor) -> Tensor:
        """(B, F) backbone output: what is evaluated, exported and searched."""
        features: Tensor = self.backbone(**view)
        return self.whitening(features) if self.whitening is not None else features

    def project(self, **view: Tensor) -> Tensor:
        """(B, D) the head's output, before it is normalised."""
        projected: Tensor = self.head(self.backbone(**view))
        return projected

    def tokens(self, **view: Tensor) -> Tensor:
        """The last layer of a transformer, for each token that it sees: (B, N, F) of pictures, (T, F) of text."""
        if isinstance(self.backbone, TransformerBackbone):
            return self.backbone.tokens(**view)
        return self._transformer().tokens(**view)

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """(B, D) what ``project`` makes of a view, from its tokens."""
        projected: Tensor = self.head(self._transformer().pooled(tokens))
        return projected

    def _transformer(self) -> ViTBackbone:
        if not isinstance(self.backbone, ViTBackbone):
            raise ValueError("only a vision transformer has tokens")
        return self.backbone

    def forward(self, **view: Tensor) -> Tensor:
        """(B, D) unit-norm embedding."""
        return unit(self.project(**view))


def unit(rows: Tensor) -> Tensor:
    """Rows of unit norm, in fp32 or better whatever the products ran in."""
    return F.normalize(rows if rows.dtype == torch.float64 else rows.float(), dim=1)
