"""Work by forked processes, in order: a killed one is replaced, and what it had under way is done again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from lookalike.core.devices import device
from lookalike.core.errors import IO, UserError

T = TypeVar("T")
R = TypeVar("R")

_DEATHS = 3  # times in a row that workers may be killed before no new one is started
_MOST = 16  # processes or threads: more of them only wait for the disk
_AHEAD = 3  # tasks under way per worker


def cores() -> int:
    """The processors that this process may use, at most 16: more decoders than that only wait for the disk."""
    return min(_MOST, _allowed())


def _allowed() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(workers: int | None, kind: str | None = None, available: int | None = None) -> int:
    """How many processes decode: ``workers``, or where nobody says as many as suit a ``kind`` of device.

    A processor that trains keeps its cores, but for 2. A GPU would wait for those (885 pictures a second,
    4,333 with 16): it gets all but two of the ``available`` cores, of which ranks on one machine have equal parts.
    """
    if workers is not None:
        return workers
    if (kind or device().type) != "cuda":
        return 2
    mine = (available or _allowed()) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(2, min(_MOST, mine - 2))


def ordered(
    work: Callable[[T], R], tasks: Iterable[T], workers: int | None, ahead: int | None = None
) -> Generator[tuple[T, R], None, None]:
    """Each task with ``work(task)``, in order; by this process for 0 workers.

    Workers are forks, so ``work`` may hold anything; tasks and results are pickled. None are as many as
    ``worker_count`` says; ``ahead`` tasks are under way at most. torch's DataLoader is not used since it answers a
    killed worker with an exception in the midst of a training step. Here the tasks that were under way are given to new
    workers, three times at most. Raises UserError.
    """
    if not (workers := worker_count(workers)):
        yield from ((task, work(task)) for task in tasks)
        return
    waiting, unfinished, deaths = iter(tasks), deque[T](), 0
    while True:
        try:
            with _workers(work, workers) as pool:
                futures = deque(pool.submit(_do, task) for task in unfinished)
                while True:
                    while len(unfinished) < (ahead or workers * _AHEAD) and (task := next(waiting, None)) is not None:
                        unfinished.append(task)  # before what may raise, else it would be lost
                        futures.append(pool.submit(_do, task))
                    if not futures:
                        return
                    result, deaths = futures.popleft().result(), 0
                    yield unfinished.popleft(), result
        except BrokenProcessPool:
            deaths += 1
            if deaths == _DEATHS:
                raise UserError(
                    "the processes that read pictures were killed three times in a row; "
                    "give this machine or container more memory, or use --workers 0",
                    IO,
                ) from None


def stopped() -> bool:
    """Whether the parent of this worker wants no more: long work looks now and then, so that nobody waits for it."""
    return _job is not None and bool(_job[1].value)


@contextmanager
def _workers(work: Callable[[Any], Any], count: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that hold the work; none of them outlives the block, however it ends."""
    context = multiprocessing.get_context("fork")  # forks start within 10 ms
    stop = context.RawValue("b", 0)
    pool = ProcessPoolExecutor(count, context, _begin, (work, stop, os.getpid()))
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of forking beside threads; a worker uses none of what those may hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            pool.submit(int).result()  # which starts all of them
        yield pool
    finally:
        stop.value = 1
        pool.shutdown(wait=True, cancel_futures=True)


_job: tuple[Callable[[Any], Any], Any] | None = None
"""Of a worker process: its work, and a byte in shared memory that the parent sets when it wants no more; a lock could
die with its holder."""


def _begin(work: Callable[[Any], Any], stop: Any, parent: int) -> None:
    """Set up a worker: one thread, deaf to Ctrl-C (the parent ends it), mute, gone when the parent is."""
    global _job
    _job = work, stop
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # libtiff prints a line for each odd tag; what Python raises reaches the parent
    os.close(silence)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    """End this worker within seconds of its parent's death, which nothing else would tell it."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)


def _do(task: Any) -> Any:
    assert _job is not None
    return _job[0](task)
