"""``lookalike search``: what of a table of embeddings lies nearest to a picture or a sentence."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lookalike.core.devices import full_precision, isolated
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.progress import Progress, silent
from lookalike.curate.index import Index, index_of
from lookalike.curate.table import data_of, rows_of
from lookalike.curate.where import NUMBERS, TEXTS, selected
from lookalike.data.formats.files import printable
from lookalike.data.source import Data, Say, name_of
from lookalike.exchange.named import is_named
from lookalike.metrics.knn import largest, leading
from lookalike.models.encoder import Layer, embed
from lookalike.recipes.modality import crop_of, modality_of, query_view
from lookalike.train.embeddings import about_in, described, opened_table, origin_of, place_for, vectors_of
from lookalike.train.run import is_run
from lookalike.train.trained import Trained, load, unsaid
from lookalike.types import Embeddings, Origin

MANY = 1 << 20
"""Rows beyond which a table is searched by an index, unless told otherwise."""
_TOGETHER, _WORTH = 256, 4  # queries that are compared at a time, and how many pay for it
_BLOCK = 1 << 12  # rows that they are compared with at a time: 4 MB of products
_GROUP = 32  # products of which the largest is looked at first


class Hit(NamedTuple):
    """A row of the table."""

    cosine: float
    path: str
    split: str
    label: int  # -1 where there is none
    text: str | None = None  # what it says, where it is text


class _Searched(NamedTuple):
    """N rows: what is said of each, and their vectors, or the index that stands for them."""

    columns: pa.Table  # path, split, label and whatever else is not the embedding
    vectors: Tensor | Index
    layer: Layer
    origin: Origin | None

    @classmethod
    def of(cls, rows: Embeddings) -> _Searched:
        return cls(described(rows), torch.from_numpy(rows.vectors), rows.layer, rows.origin)

    @classmethod
    def read(cls, path: Path, index: bool | None, progress: Progress, say: Say) -> _Searched:
        """A file; ``index`` None is one for more rows than ``MANY``. Raises UserError."""
        with opened_table(path) as file:
            about = about_in(file)
            held = file.read([name for name in file.schema_arrow.names if name in (*TEXTS, *NUMBERS)])
            kinds = {name: pa.string() if name in TEXTS else pa.int64() for name in held.column_names}
            columns = pa.table({name: held[name].cast(kind) for name, kind in kinds.items()})
            columns.select(["path", "split", "label"])  # which any table has
            if index or (index is None and len(columns) > MANY):
                vectors: Tensor | Index = index_of(path, progress, say)
            else:
                vectors = torch.from_numpy(vectors_of(file, path))
        return cls(columns, vectors, about["layer"], about["origin"])

    def row(self, path: str) -> int | None:
        """The row of a path, None where there is none."""
        row = pc.index(self.columns["path"], pa.scalar(printable(path), pa.string())).as_py()
        return None if row < 0 else row

    def vector(self, row: int) -> Tensor:
        """(F,) of a row."""
        return self.vectors.row(row) if isinstance(self.vectors, Index) else self.vectors[row]

    def hit(self, cosine: float, row: int) -> Hit:
        """A row as it is told."""
        told = self.columns.slice(row, 1).to_pylist()[0]
        label = -1 if told["label"] is None else int(told["label"])
        return Hit(cosine, str(told["path"]), str(told["split"]), label, told.get("text"))


@isolated()
def search(
    table: str | Path,
    queries: Sequence[str],
    top: int = 10,
    run: str | Path | None = None,
    progress: Progress = silent,
    data: Data | None = None,
    model: str | None = None,
    download: bool = False,
    where: str | None = None,
    together: bool = False,
    minus: Sequence[str] = (),
    index: bool | None = None,
    say: Say = unsaid,
) -> list[list[Hit]]:
    """For each query the ``top`` nearest rows, nearest first; of equal ones the earlier leads.

    ``table`` is a parquet table that ``lookalike embed`` wrote, or a run, whose data is embedded once, or a public
    model, with ``data``. A query is a path of the table, which is not its own hit; else a picture file, a part of one
    (``FILE@x,y,w,h``), or a sentence for runs that know text, encoded by ``run``, by default the model that the table
    names. A model that did not make the table is refused. ``model`` and ``download`` are those of ``load``.

    ``where`` says which rows are looked at (``curate/where.py``). ``together`` makes one query of all, their mean; the
    mean of ``minus`` is taken from each query. ``index`` searches a table by an index (``curate/index.py``), which is
    made where there is none; None does so beyond ``MANY`` rows, and False compares every row. Raises UserError.
    """
    opening = partial(load, model=model, download=download, say=say)
    every = list(dict.fromkeys([*queries, *minus]))
    if is_run(table) or is_named(table) or model is not None:
        if run is not None and Path(run).resolve() != Path(table).resolve():
            raise UserError(f"{table} is a model, which embeds its data and queries itself: leave out --run {run}")
        trained, known = opening(table), data or data_of(table)
        searched, encoded = _in_model(trained, table, known, every, progress, say)
    else:
        searched = _Searched.read(Path(table), index, progress, say)
        encoded = _in_table(searched, table, every, run, opening)
    mask = None if where is None else torch.from_numpy(selected(searched.columns, where))
    own = {query: searched.row(query) for query in every}
    vectors = _vectors(searched, table, every, encoded, own)
    wanted = [list(queries)] if together else [[query] for query in queries]
    asked = torch.stack([_one(vectors, some, minus) for some in wanted])
    itself = [[row for query in (*some, *minus) if (row := own[query]) is not None] for some in wanted]
    return _hits(searched, asked, itself, top, mask)


def _vectors(
    searched: _Searched,
    table: str | Path,
    queries: Sequence[str],
    encoded: dict[str, Tensor],
    own: dict[str, int | None],
) -> dict[str, Tensor]:
    """The unit row of each query."""
    width = searched.vectors.width if isinstance(searched.vectors, Index) else searched.vectors.shape[1]
    vectors = dict(encoded)
    for query in queries:
        if query not in encoded:
            if (row := own[query]) is None:
                raise UserError(f"{query} cannot be read, so it is no query: see lookalike doctor", BAD_DATA)
            vectors[query] = searched.vector(row)
        elif len(encoded[query]) != width:
            reason = f"{query} has {len(encoded[query])} features and {table} {width}"
            raise UserError(f"{reason}: it is of another run")
    return vectors


def _one(vectors: dict[str, Tensor], plus: Sequence[str], minus: Sequence[str]) -> Tensor:
    """(F,) the mean of some, less that of others; a query alone is as it is."""
    if len(plus) == 1 and not minus:
        return vectors[plus[0]]
    mean = torch.stack([vectors[query] for query in plus]).mean(0)
    if minus:
        mean = mean - torch.stack([vectors[query] for query in minus]).mean(0)
    if float(mean.norm()) < 1e-6:
        raise UserError("nothing is left of the query when --minus is taken from it")
    return normalize(mean, dim=0)


def _in_model(
    trained: Trained, where: str | Path, data: Data | None, queries: Iterable[str], progress: Progress, say: Say
) -> tuple[_Searched, dict[str, Tensor]]:
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
    encoded = _encoded(trained, [query for query in queries if query not in known], layer, name_of(data))
    return _Searched.of(rows_of(trained, where, data, place, progress=progress, say=say)), encoded


def _in_table(
    searched: _Searched,
    table: str | Path,
    queries: Iterable[str],
    run: str | Path | None,
    opening: Callable[..., Trained],
) -> dict[str, Tensor]:
    """The queries that are no paths of a table, encoded by what made it; raises UserError."""
    new, origin = [query for query in queries if searched.row(query) is None], searched.origin
    if run is None and not new:
        return {}
    if run is None:
        run = _maker(origin, table, new[0])
        opening = partial(opening, model=(origin and origin.model) or None)
    trained = opening(run, precision="bf16" if origin and origin.precision == "bf16" else "fp32")
    if origin is None:
        older = "an older version wrote it, which does not say what made its rows"
        warnings.warn(f"{table}: {older}; hits mean something only if {run} is the model that did", stacklevel=1)
    elif not origin.compares_with(other := origin_of(trained)):
        raise UserError(
            f"{table} was made by {origin}, and this is {other}: their embeddings do not compare; name what "
            f"made it with --run, or make a new table: lookalike embed {run} DATA --out {table}"
        )
    return _encoded(trained, new, searched.layer, origin.data if origin else "")


def _maker(origin: Origin | None, table: str | Path, query: str) -> str:
    """The model that a table names, to encode ``query``; raises UserError where it is not there."""
    if origin is not None and (is_run(origin.run) or is_named(origin.run)):
        return origin.run
    gone = f" ({origin.run}, which is no longer there)" if origin and origin.run else ""
    raise UserError(f"{query} is no path of {table}: to encode it, name with --run what made the table{gone}")


def _encoded(trained: Trained, queries: Sequence[str], layer: Layer, data: str) -> dict[str, Tensor]:
    """The unit row of each query, a picture file, a part of one, or a sentence; raises UserError."""
    files = [_found(query, data) for query in queries]
    views = [query_view(trained.recipe, trained.tokenizer, file, layer) for file in files]
    return dict(zip(queries, embed(trained.encoder, views, layer)))


def _found(query: str, data: str) -> str:
    """A part of a picture that is called by its path in the data, by where that is; others as they are."""
    part = crop_of(query)
    if part is not None and not os.path.isfile(part.file) and os.path.isfile(os.path.join(data, part.file)):
        return os.path.join(data, query)
    return query


def _hits(
    searched: _Searched, queries: Tensor, own: Sequence[Sequence[int]], top: int, mask: Tensor | None
) -> list[list[Hit]]:
    """For each query (Q, F) its hits among the rows of the mask (N,); ``own`` are rows that are none."""
    if isinstance(searched.vectors, Index):
        nearest: Iterable[tuple[Tensor, Tensor]] = searched.vectors.nearest(queries, own, top, mask)
    else:
        nearest = exact(searched.vectors, queries, own, top, mask)
    return [[searched.hit(value, row) for value, row in zip(*map(Tensor.tolist, pair))] for pair in nearest]


def exact(
    vectors: Tensor, queries: Tensor, own: Sequence[Sequence[int]], top: int, mask: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each query (Q, F) the cosines and the rows of at most ``top`` vectors (N, F), by comparing with each."""
    hidden = torch.zeros(0, dtype=torch.bool) if mask is None else ~mask
    for start in range(0, len(queries), _TOGETHER):
        some, theirs = queries[start : start + _TOGETHER], own[start : start + _TOGETHER]
        if len(some) < _WORTH:
            yield from (_compared(vectors, query, itself, top, hidden) for query, itself in zip(some, theirs))
        else:
            yield from _in_blocks(vectors, some, theirs, top, hidden)


