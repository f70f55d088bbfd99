"""The verbs that measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, subcommand

from lookalike.cli.flags import Verb, shown


@dataclass(frozen=True)
class Measured(Verb):
    """What every evaluation takes."""

    run: Positional[str]
    """Folder of a run."""
    data: Positional[str]
    """Pictures, or text for a run of text, with labels: class folders, or tables with a label column."""
    untrained: bool = False
    """The same network with its initial weights, to compare with."""
    weights: Annotated[str | None, shown("FILE")] = None
    """The backbone with the weights of others, to compare with: .safetensors, .pth, or torchvision:NAME or timm:NAME
    where those are on this machine already."""
    json: str | None = None
    """Write the numbers to this file."""
    workers: int = 2
    """Processes that decode pictures."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network's products. bf16 is faster on GPUs and on processors that compute in it, and moves features by up
    to two hundredths."""


@dataclass(frozen=True)
class Frozen(Measured):
    """What evaluations of frozen features take."""

    layer: Literal["backbone", "head"] = "backbone"
    """Features of the backbone, or the head's output that was trained."""
    clip: Annotated[float | None, shown("SECONDS")] = None
    """Of videos: one feature for every so many seconds, the mean over their frames; inf: for each video. By default
    one for each frame."""


@dataclass(frozen=True)
class Knn(Frozen):
    """Accuracy of k nearest neighbours on frozen features: train is the reference, test (else val) asks."""

    k: int = 200
    """Neighbours that vote."""
    temperature: float = 0.1
    """Votes weigh exp(cosine / temperature)."""


@dataclass(frozen=True)
class Probe(Frozen):
    """Accuracy of a linear classifier on frozen features, fitted to train and asked about test (else val).

    strong: logistic regression on standardised features to its optimum, its decay chosen on a held-out part of train.
    paper: that of the MoCo papers, by SGD on random crops and mirror images; an epoch reads all of train once.
    """

    protocol: Literal["strong", "paper"] = "strong"
    """Which of the two."""
    epochs: int = 100
    """Of the paper's protocol."""
    lr: float = 30.0
    """Of the paper's protocol, for 256 examples."""


@dataclass(frozen=True)
class Fewshot(Frozen):
    """Accuracy with few labels on frozen features: mean and 95 % interval over repeated draws of the labels.

    Some labels a class: by the nearest class mean. A share of all labels: by logistic regression.
    """

    labels: tuple[int, ...] = (1, 5, 10)
    """Labels a class."""
    shares: tuple[float, ...] = (0.01, 0.1)
    """Shares of the labels of each class."""
    draws: int = 20
    """How often the labels are drawn."""


@dataclass(frozen=True)
class Retrieve(Frozen):
    """Recall at 1, 5 and 10 and mean average precision: test (else val) looks for its class in train."""


@dataclass(frozen=True)
class Clusters(Frozen):
    """Whether classes are clusters: k-means on test (else val), compared with the labels, over repeated starts."""

    draws: int = 5
    """How often the centres are drawn."""


@dataclass(frozen=True)
class Finetune(Measured):
    """Accuracy after training the whole network further with all, 10 % and 1 % of the labels of train.

    The learning rate is chosen on a held-out part of the labels. Beside it: a linear probe with the same labels.
    """

    out: str | None = None
    """Keep the fits in this folder; the same command continues what was interrupted."""
    shares: tuple[float, ...] = (1.0, 0.1, 0.01)
    """Shares of the labels of each class."""
    rates: tuple[float, ...] = (1e-4, 1e-3)
    """Learning rates to choose from."""
    steps: int = 200
    """Steps of a fit."""
    batch: int = 64
    """Pictures a step."""
    draws: int = 3
    """How often the labels are drawn."""


@dataclass(frozen=True)
class Sts(Frozen):
    """Whether sentences are near each other as people say they are: Spearman's correlation of cosines with scores.

    Pairs of test, else of validation, else all. Columns are sentence1, sentence2 and score (or GLUE's label); without a
    line of names the two that hold words and the one that holds numbers; or name them: pairs.tsv:first,second,score
    """

    data: Positional[str]
    """Pairs of sentences with scores: a .csv, .tsv or .parquet, or a folder of them."""
    split: Annotated[str | None, shown("NAME")] = None
    """Which part of the data to ask instead."""


@dataclass(frozen=True)
class Captions(Measured):
    """How often a picture finds one of its captions, and a caption its picture: recall at 1, 5 and 10.

    Test (else val, else a fifth) of a folder of pictures with captions; for a run of moco_captions.
    """


Evaluation = (
    Annotated[Knn, subcommand("knn")]
    | Annotated[Probe, subcommand("probe")]
    | Annotated[Fewshot, subcommand("fewshot")]
    | Annotated[Retrieve, subcommand("retrieve")]
    | Annotated[Clusters, subcommand("clusters")]
    | Annotated[Finetune, subcommand("finetune")]
    | Annotated[Sts, subcommand("sts")]
    | Annotated[Captions, subcommand("captions")]
)


@dataclass(frozen=True)
class Compare(Verb):
    """Several starts on one task: lookalike compare RUN... --on DATA --task knn

    Each RUN, random (the network of the first run, untrained), --weights, and the run that lookalike supervised made:
    mean and interval over trials, the difference from the supervised one trial by trial, and win, tie or loss.
    A setting of the task is set by its name, for every start alike: --share 0.1 --steps 500.
    The same command again goes on where it was stopped: each finished trial is kept in --out.
    """

    runs: Positional[Annotated[tuple[str, ...], shown("RUN")]]
    """Folders of runs."""
    on: Annotated[str, shown("DATA")]
    """What the task is measured on: pictures with labels, boxes, points or masks."""
    task: Annotated[str, shown("NAME")]
    """knn, probe, fewshot, finetune; detect, masks, keypoints, segment."""
    trials: int = 5
    """How often everything that is drawn is drawn."""
    weights: Annotated[tuple[str, ...], shown("FILE")] = ()
    """Weights of others in the network of the first run: .safetensors, .pth, torchvision:NAME or timm:NAME."""
    metric: Annotated[str | None, shown("NAME")] = None
    """Another of the task's numbers to compare starts by, such as AP50, PCK or frozen."""
    out: str = "compare"
    """Folder for the trials, and TASK.md, TASK.json, TASK.svg and TASK.html."""
