"""An index of a table of millions of rows: lists of like rows in few bits, of which a search looks into the nearest.

The rows of a table are divided among lists by their nearest centre (an inverted file: Jégou et al. 2011, PAMI 33(1)).
A query is compared with the centres, then with the rows of the nearest lists, both in 8 bits, then exactly with the
best of those, out of the table. Centres lie in groups, so that a row finds its own without meeting them all. This is
built several times as fast as a graph of neighbours (docs/scale.md), and needs no more than numpy and torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
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

VERSION = 2
QUERIES, TOP = 200, 10  # of which the recall is measured that is said
GOAL = 0.95  # of that recall: so many lists are looked into
_LISTS, _SHORTEST = 8, 16  # lists for the square root of the rows, unless they had fewer rows each than that
_LEARNED, _ROUNDS = 16, 8  # rows a list that the centres are fitted to, and how often
_TRIED = 4  # groups in which a row looks for its centre
_BLOCK = 1 << 16  # rows that are compared with centres at a time
_SURE = 20  # candidates a hit that are compared exactly
_FEWEST = 200
_FEW = 50_000  # rows of a condition that are compared one by one


class Codes(NamedTuple):
    """Rows in 8 bits: ``values`` (R, F) int8, each row in units of its scale (R,)."""

    values: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]

    @classmethod
    def of(cls, rows: npt.NDArray[np.float32]) -> Codes:
        """Of rows (R, F) of any length."""
        scales = np.maximum(np.abs(rows).max(1, initial=0), 1e-12) / 127
        return cls(np.rint(rows / scales[:, None]).astype(np.int8), scales)

    def scores(self, query: Tensor, spans: Sequence[slice] = (slice(None),)) -> npt.NDArray[np.float32]:
        """Of the rows of some spans: their products with one query in 8 bits (F, 1).

        The products are integers, so they are the same on every machine; as floats they take twice as long.
        """
        products = torch.cat([_products(torch.from_numpy(self.values[span]), query)[:, 0] for span in spans])
        scores: npt.NDArray[np.float32] = products.float().numpy() * np.concatenate([self.scales[at] for at in spans])
        return scores


def _products(values: Tensor, query: Tensor) -> Tensor:
    """(R, 1) of rows (R, F) and a query (F, 1), both int8."""
    if _eight_bits_are_right():
        return torch._int_mm(values, query)
    with full_precision():
        return values.float() @ query.float()


@lru_cache
def _eight_bits_are_right() -> bool:
    """Whether int8 products are, here: of a processor without VNNI oneDNN's overflow in 16 bits (torch 2.14)."""
    most = torch.full((16, 256), 127, dtype=torch.int8)
    whole = 127 * 127 * 256
    return all((torch._int_mm(most, sign * most[:1].T.contiguous()) == sign * whole).all() for sign in (1, -1))


class Centres(NamedTuple):
    """Unit rows in groups: ``tops`` (G, F), and around each of them the centres of lists, ``leaves`` (G, M, F)."""

    tops: Tensor
    leaves: Tensor

    @property
    def lists(self) -> int:
        """How many there are."""
        return self.leaves.shape[0] * self.leaves.shape[1]

    def nearest(self, rows: Tensor) -> Tensor:
        """(R,) the list, g · M + m, of each row (R, F): of those in the groups that are nearest to it."""
        tried = min(_TRIED, len(self.tops))
        with full_precision():
            groups = (rows @ self.tops.T).topk(tried).indices.flatten()
            best, found = torch.full((len(rows),), -torch.inf), torch.zeros(len(rows), dtype=torch.int64)
            counts = groups.bincount(minlength=len(self.tops)).tolist()
            for group, asked in enumerate(torch.split(groups.argsort(stable=True), counts)):
                asking = asked // tried
                values, leaves = (rows[asking] @ self.leaves[group].T).max(1)
                closer = values > best[asking]
                best[asking[closer]] = values[closer]
                found[asking[closer]] = group * self.leaves.shape[1] + leaves[closer]
        return found


