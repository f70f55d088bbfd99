"""Work on many pictures by several processes, in order: for what is done to all of them once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from lookalike.trouble import IO, Trouble

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 3  # tasks under way per worker
_work: Callable[[Any], Any] | None = None  # of a worker process


def across(work: Callable[[T], R], tasks: Iterable[T], workers: int) -> Generator[R, None, None]:
    """``work(task)`` of each task in order; by this process for 0 workers.

    Workers are forks, so ``work`` may hold anything; what it returns is pickled. Tasks that were under way when a
    worker was killed are asked for again of new ones, three times at most.
    """
    if not workers:
        yield from map(work, tasks)
        return
    waiting, ahead, deaths = iter(tasks), deque[T](), 0
    while True:
        try:
            with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin, (work, os.getpid())) as pool:
                under_way = deque(_submit(pool, task) for task in ahead)
                while True:
                    while len(ahead) < workers * _AHEAD and (task := next(waiting, None)) is not None:
                        ahead.append(task)
                        under_way.append(_submit(pool, task))
                    if not ahead:
                        return
                    done = under_way.popleft().result()
                    deaths = 0
                    ahead.popleft()
                    yield done
        except BrokenProcessPool:
            deaths += 1
            if deaths == 3:
                raise Trouble(
                    "the processes that read pictures were killed three times in a row; "
                    "give this machine or container more memory, or use --workers 0",
                    IO,
                ) from None


def _submit(pool: ProcessPoolExecutor, task: Any) -> Future[Any]:
    with warnings.catch_warnings():
        # Python 3.12 warns of forking beside threads; a worker uses none of what those may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        return pool.submit(_do, task)


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    """Set up a worker: one thread, deaf to Ctrl-C (the parent ends it), mute, gone when the parent is."""
    global _work
    _work = work
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
    if _work is None:
        raise RuntimeError("the worker was not set up")
    return _work(task)
