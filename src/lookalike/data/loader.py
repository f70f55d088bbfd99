"""Pixels of the rows that a step asks for: the same whether cached or decoded again, in this process or in others."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike.data.example import Source
from lookalike.trouble import BAD_DATA, IO, Trouble

GIB = 1 << 30
_PART = 64  # rows a task: 3 MB of canvases at 128 px, some 10 to 50 ms of work
_AHEAD = 2  # tasks in the making per worker, and steps if that is more
_CHUNK = 256  # rows between two words of progress while filling the cache
_FEW = 512  # below so many rows starting workers takes longer than decoding


class Pixels(NamedTuple):
    """One batch: ``rows`` (B,) as asked for, ``pixels`` uint8 (B, 3, S, S), ``sizes`` int64 (B, 2) as (h, w)."""

    rows: Tensor
    pixels: Tensor
    sizes: Tensor


Bytes = npt.NDArray[np.uint8]


class _Part(NamedTuple):
    """The rows of a step (B,) from ``start`` on that are one task."""

    rows: Tensor
    start: int

    @property
    def stop(self) -> int:
        """Where the next part starts."""
        return min(self.start + _PART, len(self.rows))

    def asked(self) -> list[int]:
        """The rows."""
        found: list[int] = self.rows[self.start : self.stop].tolist()
        return found


class _Filled(NamedTuple):
    """What is known of canvases beside their pixels; ``bad`` holds every row met that could not be read."""

    sizes: list[tuple[int, int]]
    bad: dict[int, str]


class Loader:
    """Batches of canvases of a source. A picture that cannot be read gives its place to the next one that can."""

    def __init__(
        self,
        source: Source,
        budget: int = 4 * GIB,
        workers: int | None = None,
        max_bad: float = 0.01,
        progress: Callable[[int], None] = lambda _: None,
        on_bad: Callable[[Mapping[str, str]], None] = lambda _: None,
    ) -> None:
        """Decodes everything now if N * 3 * S * S bytes fit ``budget``, else each batch when it is asked for.

        ``workers`` are processes: None is one a core, 0 this one. ``progress`` hears how many more rows are cached,
        ``on_bad`` all bad paths and reasons whenever they grow, before Trouble is raised for too many.
        """
        self.source, self.max_bad = source, max_bad
        self.workers = cores() if workers is None else workers
        self.bad: dict[str, str] = dict(source.unlisted)
        self.bad_rows: dict[int, str] = {}
        self._on_bad = on_bad
        if self.bad:
            on_bad(self.bad)
        self._pixels: Tensor | None = None
        if len(source) * 3 * source.side**2 <= budget:
            self._fill(self.workers if workers is not None or len(source) >= _FEW else 0, progress)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def cached(self) -> bool:
        """Whether every canvas is in memory."""
        return self._pixels is not None

    def batches(self, rows_of_steps: Iterable[Tensor]) -> Generator[Pixels, None, None]:
        """The pixels of each step's rows (B,), in order: a function of the data alone. Raises Trouble."""
        if self._pixels is None:
            tries = 1 + int(self.max_bad * len(self))  # a longer run of bad rows is too many anyway
            yield from self._decoded(rows_of_steps, self.workers, tries)
            return
        for rows in rows_of_steps:
            # Copies whole canvases: five times as fast as self._pixels[rows].
            yield Pixels(rows, self._pixels.index_select(0, rows), self._sizes.index_select(0, rows))

    def _fill(self, workers: int, progress: Callable[[int], None]) -> None:
        """Decode everything once, then let each bad row have the canvas of the next good one."""
        count, side = len(self), self.source.side
        pixels, sizes = _empty(count, side)
        with closing(self._decoded(torch.split(torch.arange(count), _CHUNK), workers, tries=0)) as batches:
            for batch in batches:
                here = slice(int(batch.rows[0]), int(batch.rows[-1]) + 1)
                pixels[here], sizes[here] = batch.pixels, batch.sizes
                progress(len(batch.rows))
        refuse_too_many(self.bad_rows, self.source, self.max_bad)
        for row in self.bad_rows:
            other = next((row + i) % count for i in range(1, count) if (row + i) % count not in self.bad_rows)
            pixels[row], sizes[row] = pixels[other], sizes[other]
        self._pixels, self._sizes = pixels, sizes

    def _decoded(self, rows_of_steps: Iterable[Tensor], workers: int, tries: int) -> Generator[Pixels, None, None]:
        """Batches decoded here or by workers, in the order of the steps; ``tries`` 0 leaves bad rows black."""
        parts = (_Part(rows, start) for rows in rows_of_steps for start in range(0, len(rows), _PART))
        made = _in_workers(self.source, parts, workers, tries) if workers else _here(self.source, parts, tries)
        with closing(made):  # at once, not when the last traceback is forgotten
            for part, pixels, (sizes, bad) in made:
                if part.start == 0:
                    batch = Pixels(part.rows, *_empty(len(part.rows), self.source.side))
                here = slice(part.start, part.stop)
                batch.pixels[here] = torch.from_numpy(pixels[: len(sizes)])
                batch.sizes[here] = torch.tensor(sizes)
                self._note(bad)
                if tries:
                    refuse_too_many(self.bad_rows, self.source, self.max_bad)
                if part.stop == len(part.rows):
                    yield batch

    def _note(self, bad: Mapping[int, str]) -> None:
        """Remember new bad rows, each once."""
        fresh = {row: reason for row, reason in bad.items() if row not in self.bad_rows}
        if fresh:
            self.bad_rows.update(fresh)
            self.bad.update({self.source.paths[row]: reason for row, reason in fresh.items()})
            self._on_bad(self.bad)


