"""Work by forked processes, in order: a killed one is replaced, and what it had under way is done again."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch

from lookalike.core.devices import device
from lookalike.core.errors import IO, UserError
from lookalike.core.waiting import next_part, patience, silent, state_of, working

T = TypeVar("T")
R = TypeVar("R")

_DEATHS = 3  # times in a row that workers may be killed before no new one is started
_MOST = 16  # processes or threads: more of them only wait for the disk
_AHEAD = 3  # tasks under way per worker
_LEAVING = 1.0  # seconds that workers have to finish the part they are at
_PR_SET_PDEATHSIG = 1  # of Linux' prctl.h


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
    work: Callable[[T], R],
    tasks: Iterable[T],
    workers: int | None,
    ahead: int | None = None,
    part: Callable[[T, int], str] = lambda task, number: "",
) -> Generator[tuple[T, R], None, None]:
    """Each task with ``work(task)``, in order; by this process for 0 workers.

    Workers are forks, so ``work`` may hold anything; tasks and results are pickled. None are as many as
    ``worker_count`` says; ``ahead`` tasks are under way at most. torch's DataLoader is not used since it answers a
    killed worker with an exception in the midst of a training step. Here the tasks that were under way are given to new
    workers, three times at most. One that hangs, on a disk that does not answer, say, would hang again: it is named,
    with the ``part(task, number)`` of its task, for which it has called ``stopped`` last. Raises UserError.
    """
    if not (workers := worker_count(workers)):
        for own in tasks:
            with working(partial(part, own)):
                done = work(own)
            yield own, done
        return
    waiting, unfinished, deaths = iter(tasks), deque[T](), 0
    ahead = ahead or workers * _AHEAD
    while True:
        try:
            with _workers(work, workers, ahead) as pool:
                futures = deque(pool.submit(task) for task in unfinished)
                while True:
                    while len(unfinished) < ahead and (task := next(waiting, None)) is not None:
                        unfinished.append(task)  # before what may raise, else it would be lost
                        futures.append(pool.submit(task))
                    if not futures:
                        return
                    result, deaths = pool.result(*futures.popleft(), partial(part, unfinished[0])), 0
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
    """Whether the parent of this worker wants no more, never without workers: work asks before each of its parts.

    So nobody waits for it long, and where it does not ask any more it hangs.
    """
    if _job is None:
        next_part()
        return False
    _job.board[2 * _slot + 1] += 1
    return bool(_job.stop.value)


class _Pool:
    """Worker processes that hold the work; each task under way has a slot in shared memory: by whom, how far."""

    def __init__(self, work: Callable[[Any], Any], count: int, slots: int) -> None:
        context = multiprocessing.get_context("fork")  # forks start within 10 ms
        self._patience, self._slots, self._begun = patience(), slots, 0
        self._board, self._stop = context.RawArray("q", 2 * slots), context.RawValue("b", 0)
        self._pool = ProcessPoolExecutor(count, context, _begin, (_Job(work, self._stop, self._board), os.getpid()))
        with warnings.catch_warnings():
            # Python 3.12 warns of forking beside threads; a worker uses none of what those may hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pool.submit(int)  # which starts all of them
        self._processes = list(self._pool._processes.values())

    def submit(self, task: object) -> tuple[Future[Any], int]:
        """What will come of a task, and its slot."""
        slot = self._begun % self._slots
        self._begun += 1
        self._board[2 * slot : 2 * slot + 2] = [0, 0]
        return self._pool.submit(_do, slot, task), slot

    def result(self, future: Future[Any], slot: int, part: Callable[[int], str]) -> Any:
        """What came of it. Raises UserError for a worker without a sign of life, BrokenProcessPool for a dead one."""
        seen, since = -1, time.monotonic()
        while not future.done() and not wait([future], min(1, self._patience / 10)).done:
            worker, number = self._board[2 * slot : 2 * slot + 2]
            if number != seen:
                seen, since = number, time.monotonic()
            elif time.monotonic() - since > self._patience:
                raise UserError(self._hang(worker, part(max(0, number - 1)) if worker else ""), IO)
        return future.result()

    def _hang(self, worker: int, part: str) -> str:
        pids = [process.pid for process in self._processes if process.pid]
        still = [pid for pid in pids if state_of(pid)[0] == "T"] or ([worker] if worker else pids)
        return f"worker {', '.join(map(str, still))} on {socket.gethostname()} {silent(self._patience, part)}"

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()

    def close(self) -> None:
        """End all workers: at once where they are between two parts, by force a second later."""
        self._stop.value = 1
        force = threading.Timer(_LEAVING, self._kill)
        force.daemon = True
        force.start()
        self._pool.shutdown(cancel_futures=True)
        force.cancel()


@contextmanager
def _workers(work: Callable[[Any], Any], count: int, slots: int) -> Iterator[_Pool]:
    """None of them outlives the block, however it ends."""
    pool = _Pool(work, count, slots)
    try:
        yield pool
    finally:
        pool.close()


class _Job(NamedTuple):
    """Of a worker process: its work, a byte that the parent sets when it wants no more, and the slots of tasks.

    There are no locks in shared memory, which could die with their holder.
    """

    work: Callable[[Any], Any]
    stop: Any
    board: Any


_job: _Job | None = None
_slot = 0  # of the task under way


def _begin(job: _Job, parent: int) -> None:
    """Set up a worker: one thread, deaf to what asks its parent to stop, mute, gone when the parent is."""
    global _job
    _job = job
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # libtiff prints a line for each odd tag; what Python raises reaches the parent
    os.close(silence)
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # which ends a stopped one as well
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    """End this worker within seconds of its parent's death, which nothing else may tell it."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)


def _do(slot: int, task: Any) -> Any:
    global _slot
    assert _job is not None
    _slot = slot
    _job.board[2 * slot] = os.getpid()
    return _job.work(task)
