"""A recipe of seconds, for tests and for looking at a whole run."""

from __future__ import annotations

from dataclasses import replace

from lookalike.learn.dictionary import Queue
from lookalike.models.image import SmallResNet
from lookalike.pretext.image import TwoViews
from lookalike.recipes.images import small
from lookalike.recipes.recipe import Length

tiny = replace(
    small.fitted(examples=50_000),
    name="tiny",
    pretext=TwoViews(replace(small.pictures.first, size=16)),
    canvas=16,
    model=SmallResNet(widths=(8, 16), blocks=(1, 1), kernel=4, stride=2),
    batch=16,
    group=8,
    dictionary=Queue(64),
    length=Length(steps=30),
    checkups=2,
)
"""``small`` at 16 pixels with a few thousand weights; 30 steps."""
