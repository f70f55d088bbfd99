"""Canvases of the rows of a step: the same whether cached or decoded again, in this process or in others."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from itertools import chain, cycle
from operator import itemgetter
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike.core.devices import host_memory
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.example import PictureSource, Source
from lookalike.data.pool import ordered, stopped, worker_count
from lookalike.data.prepared import Prepared
from lookalike.data.preprocessing import Side, pixels_of
from lookalike.types import Canvases, Material

GIB = 1 << 30
_CHUNK = 256  # rows between two words of progress while filling the cache
_PART = 64  # rows a chunk: 3 MB of canvases at 128 px, some 10 to 50 ms of work
_AHEAD = 2  # chunks under way per worker, and steps if that is more
_FEW = 512  # below so many rows starting workers takes longer than decoding


M = TypeVar("M", bound=Material, covariant=True)


class Loaded(NamedTuple, Generic[M]):
    """One batch: ``rows`` (B,) of a step, and what was read of them."""

    rows: Tensor
    material: M


class Loads(Protocol):
    """What gives a run its material: a loader of pictures, a reader of text."""

    bad: dict[str, str]  # paths and reasons
    bad_rows: dict[int, str]

    @property
    def source(self) -> Source:
        """The rows."""

    def __len__(self) -> int: ...

    def batches(self, rows_of_steps: Iterable[Tensor]) -> Generator[Loaded[Any], None, None]:
        """The material of each step's rows (B,), in order: a function of the data alone. Raises UserError."""

    def shown(self, rows: Tensor) -> Tensor:
        """The rows (B,) whose material stands in the batch of ``rows``: others where those are bad."""


class _Chunk(NamedTuple):
    """Some rows of a step, from place ``start`` on, and the slot of shared memory that they are decoded into."""

    rows: list[int]
    start: int
    slot: int


class _Decoding(NamedTuple):
    """Decodes chunks into slots; a bad row has the canvas of the first good one of ``tries`` more, else a black one."""

    source: PictureSource
    side: Side
    tries: int
    slots: npt.NDArray[np.uint8]  # (count, _PART, 3, S, S)

    def fill(self, chunk: _Chunk) -> tuple[list[tuple[int, int]], dict[int, str]]:
        """Canvases into the slot, read in the order of the rows, in which frames of a video follow each other.

        Returns the size of each, and every row that could not be read with the reason.

        numpy's assignment lays interleaved colours out as planes in half the time of torch's.
        """
        sizes, bad, count = [(1, 1)] * len(chunk.rows), dict[int, str](), len(self.source)
        for i, row in sorted(enumerate(chunk.rows), key=itemgetter(1)):
            if stopped():
                break
            for other in range(row, row + min(self.tries, count - 1) + 1):
                example = self.source.example(other % count, self.side)
                if example.bad is None:
                    self.slots[chunk.slot, i] = example.pixels.numpy()
                    sizes[i] = example.height, example.width
                    break
                bad[other % count] = example.bad
            else:
                self.slots[chunk.slot, i] = 0
        return sizes, bad


