"""What those verbs take that find what is wrong with data; nothing here imports torch, which is slow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional

from lookalike.cli.arguments import File, OfModel, Verb, Workers, shown
from lookalike.core.errors import Limit

Precision = Annotated[float, Limit(0.5, 0.999)]


@dataclass(frozen=True)
class Finds(OfModel):
    """What all of them take."""

    where: Positional[Annotated[str, shown("TABLE|MODEL")]]
    """A .parquet table that lookalike embed wrote, or a model that embeds DATA first: a run, timm:NAME, ..."""
    data: Positional[Annotated[str | None, shown("DATA")]] = None
    """The pictures, where the table or the run does not say where they are, or they were moved."""
    top: Annotated[int, Limit(0)] = 10  # Number of findings to show; the files get all of them.
    out: File = None
    """Write all findings to this .csv: path, split, score, reason, and the path beside it. Of duplicates also .parquet:
    a copy of the table with the columns duplicate_of and reason."""
    json: File = None  # Write all findings to this file.
    page: File = None  # Write an HTML page with the pictures of the first 200 findings side by side.
    workers: Workers = None


@dataclass(frozen=True)
class Duplicates(Finds):
    """Find pictures that are the same: equal, saved again, or edited; say which to keep. Nothing is deleted.

    lookalike duplicates photos.parquet --page duplicates.html --keep-tree photos_once

    In this order, with the reason for each: equal bytes, equal pixels, perceptual hash, embedding. Pairs by hash and
    embedding count where the pixels agree, too: mirrored, cut, framed, marked or recoloured. Of each group that is kept
    which is not in test, labelled, largest and sharpest; all others are the same as that one.
    """

    precision: Precision = 0.95
    """How large a share of what is found should be right. How well two pictures must agree for that follows from how
    well others of your own do, which merely look alike: where copies are rare, it is much."""
    keep_tree: Annotated[str | None, shown("FOLDER")] = None
    """Make a folder with hard links to the pictures to keep, which take no space; copies on another disk."""


@dataclass(frozen=True)
class Leaks(Finds):
    """Find pictures of validation and test that train has, too: they make an evaluation look better than it is.

    lookalike leaks photos.parquet --out leaks.csv

    The reasons are those of lookalike duplicates. Pictures of test are compared with validation, too.
    """

    precision: Precision = 0.95  # As of lookalike duplicates.


@dataclass(frozen=True)
class Labels(Finds):
    """Find labels that seem wrong, the most likely first, each with the label that seems right.

    lookalike labels photos.parquet --page labels.html

    Two that do not see a picture's label judge it: its 20 nearest neighbours, without copies of it, and a linear
    classifier of other pictures. Which are listed is decided by confident learning (arXiv 1911.00068).
    """


@dataclass(frozen=True)
class Outliers(Finds):
    """Find pictures that are far from all others, dark, bright, plain, blurred, or odd in size, the oddest first.

    lookalike outliers photos.parquet --page outliers.html
    """


@dataclass(frozen=True)
class Sample(Finds):
    """Choose pictures to label next, of those without a label where there are any.

    lookalike sample photos.parquet --n 200 --how typical --out next.csv

    typical: of each group of similar pictures the most typical, for a first few labels. diverse: each as far from the
    others as can be. uncertain: those between two classes, once some have labels.
    """

    n: Annotated[int, Limit(1)] = 200  # Number of pictures.
    how: Literal["typical", "diverse", "uncertain"] = "typical"  # See above.


OF_CLEANING: tuple[type[Verb], ...] = (Duplicates, Leaks, Labels, Outliers, Sample)
"""All of them, in the order of the help."""