def _compared(vectors: Tensor, query: Tensor, itself: Sequence[int], top: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """One query with all rows. numpy reads them at two thirds of the time of torch."""
    cosines = torch.from_numpy(vectors.numpy() @ query.numpy())
    if len(hidden):
        cosines.masked_fill_(hidden, -torch.inf)
    cosines[list(itself)] = -torch.inf
    return _told(*(part[0] for part in leading(cosines[None], min(top, len(vectors)))))


@full_precision()
def _in_blocks(
    vectors: Tensor, queries: Tensor, own: Sequence[Sequence[int]], top: int, hidden: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Many queries with some rows at a time, whose products stay in the processor's cache.

    Once each query has ``top`` rows, the others must be as near as the last of them, which the largest of a group of
    products tells for all: few are looked at, and choosing takes a third of the time of the products.
    """
    best = _Nearest.none(len(queries), top)
    mine = [(number, row) for number, some in enumerate(own) for row in some]
    cosines = queries.new_empty(len(queries), min(_BLOCK, -(-len(vectors) // _GROUP) * _GROUP))
    for start in range(0, len(vectors), cosines.shape[1]):
        part = vectors[start : start + cosines.shape[1]]
        torch.mm(queries, part.T, out=cosines[:, : len(part)])
        cosines[:, len(part) :] = -torch.inf
        if len(hidden):
            cosines[:, : len(part)].masked_fill_(hidden[start : start + len(part)], -torch.inf)
        for number, row in mine:
            if start <= row < start + len(part):
                cosines[number, row - start] = -torch.inf
        best = best.with_block(cosines, start)
    return best.each()


class _Nearest(NamedTuple):
    """What may be among the ``top`` rows of each of Q queries: M rows in all."""

    top: int
    least: Tensor  # (Q,) the cosine from which a row counts
    queries: Tensor  # (M,) whose each is
    rows: Tensor
    values: Tensor

    @classmethod
    def none(cls, count: int, top: int) -> _Nearest:
        nothing = torch.empty(0, dtype=torch.long)
        return cls(top, torch.full((count,), -torch.inf), nothing, nothing, torch.empty(0))

    def with_block(self, cosines: Tensor, start: int) -> _Nearest:
        """With those of the rows from ``start`` on, whose ``cosines`` are (Q, B)."""
        first, groups = start == 0, cosines.shape[1] // _GROUP
        # Of equal rows the earlier leads, so those of later blocks must be nearer than the last.
        least = largest(cosines, min(self.top, cosines.shape[1]))[0].amin(1) if first else self.least
        highest = cosines.view(-1, _GROUP, groups).amax(1)  # a group is every column that is as many from the next
        query, group = (highest >= least[:, None] if first else highest > least[:, None]).nonzero().T[:, :, None]
        column = group + groups * torch.arange(_GROUP)
        value = cosines[query, column]
        counts = (value >= least[query] if first else value > least[query]) & (value > -torch.inf)
        more = self._replace(
            queries=torch.cat([self.queries, query.expand_as(column)[counts]]),
            rows=torch.cat([self.rows, column[counts] + start]),
            values=torch.cat([self.values, value[counts]]),
        )
        return more.chosen() if first or len(more.rows) > 2 * self.top * len(least) else more

    def chosen(self) -> _Nearest:
        """Without those that are not among the ``top`` of their query; of equal ones the earlier leads."""
        order = self.rows.argsort()
        order = order[self.values[order].argsort(descending=True, stable=True)]
        order = order[self.queries[order].argsort(stable=True)]
        counts = torch.bincount(self.queries, minlength=len(self.least))
        place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[self.queries[order]]
        kept = order[place < self.top]
        least = torch.full_like(self.least, -torch.inf)
        last = order[place == self.top - 1]
        least[self.queries[last]] = self.values[last]
        return _Nearest(self.top, least, self.queries[kept], self.rows[kept], self.values[kept])

    def each(self) -> list[tuple[Tensor, Tensor]]:
        """The cosines and the rows of each query, nearest first."""
        last = self.chosen()
        counts = torch.bincount(last.queries, minlength=len(last.least)).tolist()
        return list(zip(torch.split(last.values, counts), torch.split(last.rows, counts)))


def _told(values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Without those that are hidden."""
    count = int((values > -torch.inf).sum())
    return values[:count], rows[:count]
