"""Every evaluation. Its fields are the flags, the record in JSON, the settings of ``compare`` and Python's keywords.

The words of ``--help`` are the docstrings, and the docstring or the comment of each field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

from lookalike.core.errors import POSITIVE, SHARE, Limit, Seed, UserError, Width, meant
from lookalike.evaluation.evaluation import Evaluation


@dataclass(frozen=True, kw_only=True)
class Judged(Evaluation):
    """Beside baselines that are measured alike."""

    PIXELS: ClassVar[int] = 0  # raw pixels are measured, too, up to so many pairs of a reference and a query

    baselines: Literal["all", "none"] = "all"
    """all: measure the untrained network beside the model and, of little data, raw pixels. none: the model alone, in
    half the time."""

    def of_pixels(self) -> Self:
        """What is cheap of raw pixels."""
        return self


@dataclass(frozen=True, kw_only=True)
class Frozen(Judged):
    """Of features that stay as they are."""

    PIXELS = 1_000_000_000

    layer: Literal["backbone", "head"] = "backbone"
    """Which features: the backbone's, or the output of the head that was trained on top of it."""
    clip: Annotated[float | None, Limit(1e-3, math.inf)] = None
    """For videos: average the features over pieces of this many seconds; inf averages each whole video. By default
    every frame counts on its own."""


@dataclass(frozen=True, kw_only=True)
class Sampled(Frozen):
    """With all labelled examples, or a share of them that the seed draws."""

    METRIC = "accuracy"
    TRIALS = MappingProxyType({"share": 0.5})

    share: Annotated[float, SHARE] = 1.0  # Share of the labelled examples of each class to use, drawn by the seed.
    seed: Seed = 0  # Decides what is drawn.

    @property
    def repeats(self) -> bool:
        """With all of the examples, nothing is drawn."""
        return self.share < 1


@dataclass(frozen=True, kw_only=True)
class NearestNeighbours(Sampled):
    """Accuracy of k nearest neighbours: each test example gets the label that its neighbours in train vote for.

    Nothing is trained. Without a test split, val is used; without either, a fifth of the data. Chance, beside the
    accuracy, is what always answering the most common class would reach.
    """

    NAME, RUNNER = "knn", "frozen:knn"
    DRAWS = "which labelled examples vote"

    k: Annotated[int | None, Limit(1)] = None
    """Number of neighbours that vote. By default 200, but no more than train has of an average class."""
    temperature: Annotated[float, Limit(1e-6)] = 0.1  # A vote weighs exp(cosine / temperature).


@dataclass(frozen=True, kw_only=True)
class Probe(Sampled):
    """Accuracy of a linear classifier trained on frozen features of train and tested on test (else val).

    strong: logistic regression on standardised features, solved to its optimum; the weight decay is chosen on a
    held-out part of train. paper: the protocol of the MoCo papers, SGD on random crops and mirror images.
    """

    NAME, RUNNER, PIXELS = "probe", "frozen:probe", 10_000_000
    DRAWS = "which labelled examples are fitted"

    protocol: Literal["strong", "paper"] = "strong"  # How the classifier is trained.
    epochs: Annotated[int, Limit(1)] = 100  # Passes over train (paper only).
    lr: Annotated[float, Limit(0)] = 30.0  # Learning rate for a batch of 256 (paper only).

    @property
    def repeats(self) -> bool:
        """The paper's protocol draws the order and the crops, too."""
        return super().repeats or self.protocol == "paper"

    @property
    def runner(self) -> str:
        """Either protocol has its own."""
        return "tuning:paper_probe" if self.protocol == "paper" else self.RUNNER


