"""Recipes for videos: two moments of one video are alike."""

from __future__ import annotations

from dataclasses import replace

from lookalike.learn.optim import AdamW
from lookalike.models.image import SmallVideoResNet, VideoResNet
from lookalike.pretext.image import MOCO_V2
from lookalike.pretext.video import TwoClips, TwoFrames
from lookalike.recipes.images import moco_v2, small
from lookalike.recipes.recipe import Length

_GRAY = replace(small.pictures.first, gray=1.0, scale=(0.5, 1.0))

video_moco = replace(small, name="video_moco", pretext=TwoFrames(_GRAY, whole=small.pictures.whole))
"""``small`` with another frame of the same video for the key: an encoder of pictures that learns from motion.

Views are gray, and crops half the picture or more: who moves is told by colours and by details, how by the whole.
"""

video_moco_clips = replace(
    small,
    name="video_moco_clips",
    pretext=TwoClips(_GRAY, whole=small.pictures.whole),
    model=SmallVideoResNet(),
    optimizer=AdamW(1e-3, weight_decay=0.05),
    batch=32,
    group=16,
)
"""``small`` with two clips of 8 frames of one video, and an encoder of 3×3×3 convolutions.

An epoch has a clip for every frame, so it is long; minutes are what counts.
"""

video_moco_r3d = replace(
    moco_v2,
    name="video_moco_r3d",
    pretext=TwoClips(replace(MOCO_V2, size=112), frames=16, every=0.16),
    canvas=128,
    model=VideoResNet(),
    batch=512,
    length=Length(steps=200 * 240_000 // 512),
)
"""MoCo v2 for videos: two clips of 16 frames at 112 px and r3d_18, much as Feichtenhofer et al. 2021 (2104.14558).

They train ResNet-50 slow on Kinetics-400 for 200 epochs of one clip a video; a row here is a frame, so that its length
is 200 times 240,000 clips in batches of 512.
"""

VIDEO = (video_moco, video_moco_clips, video_moco_r3d)