class Loader:
    """Batches of canvases of a source. A picture that cannot be read gives its place to the next one that can."""

    def __init__(
        self,
        source: PictureSource,
        side: Side,
        budget: int = 4 * GIB,
        workers: int | None = None,
        max_bad: float = 0.01,
        progress: Callable[[int], None] = lambda _: None,
        on_bad: Callable[[Mapping[str, str]], None] = lambda _: None,
        rows: str = "pictures",
    ) -> None:
        """Decodes everything now if N canvases of 3 * S * S bytes fit ``budget``, else each batch when it is due.

        ``workers`` are processes: 0 is this one, None as many as ``worker_count`` says. ``progress`` hears how many
        more rows are cached, ``on_bad`` all bad paths and reasons whenever they grow, before UserError is raised for
        too many. ``rows`` is what messages call the rows.
        """
        self.source, self.side, self.max_bad, self._what = source, side, max_bad, rows
        self.workers = worker_count(workers)
        self.bad: dict[str, str] = dict(source.unlisted)
        self.bad_rows: dict[int, str] = {}
        self._on_bad = on_bad
        if self.bad:
            on_bad(self.bad)
        self._canvases: Canvases | None = None
        self._ready = source if isinstance(source, Prepared) and source.has_canvases(side) else None
        if self._ready is not None:
            self._note(self._ready.bad)
            self._refuse_too_many()
        elif len(source) * 3 * pixels_of(side) ** 2 <= budget:
            self._fill(self.workers if workers is not None or len(source) >= _FEW else 0, progress)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def cached(self) -> bool:
        """Whether every canvas is in memory, or in files that are mapped into it."""
        return self._canvases is not None or self._ready is not None

    def batches(self, rows_of_steps: Iterable[Tensor]) -> Generator[Loaded[Canvases], None, None]:
        """The canvases of each step's rows (B,), in order: a function of the data alone. Raises UserError."""
        if self._ready is not None:
            for rows in rows_of_steps:
                yield Loaded(rows, Canvases(*self._ready.take(self.shown(rows))))
            return
        if self._canvases is None:
            tries = 1 + int(self.max_bad * len(self))  # a longer run of bad rows is too many anyway
            yield from self._decoded(rows_of_steps, self.workers, tries)
            return
        for rows in rows_of_steps:
            # Copies whole canvases, to where a GPU can fetch them: five times as fast as indexing.
            parts = ((part, host_memory(len(rows), *part.shape[1:], dtype=part.dtype)) for part in self._canvases)
            yield Loaded(rows, Canvases(*(torch.index_select(part, 0, rows, out=out) for part, out in parts)))

    def shown(self, rows: Tensor) -> Tensor:
        """The rows (B,) whose pictures stand in the batch of ``rows``: others where those are bad."""
        if not self.bad_rows:
            return rows
        bad, count = self.bad_rows, len(self)
        return torch.tensor([next_good(row, bad, count) if row in bad else row for row in rows.tolist()])

    def _fill(self, workers: int, progress: Callable[[int], None]) -> None:
        """Decode everything once, then let each bad row have the canvas of the next good one."""
        count = len(self)
        pixels, sizes = canvases = _empty(count, pixels_of(self.side), torch.empty)
        with closing(self._decoded(torch.split(torch.arange(count), _CHUNK), workers, tries=0)) as batches:
            for batch in batches:
                place = slice(int(batch.rows[0]), int(batch.rows[-1]) + 1)
                pixels[place], sizes[place] = batch.material
                progress(len(batch.rows))
        self._refuse_too_many()
        for row in self.bad_rows:
            other = next_good(row, self.bad_rows, count)
            pixels[row], sizes[row] = pixels[other], sizes[other]
        self._canvases = canvases

    def _decoded(
        self, rows_of_steps: Iterable[Tensor], workers: int, tries: int
    ) -> Generator[Loaded[Canvases], None, None]:
        """Batches decoded here or by workers, in the order of the steps; ``tries`` 0 leaves bad rows black."""
        steps = iter(rows_of_steps)
        if (first := next(steps, None)) is None:
            return
        slots = _shared(_AHEAD * max(workers, -(-len(first) // _PART)) if workers else 1, pixels_of(self.side))
        begun = deque[Tensor]()  # steps whose first chunk is under way
        decoding = _Decoding(self.source, self.side, tries, slots)
        chunks = _chunks(chain([first], steps), begun, len(slots))
        with closing(
            ordered(decoding.fill, chunks, workers, len(slots), self._part)
        ) as done:  # at once, not when a traceback is forgotten
            for chunk, (sizes, bad) in done:
                if chunk.start == 0:
                    rows = begun.popleft()
                    batch = Loaded(rows, _empty(len(rows), pixels_of(self.side)))
                place = slice(chunk.start, chunk.start + len(sizes))
                batch.material.pixels[place] = torch.from_numpy(slots[chunk.slot, : len(sizes)])
                batch.material.sizes[place] = torch.tensor(sizes)
                self._note(bad)
                if tries:
                    self._refuse_too_many()
                if place.stop == len(batch.rows):
                    yield batch

    def _part(self, chunk: _Chunk, number: int) -> str:
        """The path that is read as that of a chunk, in the order of ``fill``."""
        return self.source.paths[sorted(chunk.rows)[number]]

    def _note(self, bad: Mapping[int, str]) -> None:
        """Remember new bad rows, each once."""
        fresh = {row: reason for row, reason in bad.items() if row not in self.bad_rows}
        if fresh:
            self.bad_rows.update(fresh)
            self.bad.update({self.source.paths[row]: reason for row, reason in fresh.items()})
            self._on_bad(self.bad)

    def _refuse_too_many(self) -> None:
        """Raise UserError when more than the share ``max_bad`` of all rows cannot be read, or none can."""
        bad, count = self.bad_rows, len(self)
        if len(bad) > self.max_bad * count or len(bad) == count:
            row = min(bad)
            raise UserError(
                f"{len(bad)} of {count} {self._what} cannot be read, first {self.source.paths[row]} ({bad[row]}); "
                f"mend or remove those in bad_files.csv, or allow more than {self.max_bad:g} of all with --max-bad",
                BAD_DATA,
            )


def next_good(row: int, bad: Mapping[int, str], count: int) -> int:
    """The first row after a bad one, of ``count`` in a ring, that can be read."""
    return next((row + i) % count for i in range(1, count) if (row + i) % count not in bad)


def _chunks(steps: Iterable[Tensor], begun: deque[Tensor], slots: int) -> Iterator[_Chunk]:
    """The rows of each step cut up; ``begun`` is told of every step, and the slots take turns."""
    slot = cycle(range(slots))
    for rows in steps:
        if len(rows):
            begun.append(rows)
        for start in range(0, len(rows), _PART):
            yield _Chunk(rows[start : start + _PART].tolist(), start, next(slot))


def _shared(count: int, side: int) -> npt.NDArray[np.uint8]:
    """(count, _PART, 3, S, S) that forks share: used again and again, and not bound by what /dev/shm holds.

    A new block a batch cost the workers about 40 µs of system time more a picture, with 128 px and 0.15 ms of work.
    """
    shape = (count, _PART, 3, side, side)
    return np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8).reshape(shape)


def _empty(count: int, side: int, room: Callable[..., Tensor] = host_memory) -> Canvases:
    """Room for canvases and their sizes, by default where a GPU can fetch them."""
    return Canvases(host_memory(count, 3, side, side, dtype=torch.uint8), torch.empty(count, 2, dtype=torch.int64))
