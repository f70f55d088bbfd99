"""The verbs that tune a detector and measure it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, subcommand

from lookalike.commands.evaluation import Measured
from lookalike.commands.words import shown


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


Transfer = Annotated[Detect, subcommand("detect")] | Annotated[Keypoints, subcommand("keypoints")]
