"""What is wrong with data: duplicates, leaks, labels, outliers, and what to label next, as lists of findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.core.devices import isolated
from lookalike.core.files import write_atomically, write_csv
from lookalike.core.progress import Progress, silent
from lookalike.curate.duplicates import duplicates_among, leaks_among
from lookalike.curate.labels import suspicious_labels
from lookalike.curate.outliers import outlying
from lookalike.curate.same import same_pictures
from lookalike.curate.sample import How, sampled
from lookalike.curate.table import Finding, Table, open_table
from lookalike.data.fingerprint import read_table
from lookalike.data.source import Data
from lookalike.train.embeddings import write_embeddings

Where = str | Path | Table
"""A table that ``lookalike embed`` wrote, a model, or what ``open_table`` gave."""


@isolated()
def all_findings(
    table: Table, precision: float = 0.95, workers: int | None = None, progress: Progress = silent
) -> dict[str, list[Finding]]:
    """Leaks, duplicates, labels and outliers of a table, in this order; pictures are read once. Raises UserError.

    What cannot be asked is left out: labels of fewer than two classes.
    """
    same = same_pictures(table, precision, workers=workers, progress=progress)
    found = {"leaks": leaks_among(table, same), "duplicates": duplicates_among(table, same)}
    if len(set(table.rows.label[table.rows.label >= 0].tolist())) > 1:
        found["labels"] = suspicious_labels(table, progress)
    return {**found, "outliers": outlying(table, same.seen, progress=progress)}


@isolated()
def duplicates(where: Where, data: Data | None = None, *, precision: float = 0.95, **opening: Any) -> list[Finding]:
    """The pictures that need not be kept, each beside the one that stands for it; the surest first.

    ``opening`` are arguments of ``open_table``; for ``precision`` see ``same_pictures``. Raises UserError.
    """
    table = opened(where, data, **opening)
    return duplicates_among(table, same_pictures(table, precision, *_how(opening)))


@isolated()
def leaks(where: Where, data: Data | None = None, *, precision: float = 0.95, **opening: Any) -> list[Finding]:
    """The pictures of validation and test that a split before theirs has too; as ``duplicates``."""
    table = opened(where, data, **opening)
    return leaks_among(table, same_pictures(table, precision, *_how(opening)))


@isolated()
def labels(where: Where, data: Data | None = None, **opening: Any) -> list[Finding]:
    """The rows whose label seems wrong; ``reason`` has the one that seems right. Raises UserError."""
    return suspicious_labels(opened(where, data, **opening), _how(opening)[1])


@isolated()
def outliers(where: Where, data: Data | None = None, **opening: Any) -> list[Finding]:
    """The odd rows; ``reason`` says what is odd, ``others`` are the nearest. Raises UserError."""
    return outlying(opened(where, data, **opening), None, *_how(opening))


@isolated()
def sample(
    where: Where, data: Data | None = None, *, n: int = 200, how: How = "typical", **opening: Any
) -> list[Finding]:
    """``n`` rows to label next, the most useful first; see ``sampled``. Raises UserError."""
    return sampled(opened(where, data, **opening), n, how)


def opened(where: Where, data: Data | None, **opening: Any) -> Table:
    """As it is, or opened; raises UserError."""
    return where if isinstance(where, Table) else open_table(where, data, **opening)


def _how(opening: Mapping[str, Any]) -> tuple[int | None, Progress]:
    return opening.get("workers"), opening.get("progress", silent)


# ---- written ----

HEAD = ("path", "split", "score", "reason", "beside")


def listed(table: Table, found: Iterable[Finding]) -> Iterator[tuple[str, str, float, str, str]]:
    """Findings as rows of a table: ``HEAD``."""
    path, split = table.rows.path, table.rows.split
    for row, score, reason, others in found:
        yield path[row], split[row], round(score, 4), reason, path[others[0]] if others else ""


def write_list(table: Table, found: Iterable[Finding], out: Path) -> None:
    """A .csv of findings."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_csv(out, HEAD, listed(table, found))


def write_marked(table: Table, where: str, found: Iterable[Finding], out: Path) -> None:
    """A .parquet with all rows, and for each duplicate the path that stands for it and why. Raises UserError."""
    if Path(where).suffix.lower() == ".parquet":
        columns = read_table(Path(where))
    else:
        write_embeddings(table.rows, out)
        columns = read_table(out)
    stands, reason = np.full(len(table), None, object), np.full(len(table), None, object)
    for finding in found:
        stands[finding.row], reason[finding.row] = table.rows.path[finding.others[0]], finding.reason
    for name, values in (("duplicate_of", stands), ("reason", reason)):
        columns = columns.drop_columns([name]) if name in columns.column_names else columns
        columns = columns.append_column(name, pa.array(values.tolist(), pa.string()))
    sink = pa.BufferOutputStream()
    pq.write_table(columns, sink)
    write_atomically(out, sink.getvalue().to_pybytes())
