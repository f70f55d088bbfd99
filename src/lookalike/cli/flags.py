"""What each verb of the command line takes; nothing here imports torch, which is slow.

The words of ``--help`` are the docstrings, and the docstring or the comment of each field.
"""

from __future__ import annotations

import inspect
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from typing import Annotated, Any, Generic, Literal, TypeVar, Union

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg, subcommand

from lookalike.core.errors import Limit, UserError, check_limits
from lookalike.evaluation.evaluation import Evaluation
from lookalike.evaluation.settings import EVALUATIONS


def shown(metavar: str) -> Any:
    """How a value is named in the help; a default of None, which the text explains, is not repeated there."""
    return arg(metavar=metavar, help_behavior_hint="")


Layer = Annotated[
    Literal["backbone", "head"],
    arg(help="Which features: the backbone's, or the output of the head that was trained on top of it."),
]
Precision = Annotated[
    Literal["fp32", "bf16"],
    arg(
        help="Of the network's products. bf16 is faster on GPUs and on processors that support it; features change by "
        "up to two hundredths."
    ),
]
Workers = Annotated[
    int | None,
    Limit(0, 1024),
    arg(
        metavar="N",
        help="Processes that decode pictures; by default 2, and for a GPU all cores but two, at most 16.",
        help_behavior_hint="",
    ),
]
Data = Positional[Annotated[str, shown("DATA")]]
File = Annotated[str | None, shown("FILE")]
Name = Annotated[str | None, shown("NAME")]
Settings = TypeVar("Settings", bound=Evaluation)


@dataclass(frozen=True, kw_only=True)
class Verb:
    """What every verb takes."""

    device: Annotated[Literal["cpu", "cuda", "mps"] | None, shown("cpu|cuda|mps")] = None
    """Where to compute; by default a GPU if there is one. The environment variable LOOKALIKE_DEVICE sets it for all
    commands."""
    timeout: Annotated[float | None, Limit(0, 1e9, above=True), shown("SECONDS")] = None
    """How long a process that reads or computes may give no sign of life before it is named and the command ends; by
    default 300. The environment variable LOOKALIKE_TIMEOUT sets it for all commands."""
    debug: bool = False  # Show the traceback of an error.

    def __post_init__(self) -> None:
        check_limits(self)


Model = Positional[Annotated[str, shown("MODEL")]]


