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
    printed: str = ""


class Forks:
    """A context manager; ``run`` is one command. The server has ``environment``, such as a locale, from its start."""

    def __init__(self, **environment: str) -> None:
        self._environment = environment

    def __enter__(self) -> Forks:
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | self._environment
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
        folder: Path | None = None,
    ) -> Ended:
        """``lookalike ARGUMENTS`` in this process's environment, with a signal at a moment or SIGKILL after seconds.

        Waits until it ends or stops. With a ``deadline`` in seconds it gets 3 GB more memory, and SIGKILL if
        late; ``folder`` is where it runs.
        """
        said, where = [str(argument) for argument in arguments], str(folder or Path.cwd())
        how = {"at": at, "seconds": seconds, "deadline": deadline, "folder": where}
        return self._ask(arguments=said, environment=dict(os.environ), **how)

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
        # A pipe would be full at 64 KB, and nobody there to empty it.
        with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as printed:
            pid = os.fork()
            if pid == 0:
                os.environ.update(asked["environment"])
                os.chdir(asked["folder"])
                if asked["deadline"] is not None:
                    _confine()
                _child(asked["arguments"], asked["at"], errors.fileno(), printed.fileno())
            if asked["seconds"] is not None:
                time.sleep(asked["seconds"])
                os.kill(pid, signal.SIGKILL)
            ended = _wait(pid) if asked["deadline"] is None else _wait_until(pid, time.monotonic() + asked["deadline"])
            for file in (errors, printed):
                file.seek(0)
            ended[2] = errors.read().decode(errors="surrogateescape")
            ended.append(printed.read().decode(errors="surrogateescape"))
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


def _child(arguments: list[str], at: list[Any] | None, errors: int, printed: int) -> None:
    from lookalike.cli.main import main

    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(printed, 1)
    os.dup2(errors, 2)
    if at is not None:
        _arm(Moment(*at))
    code: Any = 70  # an exception that the command line lets through
    try:
        main([os.fsdecode(word.encode("utf-8", "surrogateescape")) for word in arguments])  # as this locale has it
    except SystemExit as stopped:
        code = stopped.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
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
