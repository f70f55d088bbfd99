"""Decoding in this process or in others, into memory that all of them share."""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from operator import itemgetter
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lookalike.data import forks
from lookalike.data.example import PictureSource

PART = 64  # rows a task: 3 MB of canvases at 128 px, some 10 to 50 ms of work
_AHEAD = 2  # tasks in the making per worker, and steps if that is more

Bytes = npt.NDArray[np.uint8]


class Part(NamedTuple):
    """The rows of a step (B,) from ``start`` on that are one task."""

    rows: Tensor
    start: int

    @property
    def stop(self) -> int:
        """Where the next part starts."""
        return min(self.start + PART, len(self.rows))

    def asked(self) -> list[int]:
        """The rows."""
        found: list[int] = self.rows[self.start : self.stop].tolist()
        return found


class Filled(NamedTuple):
    """What is known of canvases beside their pixels; ``bad`` holds every row met that could not be read."""

    sizes: list[tuple[int, int]]
    bad: dict[int, str]


class Decoding(NamedTuple):
    """What is decoded: rows of a source on canvases of ``side``, a bad one replaced by the first good of ``tries``."""

    source: PictureSource
    side: int
    tries: int  # 0 leaves bad rows black

    def fill(self, rows: list[int], into: Bytes, stopped: Callable[[], bool] = lambda: False) -> Filled:
        """Canvases of some rows ``into`` (B, 3, S, S).

        numpy's assignment lays interleaved colours out as planes in half the time of torch's. Rows are read in their
        own order, in which frames of a video follow each other.
        """
        filled, count = Filled([(1, 1)] * len(rows), {}), len(self.source)
        for i, row in sorted(enumerate(rows), key=itemgetter(1)):
            if stopped():
                break
            for other in range(row, row + min(self.tries, count - 1) + 1):
                example = self.source.example(other % count, self.side)
                if example.bad is None:
                    into[i], filled.sizes[i] = example.pixels.numpy(), (example.height, example.width)
                    break
                filled.bad[other % count] = example.bad
            else:
                into[i] = 0
        return filled


Made = Generator[tuple[Part, Bytes, Filled], None, None]
"""Parts in their order, each with canvases that are overwritten when the next is asked for."""


def here(decoding: Decoding, parts: Iterator[Part]) -> Made:
    """Every part decoded in this process, when it is due."""
    into = np.empty((PART, 3, decoding.side, decoding.side), np.uint8)
    for part in parts:
        yield part, into, decoding.fill(part.asked(), into)


def in_workers(decoding: Decoding, parts: Iterator[Part], workers: int) -> Made:
    """Every part decoded by one of ``workers`` processes, ahead of time, into memory that all of them share.

    torch's DataLoader is not used since it answers a killed worker with an exception in the midst of the training
    step. Here the parts that were under way are simply asked for again of new workers, three times at most.
    """
    first = next(parts, None)
    if first is None:
        return
    slots = _shared(_AHEAD * max(workers, -(-len(first.rows) // PART)), decoding.side)
    ahead, taken, deaths = deque([(0, first)]), 1, 0  # a part's number decides its slot, in turns
    while True:
        try:
            with _pool(decoding, slots, workers) as pool:

                def submit(number: int, part: Part) -> Future[Filled]:
                    return pool.submit(_task, part.asked(), number % len(slots))

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
            if deaths == forks.DEATHS:
                raise forks.killed() from None


def _shared(count: int, side: int) -> Bytes:
    """(count, PART, 3, S, S) that forked processes share: used again and again, and not bound by what /dev/shm holds.

    A new block a batch cost the workers about 40 µs of system time more a picture, with 128 px and 0.15 ms of work.
    """
    shape = (count, PART, 3, side, side)
    return np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8).reshape(shape)


@contextmanager
def _pool(decoding: Decoding, slots: Bytes, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that hold the source; none of them outlives the block, however it ends."""
    context = forks.context()
    stop = context.RawValue("b", 0)
    pool = ProcessPoolExecutor(workers, context, _begin, (decoding, slots, stop, os.getpid()))
    try:
        forks.submit(pool, int).result()
        yield pool
    finally:
        stop.value = 1  # a batch of large photos takes seconds, which nobody shall wait for
        pool.shutdown(wait=True, cancel_futures=True)


class _Stop(Protocol):
    """A byte in shared memory that the parent sets when it wants no more; a lock could die with its holder."""

    value: int


_job: tuple[Decoding, Bytes, _Stop] | None = None  # of a worker process


def _begin(decoding: Decoding, slots: Bytes, stop: _Stop, parent: int) -> None:
    global _job
    _job = decoding, slots, stop
    forks.begin(parent)


def _task(rows: list[int], slot: int) -> Filled:
    """Some canvases into a slot, in a worker."""
    if _job is None:
        raise RuntimeError("the worker was not set up")
    decoding, slots, stop = _job
    return decoding.fill(rows, slots[slot], lambda: bool(stop.value))
