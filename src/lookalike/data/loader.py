"""Pixels of the rows that a step asks for: the same whether cached or decoded again, in this process or in others."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from typing import NamedTuple, Protocol

import torch
import torch.multiprocessing  # its pickler hands tensors over in shared memory
from torch import Tensor

from lookalike.data.example import Ready, Source
from lookalike.trouble import BAD_DATA, IO, Trouble

GIB = 1 << 30
_AHEAD = 2  # batches in the making per worker
_CHUNK = 256  # rows a task while filling the cache
_FEW = 512  # below so many rows starting workers takes longer than decoding


class Pixels(NamedTuple):
    """One batch: ``rows`` (B,) as asked for, ``pixels`` uint8 (B, 3, S, S), ``sizes`` int64 (B, 2) as (h, w)."""

    rows: Tensor
    pixels: Tensor
    sizes: Tensor


class _Decoded(NamedTuple):
    """What a worker returns; ``bad`` holds every row met that could not be read."""

    pixels: Tensor
    sizes: Tensor
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
        self._ready = source if isinstance(source, Ready) and source.ready else None
        if self._ready is not None:
            self._note(self._ready.bad)
            refuse_too_many(self.bad_rows, source, max_bad)
        elif len(source) * 3 * source.side**2 <= budget:
            self._fill(self.workers if workers is not None or len(source) >= _FEW else 0, progress)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def cached(self) -> bool:
        """Whether every canvas is in memory, or in files that are mapped into it."""
        return self._pixels is not None or self._ready is not None

    def batches(self, rows_of_steps: Iterable[Tensor]) -> Generator[Pixels, None, None]:
        """The pixels of each step's rows (B,), in order: a function of the data alone. Raises Trouble."""
        if self._ready is not None:
            instead = {row: next_good(row, self.bad_rows, len(self)) for row in self.bad_rows}
            for rows in rows_of_steps:
                good = torch.tensor([instead.get(row, row) for row in rows.tolist()]) if instead else rows
                yield Pixels(rows, *self._ready.take(good))
            return
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
        pixels, sizes = torch.empty(count, 3, side, side, dtype=torch.uint8), torch.empty(count, 2, dtype=torch.int64)
        with closing(self._decoded(torch.split(torch.arange(count), _CHUNK), workers, tries=0)) as batches:
            for batch in batches:
                here = slice(int(batch.rows[0]), int(batch.rows[-1]) + 1)
                pixels[here], sizes[here] = batch.pixels, batch.sizes
                progress(len(batch.rows))
        refuse_too_many(self.bad_rows, self.source, self.max_bad)
        for row in self.bad_rows:
            other = next_good(row, self.bad_rows, count)
            pixels[row], sizes[row] = pixels[other], sizes[other]
        self._pixels, self._sizes = pixels, sizes

    def _decoded(self, rows_of_steps: Iterable[Tensor], workers: int, tries: int) -> Generator[Pixels, None, None]:
        """Batches decoded here or by workers, in the order of the steps; ``tries`` 0 leaves bad rows black."""
        if workers:
            made = _in_workers(self.source, rows_of_steps, workers, tries)
        else:
            made = _here(self.source, rows_of_steps, tries)
        with closing(made):  # at once, not when the last traceback is forgotten
            for rows, (pixels, sizes, bad) in made:
                self._note(bad)
                if tries:
                    refuse_too_many(self.bad_rows, self.source, self.max_bad)
                yield Pixels(rows, pixels, sizes)

    def _note(self, bad: Mapping[int, str]) -> None:
        """Remember new bad rows, each once."""
        fresh = {row: reason for row, reason in bad.items() if row not in self.bad_rows}
        if fresh:
            self.bad_rows.update(fresh)
            self.bad.update({self.source.paths[row]: reason for row, reason in fresh.items()})
            self._on_bad(self.bad)


def next_good(row: int, bad: Mapping[int, str], count: int) -> int:
    """The first row after a bad one, of ``count`` in a ring, that can be read."""
    return next((row + i) % count for i in range(1, count) if (row + i) % count not in bad)


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


def _decode(source: Source, rows: list[int], tries: int, stopped: Callable[[], bool] = lambda: False) -> _Decoded:
    """The canvases of some rows, each bad one replaced by the first good of the next ``tries`` rows, else black."""
    side = source.side
    pixels, sizes = [torch.zeros(3, side, side, dtype=torch.uint8)] * len(rows), [(1, 1)] * len(rows)
    bad: dict[int, str] = {}
    for i, row in enumerate(rows):
        if stopped():
            break
        for other in range(row, row + min(tries, len(source) - 1) + 1):
            found = source[other % len(source)]
            if found.bad is None:
                pixels[i], sizes[i] = found.pixels, (found.height, found.width)
                break
            bad[other % len(source)] = found.bad
    return _Decoded(torch.stack(pixels), torch.tensor(sizes), bad)


def _here(
    source: Source, rows_of_steps: Iterable[Tensor], tries: int
) -> Generator[tuple[Tensor, _Decoded], None, None]:
    """Every step decoded in this process, when it is asked for."""
    for rows in rows_of_steps:
        yield rows, _decode(source, rows.tolist(), tries)


def _in_workers(
    source: Source, rows_of_steps: Iterable[Tensor], workers: int, tries: int
) -> Generator[tuple[Tensor, _Decoded], None, None]:
    """Every step decoded by one of ``workers`` processes, ahead of time, returned in order.

    torch's DataLoader is not used since it answers a killed worker with an exception in the midst of the training
    step. Here the steps that were under way are simply asked for again of new workers, three times at most.
    """
    steps, ahead, deaths = iter(rows_of_steps), deque[Tensor](), 0
    while True:
        try:
            with _pool(source, workers) as pool:
                under_way = deque(pool.submit(_task, rows.tolist(), tries) for rows in ahead)
                while True:
                    while len(ahead) < workers * _AHEAD and (rows := next(steps, None)) is not None:
                        ahead.append(rows)
                        under_way.append(pool.submit(_task, rows.tolist(), tries))
                    if not ahead:
                        return
                    decoded = under_way.popleft().result()
                    deaths = 0
                    yield ahead.popleft(), decoded
        except BrokenProcessPool:
            deaths += 1
            if deaths == 3:
                raise Trouble(
                    "the processes that decode pictures were killed three times in a row; "
                    "give this machine or container more memory and /dev/shm, or use --workers 0",
                    IO,
                ) from None


@contextmanager
def _pool(source: Source, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that hold the source; none of them outlives the block, however it ends."""
    methods = torch.multiprocessing.get_all_start_methods()
    context = torch.multiprocessing.get_context("fork" if "fork" in methods else "spawn")  # fork: 10 ms, no pickling
    stop = context.RawValue("b", 0)
    pool = ProcessPoolExecutor(workers, context, _begin, (source, stop, os.getpid()))
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


_job: tuple[Source, _Stop] | None = None  # of a worker process


def _begin(source: Source, stop: _Stop, parent: int) -> None:
    """Set up a worker: one thread, deaf to Ctrl-C (the parent ends it), gone when the parent is."""
    global _job
    _job = source, stop
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    """End this worker within seconds of its parent's death, which nothing else would tell it."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)


def _task(rows: list[int], tries: int) -> _Decoded:
    """One step's canvases, in a worker."""
    if _job is None:
        raise RuntimeError("the worker was not set up")
    source, stop = _job
    return _decode(source, rows, tries, lambda: bool(stop.value))
