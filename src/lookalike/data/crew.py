"""Work on many pictures by several processes, in order: for what is done to all of them once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from lookalike.data import forks

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
            with ProcessPoolExecutor(workers, forks.context(), _begin, (work, os.getpid())) as pool:
                under_way = deque(forks.submit(pool, _do, task) for task in ahead)
                while True:
                    while len(ahead) < workers * _AHEAD and (task := next(waiting, None)) is not None:
                        ahead.append(task)
                        under_way.append(forks.submit(pool, _do, task))
                    if not ahead:
                        return
                    done = under_way.popleft().result()
                    deaths = 0
                    ahead.popleft()
                    yield done
        except BrokenProcessPool:
            deaths += 1
            if deaths == forks.DEATHS:
                raise forks.killed() from None


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    global _work
    _work = work
    forks.begin(parent)


def _do(task: Any) -> Any:
    if _work is None:
        raise RuntimeError("the worker was not set up")
    return _work(task)