@dataclass(frozen=True, kw_only=True)
class OfModel(Verb):
    """What every verb takes that opens models: a run, timm:NAME, torchvision:NAME, hf:FOLDER or a file of weights."""

    model: Name = None  # The network that a file of weights is of: timm:NAME or torchvision:NAME.
    download: bool = False  # Fetch a public model that is not on this machine, after saying its size.


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
    adapt_simclr. By default small, moco_v2 with a GPU and much data, or adapt."""
    minutes: Annotated[float | None, shown("M")] = None
    """Train for about this many minutes, decoding included: the number of steps is measured at the start and corrected
    on the way. By default the length is that of the recipe, for small 10 minutes."""
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
class Embed(OfModel):
    """Write one embedding per picture, text or video to a table.

    lookalike embed timm:resnet50 PHOTOS --out photos.parquet --download

    A .parquet holds path, split, label, class, for texts the text, the embedding, and what made it of which data;
    lookalike search reads it. A .csv holds the same with one column per number, without the last. A .npy holds the
    embeddings alone, and the .rows.csv beside it the other columns. In .csv files, words that a spreadsheet would
    compute (those that begin with = + - @) have an apostrophe before them, which is not read where the table is DATA.
    """

    run: Model  # A run, timm:NAME, torchvision:NAME, hf:FOLDER or a file of weights.
    data: Data  # Pictures, texts or videos, as the model learned from.
    out: Annotated[str, shown("FILE")]  # The file to write: .parquet, .csv or .npy.
    layer: Layer = "backbone"
    precision: Precision = "fp32"
    clip: Annotated[float | None, Limit(1e-3, math.inf), shown("SECONDS")] = None
    """For videos: one embedding per this many seconds, the mean over the frames; inf for one per video. By default one
    per frame."""
    workers: Workers = None


@dataclass(frozen=True)
class Search(OfModel):
    """Find what is nearest to a picture or a sentence.

    lookalike search photos.parquet beach.jpg --run runs/first

    Every row is compared. New pictures and sentences are encoded by the model that the table names, or by --run where
    it lies elsewhere now; one that did not make the table is refused.
    """

    where: Positional[Annotated[str, shown("TABLE|MODEL")]]
    """A .parquet table that lookalike embed wrote; or a run, whose data is then embedded first, or a public model with
    --data."""
    queries: Positional[Annotated[tuple[str, ...], shown("QUERY")]]
    """Paths in the table; picture files; sentences, for models of text or captions."""
    top: Annotated[int, Limit(1)] = 10  # Number of hits to show.
    run: Annotated[str | None, shown("MODEL")] = None  # The model that made the table, if it was moved.
    json: File = None  # Write the hits to this file.
    page: File = None  # Write an HTML page with the pictures of the hits.
    data: Annotated[str | None, shown("DATA")] = None
    """What to search with a public model; or where the pictures are, if no longer where the table or the run says."""


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
class Prepare(Verb):
    """Decode and shrink every picture once, so that training reads small pictures at the speed of memory.

    From then on, use the folder as DATA. The same command continues after an interruption, and repairs damaged shards.
    """

    data: Data  # Pictures in any layout.
    out: Annotated[str, shown("FOLDER")]  # Folder to write.
    size: Annotated[int | None, Limit(1, 16_384), shown("PIXELS")] = None
    """Side of the prepared pictures; by default 160, or less if the pictures are smaller."""
    split: Name = None  # Only this part of the data; by default every part.
    jpeg: Annotated[int | None, Limit(1, 95), shown("QUALITY")] = None
    """Keep JPEG files of this quality, 1 to 95, instead of raw pixels: a tenth of the space, decoded when read."""
    workers: Workers = None
    quiet: bool = False  # Print nothing but errors.


@dataclass(frozen=True)
class Doctor(OfModel):
    """Check data before training: formats, sizes, broken files, duplicates, and the settings training would choose.

    Given a run: whether it finished, whether its checkpoints are intact, what it learned, and how to continue it. Given
    a public model: what it is, and how it sees pictures. Without DATA: what this machine has.
    """

    data: Positional[Annotated[str | None, shown("DATA|MODEL")]] = None
    """Pictures, videos or sentences in any layout, a folder that lookalike prepare wrote, or a model."""
    out: str = "doctor"  # Folder for a sheet of sample pictures and lists of broken and duplicate files.
    split: Name = None  # Only this part of the data; by default every part.
    json: File = None  # Write all findings to this file.
    workers: Workers = None
    quick: bool = False  # Skip the few seconds of training that estimate how long an epoch takes.


@dataclass(frozen=True)
class Preview(Verb):
    """Draw pictures next to the two random views of each that a recipe would train on.

    Any field of the recipe can be set by its path: --pretext.first.blur 0
    """

    data: Data  # Pictures in any layout.
    recipe: Positional[Annotated[str | None, shown("RECIPE")]] = None
    """Name of a recipe; by default the one that lookalike pretrain would choose."""
    out: str = "preview.png"  # The picture to write.
    rows: Annotated[int, Limit(1)] = 12  # Number of pictures.
    epoch: Annotated[int, Limit(0)] = 0  # The epoch whose views to draw; each has its own.
    split: Name = None  # Which part of the data; by default train if there is one, else everything.


VERBS: dict[str, type[Verb]] = {
    kind.__name__.lower(): kind
    for kind in (Demo, Pretrain, Supervised, Evaluate, Compare, Embed, Search, Export, Prepare, Doctor, Preview)
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


def one_of(kinds: Mapping[str, type], flags: Callable[[str], Any], chosen: str | None, whole: bool) -> Any:
    """Subcommands as one type, from their names to the classes that describe them.

    Only the one that is ``chosen`` has flags and all of its description, unless the ``whole`` is needed: a list shows
    the first lines, and reading all flags would take as long as everything else.
    """
    union = []
    for name, kind in kinds.items():
        full = whole or name == chosen
        text = inspect.getdoc(kind) or ""
        note = subcommand(name, description=text if full else text.splitlines()[0])
        union.append(Annotated[flags(name) if full else Verb, note])
    return Union[tuple(union)]  # noqa: UP007  (a type that is built at run time)


def answered(kind: Any, arguments: Sequence[str], **about: Any) -> tuple[Any, list[str]]:
    """What the arguments say, as a value of that kind, and what the parser does not know.

    Raises UserError in a line, where tyro has a box.
    """
    with redirect_stderr(io.StringIO()) as box:
        try:
            value: tuple[Any, list[str]] = tyro.cli(
                kind, args=arguments, return_unknown_args=True, config=(FlagCreatePairsOff,), **about
            )
        except SystemExit as stopped:
            if stopped.code:
                raise UserError(_reason(box.getvalue())) from None
            raise
    return value


def _reason(box: str) -> str:
    """Without the words of the help, which are indented or follow a rule."""
    rows = (re.sub(r"\x1b\[[0-9;]*m", "", row).strip("│|\n") for row in box.splitlines()[1:])
    reason = takewhile(lambda row: not _is_rule(row), dropwhile(_is_rule, rows))
    return " ".join(row.strip() for row in reason if not row.startswith(" " * 7)).rstrip(".") + "; see --help"


def _is_rule(row: str) -> bool:
    return not row.strip("─-╰╯ ")
