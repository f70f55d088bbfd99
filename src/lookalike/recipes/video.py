"""Recipes for videos: two moments of one video are alike."""

from __future__ import annotations

from dataclasses import replace

from lookalike.pretext.video import TwoFrames
from lookalike.recipe import Recipe
from lookalike.recipes.images import small


def video_moco(examples: int = 2700, side: int = 64) -> Recipe:
    """``small`` with another frame of the same video for the key: an encoder of pictures that learns from motion."""
    base = small(examples, side)
    return replace(base, name="video_moco", pretext=TwoFrames(base.pretext.first, whole=base.pretext.whole))
