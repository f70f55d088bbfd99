"""Processes forked from this one: how each starts, and what is said when they are killed again and again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.context import ForkContext
from typing import ParamSpec, TypeVar

import torch

from lookalike.core.errors import IO, UserError

P = ParamSpec("P")
R = TypeVar("R")

DEATHS = 3  # times in a row that processes may be killed before nobody asks them again


def context() -> ForkContext:
    """Forks start within 10 ms and may hold anything without pickling it."""
    return multiprocessing.get_context("fork")


def begin(parent: int) -> None:
    """Set up a worker: one thread, deaf to Ctrl-C (the parent ends it), mute, gone when the parent is."""
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


def submit(pool: ProcessPoolExecutor, work: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> Future[R]:
    """Ask a pool, which may fork a worker now."""
    with warnings.catch_warnings():
        # Python 3.12 warns of forking beside threads; a worker uses none of what those may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        return pool.submit(work, *arguments, **named)


def killed() -> UserError:
    """Why nobody goes on after so many deaths."""
    return UserError(
        "the processes that read pictures were killed three times in a row; "
        "give this machine or container more memory, or use --workers 0",
        IO,
    )
