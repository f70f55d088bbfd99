"""How long anything is waited for, and how a process ends whose main thread does not come back. Imports no torch."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from lookalike.core.errors import IO, UserError, visible

TIMEOUT = "LOOKALIKE_TIMEOUT"
"""Environment variable: seconds after which a process that gives no sign of life is given up; ``--timeout``."""

_DEFAULT = 300.0  # a disk of a network may take minutes to come back, a machine that swaps as well
_HURRY = 1.0  # seconds that a second Ctrl-C leaves for an orderly end


def patience() -> float:
    """Seconds that a process may be silent. Raises UserError."""
    text = os.environ.get(TIMEOUT, "")
    with suppress(ValueError):
        if 0 < (seconds := float(text or _DEFAULT)) <= 1e9:
            return seconds
    raise UserError(f"{TIMEOUT} is {text!r}; it is a number of seconds above 0")


def end_at_once(words: str, code: int) -> NoReturn:
    """End this process from any of its threads: one line, the cursor back, and nothing else; workers follow it."""
    with suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")  # a live line has hidden it
        os.write(2, f"lookalike: {visible(words)}\n".encode("utf-8", "backslashreplace"))
    os._exit(code)


def end_on_second_interrupt() -> None:
    """From now on a second Ctrl-C ends this process within two seconds, whatever it waits for; for a command line.

    Python runs handlers in the main thread, which may be in a collective, or in a library that does not come back. The
    number of a signal goes through a pipe in any case, to a thread that waits for nothing else.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # or it would count what its workers get
    threading.Thread(target=_count_interrupts, args=(reader,), daemon=True).start()


def _count_interrupts(reader: int) -> None:
    for _ in range(2):
        while os.read(reader, 1) != bytes([signal.SIGINT]):
            pass
    time.sleep(_HURRY)
    end_at_once("stopped at once; what was saved before is whole", 128 + signal.SIGINT)


# ---- where this process hangs ----

_task: Callable[[int], str] | None = None
_begun = 0  # parts of it


@contextmanager
def working(name: Callable[[int], str]) -> Iterator[None]:
    """While this process itself does a task, of whose parts ``name`` knows what each reads."""
    global _task, _begun
    _task, _begun = name, 0
    try:
        yield
    finally:
        _task = None


def next_part() -> None:
    """The task goes on."""
    global _begun
    _begun += 1


class Hang:
    """Whether this process stays at one part of a task, for another thread that looks ``every`` so many seconds.

    Looks are counted, not the time, so nobody is blamed who was stopped together with his watch.
    """

    def __init__(self, seconds: float, every: float) -> None:
        self._seconds, self._every = seconds, every
        self._seen: tuple[Callable[[int], str] | None, int] = (None, 0)
        self._looks = 0

    def seen(self) -> str | None:
        """What is wrong, in words that follow the name of this process, if it is."""
        now = _task, _begun
        self._looks, self._seen = self._looks + 1 if now == self._seen else 0, now
        if _task is None or self._looks * self._every < self._seconds:
            return None
        return silent(self._seconds, _task(max(0, _begun - 1)))


def silent(seconds: float, part: str) -> str:
    """What is said of somebody who reads and gives no sign of life, after his name."""
    where = f", at {part}" if part else ""
    return (
        f"has not answered for {seconds:g} s{where}: look whether its disk does, or allow more with --timeout; "
        "what was saved is whole, and the same command continues"
    )


def end_where_it_hangs() -> None:
    """From now on this process ends where it hangs in a part of a task; for a command line. Raises UserError."""
    seconds = patience()

    def watch() -> None:
        hang = Hang(seconds, every := min(1.0, seconds / 10))
        while (words := hang.seen()) is None:
            time.sleep(every)
        end_at_once(f"{Process.own()} {words}", IO)

    threading.Thread(target=watch, daemon=True).start()


class Process(NamedTuple):
    """A process of some machine, known again by when it began; without /proc, by nothing."""

    pid: int = 0
    began: str = ""
    host: str = ""

    @classmethod
    def own(cls) -> Process:
        """This one."""
        return cls(os.getpid(), state_of(os.getpid())[1], socket.gethostname())

    def ended(self) -> bool:
        """Whether it is certain that it has: of one on this machine."""
        return self._here() and state_of(self.pid) not in [(state, self.began) for state in "RSDTtI"]

    def kill(self) -> None:
        """SIGKILL, which a stopped one obeys, too; only of one on this machine."""
        if self._here() and not self.ended():
            with suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)

    def _here(self) -> bool:
        return bool(self.began) and self.host == socket.gethostname()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def state_of(pid: int) -> tuple[str, str]:
    """Of a process on this machine: its state, as ``T`` for stopped, and when it began; empty without one, or /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]
