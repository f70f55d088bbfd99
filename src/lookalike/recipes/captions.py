"""Recipes for pictures with captions: each is to be told from the others by its counterpart."""

from __future__ import annotations

from dataclasses import replace

from lookalike.learn.keys import Momentum
from lookalike.learn.optim import AdamW
from lookalike.learn.per_direction import QueueEach
from lookalike.models.image import SmallResNet
from lookalike.models.text import Transformer
from lookalike.models.towers import TwoTowers
from lookalike.pretext.captions import Captions
from lookalike.recipes.images import small

_tower = small.model
assert isinstance(_tower, SmallResNet)

moco_captions = replace(
    small,
    name="moco_captions",
    pretext=Captions(replace(small.pictures.first, scale=(0.5, 1.0), jitter=0.0, gray=0.0), whole=small.pictures.whole),
    model=TwoTowers(_tower, Transformer(width=_tower.widths[-1], depth=2)),
    whiten=False,
    keys=Momentum(0.99, symmetric=True, shuffle=False),  # a text's query has no statistics that a key could leak by
    dictionary=QueueEach(4096),
    optimizer=AdamW(lr=6e-4 * 256 / small.batch),
    steady=True,  # 6e-4 a step whatever the batch: less does not learn
    checkups=0,
)
"""A picture finds its caption among a queue of captions, and a caption its picture among a queue of pictures.

As ALBEF's contrast (arXiv 2107.07651, section 3.2), with the network of ``small`` and a transformer that starts
from nothing. Views keep their colours, which captions name.
"""
