"""MoCo as it is published, recipes for processors (``small``, ``tiny`` and ``digits``), and for videos.

A recipe is a value, and the published ones are the settings of their papers: ``Recipe.fitted`` says what becomes of
them on other data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from lookalike.data.decode import FINE
from lookalike.learn.dictionary import Queue
from lookalike.learn.keys import Momentum
from lookalike.learn.objective import InfoNCE
from lookalike.learn.optim import SGD, AdamW, Cosine, Muon, Steps
from lookalike.models.encoder import MLP
from lookalike.models.image import ResNet, SmallResNet, SmallVideoResNet, VideoResNet
from lookalike.models.text import TwoTowers
from lookalike.pretext.image import MOCO_CIFAR, MOCO_V1, MOCO_V2, ImageView, TwoViews
from lookalike.pretext.text import Captions
from lookalike.pretext.video import TwoClips, TwoFrames
from lookalike.recipes.recipe import Length, Recipe

moco_v1 = Recipe(
    name="moco_v1",
    pretext=TwoViews(MOCO_V1),
    canvas=FINE,
    model=ResNet("resnet50"),
    head=MLP((128,)),
    keys=Momentum(0.999),
    dictionary=Queue(65536),
    objective=InfoNCE(0.07),
    optimizer=SGD(lr=0.03, momentum=0.9, weight_decay=1e-4),
    schedule=Steps((0.6, 0.8)),
    length=Length(epochs=200),
    batch=256,
    group=32,
)
"""MoCo (arXiv 1911.05722, section 4.1): ResNet-50, 200 epochs, SGD 0.03, K 65,536, temperature 0.07.

Published: 60.6 % linear top-1 on ImageNet.
"""

moco_v2 = replace(
    moco_v1,
    name="moco_v2",
    pretext=TwoViews(MOCO_V2),
    head=MLP((2048, 128)),
    objective=InfoNCE(0.2),
    schedule=Cosine(),
)
"""MoCo v2 (arXiv 2003.04297): v1 with an MLP head, blur, temperature 0.2 and a cosine schedule.

Published: 67.5 % linear top-1 on ImageNet after 200 epochs.
"""

moco_cifar = replace(
    moco_v1,
    name="moco_cifar",
    pretext=TwoViews(MOCO_CIFAR),
    canvas=32,
    model=ResNet("resnet18", stem="small"),
    keys=Momentum(0.99),
    dictionary=Queue(4096),
    objective=InfoNCE(0.1),
    optimizer=SGD(lr=0.03, momentum=0.9, weight_decay=5e-4),
    schedule=Cosine(),
    batch=512,
    group=64,
)
"""FAIR's CIFAR-10 demonstration of MoCo (moco_cifar10_demo.ipynb, asymmetric): ResNet-18, 8 groups of 64.

