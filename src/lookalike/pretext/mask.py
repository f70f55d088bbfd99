"""A picture with most of its patches hidden belongs together with the whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lookalike.core.errors import UserError
from lookalike.core.seeding import uniforms
from lookalike.pretext.image import TwoViews
from lookalike.types import Canvases, View

_MASK = 8  # the number of the draws that choose patches, beside those of the two views
_GRAY = 128


@dataclass(frozen=True)
class Masked(TwoViews):
    """The query sees a random part of the patches, its key the whole (arXiv 2111.06377, section 3, for the mask).

    ``patch`` is the model's, so that what is hidden costs nothing: see ``ViTBackbone.tokens``.
    """

    share: float = 0.6  # of the patches, hidden
    patch: int = 16  # side in pixels
    same: bool = False  # one crop on both sides: masked against whole, and no second view to make

    def __call__(self, canvases: Canvases, rows: Tensor, seed: int, epoch: int) -> tuple[View, View]:
        """Two views of the examples at ``rows`` (B,) of the source; the first says which patches it may ``keep``."""
        if self.same:
            first = second = self.first(canvases, rows, seed, epoch, 0)
        else:
            first, second = super().__call__(canvases, rows, seed, epoch)
        return {**first, "keep": self.keep(rows, seed, epoch)}, second

    def keep(self, rows: Tensor, seed: int, epoch: int) -> Tensor:
        """(B, n) the patches that stay visible, numbered by rows of the picture, ascending: equally many in each."""
        draws = uniforms(seed, epoch, rows, _MASK, self.patches())
        return draws.argsort(dim=1, stable=True)[:, : self.visible()].sort(dim=1).values

    def patches(self) -> int:
        """Of a view; raises UserError."""
        if self.patch < 1 or self.first.size % self.patch or not 0 <= self.share < 1:
            raise UserError(
                f"views of {self.first.size} pixels do not divide into patches of {self.patch} of which "
                f"{self.share:g} are hidden: pretext.patch must divide pretext.first.size, and 0 <= pretext.share < 1"
            )
        return (self.first.size // self.patch) ** 2

    def visible(self) -> int:
        """Patches of a view that stay: at least one."""
        return max(1, round((1 - self.share) * self.patches()))

    def displayable(self, first: View, second: View) -> tuple[Tensor, Tensor]:
        """Both views back as uint8 (B, 3, S, S), the hidden patches gray."""
        query, key = super().displayable(first, second)
        across = self.first.size // self.patch
        visible = torch.zeros(len(query), across**2, dtype=torch.bool, device=query.device)
        visible = visible.scatter(1, first["keep"].to(query.device), True).view(-1, 1, across, across)
        wide = visible.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)
        return torch.where(wide, query, _GRAY), key
