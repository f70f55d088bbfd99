"""Two views of each text, or of a picture and its caption, made for whole batches on the device of the tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lookalike.core.errors import Bounded, Limit, PixelSide, Probability
from lookalike.core.seeding import noise, uniforms
from lookalike.pretext.image import ImageView
from lookalike.types import MASK, Canvases, Captioned, Tokens, View

_WHICH = 8  # the number of the draws that choose a caption, beside those of the two views
_CLOZE = 8  # the number of the draws that choose what is hidden, beside those of the two views


@dataclass(frozen=True)
class SameSentence(Bounded):
    """Two views of a sentence differ in what its encoder drops (SimCSE, arXiv 2104.08821) and perhaps in its tokens.

    Each is a function of (seed, epoch, row, view): which units drop out is decided by the view's ``noise``, not by a
    generator, so it depends neither on the batch nor on the process.
    """

    modality: ClassVar[str] = "sentences"

    length: Annotated[int, Limit(1, 65536)] = 32  # tokens of a text that are read, the one that all begin with included
    lowercase: bool = True
    drop: Probability = 0.0  # share of tokens that a view leaves out
    shuffle: Annotated[int, Limit(0, 65536)] = 0  # places that a token may move (arXiv 1711.00043, section 2.3)

    def __call__(self, texts: Tokens, rows: Tensor, seed: int, epoch: int) -> tuple[View, View]:
        """Two views of the examples at ``rows`` (B,) of the source."""
        return self.view(texts, rows, seed, epoch, 0), self.view(texts, rows, seed, epoch, 1)

    def view(self, texts: Tokens, rows: Tensor, seed: int, epoch: int, number: int) -> View:
        """View ``number`` of the examples at ``rows`` (B,)."""
        view = plain(texts, self.text(number))
        if self.drop or self.shuffle:
            # Two draws a place, side by side, so that they do not depend on how far the batch is filled up.
            places = view["tokens"].shape[1]
            leave, move = uniforms(seed, epoch, rows, number, 2 * places).view(len(rows), places, 2).unbind(2)
            view = moved(left_out(view, leave < self.drop), move * (self.shuffle + 1))
        return view | {"noise": noise(seed, epoch, rows, number)}

    def text(self, number: int) -> int:
        """Which text of an example a view shows."""
        return 0

    def evaluation(self, texts: Tokens) -> View:
        """The first text of each example, whole; nothing drops out."""
        return plain(texts, 0)

    def shown(self) -> str:
        """What a run says of its views."""
        return f"at most {self.length} tokens"


@dataclass(frozen=True)
class Pairs(SameSentence):
    """The two texts of a pair belong together: question and answer, sentence and translation, premise and entailment.

    Each still goes through its own dropout, as in supervised SimCSE (arXiv 2104.08821, section 4).
    """

    modality: ClassVar[str] = "pairs"

    def text(self, number: int) -> int:
        """Which text of an example a view shows: the first asks for the second."""
        return number


@dataclass(frozen=True)
class Cloze(SameSentence):
    """A sentence with some of its tokens hidden, and which they were (BERT, arXiv 1810.04805, section 3.1).

    Nine in ten of the target tokens are hidden and one stays as it is; every text has at least one target.
    """

    share: Probability = 0.15  # of the tokens, which are targets

    def __call__(self, texts: Tokens, rows: Tensor, seed: int, epoch: int) -> tuple[View, View]:
        """One view of the examples at ``rows`` (B,), twice: nothing is contrasted."""
        view = self.view(texts, rows, seed, epoch, 0)
        tokens, places = view["tokens"], view["tokens"].shape[1]
        chosen, stays = uniforms(seed, epoch, rows, _CLOZE, 2 * places).view(len(rows), places, 2).unbind(2)
        chosen = chosen.masked_fill(~view["attend"], 2.0)
        chosen[:, 0] = 2.0  # what all texts begin with
        where = (chosen < self.share) | (chosen == chosen.amin(1, keepdim=True)) & (chosen < 1)
        hidden = where & (stays < 0.9)
        view |= {"tokens": tokens.masked_fill(hidden, MASK), "targets": tokens.masked_fill(~where, -1)}
        return view, view


def plain(texts: Tokens, number: int) -> View:
    """Text ``number`` of each example, filled up as far as the longest of them needs."""
    lengths = texts.lengths[:, number]
    places = torch.arange(int(lengths.max()), device=lengths.device)
    return {"tokens": texts.tokens[:, number, : len(places)], "attend": places < lengths[:, None]}


def left_out(view: View, where: Tensor) -> View:
    """Without the tokens that ``where`` (B, L) picks; the first always stays."""
    stay = ~where
    stay[:, 0] = True
    return {**view, "attend": view["attend"] & stay}


def moved(view: View, steps: Tensor) -> View:
    """Each token but the first put ``steps`` (B, L) places later, then sorted by where they are, the unseen last."""
    where = (torch.arange(steps.shape[1], device=steps.device) + steps).masked_fill(~view["attend"], torch.inf)
    where[:, 0] = -1
    order = where.argsort(dim=1, stable=True)
    return {name: part.gather(1, order) for name, part in view.items()}


# ---- captions of pictures ----


@dataclass(frozen=True)
class Captions(Bounded):
    """The first view is a random view of the picture, the second one of its captions, drawn anew each epoch."""

    modality: ClassVar[str] = "captioned pictures"

    picture: ImageView
    whole: PixelSide | None = None  # side at which evaluations see pictures: the view's where not given
    length: Annotated[int, Limit(1, 65536)] = 32  # tokens of a caption that are read, with the first
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
