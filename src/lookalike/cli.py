"""The command line: what each verb takes. Parsing must not import torch, or ``--help`` would take seconds."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg, subcommand

from lookalike.trouble import IO, USAGE, Trouble

PROGRAM = """Learns, without labels, which things look alike.

First: lookalike demo. Then: lookalike pretrain PHOTOS --out runs/first --minutes 10. Each verb has its own --help."""


@dataclass(frozen=True)
class Demo:
    """Pretrain on 1,797 handwritten digits without labels and show what was learned; a report at the end. 2 minutes."""

    out: str = "demo"
    """Folder for the run and report.html."""
    overwrite: bool = False
    """Start again, moving an old demo aside."""
    debug: bool = False
    """Show the traceback of an error."""


def _shown(metavar: str) -> Any:
    """How a value is named in the help; a default of None, which the text explains, is not repeated there."""
    return arg(metavar=metavar, help_behavior_hint="")


@dataclass(frozen=True)
class Pretrain:
    """Learn a backbone from pictures without labels: lookalike pretrain PHOTOS --out runs/first --minutes 10

    The same command again continues the run where it stopped, after Ctrl-C or a power cut, too.

    Any field of the recipe can be set by its path: --dictionary.size 4096 --objective.temperature 0.2 --batch 128.
    All fields stand in recipe.json of a run. What was learned: lookalike evaluate, lookalike embed.
    """

    data: Positional[Annotated[str, _shown("DATA")]]
    """Pictures: a folder in any layout; a .txt or .csv list of paths; a parquet, Arrow, tar or zip file, or a folder of
    them; a prepared cache; hub:owner/name; an address such as s3://bucket/folder; or the name: digits."""
    out: Annotated[str, _shown("RUN")]
    """Folder for the run: recipe.json, metrics.jsonl, checkpoints/."""
    recipe: Annotated[str | None, _shown("NAME")] = None
    """small, moco_v1, moco_v2, moco_v3, moco_cifar, simclr, nnclr, instdisc, supcon, tiny; small_simclr and so on are
    twins for a processor. By default small, or moco_v2 with a GPU and much data."""
    minutes: Annotated[float | None, _shown("M")] = None
    """Train until about so long from now, decoding included: the number of steps is fixed from the speed of the first
    ones. By default the length that the recipe names, which for small is 10 minutes."""
    epochs: Annotated[float | None, _shown("E")] = None
    """Train for this many passes over the data instead."""
    steps: Annotated[int | None, _shown("N")] = None
    """Train for this many steps instead."""
    split: Annotated[str | None, _shown("NAME")] = None
    """Which part of the data: train where there is one, else everything."""
    overwrite: bool = False
    """Start again, moving an old run in this folder aside."""
    init_from: Annotated[str | None, _shown("RUN")] = None
    """Start from the weights of this run."""
    max_bad: float = 0.01
    """Share of pictures that may be unreadable before the run stops."""
    workers: int = 2
    """Processes that decode pictures."""
    memory: float = 4.0
    """GiB of decoded pictures that may be kept in memory; more data than that is decoded again each epoch."""
    save_every: Annotated[int | None, _shown("N")] = None
    """Steps between checkpoints; by default about a minute."""
    allow_data_change: bool = False
    """Continue the run although files were added, removed, renamed or replaced since it began."""
    quiet: bool = False
    """Print nothing but errors."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Supervised(Pretrain):
    """Train the backbone of a recipe with labels, to compare with: lookalike supervised PHOTOS --out runs/labels

    The same model, views, batches, optimizer and length as lookalike pretrain; one linear layer and cross entropy
    instead of keys and entries. Left out are pictures without a label and those that evaluations ask: test, or a fifth
    of data that is not divided.
    """


@dataclass(frozen=True)
class Measured:
    """What every evaluation takes."""

    run: Positional[str]
    """Folder of a run."""
    data: Positional[str]
    """Pictures with labels: class folders, or parquet with a label column."""
    untrained: bool = False
    """The same network with its initial weights, to compare with."""
    weights: Annotated[str | None, _shown("FILE")] = None
    """The backbone with the weights of others, to compare with: .safetensors, .pth, or torchvision:NAME or timm:NAME
    where those are on this machine already."""
    json: str | None = None
    """Write the numbers to this file."""
    workers: int = 2
    """Processes that decode pictures."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Frozen(Measured):
    """What evaluations of frozen features take."""

    layer: Literal["backbone", "head"] = "backbone"
    """Features of the backbone, or the head's output that was trained."""


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
class Embed:
    """One embedding per picture, as a parquet table of path, split, label, embedding."""

    run: Positional[str]
    """Folder of a run."""
    data: Positional[str]
    """Pictures."""
    out: str
    """The parquet file to write."""
    layer: Literal["backbone", "head"] = "backbone"
    """Features of the backbone, or the head's output that was trained."""
    workers: int = 2
    """Processes that decode pictures."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Prepare:
    """Decode and make small every picture once, so that training reads canvases at the speed of memory.

    Name the folder as DATA from then on. The same command again goes on where it stopped, and mends damaged shards.
    """

    data: Positional[str]
    """Pictures in any layout."""
    out: str
    """Folder for the canvases."""
    size: int | None = None
    """Side of the canvases in pixels; by default 160, or that of the pictures where it is smaller."""
    split: str | None = None
    """Only this part of the data; by default every part."""
    jpeg: int | None = None
    """Keep JPEG files of this quality, 1 to 95, instead of raw pixels: a tenth of the space, decoded when read."""
    workers: int = 2
    """Processes that decode pictures."""
    quiet: bool = False
    """Print nothing but errors."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Doctor:
    """Look at every picture before training: what is there, what is broken, what is double, what would be done with it.

    Without DATA: what this machine has.
    """

    data: Positional[str | None] = None
    """Pictures in any layout, or a folder that prepare made."""
    out: str = "doctor"
    """Folder for a sheet of pictures and lists of broken and double ones."""
    split: str | None = None
    """Only this part of the data; by default every part."""
    json: str | None = None
    """Write what was found to this file."""
    workers: int = 2
    """Processes that read pictures."""
    quick: bool = False
    """Do not train for some seconds to estimate how long an epoch takes."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Preview:
    """Draw some pictures beside the two views of each that a recipe would train on.

    Any field of the recipe can be set by its path: --pretext.first.blur 0.
    """

    data: Positional[str]
    """Pictures in any layout."""
    recipe: Positional[str | None] = None
    """A recipe's name; by default the one that pretrain would take."""
    out: str = "preview.png"
    """The picture to write."""
    rows: int = 12
    """How many pictures."""
    epoch: int = 0
    """Whose views."""
    split: str | None = None
    """Which part of the data: train where there is one, else everything."""
    debug: bool = False
    """Show the traceback of an error."""


