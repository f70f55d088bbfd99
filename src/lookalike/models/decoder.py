"""Decoders that rebuild what an encoder did not see; thrown away after training.

Patches of pictures as in the masked autoencoder (arXiv 2111.06377), tokens of texts as in BERT (arXiv 1810.04805).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookalike.core.devices import wide
from lookalike.core.errors import Bounded, Factor, Limit, UserError, Width
from lookalike.models.vit import Block, Blocks, grid, initialise, patches_at, positions


@dataclass(frozen=True)
class Decoder(Bounded):
    """A narrower transformer than the encoder, thrown away after training; the defaults are those of the paper."""

    width: Width = 512
    depth: Annotated[int, Limit(1, 1000)] = 8
    heads: Width = 16
    weight: Factor = 1.0  # of its error, beside the contrast

    def build(self, features: int, patch: int) -> PatchDecoder:
        """Random weights, for an encoder whose tokens have ``features`` numbers and whose patches have ``patch`` px."""
        if self.width % self.heads or self.width % 4:
            raise UserError(f"reconstruction.width {self.width} must be a multiple of {self.heads} heads and of 4")
        return PatchDecoder(self, features, patch)

    def chance_loss(self, patch: int) -> float:
        """The weighted error of painting nothing: normalised pixels have a variance of 1."""
        return self.weight


class PatchDecoder(nn.Module):
    """``hidden`` stands for every patch that the encoder did not see; positions say which it is."""

    measured = "pixels"

    def __init__(self, spec: Decoder, features: int, patch: int) -> None:
        super().__init__()
        self.spec, self.side = spec, patch
        self.enter = nn.Linear(features, spec.width)
        # One dimension: it decays only where everything does.
        self.hidden = nn.Parameter(torch.empty(spec.width))
        self.blocks = Blocks(*(Block(spec.width, spec.heads) for _ in range(spec.depth)))
        self.norm = nn.LayerNorm(spec.width, eps=1e-6)
        self.paint = nn.Linear(spec.width, 3 * patch**2)
        initialise(self)
        nn.init.normal_(self.hidden, std=0.02)
        nn.init.zeros_(self.paint.weight)  # it begins by painting nothing, so at ``chance_loss``

    def forward(self, tokens: Tensor, pixels: Tensor, keep: Tensor) -> Tensor:
        """The mean squared error over the patches of (B, 3, H, W) that are not at ``keep`` (B, n), unweighted.

        ``tokens`` (B, n, F) are the encoder's for the patches at ``keep``; a class token may stand before them.
        """
        rows, columns = grid(pixels, self.side)
        hidden = others(keep, rows * columns)
        predicted = self.patches(tokens, keep, hidden, (rows, columns))
        true = normalised(patches_at(pixels, self.side, hidden))
        return (predicted.to(true.dtype) - true).square().mean()

    def patches(self, tokens: Tensor, keep: Tensor, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, m, 3 · side²) the predicted patches at ``hidden`` (B, m), each with a mean of 0 and a variance of 1."""
        x = self.enter(tokens)
        embedded = positions(*grid, self.spec.width, x.device).to(self.hidden.dtype)
        first = x.shape[1] - keep.shape[1]  # the class token, which has no position
        visible = torch.cat([x[:, :first], x[:, first:] + embedded[keep]], dim=1)
        x = self.blocks(torch.cat([visible, self.hidden + embedded[hidden]], dim=1))
        predicted: Tensor = self.paint(self.norm(x[:, visible.shape[1] :]))
        return predicted


def others(keep: Tensor, patches: int) -> Tensor:
    """(B, patches - n) ascending, the patches that are not at ``keep`` (B, n)."""
    kept = torch.zeros(len(keep), patches, dtype=torch.uint8, device=keep.device).scatter(1, keep, 1)
    return kept.argsort(dim=1, stable=True)[:, : patches - keep.shape[1]]


def normalised(patches: Tensor) -> Tensor:
    """(B, m, P) each patch by its own mean and variance, in fp32 or better (arXiv 2111.06377, section 3)."""
    patches = wide(patches)
    mean, variance = patches.mean(2, keepdim=True), patches.var(2, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


# ---- tokens ----


@dataclass(frozen=True)
class Words(Bounded):
    """One layer, then a score for every token of the vocabulary; thrown away after training."""

    weight: Factor = 1.0  # of its error

    def build(self, features: int, vocabulary: int) -> WordDecoder:
        """Random weights, for an encoder whose tokens have ``features`` numbers."""
        return WordDecoder(self, features, vocabulary)

    def chance_loss(self, vocabulary: int) -> float:
        """The weighted error of naming all tokens alike."""
        return self.weight * math.log(vocabulary)


class WordDecoder(nn.Module):
    """Scores the vocabulary at the tokens that are targets, and only there."""

    measured = "words"

    def __init__(self, spec: Words, features: int, vocabulary: int) -> None:
        super().__init__()
        self.spec = spec
        self.layer = nn.Sequential(nn.Linear(features, features), nn.GELU(), nn.LayerNorm(features))
        self.score = nn.Linear(features, vocabulary)
        nn.init.normal_(self.score.weight, std=0.02)
        nn.init.zeros_(self.score.bias)

    def forward(
        self, last: Tensor, tokens: Tensor, attend: Tensor, targets: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """The mean over texts of the mean cross entropy over ``targets`` (B, L), −1 where there is none; unweighted.

        ``last`` (T, F) is the encoder's last layer. Texts count alike, however many targets they have: so the mean over
        a batch is the mean over its shares, on any number of processes.
        """
        true = targets[attend]
        where = (true >= 0).nonzero()[:, 0]
        scores = wide(self.score(self.layer(last[where])))
        counts = (targets >= 0).sum(1)
        share = (1 / counts.clamp(min=1))[:, None].expand_as(targets)[attend][where]
        return (F.cross_entropy(scores, true[where], reduction="none") * share).sum() / len(tokens)
