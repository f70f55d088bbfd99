"""The encoder: a backbone whose features are evaluated, under a head whose unit-norm embedding is trained.

One table of its embeddings feeds every evaluation, search and export.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookalike.core.devices import Precision, autocast, exact, full_precision, wide
from lookalike.core.errors import BAD_DATA, Bounded, UserError, Width
from lookalike.core.seeding import uniforms
from lookalike.models.convolution import quick_convolutions
from lookalike.models.folded import folded
from lookalike.models.image import Pixels
from lookalike.models.norm import GroupedBatchNorm1d
from lookalike.models.text import TransformerBackbone
from lookalike.models.vit import ViTBackbone
from lookalike.types import View

Layer = Literal["backbone", "head"]
_RIDGE = 0.02  # of the mean variance
_SCARCE = 2.0  # more of it for each dimension an example has: what few examples say of small directions is noise
_COLUMNS = 1  # the random stream of what the columns of a map are nearest to, where there are fewer than rows


class Whitening(nn.Module):
    """A linear map after the backbone, fitted to the features (N, F) of some examples; the identity until then.

    A contrastive backbone puts most variance into a few directions, which then decide every cosine. Labels are not
    used, and no gradient trains it. Features of whole pictures fit it well, those of augmented views do not: colour and
    crop then pass for content (docs/results.md).

    Each variance is divided by itself and a ridge, so directions that vary less than the ridge stay small: they hold
    noise, the more of it the fewer the examples. The map is symmetric, so that each feature stays nearest to itself and
    a probe that standardises features does not undo the ridge, as it would on the principal axes. Where it has fewer
    columns than rows, ``kept`` < F, it leaves out the directions of least variance, and every column mixes all others,
    for the same reason. ``unit`` scales each row to unit norm first: it says little of a picture but its contrast.
    """

    mean: Tensor
    map: Tensor

    def __init__(self, features: int, unit: bool = False, kept: int | None = None) -> None:
        super().__init__()
        self.unit = unit
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("map", torch.eye(features)[:, -min(kept or features, features) :].contiguous())

    @torch.no_grad()
    @full_precision()
    def fit(self, features: Tensor) -> None:
        """Centre and decorrelate ``features`` (N, F), which are not normalised, as far as N examples tell."""
        rows = (unit(features) if self.unit else features).double()
        mean, (count, width) = rows.mean(0), rows.shape
        variances, directions = torch.linalg.eigh((rows - mean).T @ (rows - mean) / count)
        ridge = (_RIDGE + _SCARCE * width / count) * variances.clamp_min(0).mean()
        scale = (variances.clamp_min(0) + ridge).clamp_min(1e-30).rsqrt()
        kept = directions[:, -self.map.shape[1] :]
        back = directions.T if len(self.map) == self.map.shape[1] else turned(kept)
        self.mean.copy_(mean)
        self.map.copy_(kept * scale[-kept.shape[1] :] @ back)

    @full_precision()  # bf16 would drown the small directions
    def forward(self, features: Tensor) -> Tensor:
        """(B, F) → (B, kept): over what it was fitted to, zero mean and, ridge apart, unit covariance."""
        rows = unit(features) if self.unit else features
        return (rows.to(self.mean.dtype) - self.mean) @ self.map


def turned(basis: Tensor) -> Tensor:
    """(K, K) what turns an orthonormal basis (F, K) to lie nearest to one that is fixed, whose columns mix all rows.

    What comes out depends on the space alone, and not on the basis that it was given by, whose signs are chance.
    """
    fixed = uniforms(0, 0, torch.arange(len(basis)), _COLUMNS, basis.shape[1]).to(basis) - 0.5
    left, _, right = torch.linalg.svd(basis.T @ fixed)
    nearest: Tensor = left @ right
    return nearest


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
        self.backbone, self.head, self.whitening = quick_convolutions(backbone), head, whitening
        self.precision, self.evaluated_in = precision, evaluated_in

    def computing(self) -> AbstractContextManager[object]:
        """The context for this network and for what continues its products: predictors, decoders."""
        kind = next(self.parameters()).device.type
        return autocast(self.precision if self.training else self.evaluated_in, kind)

    def raw(self, **view: Tensor) -> Tensor:
        """(B, F) backbone output, neither whitened nor of unit norm: what a head sees."""
        with self.computing():
            return wide(self.backbone(**view))

    def unwhitened(self, **view: Tensor) -> Tensor:
        """(B, E) what whitening is fitted to: the backbone's output, and earlier stages where the model joins them."""
        with self.computing():
            return wide(getattr(self.backbone, "evaluated", self.backbone)(**view))

    def features(self, **view: Tensor) -> Tensor:
        """(B, E) the same whitened, where the recipe says so: what is evaluated, exported and searched."""
        features = self.unwhitened(**view)
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


# ---- heads ----