Evaluation = (
    Annotated[Knn, subcommand("knn")]
    | Annotated[Probe, subcommand("probe")]
    | Annotated[Fewshot, subcommand("fewshot")]
    | Annotated[Retrieve, subcommand("retrieve")]
    | Annotated[Clusters, subcommand("clusters")]
    | Annotated[Finetune, subcommand("finetune")]
)
Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Pretrain, subcommand("pretrain")]
    | Annotated[Supervised, subcommand("supervised")]
    | Annotated[Evaluation, subcommand("evaluate", description="Measure what was learned.")]
    | Annotated[Embed, subcommand("embed")]
    | Annotated[Prepare, subcommand("prepare")]
    | Annotated[Doctor, subcommand("doctor")]
    | Annotated[Preview, subcommand("preview")]
)


def refuse_unknown_verb(arguments: Sequence[str]) -> None:
    """Exit with one line that names the nearest verb, where the parser would only list them all."""
    verbs = [option.__metadata__[0].name for option in get_args(Command)]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in verbs:
        near = difflib.get_close_matches(arguments[0], verbs, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(verbs)}; see lookalike --help"
        print(f"lookalike: unknown verb {arguments[0]!r}; {hint}", file=sys.stderr)
        sys.exit(USAGE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run the verb, and exit with its code; an error is one line unless ``--debug``."""
    refuse_unknown_verb(sys.argv[1:] if arguments is None else arguments)
    command, rest = tyro.cli(
        Command,
        prog="lookalike",
        description=PROGRAM,
        args=arguments,
        return_unknown_args=True,
        config=(FlagCreatePairsOff,),
    )
    try:
        sys.exit(importlib.import_module("lookalike.verbs").run(command, rest))
    except Trouble as trouble:
        if command.debug:
            raise
        print(f"lookalike: {trouble}", file=sys.stderr)
        sys.exit(trouble.code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if command.debug:
            raise
        what = f"{error.filename}: {error.strerror}" if error.filename else error
        print(f"lookalike: {what}: nothing that was saved is lost; --debug shows where", file=sys.stderr)
        sys.exit(IO)
