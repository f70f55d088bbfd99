"""The command line in processes of their own, killed at chosen moments: a server that has imported torch forks them.

A process that imports torch costs seconds, a fork of one milliseconds. Nothing of the product is replaced: the moments
are counted by an audit hook, which Python calls whenever a file is opened, renamed or removed.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

_TOUCHES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}


class Moment(NamedTuple):
    """The ``count``-th time that a process touches a path with ``where`` in it, it sends itself ``number``."""

    where: str
    count: int
    number: int = signal.SIGKILL


class Ended(NamedTuple):
    """How a process ended: its exit code, minus a signal's number, or None while it is stopped."""

    code: int | None
    pid: int
    errors: str
    peak: int  # MB of memory at once in it, or in the largest of its own processes


class Forks:
    """A context manager; ``run`` is one command."""

    def __enter__(self) -> Forks:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-W", "error", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.close()
        self._server.stdout.close()
        assert self._server.wait(30) == 0

    def run(
        self,
        arguments: Sequence[object],
        at: Moment | None = None,
        seconds: float | None = None,
        deadline: float | None = None,
    ) -> Ended:
        """``lookalike ARGUMENTS`` in this process's environment, with a signal at a moment or SIGKILL after seconds.

        Waits until it ends or stops. With a ``deadline`` in seconds it gets 3 GB more memory, and SIGKILL if it is late.
        """
        said = [str(argument) for argument in arguments]
        return self._ask(arguments=said, at=at, seconds=seconds, deadline=deadline, environment=dict(os.environ))

    def kill(self, pid: int) -> Ended:
        """SIGKILL to a process that was stopped."""
        return self._ask(kill=pid)

    def _ask(self, **asked: Any) -> Ended:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        return Ended(*json.loads(self._server.stdout.readline()))


def _serve() -> None:
    import torch

    import lookalike.cli.verbs  # noqa: F401  (all that a command imports)

    torch.set_num_threads(1)
    _obey_modes()
    for line in sys.stdin:
        asked = json.loads(line)
        if "kill" in asked:
            os.kill(asked["kill"], signal.SIGKILL)
            print(json.dumps(_wait(asked["kill"])), flush=True)
            continue
        with tempfile.TemporaryFile() as errors:  # a pipe would be full at 64 KB, and nobody there to empty it
            pid = os.fork()
            if pid == 0:
                os.environ.update(asked["environment"])
                if asked["deadline"] is not None:
                    _confine()
                _child(asked["arguments"], asked["at"], errors.fileno())
            if asked["seconds"] is not None:
                time.sleep(asked["seconds"])
                os.kill(pid, signal.SIGKILL)
            ended = _wait(pid) if asked["deadline"] is None else _wait_until(pid, time.monotonic() + asked["deadline"])
            errors.seek(0)
            ended[2] = errors.read().decode(errors="surrogateescape")
        print(json.dumps(ended), flush=True)
    os._exit(0)  # at once: torch takes its time to leave


def _wait(pid: int) -> list[Any]:
    _, status, used = os.wait4(pid, os.WUNTRACED)
    return [None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status), pid, "", used.ru_maxrss >> 10]


def _wait_until(pid: int, late: float) -> list[Any]:
    """As ``_wait`` until then; its group ends with it."""
    done, status, used = os.wait4(pid, os.WNOHANG)
    while not done and time.monotonic() < late:
        time.sleep(0.01)
        done, status, used = os.wait4(pid, os.WNOHANG)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if not done:
        _, status, used = os.wait4(pid, 0)
    return [os.waitstatus_to_exitcode(status), pid, "", used.ru_maxrss >> 10]


def _confine() -> None:
    """A group of its own, and 3 GB more than there are."""
    os.setpgid(0, 0)
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (3 << 30),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _obey_modes() -> None:
    """Let the modes of files bind this process even when it is root, as they bind everybody else (Linux only)."""
    override, search = 1, 2  # the capabilities CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    libc = ctypes.CDLL(None)
    head, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if sys.platform == "linux" and libc.capget(head, sets) == 0:
        for i in range(3):
            sets[i] &= ~(1 << override | 1 << search)
        libc.capset(head, sets)


def _child(arguments: list[str], at: list[Any] | None, errors: int) -> None:
    from lookalike.cli.main import main

    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(errors, 2)
    if at is not None:
        _arm(Moment(*at))
    code: Any = 70  # an exception that the command line lets through
    try:
        main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stderr.flush()
    os._exit(code)


def _arm(moment: Moment) -> None:
    left = moment.count

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in _TOUCHES and isinstance(arguments[0], str | Path) and moment.where in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), moment.number)

    sys.addaudithook(hook)


def digest(run: Path) -> dict[str, bytes]:
    """All that a run leaves of what it learned, byte for byte, and what it logged: there are no times in it."""
    last = max((run / "checkpoints").iterdir())
    names = ["learner.safetensors", "optimizer.safetensors", "state.json"]
    return {name: (last / name).read_bytes() for name in names} | {"metrics": (run / "metrics.jsonl").read_bytes()}


if __name__ == "__main__":
    _serve()
