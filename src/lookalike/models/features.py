"""One table of embeddings feeds every evaluation, search and export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.core.devices import exact
from lookalike.models.encoder import Encoder
from lookalike.types import View

Layer = Literal["backbone", "head"]


@contextmanager
def evaluating(encoder: Encoder) -> Iterator[None]:
    """Evaluation mode, no gradient, and fp32 without TF32 inside; restored after."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with torch.inference_mode(), exact():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def width(encoder: Encoder, side: int) -> int:
    """How many features the backbone gives of a picture (3, side, side)."""
    with evaluating(encoder):
        pixels = torch.zeros(1, 3, side, side, device=next(encoder.parameters()).device)
        return int(encoder.backbone(pixels=pixels).shape[1])


def embed(
    encoder: Encoder,
    views: Iterable[View],
    layer: Layer = "backbone",
    progress: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """(N, F) float32 unit rows, in the order of ``views``; ``progress`` gets the number of examples of each view."""
    rows: list[Tensor] = []
    with evaluating(encoder):
        for view in views:
            features = encoder.features(**view) if layer == "backbone" else encoder(**view)
            rows.append(F.normalize(features.float(), dim=1).cpu())
            progress(len(features))
    return torch.cat(rows).clone() if rows else torch.empty(0, 0)


def raw(encoder: Encoder, views: Iterable[View], progress: Callable[[int], None] = lambda _: None) -> Tensor:
    """(N, F) float32 output of the backbone, neither whitened nor of unit norm."""
    rows: list[Tensor] = []
    with evaluating(encoder):
        for view in views:
            rows.append(encoder.raw(**view).float())
            progress(len(rows[-1]))
    return torch.cat(rows).clone()


def means(rows: Tensor, number: Tensor, count: int) -> Tensor:
    """(count, F) unit rows: the mean of the unit rows (N, F) that have each ``number`` (N,)."""
    return F.normalize(rows.new_zeros(count, rows.shape[1]).index_add_(0, number, rows), dim=1)


def settle(encoder: Encoder, views: Iterable[View]) -> Tensor:
    """Fit the encoder's whitening, if it has one, to whole pictures, and return their features: (N, F) unit rows."""
    features = raw(encoder, views)
    if encoder.whitening is not None:
        encoder.whitening.fit(features)
        features = encoder.whitening(features)
    return F.normalize(features, dim=1).cpu()
