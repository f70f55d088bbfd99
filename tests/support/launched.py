"""Processes as torchrun starts them, forked from here: no second import of torch, and no agent that ends them.

What they do by themselves is what is tested. As torchrun's agent does, this process holds the store where they meet.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch.distributed import TCPStore

from lookalike.cli.main import main
from lookalike.core.dist import HARMLESS

PATIENCE = 60.0  # seconds, after which a test has failed


class Ended(NamedTuple):
    """Of one process: its exit code, minus a signal's number, and what it printed."""

    code: int
    said: str

    @property
    def line(self) -> str:
        """The one line of its error."""
        (line,) = [line for line in self.said.splitlines() if line.startswith("lookalike: ")]
        return line


class Processes:
    """Those of one launch."""

    def __init__(self, pids: list[int], folder: Path) -> None:
        self.pids, self._folder = pids, folder
        self._codes: dict[int, int] = {}

    def ended(self) -> list[Ended]:
        """Waits for all of them."""
        self.until(self._all_ended)
        return [Ended(self._codes[pid], said) for pid, said in zip(self.pids, self._said())]

    def until(self, true: Callable[[], bool]) -> None:
        """Waits for something that they do."""
        limit = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < limit, self._said()
            assert not self._all_ended() or true(), self._said()
            time.sleep(0.01)

    def send(self, rank: int, number: int) -> None:
        """A signal, which has arrived when this returns: two of one kind that wait are one."""
        os.kill(self.pids[rank], number)
        self.until(lambda: not _pending(self.pids[rank]) >> (number - 1) & 1)

    def workers(self, rank: int) -> list[int]:
        """The processes that one has started."""
        pid = self.pids[rank]
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def end(self) -> None:
        """Nothing outlives a test."""
        self._look()
        for pid in set(self.pids) - set(self._codes):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _said(self) -> list[str]:
        return [
            path.read_text() if path.exists() else ""
            for path in map(self._folder.joinpath, map(str, range(len(self.pids))))
        ]

    def _all_ended(self) -> bool:
        self._look()
        return len(self._codes) == len(self.pids)

    def _look(self) -> None:
        for pid in set(self.pids) - set(self._codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._codes[pid] = os.waitstatus_to_exitcode(status)


def _pending(pid: int) -> int:
    """The signals that wait for a process, a bit each."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["SigPnd"], 16) | int(lines["ShdPnd"], 16)


def alive(pid: int) -> bool:
    """Whether there is such a process, which has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gone(pids: Sequence[int]) -> None:
    """Waits for processes to end."""
    limit = time.monotonic() + PATIENCE
    while any(map(alive, pids)):
        assert time.monotonic() < limit, pids
        time.sleep(0.01)


@contextmanager
def launched(*commands: Callable[[], None], environments: Sequence[dict[str, str]] = ()) -> Iterator[Processes]:
    """One process for each command, with what each of ``environments`` adds; ranks if there are to be several."""
    world = len(commands)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes([], Path(folder))
        try:
            for rank, command in enumerate(commands):
                about = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(world)}
                about |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_USE_AGENT_STORE": "True"}
                about |= environments[rank] if environments else {}
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of forking beside threads
                    pid = os.fork()
                if pid == 0:
                    _child(command, about if world > 1 else {}, Path(folder) / str(rank))
                processes.pids.append(pid)
            yield processes
        finally:
            processes.end()


def lookalike(*arguments: object) -> Callable[[], None]:
    """The command line, as if it had been typed."""

    def run() -> None:
        sys.argv = ["lookalike", *map(str, arguments)]
        main()

    return run


def _child(command: Callable[[], None], environment: dict[str, str], said: Path) -> None:
    code: object = 70  # an exception that the command line lets through
    try:
        os.setsid()
        file = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        for number in (1, 2):
            os.dup2(file, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        os.environ.update(environment)
        torch.set_num_threads(int(os.environ.get("THREADS", "1")))  # this process's pool of threads is not the parent's
        warnings.filterwarnings("ignore", HARMLESS)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        command()
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 70)
