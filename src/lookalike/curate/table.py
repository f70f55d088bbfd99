"""A table of embeddings beside the pictures that it was made of: what is searched, cleaned and shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from lookalike.core.devices import isolated
from lookalike.core.errors import BAD_DATA, IO, LOCKED, UserError
from lookalike.core.progress import Progress, silent
from lookalike.data.example import PictureSource, Rows, Source, as_pictures
from lookalike.data.fingerprint import from_table
from lookalike.data.formats.places import Place
from lookalike.data.source import Data, Finder, Say, name_of, place_of
from lookalike.exchange.named import is_named
from lookalike.models.encoder import Layer
from lookalike.recipes.modality import TEXT, modality_of
from lookalike.train.embeddings import about_in, embed_data, made_by, opened_table, origin_of, read_embeddings
from lookalike.train.run import Run, is_run
from lookalike.train.streamed import embed_to
from lookalike.train.trained import Trained, load, unsaid
from lookalike.types import Embeddings, Origin

KEPT = "embeddings.parquet"
"""The table of a run's own data in its folder."""


class Finding(NamedTuple):
    """What a look at data finds: a row that a person should see, why, and beside which rows."""

    row: int
    score: float  # 0 to 1: how sure the finding is, or how odd the row; comparable within one list
    reason: str  # in words, such as "equal bytes" or "its neighbours are dresses"
    others: tuple[int, ...] = ()  # the row that is kept in its place, or its nearest


@dataclass(frozen=True, eq=False)
class Table:
    """N rows; ``pictures`` has the picture of row i as its row i, and is None of text, or where nobody opened them."""

    name: str
    rows: Embeddings
    pictures: PictureSource | None = None
    trained: Trained | None = None  # what made the rows, where it is loaded

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def vectors(self) -> Tensor:
        """(N, F) the rows as a tensor, copied only where they may not be written to, as those of a mapped file."""
        rows = self.rows.vectors
        return torch.from_numpy(rows if rows.flags.writeable else rows.copy())


@isolated()
def open_table(
    where: str | Path,
    data: Data | None = None,
    model: str | None = None,
    download: bool = False,
    workers: int | None = None,
    progress: Progress = silent,
    say: Say = unsaid,
) -> Table:
    """A table that ``lookalike embed`` wrote, with the pictures that it names; or a model's rows of ``data``.

    ``data`` says where the pictures are, if no longer where the table says; a run embeds by default what it learned
    from, once (``rows_of``). ``model`` and ``download`` are those of ``load``. Raises UserError.
    """
    if is_run(where) or is_named(where) or model is not None:
        return _made(load(where, model=model, download=download, say=say), where, data, workers, progress, say)
    rows = read_embeddings(Path(where))
    if rows.text is not None:
        return Table(str(where), rows)
    data = data or (rows.origin and rows.origin.data) or None
    if data is None:
        raise UserError(f"{where} does not say where its pictures are: name them as DATA")
    return Table(str(where), rows, pictures_of(rows, data))


def _made(
    trained: Trained, where: str | Path, data: Data | None, workers: int | None, progress: Progress, say: Say
) -> Table:
    data = data or data_of(where)
    if data is None:
        raise UserError(f"{where} is a model: name the pictures that it is to look at as DATA")
    modality = modality_of(trained.recipe)
    place = modality.find(data)
    rows = rows_of(trained, where, data, place, workers, progress, say)
    pictures = None if modality.inputs == TEXT else pictures_of(rows, data, lambda _: place)
    return Table(name_of(data), rows, pictures, trained)


def rows_of(
    trained: Trained,
    where: str | Path,
    data: Data,
    place: Place[Source],
    workers: int | None = None,
    progress: Progress = silent,
    say: Say = unsaid,
) -> Embeddings:
    """What a model makes of data; a run keeps that of its own data, and embeds again only where either has changed.

    A run that cannot be written to embeds into memory. Raises UserError.
    """
    layer = modality_of(trained.recipe).layer
    if is_run(where):
        kept = Path(where) / KEPT
        origin = origin_of(trained, name_of(data), place.rows(None).stamps().digest())
        if (rows := _kept(kept, layer, origin, say)) is not None:
            return rows
        if name_of(data) == data_of(where) or origin.data_digest == _digest_of(Path(where)):
            try:
                say(f"embedding {name_of(data)} once, into {kept}")
                embed_to(trained, data, kept, layer, workers, progress, place, say)
                return read_embeddings(kept)
            except UserError as error:
                if error.code not in (IO, LOCKED):
                    raise
                say(f"embedding into memory, as at each call until then: {error}")
    return embed_data(trained, data, layer, workers, progress, place=place, say=say)


def _kept(path: Path, layer: Layer, origin: Origin, say: Say) -> Embeddings | None:
    """The table that a run has kept, if it is what the run would make now."""
    if not path.exists():
        return None
    try:
        with opened_table(path) as file:
            about = about_in(file)
        if not made_by(about, layer, origin):
            say(f"{path} is of other weights: made anew")
        elif about["origin"].data_digest != origin.data_digest:
            say(f"{path} is of other data, or of this before it changed: made anew")
        else:
            return read_embeddings(path)
    except UserError as error:
        say(f"{error}: made anew")
    return None


def _digest_of(run: Path) -> str | None:
    """That of what a run learned from; None where it no longer says so."""
    try:
        return from_table(Run(run).data_table).digest()
    except UserError:
        return None


def data_of(where: str | Path) -> str | None:
    """The data that a table was made of, or that a run learned from; None where nobody knows."""
    if is_run(where):
        return str(Run(Path(where)).data().get("data"))
    if is_named(where):
        return None
    with opened_table(Path(where)) as file:
        origin: Origin | None = about_in(file)["origin"]
    return origin.data if origin else None


def pictures_of(rows: Embeddings, data: Data, find: Finder = place_of) -> PictureSource:
    """The pictures of ``data`` in the order of the rows; raises UserError where some are not there."""
    every = as_pictures(find(data).rows(None))
    numbers = {path: row for row, path in enumerate(every.paths)}
    if gone := [path for path in rows.path if path not in numbers]:
        raise UserError(
            f"{len(gone):,} of {len(rows):,} rows are not in {name_of(data)}, first {gone[0]}: "
            "name where the pictures are as DATA, or make the table anew with lookalike embed",
            BAD_DATA,
        )
    return cast(PictureSource, Rows(every, [numbers[path] for path in rows.path]))