Published kNN on the head's output: 31.98 / 33.5 / 38.0 / 48.0 % at epochs 1, 2, 5, 10; 82.6 % at 200.
"""


@dataclass(frozen=True)
class SmallRecipe(Recipe):
    """A recipe whose batch and pictures follow the data; as it stands it is for 2,048 examples or more, of 32 pixels.

    ``fitted`` gives a plain recipe. A batch is for little data the largest power of two that leaves 16 steps an epoch
    (and as many more as pictures give more pairs of views), but not under 16. Whole pictures are seen at their own side
    in steps of 16 pixels, from 32 to 128, and crops at three quarters of that, where an object appears as large as in
    the whole picture (Touvron et al. 2019, arXiv 1906.06423) at half the cost. docs/results.md has what was tried.
    """

    steady: bool = False  # the learning rate of a step stays the same where the batch is smaller

    def fitted(
        self,
        examples: int,
        side: int = 32,
        change: Callable[[Recipe], Recipe] = lambda recipe: recipe,
        tell: Callable[[str], None] = lambda _: None,
    ) -> Recipe:
        """``Recipe.fitted`` of the recipe for this data; ``side`` is 0 for text."""
        batch = min(self.batch, max(16, 1 << max((examples // (16 * self.pairs)).bit_length() - 1, 0)))
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(Recipe)}
        values |= {"batch": batch, "group": min(self.group, batch // 2)}
        if self.steady:
            values["optimizer"] = replace(self.optimizer, lr=self.optimizer.lr * self.batch / batch)
        whole = min(128, max(32, round(side / 16) * 16))
        return resized(Recipe(**values), whole).fitted(examples, side, change, tell)


def resized(recipe: Recipe, whole: int) -> Recipe:
    """``recipe`` for whole pictures of so many pixels a side; unchanged where its pretext does not name their size."""
    pretext, size = recipe.pretext, whole * 3 // 4
    if isinstance(pretext, TwoViews | TwoClips) and pretext.whole is not None:
        pretext = replace(pretext, first=replace(pretext.first, size=size), whole=whole)
    elif isinstance(pretext, Captions):
        pretext = replace(pretext, picture=replace(pretext.picture, size=size), whole=whole)
    else:
        return recipe
    return replace(recipe, pretext=pretext, canvas=whole, model=_strided(recipe.model, 2 << (whole - 1) // 48))


def _strided(model: Any, stride: int) -> Any:
    """A small network whose first convolution shrinks the picture by ``stride``: 2 of 32 px, 4 of 64 and 96, 8."""
    if isinstance(model, TwoTowers):
        return replace(model, picture=_strided(model.picture, stride))
    return (
        replace(model, kernel=stride + 1, stride=stride) if isinstance(model, SmallResNet | SmallVideoResNet) else model
    )


SMALL = SmallResNet(widths=(32, 64, 128, 256), blocks=(1, 1, 1, 1), kernel=3, stride=2, joined=3, grid=4)
"""The network of the recipes for processors: at 32 pixels its stages have 16, 8, 4 and 2 positions a side."""

small = SmallRecipe(
    name="small",
    pretext=TwoViews(replace(MOCO_CIFAR, size=24, scale=(0.2, 1.0)), whole=32),
    canvas=32,
    model=SMALL,
    head=MLP((128,)),
    whiten=True,
    directions=512,
    keys=Momentum(0.99),
    dictionary=Queue(4096),
    objective=InfoNCE(0.1),
    optimizer=Muon(),
    schedule=Cosine(warmup=0.05),
    length=Length(minutes=10),
    batch=128,
    group=32,
    checkups=5,
)
"""Momentum contrast for a processor without an accelerator, chosen by the kNN that ten minutes on two cores can buy."""

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
"""``small`` at 16 pixels with a few thousand weights; 30 steps: for tests and for looking at a whole run."""

DIGIT = ImageView(
    size=16,
    scale=(0.4, 1.0),
    ratio=(0.6, 1.67),
    flip=0.0,
    jitter=1.0,
    brightness=0.8,
    contrast=0.8,
    blur=0.5,
    sigma=(0.5, 2.0),
    solarize=0.2,
    mean=(0.305, 0.305, 0.305),  # of the 1,797 pictures
    std=(0.376, 0.376, 0.376),
)
"""A view of a digit: no mirror image, which is another sign or none, and no hue; strong light and blur, which took
accuracy with one label a class from 75 to 78 %: the thickness and the gray of a stroke say little."""

digits = replace(
    moco_cifar,
    name="digits",
    pretext=TwoViews(DIGIT),
    canvas=16,
    model=SmallResNet(widths=(32, 64, 128), blocks=(1, 1, 1), kernel=4, stride=2),
    objective=InfoNCE(0.4),
    optimizer=AdamW(lr=2e-3),
    schedule=Cosine(warmup=0.05),
    length=Length(epochs=60),
    batch=128,
    group=32,
    precision="fp32",
)
"""The recipe of ``lookalike demo``, for few labels on 8 × 8 digits.

Epochs, not minutes, so that it learns the same however fast the machine is.

Chosen on 719 of the digits that the demo's labels are drawn from, never on those it is tested on. Temperature 0.4:
at 0.2, longer training tells single pictures apart and loses the classes (one label a class: 78 % after 22 epochs,
75 after 80; at 0.4 it is 80). A linear head leaves the backbone what two layers would keep for themselves (83 %).
"""

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
