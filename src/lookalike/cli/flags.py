"""Every verb, and what those take that learn, measure and export."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from tyro.conf import Positional, arg

from lookalike.cli.arguments import Data, File, Model, Name, OfModel, Precision, Verb, Workers, one_of, shown
from lookalike.cli.cleaning_flags import OF_CLEANING
from lookalike.cli.data_flags import OF_DATA
from lookalike.core.errors import Limit
from lookalike.evaluation.evaluation import Evaluation
from lookalike.evaluation.settings import EVALUATIONS

Settings = TypeVar("Settings", bound=Evaluation)


@dataclass(frozen=True)
class Demo(Verb):
    """Pretrain on 1,797 handwritten digits without labels, in two minutes, and write a report on what was learned."""

    out: str = "demo"  # Folder for the run and report.html.
    overwrite: bool = False  # Start again; an old demo in this folder is moved aside.


@dataclass(frozen=True)
class Pretrain(Verb):
    """Learn a backbone from data without labels.

    lookalike pretrain PHOTOS --out runs/first --minutes 10

    The same command continues the run where it stopped, after Ctrl-C and after a power cut.

    Any field of the recipe can be set by its path: --dictionary.size 4096 --objective.temperature 0.2 --batch 128.
    Another network: --model resnet50 or --model timm:convnext_tiny, which starts from random weights. All fields are in
    recipe.json of a run. Afterwards: lookalike evaluate, lookalike embed.
    """

    data: Data
    """Pictures: a folder in any layout; a .txt or .csv list of paths; a parquet, Arrow, tar or zip file, or a folder of
    them; a folder that lookalike prepare wrote; hub:owner/name; an address such as s3://bucket/folder; or the name
    digits. Text: lines of a .txt, a .csv, .tsv, .jsonl or .parquet (FILE:COLUMN names one column, FILE:FIRST,SECOND
    two), or a folder of them. Videos: video files; frames:FOLDER, one folder of frames per video; frames@12.5:FOLDER if
    they are not 25 a second. Captions: a folder of pictures with captions.csv (image, caption) or COCO's
    captions_*.json."""
    out: Annotated[str, shown("RUN")]  # Folder for the run: recipe.json, metrics.jsonl, checkpoints/.
    recipe: Name = None
    """For pictures: small, moco_v1, moco_v2, moco_v3, moco_cifar, simclr, nnclr, instdisc, supcon, masked_moco, mae,
    tiny; small_simclr and so on are smaller versions for a CPU. For text: mlm, simcse, moco_text, text_pairs,
    simcse_bert. For videos: video_moco (two frames), video_moco_clips and video_moco_r3d (two clips). For pictures with
    captions: moco_captions. From a public model (--init-from): adapt, adapt_moco, adapt_instances, adapt_neighbours,
    adapt_simclr. By default small_simclr; wide_simclr, twice as wide, for 60 minutes and 8,192 pictures or more;
    moco_v2 with a GPU and much data; or adapt."""
    minutes: Annotated[float | None, shown("M")] = None
    """Train for about this many minutes, decoding included: the number of steps is measured at the start and corrected
    on the way. By default the length is that of the recipe, for small recipes 10 minutes."""
    epochs: Annotated[float | None, shown("E")] = None  # Train for this many passes over the data instead.
    steps: Annotated[int | None, shown("N")] = None  # Train for this many steps instead.
    extend: bool = False
    """Lengthen the run in this folder, finished or stopped: --epochs and --steps are the new total, --minutes is added.
    The learning rate goes on as in a run of the new length. The same command again continues it; if the run has
    finished, --minutes adds to it once more."""
    split: Name = None  # Which part of the data; by default train if there is one, else everything.
    overwrite: bool = False  # Start again; an old run in this folder is moved aside.
    init_from: Annotated[str | None, shown("MODEL")] = None
    """Begin with the weights of this model: a run, timm:NAME, torchvision:NAME, hf:FOLDER, or a file of weights with
    --model timm:NAME. The recipe follows it: its network, its size of pictures, its colours. A public model goes on by
    the recipe adapt, and at the end the start is kept where it was better."""
    teacher: Annotated[str | None, shown("MODEL")] = None
    """Learn the features of this model, which stays as it is and sees every picture once: a small network that comes
    near to a large one on these pictures."""
    download: bool = False  # Fetch a public model that is not on this machine, after saying its size.
    max_bad: Annotated[float, Limit(0)] = 0.01  # Share of pictures that may be unreadable before the run stops.
    workers: Workers = None
    memory: Annotated[float, Limit(0, math.inf)] = 4.0
    """GiB of decoded pictures to keep in memory; if there is more data, it is decoded again in each epoch."""
    save_every: Annotated[int | None, Limit(1), shown("N")] = None
    """Steps between checkpoints; by default about a minute."""
    skip_bad_steps: Annotated[int, Limit(0), shown("N")] = 0
    """Pass over so many steps whose loss or gradient is not finite; by default the first ends the run."""
    allow_data_change: bool = False  # Continue although files were added, removed, renamed or replaced since the start.
    quiet: bool = False  # Print nothing but errors.


@dataclass(frozen=True)
class Supervised(Pretrain):
    """Train the backbone of a recipe with labels, to compare with.

    lookalike supervised PHOTOS --out runs/labels

    Same model, views, batches, optimizer and length as lookalike pretrain, but with one linear layer and cross entropy.
    Pictures without a label are left out, and so are those that evaluations test on: the test split, or a fifth of data
    without splits.
    """


@dataclass(frozen=True)
class Evaluate(OfModel, Generic[Settings]):
    """Measure a model: k nearest neighbours, linear probe, fine-tuning, detection and more."""

    run: Model  # A run, timm:NAME, torchvision:NAME, hf:FOLDER or a file of weights.
    data: Data
    """What to measure on. Unless the description above says otherwise: pictures, texts or videos with labels, as class
    folders or tables with a label column."""
    settings: Annotated[Settings, arg(name="")]
    untrained: bool = False  # Measure the same network with its initial weights, as a baseline.
    weights: File = None
    """Measure the network of a run with other weights: a .safetensors or .pth file."""
    precision: Precision = "fp32"
    workers: Workers = None
    json: File = None  # Write the numbers and all settings to this file.


@dataclass(frozen=True)
class EvaluateFit(Evaluate[Settings]):
    """Of evaluations that train."""

    out: Annotated[str | None, shown("FOLDER")] = None
    """Save the training in this folder; after an interruption the same command continues."""


@dataclass(frozen=True)
class EvaluateScenes(EvaluateFit[Settings]):
    """Of evaluations with something to look at."""

    page: File = None
    """The HTML page to write, with pictures, their annotations and the predictions; by default detect.html,
    keypoints.html or segment.html."""


@dataclass(frozen=True)
class Compare(OfModel):
    """Compare several models on one evaluation, with repeated trials.

    lookalike compare MODEL... --on DATA --task knn

    Beside each MODEL, the untrained network of the first is measured, and that network with other --weights. The table
    has the mean and 95 % interval over the trials, the difference from the baseline (a run of lookalike supervised if
    there is one, else the untrained network), paired trial by trial, and win, tie or loss.

    Every setting of lookalike evaluate TASK can be set here, for all models alike: --share 0.1. The defaults are the
    same, except where trials would all be equal or slow: share 0.5 for knn, probe and retrieve; labels 5, no shares and
    one draw for fewshot; shares 0.1 and one draw for finetune; one draw for clusters.

    Finished trials are kept in --out; after an interruption the same command continues.
    """

    runs: Positional[Annotated[tuple[str, ...], shown("MODEL")]]
    """Runs, timm:NAME, torchvision:NAME, hf:FOLDER or files of weights."""
    on: Annotated[str, shown("DATA")]  # What to measure on, as lookalike evaluate takes it.
    task: Annotated[str, shown("TASK")]
    """knn, probe, fewshot, retrieve, clusters, finetune, detect, keypoints, segment, sts or captions."""
    trials: Annotated[int, Limit(1)] = 5  # How many times each model is measured, with another seed each time.
    weights: Annotated[tuple[str, ...], shown("FILE")] = ()
    """Other weights for the network of the first run: .safetensors or .pth files."""
    metric: Name = None  # Another number of the task to compare by, such as AP50, PCK or frozen.
    out: str = "compare"  # Folder for the trials and for TASK.md, TASK.json, TASK.svg and TASK.html.


@dataclass(frozen=True)
class Study(Verb):
    """Ask a question of a paper again, by runs that differ in nothing else, and say whether its findings hold.

    lookalike study momentum CIFAR10 --out studies/momentum

    Every run is kept in --out, and the same command continues; the table, the plot and the page there are of what is
    done so far. Seeds are worked on one after the other, so that all runs have been made once as early as can be.

    dictionary_size: queue, memory bank and end to end at 64 to 16,384 keys (figure 3 of MoCo). momentum: from 0 to a
    twin that never moves. age: as many keys, but older ones. temperature: 0.03 to 1. shuffle: keys normalised in
    shuffled groups or not. objective: NCE, InfoNCE and the full softmax. v2_steps: from MoCo to MoCo v2. symmetric: one
    direction or two. masks: contrast with masked queries. more_data: 1, 10 and 100 % of the pictures.
    """

    name: Positional[Annotated[str, shown("NAME")]]
    """dictionary_size, momentum, age, temperature, shuffle, objective, v2_steps, symmetric, masks or more_data."""
    data: Data  # Pictures, as lookalike pretrain and lookalike evaluate take them.
    out: Annotated[str, shown("FOLDER")]  # Folder for the runs and for NAME.md, NAME.json, NAME.html and plots.
    steps: Annotated[int | None, Limit(1), shown("N")] = None
    """Steps of each run; by default 1,000. Runs whose step costs more have fewer where the study says equal compute."""
    seeds: Annotated[int, Limit(1, 1000)] = 3  # How often each run is repeated, with another seed each time.
    tasks: Annotated[tuple[str, ...], shown("TASK")] = ("knn",)
    """What is measured of each run, by the settings of lookalike evaluate TASK: knn, probe and others."""
    workers: Workers = None


@dataclass(frozen=True)
class Export(OfModel):
    """Write a model so that another library opens it, and check that it gives the same features there.

    lookalike export runs/first --to timm --out first_in_timm

    timm and huggingface: one folder for timm.create_model("local-dir:FOLDER", pretrained=True) and for transformers'
    AutoModel and AutoImageProcessor. torchvision and detectron2: the tensors of a ResNet by the names used there. onnx:
    what lookalike embed writes, whitening included, for any network of pictures; it needs lookalike[export].

    A model card (README.md) and how the model sees pictures go along. A mismatch leaves nothing behind.
    """

    run: Model  # A run, timm:NAME, torchvision:NAME, hf:FOLDER or a file of weights.
    to: Annotated[
        Literal["timm", "huggingface", "torchvision", "onnx", "detectron2"],
        arg(metavar="LIBRARY", help="timm, huggingface, torchvision, onnx or detectron2."),
    ]
    out: Annotated[str, shown("FOLDER")]  # New or empty folder to write.
    numbers: Annotated[tuple[str, ...], shown("FILE")] = ()
    """Files that lookalike evaluate --json wrote, to quote in the model card."""


@dataclass(frozen=True)
class Report(Verb):
    """Write a page on a run: what came of it in words, its curves, what its network sees, a map; or compare several.

    lookalike report runs/first

    One file that opens from disk and loads nothing. It says whether the run is finished, learned and is sound, and what
    to do next; it shows loss, kNN, how old and how far drifted its keys are, both views, neighbours before and after,
    and evaluations. The run is left as it is, and may still be going. Several runs stand beside each other.
    """

    runs: Positional[Annotated[tuple[str, ...], shown("RUN")]]  # Folders of runs.
    out: Annotated[str, shown("FILE")] = "report.html"  # The page to write.
    numbers: Annotated[tuple[str, ...], shown("FILE")] = ()
    """Files that lookalike evaluate --json wrote; those in the folder of a run are found."""
    data: Annotated[str | None, shown("DATA")] = None  # Where the data is that the runs learned from, if it has moved.


VERBS: dict[str, type[Verb]] = {
    kind.__name__.lower(): kind
    for kind in (Demo, Pretrain, Supervised, Evaluate, Compare, Study, Report, Export, *OF_DATA, *OF_CLEANING)
}
"""Every verb by its name."""


def verbs(chosen: str | None, below: str | None, whole: bool) -> Any:
    """All verbs as one type, those below ``evaluate`` in a union of their own; see ``one_of``."""

    def flags(verb: str) -> Any:
        return one_of(EVALUATIONS, evaluation_flags, below, whole) if verb == "evaluate" else VERBS[verb]

    return one_of(VERBS, flags, chosen, whole)


def evaluation_flags(name: str) -> Any:
    """What ``lookalike evaluate NAME`` takes."""
    kind = EVALUATIONS[name]
    flags: Any = EvaluateScenes if kind.PAGE else EvaluateFit if kind.FITS else Evaluate
    return flags[kind]