class Index:
    """Opened, its parts mapped into memory; bound to the table by what identifies it."""

    def __init__(self, folder: Path, vectors: OnDisk, probes: int, recall: float) -> None:
        self._vectors, self.probes, self.recall = vectors, probes, recall
        centres = np.load(folder / "centres.npy")[:, 1:]
        self._centres = Codes.of(centres.reshape(-1, centres.shape[-1]))
        self._starts: list[int] = np.load(folder / "starts.npy").tolist()
        # Plain arrays, whose slices cost a tenth; "c", since torch takes none that are only read: nothing is written.
        self._rows, codes, scales = (
            np.load(folder / f"{name}.npy", mmap_mode="c").view(np.ndarray) for name in ("rows", "codes", "scales")
        )
        self._codes = Codes(codes, scales)

    @property
    def lists(self) -> int:
        """How many there are."""
        return len(self._starts) - 1

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
        coded = torch.from_numpy(Codes.of(query[None].numpy()).values.T.copy())
        probes = min(probes or self.probes, self.lists)
        near = torch.from_numpy(self._centres.scores(coded)).topk(probes).indices.tolist()
        ends = [self._starts[number : number + 2] for number in near]
        spans = [slice(*both) for both in ends if both[0] < both[1]]
        if not spans:
            return np.empty(0, np.int32)
        scores = self._codes.scores(coded, spans)
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
            other = "table" if about.get("table") != identity else "version"
            say(f"{folder} is of another {other}: built anew")
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

    def centres(self) -> Centres:
        """Fitted to a draw of the rows: first the tops, then the leaves to the rows that are nearest to their top."""
        if (kept := self.kept("centres")) is not None:
            both = torch.from_numpy(np.array(kept))
            return Centres(both[:, 0], both[:, 1:])
        size, chance = len(self.vectors), np.random.default_rng(0)
        count = max(1, min(round(_LISTS * size**0.5), size // _SHORTEST))
        draw = np.sort(chance.choice(size, min(size, _LEARNED * count), replace=False))
        sample = torch.from_numpy(self.vectors.rows(draw))
        told = counted(self.progress, "centres", 2 * _ROUNDS * len(sample))
        tops = _k_means(sample, round(count**0.5), chance, told)
        groups, each = nearest_centre(sample, tops), -(-count // len(tops))
        members = [sample[groups == number] for number in range(len(tops))]
        leaves = [_k_means(rows if len(rows) else top[None], each, chance, told) for rows, top in zip(members, tops)]
        centres = Centres(tops, torch.stack(leaves))
        self.saved("centres", torch.cat([tops[:, None], centres.leaves], 1).numpy())
        return centres

    def lists(self, centres: Centres) -> npt.NDArray[np.int32]:
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
                found = centres.nearest(part).numpy().astype(np.int32)
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
            codes[where], scales[where] = Codes.of(rows)
            told(len(rows))
        codes.flush()
        self.saved("scales", scales)


@full_precision()
def nearest_centre(rows: Tensor, centres: Tensor) -> Tensor:
    """(R,) the number of the centre that is nearest to each row (R, F)."""
    return torch.cat([(part @ centres.T).argmax(1) for part in torch.split(rows, 4096)])


def _k_means(rows: Tensor, count: int, chance: np.random.Generator, told: Callable[[int], None]) -> Tensor:
    """(count, F) unit rows: spherical k-means of rows (R, F). Centres that are nearest to none are drawn anew."""
    centres = rows[torch.from_numpy(chance.choice(len(rows), count, replace=len(rows) < count))]
    for _ in range(_ROUNDS):
        sums = torch.zeros_like(centres)
        for part in torch.split(rows, _BLOCK):
            sums.index_add_(0, nearest_centre(part, centres), part)
            told(len(part))
        empty = sums.norm(dim=1) < 1e-6
        sums[empty] = rows[torch.from_numpy(chance.choice(len(rows), int(empty.sum())))]
        centres = torch.nn.functional.normalize(sums, dim=1)
    return centres


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
            work.codes(work.lists(centres), centres.lists)
            probes, recall = _measured(Index(folder, vectors, 1, 0.0), vectors, progress)
            size = sum(file.stat().st_size for file in folder.iterdir()) / 1e9
            say(f"{folder}: {len(vectors):,} rows in {centres.lists:,} lists, {size:.2f} GB; recall@{TOP} {recall:.3f}"
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
    """How many lists reach the goal, within a tenth, and the recall there: rows are the queries."""
    numbers = np.sort(np.random.default_rng(1).choice(len(vectors), min(QUERIES, len(vectors)), replace=False))
    queries, own = torch.from_numpy(vectors.rows(numbers)), [[int(number)] for number in numbers]
    values = torch.full((len(queries), TOP), -torch.inf)
    rows, told = torch.full((len(queries), TOP), -1), counted(progress, "recall", len(vectors))
    for start, part in vectors.groups():
        cosines = torch.from_numpy(queries.numpy() @ part.T)
        inside = (numbers >= start) & (numbers < start + len(part))
        cosines[np.flatnonzero(inside), numbers[inside] - start] = -torch.inf
        near, places = leading(cosines, min(TOP, len(part)))
        values, order = torch.cat([values, near], 1).sort(dim=1, descending=True, stable=True)
        values, rows = values[:, :TOP], torch.cat([rows, places + start], 1).gather(1, order[:, :TOP])
        told(len(part))
    best = [set(row) for row in rows.tolist()]

    def recall(probes: int) -> float:
        found = [set(rows.tolist()) for _, rows in index.nearest(queries, own, TOP, probes=probes)]
        return sum(len(one & other) for one, other in zip(found, best)) / sum(map(len, best))

    few, many, most = 1, 8, index.lists
    while (reached := recall(many)) < GOAL and many < most:
        few, many = many, 2 * many
    while many > 1.1 * few + 1:  # the fewest, within a tenth
        middle = round((few * many) ** 0.5)
        if (found := recall(middle)) < GOAL:
            few = middle
        else:
            many, reached = middle, found
    return many, reached