@dataclass(frozen=True, kw_only=True)
class Fewshot(Frozen):
    """Accuracy with few labels: mean and 95 % interval over repeated draws of the labelled examples.

    With a few labels a class, each test example gets the label of the nearest class mean; with a share of all labels,
    logistic regression is fitted.
    """

    NAME, METRIC, RUNNER = "fewshot", "accuracy", "frozen:fewshot"
    DRAWS = "which examples are labelled"
    TRIALS = MappingProxyType({"labels": (5,), "shares": (), "draws": 1})

    labels: Annotated[tuple[int, ...], Limit(1)] = (1, 5, 10)
    """Labelled examples a class; models are compared by the first."""
    shares: Annotated[tuple[float, ...], SHARE] = (0.01, 0.1)  # Shares of the labelled examples of each class.
    draws: Annotated[int, Limit(1)] = 20  # How many times the labelled examples are drawn.
    seed: Seed = 0  # Decides which examples are drawn.

    def of_pixels(self) -> Self:
        """Class means: a fit for each draw takes long."""
        return replace(self, shares=()) if self.labels else self


@dataclass(frozen=True, kw_only=True)
class Retrieve(Sampled):
    """Recall and mean average precision when every test example searches train for examples of its class.

    Without a test split, val is used; without either, a fifth of the data.
    """

    NAME, METRIC, RUNNER = "retrieve", "mean_average_precision", "frozen:retrieve"
    PIXELS = 50_000_000
    DRAWS = "which labelled examples are searched"

    at: Annotated[tuple[int, ...], Limit(1)] = (1, 5, 10)
    """Recall at k is the share of searches with a hit among the k nearest, for each of these k."""


@dataclass(frozen=True, kw_only=True)
class Clusters(Frozen):
    """How well clusters match classes: k-means on the features of test (else val), as many clusters as classes.

    Normalised mutual information (NMI) and adjusted Rand index (ARI): 1 is a perfect match, ARI is 0 by chance.
    """

    NAME, METRIC, RUNNER = "clusters", "nmi", "frozen:clusters"
    PIXELS = 50_000_000
    DRAWS = "the first centres of the clusters"
    TRIALS = MappingProxyType({"draws": 1})

    draws: Annotated[int, Limit(1)] = 5  # How many times the clustering is repeated.
    starts: Annotated[int, Limit(1)] = 3  # Random starts of k-means; the best by its own loss counts.
    seed: Seed = 0  # Decides the first centres.


@dataclass(frozen=True, kw_only=True)
class Finetune(Evaluation):
    """Accuracy after fine-tuning the whole network with all, 10 % and 1 % of the labels of train.

    The learning rate is chosen on a held-out part of those labels. Beside it: a linear probe on the frozen features
    with the same labels. Tested on test (else val).
    """

    NAME, METRIC, RUNNER = "finetune", "accuracy", "tuning:finetune"
    DRAWS = "which pictures are labelled, and the order of training"
    TRIALS = MappingProxyType({"shares": (0.1,), "draws": 1})
    FITS = True

    shares: Annotated[tuple[float, ...], SHARE] = (1.0, 0.1, 0.01)
    """Shares of the labelled pictures of each class; models are compared by the first."""
    rates: Annotated[tuple[float, ...], POSITIVE] = (1e-4, 1e-3)
    """AdamW's learning rates to choose from, for a batch of 256."""
    steps: Annotated[int, Limit(1)] = 200  # Training steps.
    batch: Annotated[int, Limit(2)] = 64  # Pictures a step.
    decay: Annotated[float, Limit(0)] = 0.05  # Weight decay.
    draws: Annotated[int, Limit(1)] = 3  # How many times the labelled pictures are drawn.
    seed: Seed = 0  # Decides which pictures are drawn, and the order of training.


