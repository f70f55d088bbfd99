"""The verbs that measure: one below ``evaluate`` for each evaluation, whose fields are its flags, and ``compare``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Generic, Literal, TypeVar

from tyro.conf import Positional, arg

from lookalike.cli.flags import Verb, Workers, one_of, shown
from lookalike.core.errors import Limit
from lookalike.evaluation.settings import EVALUATIONS, Evaluation

Settings = TypeVar("Settings", bound=Evaluation)


@dataclass(frozen=True)
class Evaluate(Verb, Generic[Settings]):
    """Measure a model: k nearest neighbours, linear probe, fine-tuning, detection and more."""

    run: Positional[Annotated[str, shown("RUN")]]
    """The model: folder of a run."""
    data: Positional[Annotated[str, shown("DATA")]]
    """What to measure on. Unless the description above says otherwise: pictures, texts or videos with labels, as class
    folders or tables with a label column."""
    settings: Annotated[Settings, arg(name="")]
    untrained: bool = False
    """Measure the same network with its initial weights, as a baseline."""
    weights: Annotated[str | None, shown("FILE")] = None
    """Measure the same network with other weights: a .safetensors or .pth file, or torchvision:NAME or timm:NAME if
    those are on this machine already."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network's products. bf16 is faster on GPUs and on processors that support it; features change by up to
    two hundredths."""
    workers: Workers = None
    """Processes that decode pictures; by default 2, and for a GPU all cores but two, at most 16."""
    json: Annotated[str | None, shown("FILE")] = None
    """Write the numbers and all settings to this file."""


@dataclass(frozen=True)
class EvaluateFit(Evaluate[Settings]):
    """Of evaluations that train."""

    out: Annotated[str | None, shown("FOLDER")] = None
    """Save the training in this folder; after an interruption the same command continues."""


@dataclass(frozen=True)
class EvaluateScenes(EvaluateFit[Settings]):
    """Of evaluations with something to look at."""

    page: Annotated[str | None, shown("FILE")] = None
    """The HTML page to write, with pictures, their annotations and the predictions; by default detect.html,
    keypoints.html or segment.html."""


def flags_of(kind: type[Evaluation]) -> Any:
    """What ``lookalike evaluate NAME`` takes."""
    flags: Any = EvaluateScenes if kind.PAGE else EvaluateFit if kind.FITS else Evaluate
    return flags[kind]


def evaluations(chosen: str | None, whole: bool) -> Any:
    """All evaluations as one type."""
    return one_of({name: (partial(flags_of, kind), kind) for name, kind in EVALUATIONS.items()}, chosen, whole)


@dataclass(frozen=True)
class Compare(Verb):
    """Compare several models on one evaluation, with repeated trials.

    lookalike compare RUN... --on DATA --task knn

    Beside each RUN, the untrained network of the first is measured, and that network with other --weights. The table
    has the mean and 95 % interval over the trials, the difference from the baseline (a run of lookalike supervised if
    there is one, else the untrained network), paired trial by trial, and win, tie or loss.

    Every setting of lookalike evaluate TASK can be set here, for all models alike: --share 0.1. The defaults are the
    same, except where trials would all be equal or slow: share 0.5 for knn, probe and retrieve; labels 5, no shares and
    one draw for fewshot; shares 0.1 and one draw for finetune; one draw for clusters.

    Finished trials are kept in --out; after an interruption the same command continues.
    """

    runs: Positional[Annotated[tuple[str, ...], shown("RUN")]]
    """Folders of runs."""
    on: Annotated[str, shown("DATA")]
    """What to measure on, as lookalike evaluate takes it."""
    task: Annotated[str, shown("TASK")]
    """knn, probe, fewshot, retrieve, clusters, finetune, detect, keypoints, segment, sts or captions."""
    trials: Annotated[int, Limit(1)] = 5
    """How many times each model is measured, with another seed each time."""
    weights: Annotated[tuple[str, ...], shown("FILE")] = ()
    """Other weights for the network of the first run: .safetensors or .pth files, torchvision:NAME or timm:NAME."""
    metric: Annotated[str | None, shown("NAME")] = None
    """Another number of the task to compare by, such as AP50, PCK or frozen."""
    out: str = "compare"
    """Folder for the trials and for TASK.md, TASK.json, TASK.svg and TASK.html."""
