"""The verbs that measure by training further, on other labels than classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import subcommand

from lookalike.commands.evaluation import Measured
from lookalike.commands.words import shown


@dataclass(frozen=True)
class Segment(Measured):
    """Semantic segmentation: an FCN on the dilated backbone, everything tuned on train, asked about test (else val).

    Photos and masks lie in folders beside each other: train/ and trainannot/, or images/ and masks/, or as Pascal VOC
    has them. Masks are PNG whose pixels are numbers of classes.
    """

    void: tuple[int, ...] = (255,)
    """Numbers in masks that are no class: neither learned from nor asked."""
    steps: int = 300
    """Steps of training."""
    batch: int = 8
    """Pictures a step."""
    size: int = 192
    """Pixels of the short side at which whole pictures are seen."""
    crop: int = 160
    """Pixels of the crops that are trained on."""
    stride: int = 16
    """Pixels of a picture for one place of the map of features, at most."""
    width: int = 64
    """Channels of the head; the paper has 256."""
    lr: float = 0.05
    """The learning rate, a tenth from 0.7 of the steps on and a hundredth from 0.9."""
    seed: int = 0
    """What is drawn: the head, the order, the crops."""
    page: Annotated[str | None, shown("FILE")] = None
    """Write an HTML page with pictures, masks, and what the network says."""


Transfer = Annotated[Segment, subcommand("segment")]
