"""Published recipes for pictures, and ``small``, the default where there is no accelerator.

Every recipe is a function of the number of examples and the side of the pictures in pixels, with the data of its paper
as defaults: ``moco_v2()`` is the published setting.
"""

from __future__ import annotations

from dataclasses import replace

from lookalike.data.image.decode import FINE
from lookalike.learn.dictionary import Queue
from lookalike.learn.keys import Momentum
from lookalike.learn.objective import InfoNCE
from lookalike.learn.optim import SGD, Cosine, Muon, Steps
from lookalike.models.heads import MLP
from lookalike.models.image import ResNet, SmallResNet
from lookalike.pretext.image import MOCO_CIFAR, MOCO_V1, MOCO_V2, TwoViews
from lookalike.recipes.recipe import Length, Recipe

IMAGENET = 1_281_167


def moco_v1(examples: int = IMAGENET, side: int = 224) -> Recipe:
    """MoCo (arXiv 1911.05722, section 4.1): ResNet-50, 200 epochs, SGD 0.03, K 65,536, temperature 0.07.

    Published: 60.6 % linear top-1 on ImageNet.
    """
    return Recipe(
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
    ).fitted(examples)


def moco_v2(examples: int = IMAGENET, side: int = 224) -> Recipe:
    """MoCo v2 (arXiv 2003.04297): v1 with an MLP head, blur, temperature 0.2 and a cosine schedule.

    Published: 67.5 % linear top-1 on ImageNet after 200 epochs.
    """
    return replace(
        moco_v1(examples, side),
        name="moco_v2",
        pretext=TwoViews(MOCO_V2),
        head=MLP((2048, 128)),
        objective=InfoNCE(0.2),
        schedule=Cosine(),
    )


def moco_cifar(examples: int = 50_000, side: int = 32) -> Recipe:
    """FAIR's CIFAR-10 demonstration of MoCo (moco_cifar10_demo.ipynb, asymmetric): ResNet-18, 8 groups of 64.

    Published kNN on the head's output: 31.98 / 33.5 / 38.0 / 48.0 % at epochs 1, 2, 5, 10; 82.6 % at 200.
    """
    return Recipe(
        name="moco_cifar",
        pretext=TwoViews(MOCO_CIFAR),
        canvas=32,
        model=ResNet("resnet18", stem="small"),
        head=MLP((128,)),
        keys=Momentum(0.99),
        dictionary=Queue(4096),
        objective=InfoNCE(0.1),
        optimizer=SGD(lr=0.03, momentum=0.9, weight_decay=5e-4),
        schedule=Cosine(),
        length=Length(epochs=200),
        batch=512,
        group=64,
    ).fitted(examples)


def whole_side(side: int) -> int:
    """The side in pixels at which ``small`` sees whole pictures of this side: in steps of 16, from 32 to 128."""
    return min(128, max(32, round(side / 16) * 16))


def small_batch(examples: int) -> int:
    """128, or for little data the largest power of two that leaves 16 steps an epoch, but not under 16."""
    power = max((max(examples, 1) // 16).bit_length() - 1, 0)
    return min(128, max(16, 1 << power))


def small(examples: int = 50_000, side: int = 32) -> Recipe:
    """The default on a processor without an accelerator: the best kNN that ten minutes on two cores can buy.

    It adapts to the data: the batch by ``small_batch``, K 4,096 but at most half the examples, whole pictures by
    ``whole_side`` and crops at three quarters of that, where an object appears as large as in the whole picture
    (Touvron et al. 2019, arXiv 1906.06423) at half the cost. docs/results.md has what was tried.
    """
    whole = whole_side(side)
    halvings = (whole - 1) // 48  # 32: none; 64 and 96: one more before the first stage; 128: two
    return Recipe(
        name="small",
        pretext=TwoViews(replace(MOCO_CIFAR, size=whole * 3 // 4, scale=(0.2, 1.0)), whole=whole),
        canvas=whole,
        model=SmallResNet(
            widths=(32, 64, 128, 256), blocks=(1, 1, 1, 1), kernel=(2 << halvings) + 1, stride=2 << halvings
        ),
        head=MLP((128,)),
        whiten=True,
        keys=Momentum(0.99),
        dictionary=Queue(4096),
        objective=InfoNCE(0.1),
        optimizer=Muon(),
        schedule=Cosine(warmup=0.05),
        length=Length(minutes=10),
        batch=small_batch(examples),
        group=min(32, small_batch(examples) // 2),
        checkups=5,
    ).fitted(examples)
