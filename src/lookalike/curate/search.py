"""``lookalike search``: what of a table of embeddings lies nearest to a picture or a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.core.devices import moved, uploaded
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.isolation import isolated
from lookalike.core.progress import Progress, silent
from lookalike.data.image.decode import Unreadable, decode
from lookalike.data.text.source import find_text
from lookalike.data.text.tokenizer import Reader
from lookalike.metrics.knn import products
from lookalike.models.features import Layer, embed
from lookalike.pretext.captions import Captions
from lookalike.pretext.text import SameSentence, plain
from lookalike.pretext.video import TwoClips
from lookalike.train.run import Run
from lookalike.train.trained import Trained, embed_data, load, read_embeddings
from lookalike.types import Canvases, Embeddings


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
        layer: Layer = "head" if isinstance(trained.recipe.pretext, Captions) else "backbone"
        table = _own(trained, Path(where), layer, progress)
    else:
        table, layer = read_embeddings(Path(where))
    rows = {path: row for row, path in enumerate(table.path)}
    new = [query for query in queries if query not in rows]
    if new and trained is None:
        if run is None:
            raise UserError(
                f"{new[0]} is no path of {where}: name the run that made it with --run, to encode the query"
            )
        trained = load(run)
    vectors = torch.from_numpy(table.vectors)
    encoded = dict(zip(new, encode(trained, new, layer))) if trained is not None and new else {}
    for query, vector in encoded.items():
        if len(vector) != vectors.shape[1]:
            raise UserError(f"{query} has {len(vector)} features and {where} {vectors.shape[1]}: it is of another run")
    asked = torch.stack([encoded[query] if query in encoded else vectors[rows[query]] for query in queries])
    return _hits(table, vectors, asked, [rows.get(query) for query in queries], top)


def learned_from(*runs: str | Path | None) -> str | None:
    """The data of the first of them that is a run; None where none is."""
    there = (run for run in runs if run is not None and (Path(run) / "recipe.json").is_file())
    return next((str(Run(Path(run)).data().get("data")) for run in there), None)


def _own(trained: Trained, run: Path, layer: Layer, progress: Progress) -> Embeddings:
    """The data that a run was trained on, embedded; raises UserError."""
    data = learned_from(run)
    assert data is not None
    try:
        return embed_data(trained, data, layer, progress=progress)
    except UserError as error:
        raise UserError(
            f"{run} was trained on {data}: {error}; or search a table of lookalike embed", BAD_DATA
        ) from None


def _hits(table: Embeddings, vectors: Tensor, asked: Tensor, own: Sequence[int | None], top: int) -> list[list[Hit]]:
    found: list[list[Hit]] = []
    for cosines in products(asked, vectors):
        for row in cosines:
            if (itself := own[len(found)]) is not None:
                row[itself] = -torch.inf
            count = min(top, len(table) - (itself is not None))
            values, places = row.sort(descending=True, stable=True)
            found.append(
                [
                    Hit(value, table.path[place], table.split[place], int(table.label[place]))
                    for value, place in zip(values[:count].tolist(), places[:count].tolist())
                ]
            )
    return found


def encode(trained: Trained, queries: Sequence[str], layer: Layer) -> list[Tensor]:
    """A unit row (F,) of each picture file, or sentence; raises UserError."""
    pretext = trained.recipe.pretext
    if isinstance(pretext, SameSentence):
        return list(_of_texts(trained, queries, layer))
    if isinstance(pretext, TwoClips):
        raise UserError(f"{trained.recipe.name} encodes clips: a query must be a path of the table")
    said = [query for query in queries if isinstance(pretext, Captions) and not Path(query).is_file()]
    if said and layer != "head":
        raise UserError("sentences and pictures meet in the output of the head: lookalike embed --layer head")
    seen = [query for query in queries if query not in said]
    found = dict(zip(said, _of_texts(trained, said, layer))) if said else {}
    found |= dict(zip(seen, _of_pictures(trained, seen, layer))) if seen else {}
    return [found[query] for query in queries]


def _of_texts(trained: Trained, queries: Sequence[str], layer: Layer) -> Tensor:
    assert trained.tokenizer is not None
    assert isinstance(trained.recipe.pretext, SameSentence | Captions)
    if not all(query.strip() for query in queries):
        raise UserError("an empty query: give a sentence")
    reader = Reader(find_text(list(queries)).rows(None), trained.tokenizer, trained.recipe.pretext.length)
    loaded = reader.batches([torch.arange(len(queries))])
    return embed(trained.encoder, (uploaded(plain(found.material, 0)) for found in loaded), layer)


def _of_pictures(trained: Trained, queries: Sequence[str], layer: Layer) -> Tensor:
    canvases = []
    for query in queries:
        try:
            canvases.append(decode(Path(query).read_bytes(), trained.recipe.canvas))
        except (OSError, ValueError, Unreadable) as error:
            reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or type(error).__name__
            raise UserError(f"{query}: neither a path of the table nor a picture ({reason})", BAD_DATA) from None
    pixels = torch.stack([canvas.pixels for canvas in canvases])
    sizes = torch.tensor([[canvas.height, canvas.width] for canvas in canvases])
    view = trained.recipe.pretext.evaluation(moved(Canvases(pixels, sizes)))  # type: ignore[arg-type]
    return embed(trained.encoder, [view], layer)
