"""Functions run by several gloo processes at once, forked from this one: no second import of torch."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from lookalike.core.dist import HARMLESS


def ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function(*arguments)`` returns on each of ``world`` ranks; tensors must be turned into lists or arrays."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of forking beside threads, which sleep
        pipes = [context.Pipe(duplex=False) for _ in range(world)]
        workers = [
            context.Process(
                target=_rank, args=(rank, world, Path(folder) / "meet", pipes[rank][1], function, arguments)
            )
            for rank in range(world)
        ]
        for worker in workers:
            worker.start()
        for _, sender in pipes:
            sender.close()
        answers = [_answer(receiver) for receiver, _ in pipes]
        for worker in workers:
            worker.join(60)
    failed = [text for text, _ in answers if text]
    assert not failed, "\n".join(failed)
    return [value for _, value in answers]


def _answer(receiver: Connection) -> tuple[str, Any]:
    try:
        found: tuple[str, Any] = receiver.recv()
    except EOFError:
        return "a rank died without a word", None
    return found


def _rank(
    rank: int, world: int, meet: Path, sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)  # the parent's pool of threads does not exist here
    warnings.filterwarnings("ignore", HARMLESS)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world)
    try:
        sender.send(("", function(*arguments)))
    except Exception:
        sender.send((traceback.format_exc(), None))
    finally:
        torch.distributed.destroy_process_group()
        sender.close()
        os._exit(0)
