"""A table of embeddings made on the disk: a part at a time, beside the file, and goes on where it was killed."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lookalike.core import dist
from lookalike.core.devices import isolated
from lookalike.core.errors import BAD_DATA, IO, UserError
from lookalike.core.files import cannot_write, json_in, opened, publishing, write_atomically, write_json
from lookalike.core.lock import Lock
from lookalike.core.progress import Progress, counted, silent
from lookalike.data.decode import Unreadable, header
from lookalike.data.example import PictureSource, Source, remarks, unreadable
from lookalike.data.formats.places import Place
from lookalike.data.source import Data, Say, name_of
from lookalike.data.video.source import video_of
from lookalike.models.encoder import Layer, embedded, sound
from lookalike.recipes.modality import TEXT, Examples, modality_of
from lookalike.train.embeddings import (
    ROWS,
    VERSION,
    Writer,
    arrow,
    class_names,
    in_parquet,
    origin_of,
    place_for,
    sentences_of,
    sources_of,
)
from lookalike.train.previous import Previous
from lookalike.train.trained import CHUNK, Trained, load, refuse_other_ranks, unsaid
from lookalike.types import Embeddings, Origin

_THREADS = 8  # that read files which were read a moment ago
_ABOUT = b"lookalike.part"  # key of a part's metadata


class Files(NamedTuple):
    """What is known of the pictures of some rows."""

    size: npt.NDArray[np.int32]  # (R, 2) height and width, 0 where nobody knows
    sha256: list[str]  # "" where there is no file

    @classmethod
    def of(cls, source: PictureSource, rows: Sequence[int]) -> Files:
        """Each file is read once; several at a time where they lie one by one."""
        if source.starts is None:
            with ThreadPoolExecutor(_THREADS) as pool:
                every = list(pool.map(lambda row: _looked_at(source, row), rows))
        else:
            every = [_looked_at(source, row) for row in rows]
        sizes = np.array([size for size, _ in every], np.int32).reshape(-1, 2)
        return cls(sizes, [digest for _, digest in every])


def _looked_at(source: PictureSource, row: int) -> tuple[tuple[int, int], str]:
    """Height, width and sha256 of one."""
    size, digest = (0, 0), ""
    try:
        if source.read is None or video_of(path := source.paths[row]) != path:
            return source.size(row), digest
        data = source.read(row)
        digest = sha256(data).hexdigest()
        size = header(data)[1:3]
    except Unreadable:
        pass
    return size, digest


class _Part(NamedTuple):
    """Some rows of a split; ``old`` (R,) are their rows in the table that was there before, -1 of new ones."""

    number: int
    split: str
    rows: Tensor  # (R,)
    old: Tensor
    files: Files | None = None

    @property
    def new(self) -> Tensor:
        """The rows that are to be embedded."""
        return self.rows[self.old < 0]


class _Made(NamedTuple):
    """What one rank has made of a part: the new rows that could be read, their features, and why others could not."""

    part: _Part
    rows: Tensor
    features: Tensor
    bad: dict[str, str]


class Streamed(NamedTuple):
    """What became of the rows of a table."""

    rows: int
    width: int
    new: int
    kept: int
    dropped: int


@isolated()
def embed_to(
    model: Trained | str | Path,
    data: Data,
    path: Path,
    layer: Layer = "backbone",
    workers: int | None = None,
    progress: Progress = silent,
    place: Place[Source] | None = None,
    say: Say = unsaid,
    update: bool = False,
) -> Streamed:
    """The rows of ``embed_data`` as a table in parquet, never all of them in memory; killed, the same call goes on.

    Parts of ``ROWS`` rows lie in ``.NAME.parts`` until the table is published. ``update`` takes what the table that
    is there says of rows that have not changed, by their files' sha256 or their text, with columns that others have
    added. Of several ranks each embeds some parts, and the first one writes. Raises UserError.
    """
    trained = model if isinstance(model, Trained) else load(model)
    place = place or place_for(trained, data)
    sources = sources_of(place)
    for line in remarks(name_of(data), sources):
        say(line)
    refuse_other_ranks(trained, sources, layer, update)
    origin = origin_of(trained, name_of(data), place.rows(None).stamps().digest())
    previous = Previous.of(path, layer, origin) if update and path.exists() else None
    every = list(_parts(trained, sources, previous, progress))
    about: dict[str, Any] = {"version": VERSION, "rows": ROWS, "layer": layer, "origin": asdict(origin)}
    about |= {"splits": _sizes(every), "previous": previous.digest if previous else None}
    making = _Making(trained, sources, layer, workers, origin, previous)
    with _Store.of(path, about, say) as store:
        missing = [part for part in every if part.number not in store.done]
        for made in making.shared(missing, progress):
            store.write(made.part.number, making.table(made), {"bad": made.bad, "new": len(made.rows)})
        rows, width, new = dist.on_first_rank(lambda: store.publish(len(every), say))
    return Streamed(rows, width, new, rows - new, 0 if previous is None else len(previous) - (rows - new))


def _parts(
    trained: Trained, sources: Mapping[str, Source], previous: Previous | None, progress: Progress
) -> Iterator[_Part]:
    """All rows of all splits in turn, cut up; those of a previous table are found in it."""
    told = counted(progress, "comparing", sum(map(len, sources.values())))
    number = 0
    for split, source in sources.items():
        rows = Examples(trained.recipe, trained.loader(source, 0, 0)).evaluated()
        for some in torch.split(rows, ROWS) if len(rows) else ():
            files, old = None, torch.full((len(some),), -1)
            if previous is not None:
                files = _files(trained, source, some.tolist())
                paths = [source.paths[row] for row in some.tolist()]
                old = previous.places(split, paths, files and files.sha256, sentences_of(source, paths))
                told(len(some))
            yield _Part(number, split, some, old, files)
            number += 1


def _sizes(parts: Sequence[_Part]) -> dict[str, int]:
    """How many rows each split has."""
    sizes = Counter[str]()
    for part in parts:
        sizes[part.split] += len(part.rows)
    return dict(sizes)


def _files(trained: Trained, source: Source, rows: Sequence[int]) -> Files | None:
    """None of text, which is no picture."""
    if modality_of(trained.recipe).inputs == TEXT:
        return None
    return Files.of(cast(PictureSource, source), rows)


class _Making(NamedTuple):
    """How parts become tables."""

    trained: Trained
    sources: Mapping[str, Source]
    layer: Layer
    workers: int | None
    origin: Origin
    previous: Previous | None

    def shared(self, parts: Sequence[_Part], progress: Progress) -> Iterator[_Made]:
        """What all ranks make of the parts, on the first rank; a round is a part for each."""
        numbered = {part.number: part for part in parts}
        mine = parts[dist.rank() :: dist.world()]
        made = self._made(mine, counted(progress, "embedding", sum(len(part.new) for part in mine)))
        for _ in range(0, len(parts), dist.world()):
            yield from _at_first(next(made, None), numbered)

    def _made(self, parts: Sequence[_Part], told: Callable[[int], None]) -> Iterator[_Made]:
        for split, source in self.sources.items():
            some = [part for part in parts if part.split == split]
            few = self.workers is None and sum(len(part.new) for part in some) <= CHUNK
            loader = self.trained.loader(source, 0 if few else self.workers, 0)
            chunks = (chunk for part in some if len(part.new) for chunk in torch.split(part.new, CHUNK))
            features = embedded(self.trained.encoder, self.trained.views_of(loader, chunks), self.layer)
            for part in some:
                rows = _taken(features, len(part.new), told)
                bad = [row in loader.bad_rows for row in part.new.tolist()]
                good = ~torch.tensor(bad, dtype=torch.bool)
                reasons = {source.paths[row]: loader.bad_rows[row] for row in part.new[~good].tolist()}
                yield _Made(part, part.new[good], rows[good], reasons)

    def table(self, made: _Made) -> pa.Table:
        """The rows of a part in their order, as they stand in the file; on the first rank."""
        part, source = made.part, self.sources[made.part.split]
        old, fresh = part.old, torch.isin(part.rows, made.rows)
        kept = (old >= 0) | fresh
        rows, old = part.rows[kept], old[kept]
        paths = [source.paths[row] for row in rows.tolist()]
        files = part.files or _files(self.trained, source, rows.tolist())
        if part.files is not None and files is not None:
            files = Files(files.size[kept.numpy()], [one for one, good in zip(files.sha256, kept.tolist()) if good])
        before = None if self.previous is None else self.previous.rows(old)
        width = made.features.shape[1] if len(made.rows) or before is None else before.vectors.shape[1]
        vectors = np.empty((len(rows), width), np.float32)
        if len(made.rows):
            vectors[old.numpy() < 0] = made.features.numpy()
        if before is not None:
            vectors[old.numpy() >= 0] = before.vectors
        text = sentences_of(source, paths) if files is None else None
        about = (class_names(self.sources), text, self.layer, self.origin)
        more = (None, None) if files is None else files
        table = arrow(Embeddings(paths, [part.split] * len(paths), source.labels[rows].numpy(), vectors, *about, *more))
        for name, column in {} if before is None else before.others.items():
            table = table.append_column(name, column)
        return table


def _taken(features: Iterator[Tensor], count: int, told: Callable[[int], None]) -> Tensor:
    """The next so many rows, (count, F); raises UserError for numbers that are not finite."""
    parts, left = list[Tensor](), count
    while left:
        parts.append(next(features))
        left -= len(parts[-1])
        told(len(parts[-1]))
    return sound(torch.cat(parts).clone()) if parts else torch.empty(0, 0)


def _at_first(made: _Made | None, parts: Mapping[int, _Part]) -> Iterator[_Made]:
    """What each rank has made in this round, on the first rank."""
    if dist.world() == 1:
        if made is not None:
            yield made
        return
    numbers = [dist.agree(-1 if made is None else made.part.number, sender) for sender in range(dist.world())]
    bad = [dist.agree({} if made is None else made.bad, sender) for sender in range(dist.world())]
    counts = [dist.agree(0 if made is None else len(made.rows), sender) for sender in range(dist.world())]
    widths = [dist.agree(0 if made is None else made.features.shape[1], sender) for sender in range(dist.world())]
    features = torch.empty(0, 0) if made is None else made.features
    if not len(features):
        features = torch.empty(0, max(widths))  # the first rank's tells what the others send
    rows = dist.to_first(torch.empty(0, dtype=torch.int64) if made is None else made.rows)
    features = dist.to_first(features)
    if dist.first():
        for number, reasons, some, vectors in zip(
            numbers, bad, torch.split(rows, counts), torch.split(features, counts)
        ):
            if number >= 0:
                yield _Made(parts[number], some, vectors, reasons)


# ---- on the disk ----


class _Store(NamedTuple):
    """Parts that are done, in a folder beside the table; of several ranks the first one's."""

    path: Path
    folder: Path
    about: dict[str, Any]
    done: list[int]

    @classmethod
    @contextmanager
    def of(cls, path: Path, about: dict[str, Any], say: Say) -> Iterator[_Store]:
        """The folder, locked; what it holds of another model or of other data is thrown away."""
        store, lock = cls(path, path.with_name(f".{path.name}.parts"), about, []), list[Lock]()

        def begin() -> list[int]:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock.append(Lock(store.folder))
                return store._begun(say)
            except OSError as error:
                raise UserError(f"{cannot_write(path, error)}", IO) from None

        try:
            yield store._replace(done=dist.on_first_rank(begin))
        finally:
            if lock and not any(store.folder.glob("*.parquet")):
                shutil.rmtree(store.folder, ignore_errors=True)
            for one in lock:
                one.release()

    def _begun(self, say: Say) -> list[int]:
        """The numbers of the parts that are there."""
        told, done = self.folder / "about.json", sorted(self.folder.glob("*.parquet"))
        try:
            same = json_in(told.read_bytes()) == json_in(json.dumps(self.about))
        except (OSError, ValueError):
            same = False
        if not same:
            if done:
                say(f"{self.folder} holds parts of another model, of other data or of other settings: thrown away")
            for left in done:
                left.unlink()
            write_json(told, self.about)
            return []
        if done:
            say(f"goes on after {len(done):,} parts of {ROWS:,} rows that are done")
        return [int(part.stem) for part in done]

    def write(self, number: int, table: pa.Table, about: Mapping[str, Any]) -> None:
        """Publish a part."""
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), _ABOUT: json.dumps(about)})
        try:
            write_atomically(self.folder / f"{number:08}.parquet", in_parquet(table))
        except OSError as error:
            raise UserError(f"{cannot_write(self.path, error)}; the same command goes on", IO) from None

    def publish(self, count: int, say: Say) -> tuple[int, int, int]:
        """All parts as one table, and nothing else left: its rows, their width, and how many are new."""
        bad, new, rows, width, writer = dict[str, str](), 0, 0, 0, None
        try:
            with publishing(self.path) as file:
                for table in map(self._read, range(count)):
                    metadata = dict(table.schema.metadata)
                    about = json_in(metadata.pop(_ABOUT))
                    bad, new = bad | about["bad"], new + about["new"]
                    if len(table):
                        table = table.replace_schema_metadata(metadata)
                        writer = writer or Writer(file, table.schema)
                        writer.write(table)
                        rows, width = rows + len(table), table.schema.field("embedding").type.list_size
                if writer is None:
                    raise UserError(unreadable(bad, "so there is nothing to embed"), BAD_DATA)
                writer.close()
        except OSError as error:
            raise UserError(f"{cannot_write(self.path, error)}; the same command goes on", IO) from None
        shutil.rmtree(self.folder)
        if bad:
            say(unreadable(bad, "lookalike doctor on the data lists all of them"))
        return rows, width, new

    def _read(self, number: int) -> pa.Table:
        part = self.folder / f"{number:08}.parquet"
        try:
            with opened(part) as file:
                return pq.read_table(file, page_checksum_verification=True, partitioning=None)
        except (OSError, pa.ArrowException):
            part.unlink(missing_ok=True)
            raise UserError(f"{part} was damaged, and is gone now: the same command makes it again", IO) from None
