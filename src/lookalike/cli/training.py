"""The verbs that train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional

from lookalike.cli.flags import Verb, Workers, shown
from lookalike.core.errors import Limit


@dataclass(frozen=True)
class Demo(Verb):
    """Pretrain on 1,797 handwritten digits without labels, in two minutes, and write a report on what was learned."""

    out: str = "demo"
    """Folder for the run and report.html."""
    overwrite: bool = False
    """Start again; an old demo in this folder is moved aside."""


@dataclass(frozen=True)
class Pretrain(Verb):
    """Learn a backbone from data without labels.

    lookalike pretrain PHOTOS --out runs/first --minutes 10

    The same command continues the run where it stopped, after Ctrl-C and after a power cut.

    Any field of the recipe can be set by its path: --dictionary.size 4096 --objective.temperature 0.2 --batch 128.
    Another network: --model resnet50 or --model timm:convnext_tiny, which starts from random weights. All fields are in
    recipe.json of a run. Afterwards: lookalike evaluate, lookalike embed.
    """

    data: Positional[Annotated[str, shown("DATA")]]
    """Pictures: a folder in any layout; a .txt or .csv list of paths; a parquet, Arrow, tar or zip file, or a folder of
    them; a folder that lookalike prepare wrote; hub:owner/name; an address such as s3://bucket/folder; or the name
    digits. Text: lines of a .txt, a .csv, .tsv or .parquet (FILE:COLUMN names one column, FILE:FIRST,SECOND two), or a
    folder of them. Videos: video files; frames:FOLDER, one folder of frames per video; frames@12.5:FOLDER if they are
    not 25 a second. Captions: a folder of pictures with captions.csv (image, caption) or COCO's captions_*.json."""
    out: Annotated[str, shown("RUN")]
    """Folder for the run: recipe.json, metrics.jsonl, checkpoints/."""
    recipe: Annotated[str | None, shown("NAME")] = None
    """For pictures: small, moco_v1, moco_v2, moco_v3, moco_cifar, simclr, nnclr, instdisc, supcon, masked_moco, mae,
    tiny; small_simclr and so on are smaller versions for a CPU. For text: mlm, simcse, moco_text, text_pairs,
    simcse_bert. For videos: video_moco (two frames), video_moco_clips and video_moco_r3d (two clips). For pictures with
    captions: moco_captions. By default small, or moco_v2 with a GPU and much data."""
    minutes: Annotated[float | None, shown("M")] = None
    """Train for about this many minutes, decoding included: the number of steps is measured at the start and corrected
    on the way. By default the length is that of the recipe, for small 10 minutes."""
    epochs: Annotated[float | None, shown("E")] = None
    """Train for this many passes over the data instead."""
    steps: Annotated[int | None, shown("N")] = None
    """Train for this many steps instead."""
    extend: bool = False
    """Lengthen the run in this folder, finished or stopped: --epochs and --steps are the new total, --minutes is added.
    The learning rate goes on as in a run of the new length. The same command again continues it; if the run has
    finished, --minutes adds to it once more."""
    split: Annotated[str | None, shown("NAME")] = None
    """Which part of the data; by default train if there is one, else everything."""
    overwrite: bool = False
    """Start again; an old run in this folder is moved aside."""
    init_from: Annotated[str | None, shown("RUN")] = None
    """Start from the weights of this run."""
    max_bad: Annotated[float, Limit(0)] = 0.01
    """Share of pictures that may be unreadable before the run stops."""
    workers: Workers = None
    """Processes that decode pictures; by default 2, and for a GPU all cores but two, at most 16."""
    memory: Annotated[float, Limit(0)] = 4.0
    """GiB of decoded pictures to keep in memory; if there is more data, it is decoded again in each epoch."""
    save_every: Annotated[int | None, Limit(1), shown("N")] = None
    """Steps between checkpoints; by default about a minute."""
    allow_data_change: bool = False
    """Continue the run although files were added, removed, renamed or replaced since it began."""
    quiet: bool = False
    """Print nothing but errors."""


@dataclass(frozen=True)
class Supervised(Pretrain):
    """Train the backbone of a recipe with labels, to compare with.

    lookalike supervised PHOTOS --out runs/labels

    Same model, views, batches, optimizer and length as lookalike pretrain, but with one linear layer and cross entropy.
    Pictures without a label are left out, and so are those that evaluations test on: the test split, or a fifth of data
    without splits.
    """