@dataclass(frozen=True, kw_only=True)
class Transfer(Evaluation):
    """A network on this backbone is trained on the annotated pictures of train and tested on test (else val)."""

    FITS, PAGE = True, True

    steps: Annotated[int, Limit(1)] = 300  # Training steps.
    batch: Annotated[int, Limit(1)] = 8  # Pictures a step.
    group: Annotated[int | None, Limit(1)] = None  # Pictures that share BatchNorm statistics; by default the batch.
    width: Width = 64  # Channels of the new layers.
    seed: Seed = 0  # Decides the new layers, the order of the pictures, and how they are varied.

    @property
    def grouped(self) -> int:
        """Pictures that share BatchNorm statistics."""
        return self.group or self.batch

    def settings(self) -> dict[str, Any]:
        """With what follows from the batch."""
        return super().settings() | {"group": self.grouped}


@dataclass(frozen=True, kw_only=True)
class Boxes(Transfer):
    """A detector with this backbone."""

    METRIC, RUNNER = "AP", "detect:detect"
    DRAWS = "the new layers, the order of the pictures, and how they are varied"

    annotations: str | None = None  # The file or folder of annotations, if DATA holds several; otherwise it is found.
    lr: Annotated[float, Limit(0)] = 1e-3  # Peak learning rate of AdamW.
    decay: Annotated[float, Limit(0)] = 0.05  # Weight decay.
    size: Annotated[int, Limit(16, 16_384)] = 160  # Short side in pixels; large photos with small objects need more.
    longest: Annotated[int | None, Limit(16, 16_384)] = None
    """Limit for the long side in pixels; by default 1.6 times the size."""
    jitter: Annotated[float, Limit(1, 100)] = 1.25  # Training pictures are randomly resized by up to this factor.
    neck: Literal["fpn", "c4"] = "fpn"
    """fpn: a feature pyramid. c4: the last stage but one, with the last stage as the head of each box."""
    hidden: Width = 256  # Width of the hidden layer of the box head.
    rois: Annotated[int, Limit(1)] = 32  # Boxes of a picture that a training step samples.
    proposals: Annotated[int, Limit(1)] = 200  # Boxes that the region proposal network passes on.
    anchors: Annotated[tuple[float, ...], POSITIVE] = (2.0, 4.0)  # Sides of the anchor boxes in strides of their level.

    @property
    def long_side(self) -> int:
        """The limit for the long side in pixels."""
        return self.longest if self.longest is not None else round(1.6 * self.size)

    def settings(self) -> dict[str, Any]:
        """With what follows from the size."""
        return super().settings() | {"longest": self.long_side}


@dataclass(frozen=True, kw_only=True)
class Detect(Boxes):
    """Average precision of detected boxes after training Faster R-CNN, all of it, from this backbone.

    DATA is a folder of pictures with annotations: COCO's or labelme's JSON, VOC's XML, YOLO's text. Train and test
    (else val) are those of the annotation files or folders; otherwise 80 and 20 percent of the pictures.
    """

    NAME = "detect"

    masks: bool = False  # Predict masks, too (Mask R-CNN), and compare by their AP; annotations need outlines.

    @property
    def metric(self) -> str:
        """Of masks, where there are any."""
        return "mask_AP" if self.masks else "AP"


@dataclass(frozen=True, kw_only=True)
class Keypoints(Boxes):
    """Average precision and PCK of named points after training Keypoint R-CNN, all of it, from this backbone.

    DATA is a folder of pictures with annotated points: COCO's JSON, or points as .mat or .csv.
    """

    NAME, METRIC = "keypoints", "keypoint_AP"

    convolutions: Annotated[int, Limit(1, 1000)] = 4  # Convolutions before the maps of points.


