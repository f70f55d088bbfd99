"""The recipe of ``lookalike demo``: scikit-learn's handwritten digits in a minute."""

from __future__ import annotations

from lookalike.learn.dictionary import Queue
from lookalike.learn.keys import Momentum
from lookalike.learn.objective import InfoNCE
from lookalike.models.heads import MLP
from lookalike.models.image import SmallResNet
from lookalike.optimize import AdamW, Cosine
from lookalike.pretext.image import ImageView, TwoViews
from lookalike.recipe import Length, Recipe

DIGIT = ImageView(
    size=16,
    scale=(0.3, 1.0),
    ratio=(0.6, 1.67),
    flip=0.0,
    jitter=0.8,
    brightness=0.4,
    contrast=0.4,
    mean=(0.305, 0.305, 0.305),  # of the 1,797 pictures
    std=(0.376, 0.376, 0.376),
)
"""A view of a digit: no mirror image, since it is another sign or none, and no colour, since there is none."""


def digits(examples: int = 1797, side: int = 8) -> Recipe:
    """Few labels on 8 × 8 digits; epochs, not minutes, so that the demo learns the same however fast the machine is."""
    return Recipe(
        name="digits",
        pretext=TwoViews(DIGIT),
        canvas=16,
        model=SmallResNet(widths=(32, 64, 128), blocks=(1, 1, 1), kernel=4, stride=2),
        head=MLP((256, 128)),
        keys=Momentum(0.99),
        dictionary=Queue(4096),
        objective=InfoNCE(0.1),
        optimizer=AdamW(lr=1e-3),
        schedule=Cosine(warmup=0.05),
        length=Length(epochs=60),
        batch=128,
        group=32,
        precision="fp32",
    ).fitted(examples)
