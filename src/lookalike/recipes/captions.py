"""Recipes for pictures with captions: the one is asked to find the other."""

from __future__ import annotations

from dataclasses import replace

from lookalike.learn.dictionary import QueueEach
from lookalike.learn.keys import Momentum
from lookalike.learn.optim import AdamW
from lookalike.models.image import SmallResNet
from lookalike.models.text import Transformer
from lookalike.models.towers import TwoTowers
from lookalike.pretext.captions import Captions
from lookalike.recipes.images import small
from lookalike.recipes.recipe import Recipe


def moco_captions(examples: int = 50_000, side: int = 224) -> Recipe:
    """A picture finds its caption among a queue of captions, and a caption its picture among a queue of pictures.

    As ALBEF's contrast (arXiv 2107.07651, section 3.2), with the network of ``small`` and a transformer that starts
    from nothing. Views keep their colours, which captions name.
    """
    base = small(examples, side)
    view = replace(base.pictures.first, scale=(0.5, 1.0), jitter=0.0, gray=0.0)
    assert isinstance(base.model, SmallResNet)
    return replace(
        base,
        name="moco_captions",
        pretext=Captions(view, whole=base.pictures.whole),
        model=TwoTowers(base.model, Transformer(width=base.model.widths[-1], depth=2)),
        whiten=False,
        keys=Momentum(0.99, symmetric=True, shuffle=False),  # a text's query has no statistics that a key could leak by
        dictionary=QueueEach(4096),
        optimizer=AdamW(lr=6e-4 * 256 / base.batch),  # 6e-4 a step whatever the batch: less does not learn
        checkups=0,
    ).fitted(examples)
