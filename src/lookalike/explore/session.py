"""A table that is being explored: its map, its thumbnails, what is near what, and what was decided."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.core.devices import Precision, full_precision
from lookalike.core.errors import UserError
from lookalike.core.files import write_atomically
from lookalike.curate.table import Table
from lookalike.data.example import PictureSource
from lookalike.exchange.named import is_named
from lookalike.explore.atlas import Atlas, OneReader, digest, in_order
from lookalike.explore.decisions import Decision, Decisions, Verdict
from lookalike.explore.layout import FIRST, NAME, VERSION, Places, components, layout
from lookalike.explore.queues import Queues
from lookalike.metrics.knn import products
from lookalike.models.encoder import embed
from lookalike.recipes.modality import modality_of, query_view
from lookalike.train.embeddings import origin_of
from lookalike.train.run import is_run
from lookalike.train.trained import Trained, load
from lookalike.types import Embeddings

_MAPS = "map-*.npy"


class Map(NamedTuple):
    """Where the rows lie, and the order in which pages of thumbnails have them."""

    number: int  # each later one has another
    name: str
    places: Places  # (N, 2)
    order: npt.NDArray[np.int64]  # (N,) rows


class Hits(NamedTuple):
    """The nearest rows, nearest first, of equal ones the earlier, and the cosines (N,) of all."""

    rows: list[int]
    cosines: npt.NDArray[np.float32]


class Guess(NamedTuple):
    """Which of the named kinds each row is, ``kinds`` (N,), and how sure that is, ``scores`` (N,) from 0 to 1."""

    kinds: npt.NDArray[np.uint8]
    scores: npt.NDArray[np.float32]


class Session:
    """What the page shows of one table; safe to be asked by several threads."""

    def __init__(
        self,
        table: Table,
        decisions: Decisions,
        queues: Queues | None = None,
        folder: Path | None = None,
        model: str | None = None,
        download: bool = False,
    ) -> None:
        pictures = None if table.pictures is None else cast(PictureSource, OneReader(table.pictures))
        self.table = replace(table, pictures=pictures)
        self.decisions, self.queues = decisions, queues or Queues()
        self.folder, self.words, self.ended = folder, "", threading.Event()
        self._model, self._download = model, download
        self._trained, self._loading = table.trained, threading.Lock()
        self._known: dict[str, int] = {path: row for row, path in enumerate(table.rows.path)}
        self.map, self.atlas = self._first()
        self.live: dict[str, object] = {}

    # ---- the map ----

    def _first(self) -> tuple[Map, Atlas | None]:
        """The map of the last time, if the rows are the same; else principal components, until ``draw`` has ended."""
        kept = self._file()
        if kept is not None and kept.is_file():
            try:
                places = np.load(kept, allow_pickle=False)
                if places.shape == (len(self.table), 2) and places.dtype == np.float32 and np.isfinite(places).all():
                    return self._of(1, NAME, places)
            except (OSError, ValueError, EOFError):
                pass  # damaged: it is made anew
        axes = components(torch.from_numpy(self.table.rows.vectors))[:, :2]
        return Map(0, FIRST, axes.numpy(), np.arange(len(self.table))), None

    def _file(self) -> Path | None:
        """Where the map is kept: it is of these rows alone."""
        vectors = np.ascontiguousarray(self.table.rows.vectors)
        self._digest = digest(f"{VERSION} {vectors.shape}".encode(), vectors.data.cast("B"))
        return None if self.folder is None else self.folder / f"map-{self._digest}.npy"

    def _of(
        self, number: int, name: str, places: Places, order: npt.NDArray[np.int64] | None = None
    ) -> tuple[Map, Atlas | None]:
        order = in_order(places) if order is None else order
        if self.table.pictures is None:
            return Map(number, name, places, order), None
        origin, paths = self.table.rows.origin, "\0".join(self.table.rows.path).encode()
        pages = f"pages-{digest(order.tobytes(), paths, (origin.data_digest if origin else '').encode())}"
        return Map(number, name, places, order), Atlas(
            self.table.pictures, order, None if self.folder is None else self.folder / pages
        )

    def draw(self) -> None:
        """Make the map, if the last is not of these rows, and keep it; then look for what the queues hold."""
        if self.map.number == 0:
            places = layout(self.table.rows.vectors, progress=self._told)
            self.map, self.atlas = self._of(1, NAME, places)
            self._keep(places)
        self.words = ""
        self.queues.look(self.table, self.ended)

    def move(self, rows: Embeddings, places: Places) -> None:
        """The same pictures, embedded anew: the map moves, the pages of thumbnails stay."""
        self.table = replace(self.table, rows=rows)
        if self.map.number == 0:
            self.map, self.atlas = self._of(1, NAME, places)
        else:
            self.map = self.map._replace(number=self.map.number + 1, places=places)

    def _told(self, what: str, done: int, total: int) -> None:
        if self.ended.is_set():
            raise InterruptedError
        self.words = f"{what} {done:,}/{total:,}"

    def _keep(self, places: Places) -> None:
        """Beside the table, instead of older ones."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            older = [file for file in self.folder.glob(_MAPS) if file.name != f"map-{self._digest}.npy"]
            np.save(data := io.BytesIO(), places, allow_pickle=False)
            write_atomically(self.folder / f"map-{self._digest}.npy", data.getvalue())
            for file in older:
                file.unlink(missing_ok=True)
        except OSError:
            pass  # a cache that cannot be kept is none

    # ---- what is near ----

    def near(self, rows: Sequence[int], without: Sequence[int] = (), top: int = 60) -> Hits:
        """What lies nearest to the mean of some rows, less the mean of others; these are no hits of their own."""
        vectors = torch.from_numpy(self.table.rows.vectors)
        query = vectors[list(rows)].mean(0) - (vectors[list(without)].mean(0) if without else 0)
        return self._hits(
            query if len(rows) == 1 and not without else F.normalize(query, dim=0), [*rows, *without], top
        )

    def near_query(self, query: str | bytes, top: int = 60) -> Hits:
        """What lies nearest to a sentence, or to the bytes of a picture's file; raises UserError."""
        trained, layer = self.trained(), self.table.rows.layer
        if isinstance(query, str) and "picture" in modality_of(trained.recipe).inputs and layer != "head":
            raise UserError("sentences and pictures meet in the output of the head: lookalike embed --layer head")
        if isinstance(query, str) and trained.tokenizer is None:
            raise UserError(f"{trained.recipe.name} knows no sentences: drop a picture instead")
        with TemporaryDirectory(prefix="lookalike-") as folder:
            # A sentence is stripped later, and with a space before it is no path of a file that is here.
            name = f" {query}" if isinstance(query, str) else str(Path(folder) / "the dropped file")
            if isinstance(query, bytes):
                Path(name).write_bytes(query)
            with self._loading:
                (vector,) = embed(trained.encoder, [query_view(trained.recipe, trained.tokenizer, name, layer)], layer)
        return self._hits(vector, (), top)

    @full_precision()
    def _hits(self, query: Tensor, own: Sequence[int], top: int) -> Hits:
        vectors = torch.from_numpy(self.table.rows.vectors)
        if len(query) != vectors.shape[1]:
            raise UserError(
                f"the query has {len(query)} features and the table {vectors.shape[1]}: it is of another model"
            )
        (cosines,) = next(iter(products(query[None], vectors))).clone()
        ranked = cosines.clone()
        ranked[list(own)] = -torch.inf
        order = ranked.sort(descending=True, stable=True).indices[: max(0, min(top, len(ranked) - len(set(own))))]
        return Hits(order.tolist(), cosines.numpy())

    @full_precision()
    def guess(self, named: Mapping[str, Sequence[int]]) -> Guess:
        """The nearest class mean (prototypes, arXiv 1703.05175) of a few named rows; one name alone: its cosine."""
        vectors = torch.from_numpy(self.table.rows.vectors)
        means = torch.stack([F.normalize(vectors[list(rows)].mean(0), dim=0) for rows in named.values()])
        cosines = vectors @ means.T
        if len(named) == 1:
            return Guess(np.zeros(len(vectors), np.uint8), cosines[:, 0].clamp_min(0).numpy())
        sure, kinds = (cosines / 0.1).softmax(1).max(1)
        return Guess(kinds.numpy().astype(np.uint8), sure.numpy())

    def trained(self) -> Trained:
        """What made the rows, loaded when it is first asked for; raises UserError where that is not here."""
        with self._loading:
            if self._trained is None:
                self._trained = self._maker()
            return self._trained

    def _maker(self) -> Trained:
        origin = self.table.rows.origin
        if origin is None or not (is_run(origin.run) or is_named(origin.run)):
            where = f" ({origin.run}, which is no longer there)" if origin and origin.run else ""
            raise UserError(f"what made this table is not here{where}, so nothing new can be looked for")
        precision: Precision = "bf16" if origin.precision == "bf16" else "fp32"
        trained = load(
            origin.run, model=self._model or origin.model or None, download=self._download, precision=precision
        )
        if not origin.compares_with(other := origin_of(trained)):
            raise UserError(f"the table was made by {origin}, and this is {other}: their embeddings do not compare")
        return trained

    # ---- what is decided ----

    def decide(self, queue: str, row: int, verdict: Verdict, label: str | None) -> None:
        """On the disk when it returns."""
        self.decisions.add(Decision(self.table.rows.path[row], queue, verdict, label))

    def row(self, path: str) -> int | None:
        """Of the path, where this table has it."""
        return self._known.get(path)

    def decided(self) -> list[tuple[int, Decision]]:
        """What stands, of rows of this table."""
        return [(self._known[one.path], one) for one in self.decisions.standing() if one.path in self._known]


def subset(rows: Embeddings, chosen: Sequence[int]) -> Embeddings:
    """Some rows of a table, as a table."""
    at = np.asarray(chosen, np.int64)
    lists: dict[str, Any] = {
        name: [value[i] for i in chosen]
        for name in ("path", "split", "text", "sha256")
        if (value := getattr(rows, name))
    }
    lists |= {name: value[at] for name in ("label", "vectors", "size") if (value := getattr(rows, name)) is not None}
    return replace(rows, **lists)