@dataclass(frozen=True, kw_only=True)
class Segment(Transfer):
    """Mean intersection over union of semantic segmentation: an FCN on the dilated backbone, all of it trained.

    As in the MoCo paper (arXiv 1911.05722, appendix), which has 256 channels, crops of 513 pixels, batches of 16, a
    learning rate of 0.003 and 30,000 steps.

    DATA holds photos and masks in folders beside each other: train/ and trainannot/, images/ and masks/, or the layout
    of Pascal VOC. Masks are PNG files whose pixels are class numbers. Tested on test (else val).
    """

    NAME, METRIC, RUNNER = "segment", "miou", "segment:segment"
    DRAWS = "the new head, the order of the pictures, and their crops"

    void: Annotated[tuple[int, ...], Limit(0)] = (255,)  # Numbers in masks that are neither trained on nor tested.
    size: Annotated[int, Limit(8, 16_384)] = 192  # Short side of a whole picture in pixels.
    crop: Annotated[int, Limit(8, 16_384)] = 160  # Side of the training crops in pixels.
    scale: Annotated[tuple[float, float], POSITIVE] = (0.5, 2.0)  # Least and greatest scale of training pictures.
    stride: Annotated[int, Limit(1, 1000)] = 16  # Pixels of a picture for one place of the feature map, at most.
    dilation: Annotated[int, Limit(1, 1000)] = 2
    """Dilation of the head's convolutions; the paper has 6 for crops of 513 pixels."""
    lr: Annotated[float, POSITIVE] = 0.05  # Learning rate of SGD.
    momentum: Annotated[float, Limit(0, 1)] = 0.9  # Momentum of SGD.
    decay: Annotated[float, Limit(0)] = 1e-4  # Weight decay.
    drops: Annotated[tuple[float, ...], Limit(0, 1)] = (0.7, 0.9)
    """After these shares of the steps, a tenth of the rate."""


@dataclass(frozen=True, kw_only=True)
class Sts(Judged):
    """Semantic textual similarity: Spearman correlation between cosines of sentence pairs and human scores.

    DATA is a .csv, .tsv or .parquet file, or a folder of them, with columns sentence1, sentence2 and score (or
    label); without a header, the two columns of words and the one of numbers; or named: pairs.tsv:first,second,score
    """

    NAME, METRIC, RUNNER = "sts", "spearman", "pairs:sts"

    layer: Literal["backbone", "head"] = "backbone"
    """Which features: the backbone's, or the output of the head that was trained on top of it."""
    split: str | None = None  # Which part of the data to use; by default test, else validation, else everything.


@dataclass(frozen=True, kw_only=True)
class CaptionRetrieval(Judged):
    """How often a picture finds one of its captions, and a caption finds its picture: recall at 1, 5 and 10.

    For models of recipe moco_captions. DATA is a folder of pictures with captions; its test split is used, else val,
    else a fifth.
    """

    NAME, METRIC, RUNNER = "captions", "recall", "pairs:captions"

    at: Annotated[tuple[int, ...], Limit(1)] = (1, 5, 10)
    """Recall at k is the share of searches with a hit among the k nearest, for each of these k."""


EVALUATIONS: dict[str, type[Evaluation]] = {
    kind.NAME: kind
    for kind in (
        *(NearestNeighbours, Probe, Fewshot, Retrieve, Clusters, Finetune),
        *(Detect, Keypoints, Segment, Sts, CaptionRetrieval),
    )
}
"""Every evaluation by its name."""


def evaluation_named(task: str) -> type[Evaluation]:
    """Raises UserError with the nearest name."""
    if task not in EVALUATIONS:
        raise UserError(f"no evaluation {task!r}; {meant(task, EVALUATIONS)}")
    return EVALUATIONS[task]


def configured(task: str, settings: Mapping[str, Any], trials: bool = False) -> Evaluation:
    """The evaluation ``task`` with ``settings``, and for repeated ``trials`` with its defaults for those.

    Raises UserError with the nearest name for a setting that it does not have.
    """
    if task == "masks":  # as it was called once
        task, settings = "detect", {"masks": True, **settings}
    kind = evaluation_named(task)
    names = [field.name for field in fields(kind)]
    for name in settings:
        if name not in names:
            raise UserError(f"{task} has no setting {name!r}; {meant(name, names)}")
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    return kind(**{**(kind.TRIALS if trials else {}), **plain})
