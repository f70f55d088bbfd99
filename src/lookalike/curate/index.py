"""An index of a table of millions of rows: lists of like rows in few bits, of which a search looks into the nearest.

The rows of a table are divided among lists by their nearest centre (an inverted file: Jégou et al. 2011, PAMI 33(1)).
A query is compared with the centres, then with the rows of the nearest lists, which are kept as int8, then exactly
with the best of those, out of the table. This is built several times as fast as a graph of neighbours
(docs/scale.md), and needs no more than numpy and torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike.core.devices import full_precision
from lookalike.core.errors import BAD_DATA, IO, UserError
from lookalike.core.files import cannot_write, json_in, publishing, whole, write_json
from lookalike.core.lock import Lock
from lookalike.core.progress import Progress, counted
from lookalike.curate.on_disk import OnDisk
from lookalike.data.source import Say
from lookalike.metrics.knn import leading
from lookalike.train.embeddings import identity_of

VERSION = 1
QUERIES, TOP = 200, 10  # of which the recall is measured that is said
GOAL = 0.95  # of that recall: so many lists are looked into
_LEARNED, _ROUNDS = 40, 8  # rows a list that the centres are fitted to, and how often
_BLOCK = 1 << 16  # rows that are compared with all centres at a time
_SURE = 20  # candidates a hit that are compared exactly
_FEWEST = 200
_FEW = 50_000  # rows of a condition that are compared one by one


class Index:
    """Opened, its parts mapped into memory; bound to the table by what identifies it."""

    def __init__(self, folder: Path, vectors: OnDisk, probes: int, recall: float) -> None:
        self._vectors, self.probes, self.recall = vectors, probes, recall
        self._centres = torch.from_numpy(np.load(folder / "centres.npy"))
        self._starts: list[int] = np.load(folder / "starts.npy").tolist()
        self._rows = np.load(folder / "rows.npy", mmap_mode="r")
        self._codes = np.load(folder / "codes.npy", mmap_mode="r")
        self._scales = np.load(folder / "scales.npy", mmap_mode="r")

    @property
    def width(self) -> int:
        """Features of a row."""
        return self._vectors.width

    def row(self, number: int) -> Tensor:
        """(F,) of a row of the table."""
        return torch.from_numpy(self._vectors.rows(np.array([number]))[0])

    def nearest(
        self, queries: Tensor, own: Sequence[Sequence[int]], top: int, mask: Tensor | None = None, probes: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each query (Q, F) the exact cosines and the rows of ``top`` at most, but for ``own`` and the masked."""
        chosen = None if mask is None else mask.numpy()
        few = None if chosen is None or chosen.sum() > _FEW else np.flatnonzero(chosen)
        for query, some in zip(queries, own):
            candidates = self._candidates(query, top + len(some), chosen, probes) if few is None else few
            candidates = candidates[~np.isin(candidates, list(some))].astype(np.int64)
            candidates.sort()  # of equal ones the earlier leads; and a disk is read forward
            with full_precision():
                cosines = torch.from_numpy(self._vectors.rows(candidates)) @ query
            values, places = leading(cosines[None], min(top, len(candidates)))
            yield values[0], torch.from_numpy(candidates)[places[0]]

    def _candidates(
        self, query: Tensor, top: int, chosen: npt.NDArray[np.bool_] | None, probes: int
    ) -> npt.NDArray[np.int32]:
        """Rows that may be among the nearest: the best by their codes of the lists whose centres are nearest."""
        with full_precision():
            near = (self._centres @ query).topk(min(probes or self.probes, len(self._centres))).indices.tolist()
            spans = [slice(*self._starts[number : number + 2]) for number in near]
            parts = [torch.from_numpy(np.array(self._codes[span])).float() @ query for span in spans]
        scores = torch.cat(parts).numpy() * np.concatenate([self._scales[span] for span in spans])
        rows = np.concatenate([self._rows[span] for span in spans])
        if chosen is not None:
            kept = chosen[rows]
            rows, scores = rows[kept], scores[kept]
        count = max(_FEWEST, _SURE * top)
        return rows if len(rows) <= count else rows[np.argpartition(-scores, count)[:count]]


