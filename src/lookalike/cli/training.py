"""The verbs that train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional

from lookalike.cli.flags import Verb, shown


@dataclass(frozen=True)
class Demo(Verb):
    """Pretrain on 1,797 handwritten digits without labels and show what was learned; a report at the end. 2 minutes."""

    out: str = "demo"
    """Folder for the run and report.html."""
    overwrite: bool = False
    """Start again, moving an old demo aside."""


@dataclass(frozen=True)
class Pretrain(Verb):
    """Learn a backbone from pictures or text without labels: lookalike pretrain PHOTOS --out runs/first --minutes 10

    The same command again continues the run where it stopped, after Ctrl-C or a power cut, too.

    Any field of the recipe can be set by its path: --dictionary.size 4096 --objective.temperature 0.2 --batch 128.
    All fields stand in recipe.json of a run. What was learned: lookalike evaluate, lookalike embed.
    """

    data: Positional[Annotated[str, shown("DATA")]]
    """Pictures: a folder in any layout; a .txt or .csv list of paths; a parquet, Arrow, tar or zip file, or a folder of
    them; a prepared cache; hub:owner/name; an address such as s3://bucket/folder; or the name: digits. For a recipe for
    text: lines of a .txt, a .csv, .tsv or .parquet (FILE:COLUMN names one, FILE:FIRST,SECOND two), a folder of them.
    Videos: files as pictures are; frames:FOLDER, a folder of frames each; frames@12.5:FOLDER where they
    are not 25 a second. Captions: a folder of pictures with captions.csv
    (image, caption) or COCO's captions_*.json."""
    out: Annotated[str, shown("RUN")]
    """Folder for the run: recipe.json, metrics.jsonl, checkpoints/."""
    recipe: Annotated[str | None, shown("NAME")] = None
    """Pictures: small, moco_v1, moco_v2, moco_v3, moco_cifar, simclr, nnclr, instdisc, supcon, masked_moco, mae, tiny;
    small_simclr and so on are twins for a processor. Text: mlm, simcse, moco_text, text_pairs, simcse_bert. Videos:
    video_moco (two frames), video_moco_clips and video_moco_r3d (two clips). Pictures with captions: moco_captions.
    By default small, or moco_v2 with a GPU and much data."""
    minutes: Annotated[float | None, shown("M")] = None
    """Train until about so long from now, decoding included: the number of steps is measured at the start, and mended
    on the way where the machine turns out slower or faster. By default the length that the recipe names, which for
    small is 10 minutes."""
    epochs: Annotated[float | None, shown("E")] = None
    """Train for this many passes over the data instead."""
    steps: Annotated[int | None, shown("N")] = None
    """Train for this many steps instead."""
    extend: bool = False
    """Make the run longer that is there, ended or stopped: --epochs or --steps say how long it is in all, --minutes how
    much longer it gets. The learning rate goes on as that of a run of the new length. The same command again continues
    it; by minutes it makes a run that has ended longer once more."""
    split: Annotated[str | None, shown("NAME")] = None
    """Which part of the data: train where there is one, else everything."""
    overwrite: bool = False
    """Start again, moving an old run in this folder aside."""
    init_from: Annotated[str | None, shown("RUN")] = None
    """Start from the weights of this run."""
    max_bad: float = 0.01
    """Share of pictures that may be unreadable before the run stops."""
    workers: int = 2
    """Processes that decode pictures."""
    memory: float = 4.0
    """GiB of decoded pictures that may be kept in memory; more data than that is decoded again each epoch."""
    save_every: Annotated[int | None, shown("N")] = None
    """Steps between checkpoints; by default about a minute."""
    allow_data_change: bool = False
    """Continue the run although files were added, removed, renamed or replaced since it began."""
    quiet: bool = False
    """Print nothing but errors."""


@dataclass(frozen=True)
class Supervised(Pretrain):
    """Train the backbone of a recipe with labels, to compare with: lookalike supervised PHOTOS --out runs/labels

    The same model, views, batches, optimizer and length as lookalike pretrain; one linear layer and cross entropy
    instead of keys and entries. Left out are pictures without a label and those that evaluations ask: test, or a fifth
    of data that is not divided.
    """
