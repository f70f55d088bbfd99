"""``lookalike search``: what of a table of embeddings lies nearest to a picture or a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.core.devices import isolated
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.progress import Progress, silent
from lookalike.metrics.knn import products
from lookalike.models.encoder import Layer, embed
from lookalike.recipes.modality import modality_of, query_view
from lookalike.train.run import Run
from lookalike.train.trained import Trained, embed_data, load, read_embeddings
from lookalike.types import Embeddings


class Hit(NamedTuple):
    """A row of the table."""

    cosine: float
    path: str
    split: str
    label: int  # -1 where there is none


@isolated()
def search(
    where: str | Path, queries: Sequence[str], top: int = 10, run: str | Path | None = None, progress: Progress = silent
) -> list[list[Hit]]:
    """For each query the ``top`` nearest rows, nearest first, compared with every row; of equal ones the earlier leads.

    ``where`` is a table that ``lookalike embed`` wrote, or a run, whose data is embedded then. A query is a path of the
    table, which is not its own hit; else a picture file, or a sentence for runs that know text, encoded by ``run``.
    Raises UserError.
    """
    trained = None
    if (Path(where) / "recipe.json").is_file():
        trained = load(where)
        layer = modality_of(trained.recipe).layer
        table = _embedded_data(trained, Path(where), layer, progress)
    else:
        table, layer = read_embeddings(Path(where))
    rows = {path: row for row, path in enumerate(table.path)}
    new = [query for query in queries if query not in rows]
    if new and trained is None:
        if run is None:
            raise UserError(
                f"{new[0]} is no path of {where}: name with --run the run that embedded it, to encode the query"
            )
        trained = load(run)
    vectors = torch.from_numpy(table.vectors)
    encoded: dict[str, Tensor] = {}
    if trained is not None and new:
        views = [query_view(trained.recipe, trained.tokenizer, query, layer) for query in new]
        encoded = dict(zip(new, embed(trained.encoder, views, layer)))
    for query, vector in encoded.items():
        if len(vector) != vectors.shape[1]:
            raise UserError(f"{query} has {len(vector)} features and {where} {vectors.shape[1]}: it is of another run")
    vector_of = [encoded[query] if query in encoded else vectors[rows[query]] for query in queries]
    return _hits(table, vectors, torch.stack(vector_of), [rows.get(query) for query in queries], top)


def learned_from(*runs: str | Path | None) -> str | None:
    """The data of the first of them that is a run; None where none is."""
    folders = (Path(run) for run in runs if run is not None and (Path(run) / "recipe.json").is_file())
    return next((str(Run(folder).data().get("data")) for folder in folders), None)


def _embedded_data(trained: Trained, run: Path, layer: Layer, progress: Progress) -> Embeddings:
    """The data that a run was trained on, embedded; raises UserError."""
    data = str(Run(run).data().get("data"))
    try:
        return embed_data(trained, data, layer, progress=progress)
    except UserError as error:
        raise UserError(
            f"{run} was trained on {data}: {error}; or search a table of lookalike embed", BAD_DATA
        ) from None


def _hits(table: Embeddings, vectors: Tensor, queries: Tensor, own: Sequence[int | None], top: int) -> list[list[Hit]]:
    """For each query (Q, F) its hits; ``own`` are the rows that are the queries themselves."""
    hits: list[list[Hit]] = []
    for cosines in products(queries, vectors):
        for row in cosines:
            if (itself := own[len(hits)]) is not None:
                row[itself] = -torch.inf
            count = min(top, len(table) - (itself is not None))
            values, places = (part[:count].tolist() for part in row.sort(descending=True, stable=True))
            nearest = zip(values, places)
            hits.append([Hit(v, table.path[i], table.split[i], int(table.label[i])) for v, i in nearest])
    return hits
