"""The command line in processes of their own, killed at chosen moments: a server that has imported torch forks them.

A process that imports torch costs seconds, a fork of one milliseconds. Nothing of the product is replaced: the moments
are counted by an audit hook, which Python calls whenever a file is opened, renamed or removed; or strace is attached to
the process before it begins, which sees every system call, those of compiled code too, and lets any of them fail.
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
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

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
    cpu: float  # seconds that it computed
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
        strace: Sequence[str] = (),
        deadline: float | None = None,
        folder: Path | None = None,
    ) -> Ended:
        """``lookalike ARGUMENTS`` in this process's environment, with a signal at a moment or SIGKILL after seconds.

        ``strace`` are the options of a strace that is attached to it, and to all that it starts. Waits until it ends or
        stops. With a ``deadline`` in seconds it gets 3 GB more memory, and SIGKILL if late. It runs in ``folder``.
        """
        how = {"at": at, "seconds": seconds, "strace": list(strace), "deadline": deadline}
        self._send(**self._asked([arguments], **how, folder=str(folder or Path.cwd())))
        return self._ended()

    def _asked(self, commands: Sequence[Sequence[object]], **how: Any) -> dict[str, Any]:
        said = [[str(argument) for argument in arguments] for arguments in commands]
        usual = {"at": None, "seconds": None, "strace": [], "deadline": None, "folder": str(Path.cwd())}
        return {"commands": said, "environment": os.environ | self._environment, **usual, **how}

    def race(self, commands: Sequence[Sequence[object]], seconds: float = 300) -> list[Ended]:
        """Several commands at once; SIGKILL to the last one that is left, and after so many seconds to all."""
        self._send(race=True, **self._asked(commands, seconds=seconds))
        return [self._ended() for _ in commands]

    def kill(self, pid: int) -> Ended:
        """SIGKILL to a process that was stopped."""
        self._send(kill=pid)
        return self._ended()

    def _send(self, **asked: Any) -> None:
        assert self._server.stdin
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()

    def _ended(self) -> Ended:
        assert self._server.stdout
        return Ended(*json.loads(self._server.stdout.readline()))


def _serve() -> None:
    import scipy.sparse.csgraph  # noqa: F401
    import sklearn.cluster
    import sklearn.linear_model  # noqa: F401
    import timm  # noqa: F401
    import torch
    import torch._dynamo
    import torchvision  # noqa: F401

    import lookalike.cli.verbs  # noqa: F401  (all that a command imports at once, and what some import later)

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as at a terminal: tests may run in the background
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    _obey_modes()
    for line in sys.stdin:
        asked = json.loads(line)
        if "kill" in asked:
            os.kill(asked["kill"], signal.SIGKILL)
            print(json.dumps(_wait(asked["kill"])), flush=True)
            continue
        began = [_begin(arguments, asked) for arguments in asked["commands"]]
        if "race" in asked:
            _until_one_is_left([pid for pid, _ in began], asked["seconds"])
        elif asked["seconds"] is not None:
            time.sleep(asked["seconds"])
        if asked["seconds"] is not None:
            for pid, _ in began:
                os.kill(pid, signal.SIGKILL)
        for pid, files in began:
            late = asked["deadline"]
            ended = _wait(pid) if late is None else _wait_until(pid, time.monotonic() + late)
            for file in files:
                file.seek(0)
            ended[2], ended[5] = (file.read().decode(errors="surrogateescape") for file in files)
            for file in files:
                file.close()
            print(json.dumps(ended), flush=True)
    os._exit(0)  # at once: torch takes its time to leave


def _begin(arguments: list[str], asked: dict[str, Any]) -> tuple[int, list[IO[bytes]]]:
    """The process of a command, and what it will say of errors, and print."""
    # Until it has ended; a pipe would be full at 64 KB, and nobody there to empty it.
    errors, printed = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
    pid = os.fork()
    if pid == 0:
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])
        if asked["deadline"] is not None:
            _confine()
        if asked["strace"]:
            _await_tracer()
        _child(arguments, asked["at"], errors.fileno(), printed.fileno())
    if asked["strace"]:
        os.waitpid(pid, os.WUNTRACED)
        tracer = subprocess.Popen(
            ["strace", "-f", "-p", str(pid), *asked["strace"]], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert tracer.stderr
        said = tracer.stderr.readline()
        threading.Thread(target=tracer.communicate, daemon=True).start()  # or it would wait for a reader of its words
        os.kill(pid, signal.SIGCONT if b"attached" in said else signal.SIGKILL)
    return pid, [errors, printed]


def _until_one_is_left(pids: list[int], seconds: float) -> None:
    """Wait until all but one have ended, or so long; nobody is fetched yet."""
    end = time.monotonic() + seconds

    def lives(pid: int) -> bool:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    while time.monotonic() < end and sum(map(lives, pids)) > 1:
        time.sleep(0.02)


def _await_tracer() -> None:
    """Stop until a tracer is attached, and let one that is no parent of this process do so (Yama allows no other)."""
    allow, anybody = 0x59616D61, ctypes.c_ulong(-1)  # PR_SET_PTRACER, PR_SET_PTRACER_ANY
    ctypes.CDLL(None).prctl(allow, anybody, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)


def _wait(pid: int, options: int = os.WUNTRACED) -> list[Any]:
    done, status, used = os.wait4(pid, options)
    code = None if not done or os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
    return [code, done, "", used.ru_maxrss >> 10, used.ru_utime + used.ru_stime, ""]


def _wait_until(pid: int, late: float) -> list[Any]:
    """As ``_wait`` until then; its group ends with it."""
    ended = _wait(pid, os.WNOHANG)
    while not ended[1] and time.monotonic() < late:
        time.sleep(0.01)
        ended = _wait(pid, os.WNOHANG)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return ended if ended[1] else _wait(pid, 0)


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
    warnings.filterwarnings("default", module=r"lookalike\.")  # the package's own are lines for people
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
