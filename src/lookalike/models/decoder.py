"""A decoder that paints the patches an encoder did not see: the masked autoencoder (arXiv 2111.06377)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lookalike.core.errors import UserError
from lookalike.models.vit import Block, Blocks, grid, initialise, patches_at, positions


@dataclass(frozen=True)
class Decoder:
    """A narrower transformer than the encoder, thrown away after training; the defaults are those of the paper."""

    width: int = 512
    depth: int = 8
    heads: int = 16
    weight: float = 1.0  # of its error, beside the contrast

    def build(self, features: int, patch: int) -> PatchDecoder:
        """Random weights, for an encoder whose tokens have ``features`` numbers and whose patches have ``patch`` px."""
        for name in ("width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise UserError(f"reconstruction.{name} must be at least 1")
        if self.width % self.heads or self.width % 4:
            raise UserError(f"reconstruction.width {self.width} must be a multiple of {self.heads} heads and of 4")
        return PatchDecoder(self, features, patch)

    def guess(self, patch: int) -> float:
        """The weighted error of painting nothing: normalised pixels have a variance of 1."""
        return self.weight


class PatchDecoder(nn.Module):
    """``hidden`` stands for every patch that was not seen; positions say which it is."""

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
        nn.init.zeros_(self.paint.weight)  # it begins by painting nothing, so at ``guess``

    def forward(self, tokens: Tensor, pixels: Tensor, keep: Tensor) -> Tensor:
        """The mean squared error over the patches of (B, 3, H, W) that are not at ``keep`` (B, n), unweighted.

        ``tokens`` (B, n, F) are the encoder's of those that are; a token of the class may stand before them.
        """
        rows, columns = grid(pixels, self.side)
        hidden = others(keep, rows * columns)
        painted = self.painted(tokens, keep, hidden, (rows, columns))
        true = normalised(patches_at(pixels, self.side, hidden))
        return (painted.to(true.dtype) - true).square().mean()

    def painted(self, tokens: Tensor, keep: Tensor, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, m, 3 · side²) what it makes of the patches at ``hidden`` (B, m), each with a mean of 0 and variance 1."""
        x = self.enter(tokens)
        where = positions(*grid, self.spec.width, x.device).to(self.hidden.dtype)
        first = x.shape[1] - keep.shape[1]  # the class token, which has no place
        seen = torch.cat([x[:, :first], x[:, first:] + where[keep]], dim=1)
        x = self.blocks(torch.cat([seen, self.hidden + where[hidden]], dim=1))
        found: Tensor = self.paint(self.norm(x[:, seen.shape[1] :]))
        return found


def others(keep: Tensor, patches: int) -> Tensor:
    """(B, patches - n) ascending, the patches that are not at ``keep`` (B, n)."""
    seen = torch.zeros(len(keep), patches, dtype=torch.uint8, device=keep.device).scatter(1, keep, 1)
    return seen.argsort(dim=1, stable=True)[:, : patches - keep.shape[1]]


def normalised(patches: Tensor) -> Tensor:
    """(B, m, P) each patch by its own mean and variance, in fp32 or better (arXiv 2111.06377, section 3)."""
    patches = patches if patches.dtype == torch.float64 else patches.float()
    mean, variance = patches.mean(2, keepdim=True), patches.var(2, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()
