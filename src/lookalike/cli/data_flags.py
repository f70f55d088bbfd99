"""What those verbs take that look at data; nothing here imports torch, which is slow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, UseAppendAction

from lookalike.cli.arguments import Data, File, Layer, Model, Name, OfModel, Precision, Verb, Workers, shown
from lookalike.core.errors import Limit


@dataclass(frozen=True)
class Embed(OfModel):
    """Write one embedding per picture, text or video to a table.

    lookalike embed timm:resnet50 PHOTOS --out photos.parquet --download

    A .parquet holds path, split, label, class, for texts the text, the embedding, of pictures width, height and sha256
    of the file, and what made it of which data; lookalike search reads it. It is made in parts, beside the file: the
    same command continues after an interruption. A .csv holds the same up to the embedding, with one column per number.
    A .npy holds the embeddings alone, and the .rows.csv beside it the other columns. In .csv files, words that a
    spreadsheet would compute (those that begin with = + - @) have an apostrophe before them, which is not read where
    the table is DATA.
    """

    run: Model  # A run, timm:NAME, torchvision:NAME, hf:FOLDER or a file of weights.
    data: Data  # Pictures, texts or videos, as the model learned from.
    out: Annotated[str, shown("FILE")]  # The file to write: .parquet, .csv or .npy.
    layer: Layer = "backbone"
    precision: Precision = "fp32"
    clip: Annotated[float | None, Limit(1e-3, math.inf), shown("SECONDS")] = None
    """For videos: one embedding per this many seconds, the mean over the frames; inf for one per video. By default one
    per frame."""
    update: bool = False
    """Embed only what is new or has changed since the table was made, and drop what is gone."""
    workers: Workers = None


@dataclass(frozen=True)
class Search(OfModel):
    """Find what is nearest to a picture or a sentence.

    lookalike search photos.parquet beach.jpg --where "split = 'train' and width >= 640"

    New pictures and sentences are encoded by the model that the table names, or by --run where it lies elsewhere now;
    one that did not make the table is refused. Every row is compared, up to a million rows; beyond that an index beside
    the table is made once, which says how much it finds.
    """

    table: Positional[Annotated[str, shown("TABLE|MODEL")]]
    """A .parquet table that lookalike embed wrote; or a run, whose data is embedded once, or a public model with
    --data."""
    queries: Positional[Annotated[tuple[str, ...], shown("QUERY")]]
    """Paths in the table; picture files, or parts of them as FILE@x,y,w,h in pixels; sentences, for models of text or
    captions."""
    top: Annotated[int, Limit(1)] = 10  # Number of hits to show.
    where: Annotated[str | None, shown("CONDITION")] = None
    """Which rows to look at: columns path, split, label, class, width, height, text with = != < > <= >= and in ('a',
    'b'), joined by and, or, not and parentheses."""
    together: bool = False  # Make one query of all of them: their mean.
    minus: Annotated[UseAppendAction[tuple[str, ...]], shown("QUERY")] = ()
    """Take the mean of these, which are given with --minus each, from the query."""
    index: Annotated[bool | None, shown("True|False")] = None
    """Search by an index beside the table; by default beyond a million rows."""
    run: Annotated[str | None, shown("MODEL")] = None  # The model that made the table, if it was moved.
    json: File = None  # Write the hits to this file.
    page: File = None  # Write an HTML page with the pictures of the hits.
    data: Annotated[str | None, shown("DATA")] = None
    """What to search with a public model; or where the pictures are, if no longer where the table or the run says."""


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
class Explore(OfModel):
    """Look at a table or a run on a page of this machine: a map, search, and queues of what is wrong.

    lookalike explore photos.parquet

    Search by a click, by dropping a picture, or by a sentence; draw around pictures to export them; decide on
    duplicates, leaks, odd labels and outliers, which deletes nothing. A run that trains now moves as it learns. The
    page is served on 127.0.0.1 alone, to whoever has the address that is printed, until Ctrl-C.
    """

    where: Positional[Annotated[str, shown("TABLE|RUN")]]
    """A .parquet table that lookalike embed wrote; or a run, or a public model with --data, which embed first."""
    data: Annotated[str | None, shown("DATA")] = None
    """Where the pictures are, if no longer where the table or the run says."""
    port: Annotated[int, Limit(0, 65_535)] = 0  # Of the page; 0 takes a free one.
    no_browser: bool = False  # Print the address alone, and open no browser.
    decisions: File = None  # The file of decisions; by default beside the table, or in the run.


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


OF_DATA: tuple[type[Verb], ...] = (Embed, Search, Explore, Prepare, Doctor, Preview)
"""All of them, in the order of the help."""
