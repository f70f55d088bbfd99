"""A picture and its caption belong together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lookalike.core.seeding import noise, uniforms
from lookalike.pretext.image import ImageView
from lookalike.pretext.text import plain
from lookalike.types import Canvases, Captioned, Tokens, View

_WHICH = 8  # the number of the draws that choose a caption, beside those of the two views


@dataclass(frozen=True)
class Captions:
    """The first view is a random view of the picture, the second one of its captions, drawn anew each epoch."""

    modality: ClassVar[str] = "captioned pictures"

    picture: ImageView
    whole: int | None = None  # pixels a side at which evaluations see pictures: the view's size where not given
    length: int = 32  # tokens of a caption that are read, the one that all begin with included
    lowercase: bool = True

    def __call__(self, material: Captioned, rows: Tensor, seed: int, epoch: int) -> tuple[View, View]:
        """A view of the pictures and one of the captions at ``rows`` (B,) of the source."""
        draws = uniforms(seed, epoch, rows, _WHICH, 1)[:, 0]
        which = (draws * material.lengths.shape[1]).long()
        chosen = torch.arange(len(rows), device=rows.device)
        captions = Tokens(material.tokens[chosen, which][:, None], material.lengths[chosen, which][:, None])
        picture = self.picture(material.canvases(), rows, seed, epoch, 0)
        return picture, plain(captions, 0) | {"noise": noise(seed, epoch, rows, 1)}

    def evaluation(self, material: Captioned | Canvases) -> View:
        """The picture, whole; nothing is random."""
        canvases = material.canvases() if isinstance(material, Captioned) else material
        return replace(self.picture, size=self.whole or self.picture.size).evaluation(canvases)

    def shown(self) -> str:
        """What a run says of its views."""
        return f"views of {self.picture.size} px and at most {self.length} tokens"