def refuse_too_many(bad: Mapping[int, str], source: Source, max_bad: float) -> None:
    """Raise Trouble when more than the share ``max_bad`` of all rows cannot be read, or none can."""
    if len(bad) > max_bad * len(source) or len(bad) == len(source):
        row = min(bad)
        raise Trouble(
            f"{len(bad)} of {len(source)} pictures cannot be read, first {source.paths[row]} ({bad[row]}); "
            f"mend or remove those in bad_files.csv, or allow more than {max_bad:g} of all with --max-bad",
            BAD_DATA,
        )


def cores() -> int:
    """The processors that this process may use, at most 16: more decoders than that only wait for the disk."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, allowed)


def _empty(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Room for canvases and their sizes."""
    return torch.empty(count, 3, side, side, dtype=torch.uint8), torch.empty(count, 2, dtype=torch.int64)


def _fill(
    source: Source, rows: list[int], tries: int, into: Bytes, stopped: Callable[[], bool] = lambda: False
) -> _Filled:
    """Canvases of some rows ``into`` (B, 3, S, S), a bad one replaced by the first good of ``tries`` more, else black.

    numpy's assignment lays interleaved colours out as planes in half the time of torch's.
    """
    filled = _Filled([(1, 1)] * len(rows), {})
    for i, row in enumerate(rows):
        if stopped():
            break
        for other in range(row, row + min(tries, len(source) - 1) + 1):
            found = source[other % len(source)]
            if found.bad is None:
                into[i], filled.sizes[i] = found.pixels.numpy(), (found.height, found.width)
                break
            filled.bad[other % len(source)] = found.bad
        else:
            into[i] = 0
    return filled


_Made = Generator[tuple[_Part, Bytes, _Filled], None, None]
"""Parts in their order, each with canvases that are overwritten when the next is asked for."""


def _here(source: Source, parts: Iterator[_Part], tries: int) -> _Made:
    """Every part decoded in this process, when it is asked for."""
    into = np.empty((_PART, 3, source.side, source.side), np.uint8)
    for part in parts:
        yield part, into, _fill(source, part.asked(), tries, into)


def _in_workers(source: Source, parts: Iterator[_Part], workers: int, tries: int) -> _Made:
    """Every part decoded by one of ``workers`` processes, ahead of time, into memory that all of them share.

    torch's DataLoader is not used since it answers a killed worker with an exception in the midst of the training
    step. Here the parts that were under way are simply asked for again of new workers, three times at most.
    """
    first = next(parts, None)
    if first is None:
        return
    slots = _shared(_AHEAD * max(workers, -(-len(first.rows) // _PART)), source.side)
    ahead, taken, deaths = deque([(0, first)]), 1, 0  # a part's number decides its slot, in turns
    while True:
        try:
            with _pool(source, slots, workers) as pool:

                def submit(number: int, part: _Part) -> Future[_Filled]:
                    return pool.submit(_task, part.asked(), tries, number % len(slots))  # noqa: B023

                under_way = deque(submit(number, part) for number, part in ahead)
                while ahead:
                    while len(ahead) < len(slots) and (part := next(parts, None)) is not None:
                        ahead.append((taken, part))
                        taken += 1  # before what may raise, else two parts would share a slot
                        under_way.append(submit(*ahead[-1]))
                    filled, deaths = under_way.popleft().result(), 0
                    number, part = ahead.popleft()
                    yield part, slots[number % len(slots)], filled
                return
        except BrokenProcessPool:
            deaths += 1
            if deaths == 3:
                raise Trouble(
                    "the processes that decode pictures were killed three times in a row; "
                    "give this machine or container more memory, or use --workers 0",
                    IO,
                ) from None


def _shared(count: int, side: int) -> Bytes:
    """(count, _PART, 3, S, S) that forked processes share: used again and again, and not bound by what /dev/shm holds.

    A new block a batch cost 60 µs a picture in page faults, nearly half of what decoding 128 px takes.
    """
    shape = (count, _PART, 3, side, side)
    return np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8).reshape(shape)


@contextmanager
def _pool(source: Source, slots: Bytes, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that hold the source; none of them outlives the block, however it ends."""
    context = multiprocessing.get_context("fork")  # 10 ms, no pickling
    stop = context.RawValue("b", 0)
    pool = ProcessPoolExecutor(workers, context, _begin, (source, slots, stop, os.getpid()))
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of forking beside threads; a worker uses none of what those may hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            pool.submit(int).result()
        yield pool
    finally:
        stop.value = 1  # a batch of large photos takes seconds, which nobody shall wait for
        pool.shutdown(wait=True, cancel_futures=True)


class _Stop(Protocol):
    """A byte in shared memory that the parent sets when it wants no more; a lock could die with its holder."""

    value: int


_job: tuple[Source, Bytes, _Stop] | None = None  # of a worker process


def _begin(source: Source, slots: Bytes, stop: _Stop, parent: int) -> None:
    """Set up a worker: one thread, deaf to Ctrl-C (the parent ends it), gone when the parent is."""
    global _job
    _job = source, slots, stop
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    """End this worker within seconds of its parent's death, which nothing else would tell it."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)


def _task(rows: list[int], tries: int, slot: int) -> _Filled:
    """Some canvases into a slot, in a worker."""
    if _job is None:
        raise RuntimeError("the worker was not set up")
    source, slots, stop = _job
    return _fill(source, rows, tries, slots[slot], lambda: bool(stop.value))