@dataclass(frozen=True)
class MLP(Bounded):
    """Linear layers of these widths with ReLU between: ``MLP((128,))`` is MoCo v1's, ``MLP((2048, 128))`` v2's.

    ``norm="hidden"`` puts BatchNorm before each ReLU; ``"all"`` adds one without scale and shift at the end, as
    MoCo v3 does (arXiv 2104.02057, section 3.1). A layer that BatchNorm follows has no bias, which it would cancel.
    """

    widths: tuple[Width, ...] = (128,)
    norm: Literal["none", "hidden", "all"] = "none"
    bias: bool = True  # of layers that no BatchNorm follows (MoCo v3's predictor: none)
    tanh: bool = False  # after the last layer, as SimCSE's head (arXiv 2104.08821)

    def build(self, features: int, group: int | None = None) -> nn.Sequential:
        """(B, features) → (B, widths[-1]); BatchNorm, if any, in groups of ``group`` examples, 2 or more."""
        if self.norm != "none" and (group is None or group < 2):
            raise UserError(f"head.norm {self.norm!r} compares the examples of a group: group must be at least 2")
        layers: list[nn.Module] = []
        last = len(self.widths) - 1
        for i, (before, after) in enumerate(zip((features, *self.widths), self.widths)):
            normed = self.norm == "all" or (self.norm == "hidden" and i < last)
            layers.append(nn.Linear(before, after, bias=self.bias and not normed))
            if normed and group is not None:
                layers.append(GroupedBatchNorm1d(after, group, affine=i < last))
            layers.append(nn.ReLU(inplace=True))
        return nn.Sequential(*layers[:-1], *([nn.Tanh()] if self.tanh else []))


# ---- evaluation ----


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


def quickened(encoder: Encoder, view: View) -> Encoder:
    """The same in evaluation, up to rounding: on a processor, networks of other libraries with BatchNorm folded."""
    if not isinstance(getattr(encoder, "backbone", None), Pixels) or view["pixels"].device.type != "cpu":
        return encoder
    quick = copy.copy(encoder)
    quick._modules = dict(encoder._modules)
    quick.backbone = folded(encoder.backbone, **{name: part[:2] for name, part in view.items()})
    return quick


def embed(
    encoder: Encoder,
    views: Iterable[View],
    layer: Layer = "backbone",
    progress: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """(N, F) float32 unit rows, in the order of ``views``; ``progress`` gets the number of examples of each view."""
    rows: list[Tensor] = []
    for part in embedded(encoder, views, layer):
        rows.append(part)
        progress(len(part))
    return sound(torch.cat(rows).clone()) if rows else torch.empty(0, 0)


def embedded(encoder: Encoder, views: Iterable[View], layer: Layer = "backbone") -> Iterator[Tensor]:
    """The rows of each view as they are made, not looked at (``sound``); modes are restored whenever one is out."""
    quick, views = encoder, iter(views)
    for number in count():
        with evaluating(encoder):
            if (view := next(views, None)) is None:
                return
            quick = quick if number else quickened(encoder, view)
            features = quick.features(**view) if layer == "backbone" else quick(**view)
            rows = F.normalize(features.float(), dim=1).cpu()
        yield rows


def sound(rows: Tensor) -> Tensor:
    """The rows, if all numbers are finite; else UserError, since nothing that is computed of them means anything."""
    if not bool(rows.isfinite().all()):
        bad = int((~rows.isfinite()).any(1).sum())
        raise UserError(f"{bad} of {len(rows)} features are not finite numbers: the network has run away", BAD_DATA)
    return rows


def raw(encoder: Encoder, views: Iterable[View], progress: Callable[[int], None] = lambda _: None) -> Tensor:
    """(N, F) float32 output of the backbone, neither whitened nor of unit norm."""
    rows: list[Tensor] = []
    with evaluating(encoder):
        for view in views:
            rows.append(encoder.raw(**view).float())
            progress(len(rows[-1]))
    return sound(torch.cat(rows).clone())


def unwhitened(encoder: Encoder, views: Iterable[View], progress: Callable[[int], None] = lambda _: None) -> Tensor:
    """(N, E) float32 what whitening is fitted to: the backbone's output, and earlier stages where the model joins."""
    rows: list[Tensor] = []
    with evaluating(encoder):
        for number, view in enumerate(views):
            encoder = encoder if number else quickened(encoder, view)
            rows.append(encoder.unwhitened(**view).float())
            progress(len(rows[-1]))
    return sound(torch.cat(rows).clone())


def means(rows: Tensor, number: Tensor, count: int) -> Tensor:
    """(count, F) unit rows: the mean of the unit rows (N, F) that have each ``number`` (N,)."""
    return F.normalize(rows.new_zeros(count, rows.shape[1]).index_add_(0, number, rows), dim=1)


def settle(encoder: Encoder, views: Iterable[View]) -> Tensor:
    """Fit the encoder's whitening, if it has one, to whole pictures, and return their features: (N, E) unit rows."""
    features = unwhitened(encoder, views)
    if encoder.whitening is not None:
        encoder.whitening.fit(features)
        features = encoder.whitening(features)
    return F.normalize(features, dim=1).cpu()
