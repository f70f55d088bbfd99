"""The verbs that look at data or write what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional

from lookalike.cli.flags import Verb, shown


@dataclass(frozen=True)
class Embed(Verb):
    """One embedding per picture or text, as a parquet table of path, split, label, embedding."""

    run: Positional[str]
    """Folder of a run."""
    data: Positional[str]
    """Pictures, or text for a run of text."""
    out: str
    """The parquet file to write."""
    layer: Literal["backbone", "head"] = "backbone"
    """Features of the backbone, or the head's output that was trained."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network's products. bf16 is faster on GPUs and on processors that compute in it, and moves features by up
    to two hundredths."""
    clip: Annotated[float | None, shown("SECONDS")] = None
    """Of videos: one embedding for every so many seconds, the mean over their frames; inf: for each video."""
    workers: int = 2
    """Processes that decode pictures."""


@dataclass(frozen=True)
class Search(Verb):
    """What lies nearest to a picture or a sentence: lookalike search photos.parquet beach.jpg --run runs/first

    Every row is compared. A path of the table finds its neighbours without a run.
    """

    where: Positional[Annotated[str, shown("RUN|FILE")]]
    """A table that lookalike embed wrote, or the folder of a run, whose data is embedded first."""
    queries: Positional[Annotated[tuple[str, ...], shown("QUERY")]]
    """Paths of the table; picture files; sentences, for runs of text and of captions."""
    top: int = 10
    """How many are shown."""
    run: Annotated[str | None, shown("RUN")] = None
    """The run that made the table, where a query is not in it."""
    json: str | None = None
    """Write what was found to this file."""
    page: Annotated[str | None, shown("FILE")] = None
    """Write an HTML page with the pictures that were found."""
    data: Annotated[str | None, shown("DATA")] = None
    """Where the pictures of the page are, if not where the run has them from."""


@dataclass(frozen=True)
class Prepare(Verb):
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


@dataclass(frozen=True)
class Doctor(Verb):
    """Look at every picture before training: what is there, what is broken, what is double, what would be done with it.

    Of a run: whether it ended, whether its checkpoints are whole, what it learned, and how to go on.
    Without DATA: what this machine has.
    """

    data: Positional[str | None] = None
    """Pictures in any layout, a folder that prepare made, or the folder of a run."""
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


@dataclass(frozen=True)
class Preview(Verb):
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
