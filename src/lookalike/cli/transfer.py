"""The verbs that measure by training further, on other labels than classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, subcommand

from lookalike.cli.evaluation import Measured
from lookalike.cli.flags import shown


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
    out: str | None = None
    """Keep the fit in this folder; the same command continues what was interrupted."""
    page: Annotated[str | None, shown("FILE")] = None
    """Write an HTML page with pictures, masks, and what the network says."""


@dataclass(frozen=True)
class Tuned(Measured):
    """What both take."""

    data: Positional[str]  # the same field in other words
    """Folder of pictures with annotations: COCO's JSON, Pascal VOC's XML, YOLO's text, points as .mat or .csv."""
    annotations: Annotated[str | None, shown("FILE")] = None
    """The file or folder of annotations, where DATA holds several; boxes and points are found by themselves."""
    out: str | None = None
    """Keep the fit in this folder; the same command continues what was interrupted."""
    page: str | None = None
    """Write the pictures with what is there and what was found to this file; by default detect.html, keypoints.html."""
    steps: int = 300
    """Steps of the fit."""
    batch: int = 8
    """Pictures a step."""
    lr: float = 1e-3
    """Full learning rate of AdamW."""
    size: int = 160
    """Short side of the pictures in pixels; large photos with small objects want more."""
    neck: Literal["fpn", "c4"] = "fpn"
    """A feature pyramid, or the last stage but one with the last as the head of each box."""
    seed: int = 0
    """Decides new layers, the order of pictures, and how they are varied."""


@dataclass(frozen=True)
class Detect(Tuned):
    """Average precision of boxes, with --masks of masks too, after tuning everything on the training part of DATA.

    Train and test (else val) are those of the annotation files or folders; else 80 and 20 percent.
    """

    masks: bool = False
    """Masks too: Mask R-CNN, from annotations with outlines."""


@dataclass(frozen=True)
class Keypoints(Tuned):
    """Average precision and PCK of named points, after tuning everything on the training part of DATA."""


Transfer = (
    Annotated[Detect, subcommand("detect")]
    | Annotated[Keypoints, subcommand("keypoints")]
    | Annotated[Segment, subcommand("segment")]
)
