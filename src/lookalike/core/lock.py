"""One writer a folder: a lock on a file in it, which the death of its process frees."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

from lookalike.core.errors import LOCKED, UserError

LOCK = "run.lock"
_TRIES = 20  # each lost to a process that moved the folder in the moment before

_held: set[IO[str]] = set()


@cache
def _workers_let_go() -> None:
    """A worker that outlives this process for a moment would else keep its lock: a flock belongs to all its heirs."""
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _held])


class Lock:
    """The lock of a folder, which is made if there is none.

    A folder may be moved between opening the file in it and locking that file. So what is locked is compared with what
    the path names by then, and what is held can be compared again at any time.
    """

    def __init__(self, folder: Path) -> None:
        """Raises UserError where another process holds it, and OSError."""
        self.path = folder / LOCK
        self.fresh = not self.path.exists()
        self._file = self._locked()
        _held.add(self._file)
        _workers_let_go()
        self._file.truncate(0)
        self._file.write(f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        self._file.flush()

    def holds(self) -> bool:
        """Whether the folder still is where it was when it was locked."""
        return self._is(self._file)

    def release(self) -> None:
        """Let others in."""
        _held.discard(self._file)
        with suppress(OSError):  # a full disk, or one that is gone, keeps nobody out
            self._file.truncate(0)
        self._file.close()

    def _locked(self) -> IO[str]:
        for _ in range(_TRIES):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                file = self.path.open("a+", encoding="utf-8")
                self._take(file)
                if self._is(file):
                    return file
                file.close()
        raise UserError(f"{self.path.parent} is moved about by other processes: choose another --out", LOCKED)

    def _take(self, file: IO[str]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = holder_in(file)
            file.close()
            reason = f"{self.path.parent} is in use by {holder}: wait for it, or choose another --out"
            raise UserError(reason, LOCKED) from None

    def _is(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except OSError:
            return False


def holder_in(file: IO[str]) -> str:
    """Who says in a lock file that they hold it."""
    file.seek(0)
    return file.read(200).strip() or "another process"


def holder(folder: Path) -> str | None:
    """The process that holds the lock of a folder, which is not touched."""
    with suppress(OSError), (folder / LOCK).open(encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return holder_in(file)
    return None