def index_of(path: Path, progress: Progress, say: Say) -> Index:
    """The index beside a table, which is built where there is none of this very table. Raises UserError."""
    folder, identity = path.with_name(f"{path.name}.index"), identity_of(path)
    about = _about(folder)
    if about is None or about.get("table") != identity or about.get("version") != VERSION:
        if about is not None:
            say(f"{folder} is of another table: built anew")
        about = _built(path, folder, identity, progress, say)
    vectors = OnDisk(path)
    try:
        return Index(folder, vectors if about["plain"] else vectors.decoded(), int(about["probes"]), about["recall"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} cannot be read ({error}): remove it, and it is built again", BAD_DATA) from None


def _about(folder: Path) -> dict[str, Any] | None:
    """What a finished index says of itself; None where there is none, or a damaged one."""
    try:
        about = json_in(whole(folder / "index.json"))
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) else None


class _Work(NamedTuple):
    """What is there of an index that is being built, in the order of its building: each file is whole or not there."""

    folder: Path
    vectors: OnDisk
    progress: Progress

    def saved(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with publishing(self.folder / f"{name}.npy") as file:
            np.save(file, values, allow_pickle=False)
        return values

    def kept(self, name: str) -> npt.NDArray[Any] | None:
        try:
            found: npt.NDArray[Any] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
            return found
        except (OSError, ValueError):
            return None

    def centres(self) -> Tensor:
        """(C, F) unit rows: spherical k-means of a draw of the rows, a group of the table at a time."""
        if (kept := self.kept("centres")) is not None:
            return torch.from_numpy(np.array(kept))
        count, size = round(2 * len(self.vectors) ** 0.5), len(self.vectors)
        chance = np.random.default_rng(0)
        draw = np.sort(chance.choice(size, min(size, _LEARNED * count), replace=False))
        sample = torch.from_numpy(self.vectors.rows(draw))
        centres = sample[torch.from_numpy(chance.choice(len(sample), min(count, len(sample)), replace=False))]
        told = counted(self.progress, "centres", _ROUNDS * len(sample))
        for _ in range(_ROUNDS):
            sums = torch.zeros_like(centres)
            for part in torch.split(sample, _BLOCK):
                sums.index_add_(0, nearest_centre(part, centres), part)
                told(len(part))
            empty = sums.norm(dim=1) < 1e-6
            sums[empty] = sample[torch.from_numpy(chance.choice(len(sample), int(empty.sum())))]
            centres = torch.nn.functional.normalize(sums, dim=1)
        self.saved("centres", centres.numpy())
        return centres

    def lists(self, centres: Tensor) -> npt.NDArray[np.int32]:
        """(N,) the list of each row; goes on where it was, a block of rows at a time."""
        if (kept := self.kept("lists")) is not None:
            return np.asarray(kept)
        size, blocks = len(self.vectors), list[npt.NDArray[np.int32]]()
        told = counted(self.progress, "lists", size)
        while (kept := self.kept(f"lists-{len(blocks):05}")) is not None:
            blocks.append(np.asarray(kept))
            told(len(kept))
        done, held = sum(map(len, blocks)), list[npt.NDArray[np.float32]]()
        for start, rows in self.vectors.groups(done):
            held.append(rows[max(0, done - start) :])
            if sum(map(len, held)) >= _BLOCK or start + len(rows) == size:
                part = torch.from_numpy(np.concatenate(held))
                found = nearest_centre(part, centres).numpy().astype(np.int32)
                blocks.append(self.saved(f"lists-{len(blocks):05}", found))
                told(len(part))
                held.clear()
        self.saved("lists", np.concatenate(blocks))
        for left in self.folder.glob("lists-*.npy"):
            left.unlink()
        return np.concatenate(blocks)

    def codes(self, lists: npt.NDArray[np.int32], count: int) -> None:
        """Rows in the order of the lists, as int8 of a scale each."""
        size = len(self.vectors)
        order = np.argsort(lists, kind="stable").astype(np.int32)
        places = np.empty(size, np.int32)
        places[order] = np.arange(size, dtype=np.int32)
        self.saved("rows", order)
        self.saved("starts", np.searchsorted(lists[order], np.arange(count + 1)))
        codes = np.lib.format.open_memmap(self.folder / "codes.npy", "w+", np.int8, (size, self.vectors.width))
        scales, told = np.empty(size, np.float32), counted(self.progress, "codes", size)
        for start, rows in self.vectors.groups():
            where = places[start : start + len(rows)]
            scale = np.maximum(np.abs(rows).max(1), 1e-12) / 127
            codes[where], scales[where] = np.rint(rows / scale[:, None]).astype(np.int8), scale
            told(len(rows))
        codes.flush()
        self.saved("scales", scales)


@full_precision()
def nearest_centre(rows: Tensor, centres: Tensor) -> Tensor:
    """(R,) the number of the centre that is nearest to each row (R, F)."""
    return torch.cat([(part @ centres.T).argmax(1) for part in torch.split(rows, 4096)])


def _built(path: Path, folder: Path, identity: str, progress: Progress, say: Say) -> dict[str, Any]:
    """Builds what is missing, and measures what it finds. Raises UserError."""
    try:
        lock = Lock(folder)
        try:
            begun = folder / "begun.json"
            if not begun.exists() or json_in(whole(begun)) != {"table": identity, "version": VERSION}:
                for left in [*folder.glob("*.npy"), folder / "index.json"]:
                    left.unlink(missing_ok=True)
                write_json(begun, {"table": identity, "version": VERSION})
            vectors = OnDisk(path)
            work = _Work(folder, vectors, progress)
            centres = work.centres()
            work.codes(work.lists(centres), len(centres))
            probes, recall = _measured(Index(folder, vectors, 1, 0.0), vectors, progress)
            size = sum(file.stat().st_size for file in folder.iterdir()) / 1e9
            say(f"{folder}: {len(vectors):,} rows in {len(centres):,} lists, {size:.2f} GB; recall@{TOP} {recall:.3f}"
                f" against exact search on {QUERIES} queries, in {probes} lists each")  # fmt: skip
            about = {"table": identity, "version": VERSION, "plain": vectors.plain, "probes": probes, "recall": recall}
            write_json(folder / "index.json", about)
            (folder / "lists.npy").unlink(missing_ok=True)
            return about
        finally:
            lock.release()
    except OSError as error:
        raise UserError(f"{cannot_write(folder, error)}; or search without --index", IO) from None


def _measured(index: Index, vectors: OnDisk, progress: Progress) -> tuple[int, float]:
    """How many lists reach the goal, twice as many at a time, and the recall there: rows are the queries."""
    numbers = np.sort(np.random.default_rng(1).choice(len(vectors), min(QUERIES, len(vectors)), replace=False))
    queries, own = torch.from_numpy(vectors.rows(numbers)), [[int(number)] for number in numbers]
    best: list[set[int]] = []
    values = torch.full((len(queries), TOP), -torch.inf)
    rows, told = torch.full((len(queries), TOP), -1), counted(progress, "recall", len(vectors))
    for start, part in vectors.groups():
        cosines = torch.from_numpy(queries.numpy() @ part.T)
        inside = (numbers >= start) & (numbers < start + len(part))
        cosines[np.flatnonzero(inside), numbers[inside] - start] = -torch.inf
        more = torch.arange(start, start + len(part)).expand(len(queries), -1)
        values, order = torch.cat([values, cosines], 1).sort(dim=1, descending=True, stable=True)
        values, rows = values[:, :TOP], torch.cat([rows, more], 1).gather(1, order[:, :TOP])
        told(len(part))
    best = [set(row) for row in rows.tolist()]
    most, probes = len(index._centres), 8
    while True:
        found = [set(rows.tolist()) for _, rows in index.nearest(queries, own, TOP, probes=probes)]
        recall = sum(len(one & other) for one, other in zip(found, best)) / sum(map(len, best))
        if recall >= GOAL or probes >= most:
            return probes, recall
        probes *= 2
