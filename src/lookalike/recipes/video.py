"""Recipes for videos: two moments of one video are alike."""

from __future__ import annotations

from dataclasses import replace

from lookalike.learn.optim import AdamW
from lookalike.models.video import SmallVideoResNet, VideoResNet
from lookalike.pretext.image import MOCO_V2
from lookalike.pretext.video import TwoClips, TwoFrames
from lookalike.recipes.images import moco_v2, small
from lookalike.recipes.recipe import Recipe


def video_moco(examples: int = 2700, side: int = 64) -> Recipe:
    """``small`` with another frame of the same video for the key: an encoder of pictures that learns from motion.

    Views are gray, and crops half the picture or more: who moves is told by colours and by details, how by the whole.
    """
    base = small(examples, side)
    view = replace(base.pictures.first, gray=1.0, scale=(0.5, 1.0))
    return replace(base, name="video_moco", pretext=TwoFrames(view, whole=base.pictures.whole))


def video_moco_clips(examples: int = 2700, side: int = 64) -> Recipe:
    """``small`` with two clips of 8 frames of one video, and an encoder of 3×3×3 convolutions.

    An epoch has a clip for every frame, so it is long; minutes are what counts.
    """
    base = small(examples, side)
    halvings = (base.canvas - 1) // 48
    batch = min(32, base.batch)
    return replace(
        base,
        name="video_moco_clips",
        pretext=TwoClips(replace(base.pictures.first, gray=1.0, scale=(0.5, 1.0)), whole=base.pictures.whole),
        model=SmallVideoResNet(kernel=(2 << halvings) + 1, stride=2 << halvings),
        optimizer=AdamW(1e-3, weight_decay=0.05),
        batch=batch,
        group=min(16, batch // 2),
    )


def video_moco_r3d(examples: int = 240_000 * 300, side: int = 128) -> Recipe:
    """MoCo v2 for videos: two clips of 16 frames at 112 px and r3d_18, much as Feichtenhofer et al. 2021 (2104.14558).

    They train ResNet-50 slow on Kinetics-400 for 200 epochs of one clip a video; a row here is a frame, so that the
    length below is 200 times 240,000 clips in batches of 512.
    """
    base = moco_v2(examples, side)
    view = replace(MOCO_V2, size=112)
    return replace(
        base,
        name="video_moco_r3d",
        pretext=TwoClips(view, frames=16, every=0.16),
        canvas=128,
        model=VideoResNet(),
        batch=512,
        length=replace(base.length, epochs=None, steps=200 * 240_000 // 512),
    )
