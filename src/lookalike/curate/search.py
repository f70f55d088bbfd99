"""``lookalike search``: what of a table of embeddings lies nearest to a picture or a sentence."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.core.devices import isolated
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.progress import Progress, silent
from lookalike.curate.table import data_of
from lookalike.data.source import Data, name_of
from lookalike.exchange.named import is_named
from lookalike.metrics.knn import products
from lookalike.models.encoder import Layer, embed
from lookalike.recipes.modality import modality_of, query_view
from lookalike.train.embeddings import embed_data, origin_of, place_for, read_embeddings
from lookalike.train.run import is_run
from lookalike.train.trained import Trained, load
from lookalike.types import Embeddings


class Hit(NamedTuple):
    """A row of the table."""

    cosine: float
    path: str
    split: str
    label: int  # -1 where there is none
    text: str | None = None  # what it says, where it is text


@isolated()
def search(
    where: str | Path,
    queries: Sequence[str],
    top: int = 10,
    run: str | Path | None = None,
    progress: Progress = silent,
    data: Data | None = None,
    model: str | None = None,
    download: bool = False,
) -> list[list[Hit]]:
    """For each query the ``top`` nearest rows, nearest first, compared with every row; of equal ones the earlier leads.

    ``where`` is a parquet table that ``lookalike embed`` wrote, or a run, whose data is embedded then, or a public
    model, with ``data``. A query is a path of the table, which is not its own hit; else a picture file, or a sentence
    for runs that know text, encoded by ``run``, by default the model that the table names. A model that did not make
    the table is refused. ``model`` and ``download`` are those of ``load``. Raises UserError.
    """
    opening = partial(load, model=model, download=download)
    if is_run(where) or is_named(where) or model is not None:
        if run is not None and Path(run).resolve() != Path(where).resolve():
            raise UserError(f"{where} is a model, which embeds its data and queries itself: leave out --run {run}")
        table, encoded = _in_model(opening(where), data or data_of(where), queries, progress)
    else:
        table, encoded = _in_table(where, queries, run, opening)
    rows = {path: row for row, path in enumerate(table.path)}
    vectors = torch.from_numpy(table.vectors)
    for query in queries:
        if query not in encoded and query not in rows:
            raise UserError(f"{query} cannot be read, so it is no query: see lookalike doctor", BAD_DATA)
    for query, vector in encoded.items():
        if len(vector) != vectors.shape[1]:
            raise UserError(f"{query} has {len(vector)} features and {where} {vectors.shape[1]}: it is of another run")
    vector_of = torch.stack([encoded[query] if query in encoded else vectors[rows[query]] for query in queries])
    return _hits(table, vectors, vector_of, [rows.get(query) for query in queries], top)


def _in_model(
    trained: Trained, data: Data | None, queries: Iterable[str], progress: Progress
) -> tuple[Embeddings, dict[str, Tensor]]:
    """The data, by default of a run, embedded, after the queries that are none of its paths; raises UserError."""
    if data is None:
        raise UserError(f"{trained.run} has no data of its own: say with --data where to search")
    layer = modality_of(trained.recipe).layer
    try:
        place = place_for(trained, data)
    except UserError as error:
        why = "is to search" if trained.named else "was trained on"
        reason = f"{trained.run} {why} {name_of(data)}: {error}; or search a table of lookalike embed"
        raise UserError(reason, BAD_DATA) from None
    known = set(place.rows(None).paths)
    encoded = _encoded(trained, [query for query in queries if query not in known], layer)
    return embed_data(trained, data, layer, progress=progress, place=place), encoded


def _in_table(
    where: str | Path, queries: Iterable[str], run: str | Path | None, opening: Callable[..., Trained]
) -> tuple[Embeddings, dict[str, Tensor]]:
    """A table, and the queries that are none of its paths, encoded by what made it; raises UserError."""
    table = read_embeddings(Path(where))
    known = set(table.path)
    new = [query for query in queries if query not in known]
    if run is None and not new:
        return table, {}
    if run is None:
        run = _maker(table, where, new[0])
        opening = partial(opening, model=(table.origin and table.origin.model) or None)
    trained = opening(run, precision="bf16" if table.origin and table.origin.precision == "bf16" else "fp32")
    if table.origin is None:
        older = "an older version wrote it, which does not say what made its rows"
        warnings.warn(f"{where}: {older}; hits mean something only if {run} is the model that did", stacklevel=1)
    elif not table.origin.compares_with(other := origin_of(trained)):
        raise UserError(
            f"{where} was made by {table.origin}, and this is {other}: their embeddings do not compare; name what "
            f"made it with --run, or make a new table: lookalike embed {run} DATA --out {where}"
        )
    return table, _encoded(trained, new, table.layer)


def _maker(table: Embeddings, where: str | Path, query: str) -> str:
    """The model that a table names, to encode ``query``; raises UserError where it is not there."""
    if table.origin is not None and (is_run(table.origin.run) or is_named(table.origin.run)):
        return table.origin.run
    gone = f" ({table.origin.run}, which is no longer there)" if table.origin and table.origin.run else ""
    raise UserError(f"{query} is no path of {where}: to encode it, name with --run what made the table{gone}")


def _encoded(trained: Trained, queries: Sequence[str], layer: Layer) -> dict[str, Tensor]:
    """The unit row of each query, a picture file or a sentence; raises UserError."""
    views = [query_view(trained.recipe, trained.tokenizer, query, layer) for query in queries]
    return dict(zip(queries, embed(trained.encoder, views, layer)))


def _hits(table: Embeddings, vectors: Tensor, queries: Tensor, own: Sequence[int | None], top: int) -> list[list[Hit]]:
    """For each query (Q, F) its hits; ``own`` are the rows that are the queries themselves."""
    hits: list[list[Hit]] = []
    for cosines in products(queries, vectors):
        for row in cosines:
            if (itself := own[len(hits)]) is not None:
                row[itself] = -torch.inf
            count = min(top, len(table) - (itself is not None))
            values, places = (part[:count].tolist() for part in row.sort(descending=True, stable=True))
            hits.append([_hit(table, value, place) for value, place in zip(values, places)])
    return hits


def _hit(table: Embeddings, cosine: float, row: int) -> Hit:
    text = None if table.text is None else table.text[row]
    return Hit(cosine, table.path[row], table.split[row], int(table.label[row]), text)
