"""The verbs that look at data, or write what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional

from lookalike.cli.flags import Verb, Workers, shown
from lookalike.core.errors import Limit


@dataclass(frozen=True)
class Embed(Verb):
    """Write one embedding per picture, text or video to a parquet table: path, split, label, embedding."""

    run: Positional[Annotated[str, shown("RUN")]]
    """The model: folder of a run."""
    data: Positional[Annotated[str, shown("DATA")]]
    """Pictures, texts or videos, as the run learned from."""
    out: Annotated[str, shown("FILE")]
    """The parquet file to write."""
    layer: Literal["backbone", "head"] = "backbone"
    """Which features: the backbone's, or the output of the head that was trained on top of it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network's products. bf16 is faster on GPUs and on processors that support it; features change by up to
    two hundredths."""
    clip: Annotated[float | None, Limit(1e-3), shown("SECONDS")] = None
    """For videos: one embedding per this many seconds, the mean over the frames; inf for one per video. By default one
    per frame."""
    workers: Workers = None
    """Processes that decode pictures; by default 2, and for a GPU all cores but two, at most 16."""


@dataclass(frozen=True)
class Search(Verb):
    """Find what is nearest to a picture or a sentence.

    lookalike search photos.parquet beach.jpg --run runs/first

    Every row is compared. To find the neighbours of a path in the table, no run is needed.
    """

    where: Positional[Annotated[str, shown("RUN|FILE")]]
    """A table that lookalike embed wrote, or the folder of a run, whose data is then embedded first."""
    queries: Positional[Annotated[tuple[str, ...], shown("QUERY")]]
    """Paths in the table; picture files; sentences, for models of text or captions."""
    top: Annotated[int, Limit(1)] = 10
    """Number of hits to show."""
    run: Annotated[str | None, shown("RUN")] = None
    """The run that made the table, to embed queries that are not in it."""
    json: Annotated[str | None, shown("FILE")] = None
    """Write the hits to this file."""
    page: Annotated[str | None, shown("FILE")] = None
    """Write an HTML page with the pictures of the hits."""
    data: Annotated[str | None, shown("DATA")] = None
    """Where the pictures for the page are, if no longer where the run read them."""


@dataclass(frozen=True)
class Prepare(Verb):
    """Decode and shrink every picture once, so that training reads small pictures at the speed of memory.

    From then on, use the folder as DATA. The same command continues after an interruption, and repairs damaged shards.
    """

    data: Positional[Annotated[str, shown("DATA")]]
    """Pictures in any layout."""
    out: Annotated[str, shown("FOLDER")]
    """Folder to write."""
    size: Annotated[int | None, Limit(1), shown("PIXELS")] = None
    """Side of the prepared pictures; by default 160, or less if the pictures are smaller."""
    split: Annotated[str | None, shown("NAME")] = None
    """Only this part of the data; by default every part."""
    jpeg: Annotated[int | None, Limit(1, 95), shown("QUALITY")] = None
    """Keep JPEG files of this quality, 1 to 95, instead of raw pixels: a tenth of the space, decoded when read."""
    workers: Workers = None
    """Processes that decode pictures; by default 2, and for a GPU all cores but two, at most 16."""
    quiet: bool = False
    """Print nothing but errors."""


@dataclass(frozen=True)
class Doctor(Verb):
    """Check data before training: formats, sizes, broken files, duplicates, and the settings training would choose.

    Given a run: whether it finished, whether its checkpoints are intact, what it learned, and how to continue it.
    Without DATA: what this machine has.
    """

    data: Positional[Annotated[str | None, shown("DATA|RUN")]] = None
    """Pictures in any layout, a folder that lookalike prepare wrote, or the folder of a run."""
    out: str = "doctor"
    """Folder for a sheet of sample pictures and lists of broken and duplicate files."""
    split: Annotated[str | None, shown("NAME")] = None
    """Only this part of the data; by default every part."""
    json: Annotated[str | None, shown("FILE")] = None
    """Write all findings to this file."""
    workers: Workers = None
    """Processes that read pictures."""
    quick: bool = False
    """Skip the few seconds of training that estimate how long an epoch takes."""


@dataclass(frozen=True)
class Preview(Verb):
    """Draw pictures next to the two random views of each that a recipe would train on.

    Any field of the recipe can be set by its path: --pretext.first.blur 0
    """

    data: Positional[Annotated[str, shown("DATA")]]
    """Pictures in any layout."""
    recipe: Positional[Annotated[str | None, shown("RECIPE")]] = None
    """Name of a recipe; by default the one that lookalike pretrain would choose."""
    out: str = "preview.png"
    """The picture to write."""
    rows: Annotated[int, Limit(1)] = 12
    """Number of pictures."""
    epoch: Annotated[int, Limit(0)] = 0
    """The epoch whose views to draw; each has its own."""
    split: Annotated[str | None, shown("NAME")] = None
    """Which part of the data; by default train if there is one, else everything."""
