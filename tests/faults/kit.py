"""A system call of a run that is let fail, or at which the run is killed: strace does it, to the real program.

strace rather than a layer of our own to write through: files are also written by safetensors' Rust code, pyarrow and
TensorBoard's format, and a layer of ours would believe of them what it is meant to test. A run is first only watched.
What it does is the same each time, so each call that touches its folder is known by its name and its number.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from tests.support.forks import Ended, Forks

CHANGES = (
    *("write", "pwrite64", "writev", "fsync", "fdatasync", "ftruncate", "fallocate", "openat", "mkdir", "mkdirat"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "link", "linkat", "symlink", "symlinkat"),
)
"""What changes a disk; ``openat`` where it creates a file."""

ERRORS = {
    "write": ("ENOSPC", "EIO", "EDQUOT"),
    "fsync": ("EIO", "ENOSPC"),
    "ftruncate": ("EIO", "ENOSPC"),
    "openat": ("ENOSPC", "EROFS", "EDQUOT"),
    "mkdir": ("ENOSPC", "EROFS"),
    "rename": ("EIO", "EROFS"),
    "renameat": ("EIO", "ENOSPC"),
    "unlink": ("EROFS",),
    "unlinkat": ("EROFS",),
    "rmdir": ("EIO",),
}
"""What a disk that is full, broken, over its quota or mounted anew says to each; of others it is EIO."""

Case = TypeVar("Case")
_CALL = re.compile(r"(?P<pid>\d+) +(?P<name>\w+)\(")


class Call(NamedTuple):
    """The ``number``-th call of this name by the main thread of a command."""

    name: str
    number: int
    text: str  # as strace shows it

    def killed(self) -> tuple[str, str]:
        """What lets strace kill the process before it makes this call."""
        return f"trace={self.name}", f"inject={self.name}:signal=KILL:when={self.number}"

    def fails(self, error: str, ever_after: bool) -> tuple[str, str]:
        """What lets strace make it fail, alone or with all after it of its name."""
        when = f"{self.number}{'+' if ever_after else ''}"
        return f"trace={self.name}", f"inject={self.name}:error={error}:when={when}"


@functools.cache
def why_not() -> str | None:
    """Why no system call can be let fail here, or None."""
    if sys.platform != "linux" or shutil.which("strace") is None:
        return "there is no strace"
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"tracing is forbidden here: {tried.stderr.strip()[:100]}"


def needs_strace() -> None:
    """Skip a test where no system call can be let fail."""
    if reason := why_not():
        pytest.skip(reason)


class Tracer(NamedTuple):
    """Commands under strace; ``log`` is a file of its own."""

    forks: Forks
    log: Path

    def calls(self, command: Sequence[object], folder: Path, among: Sequence[str] = CHANGES) -> list[Call]:
        """The calls of a command that touch ``folder``, in their order. The command has to succeed."""
        ended = self.run(command, f"trace={','.join(among)}")
        assert ended.code == 0, ended.errors
        return list(_of_folder(self.log.read_text("utf-8", "replace").splitlines(), str(folder)))

    def run(self, command: Sequence[object], *expressions: str) -> Ended:
        """A command under strace, with these expressions (``-e``)."""
        options = [part for expression in expressions for part in ("-e", expression)]
        return self.forks.run(command, strace=["-y", "-o", str(self.log), *options])

    def injected(self) -> str:
        """The calls that were let fail, as strace shows them."""
        return "\n".join(line for line in self.log.read_text("utf-8", "replace").splitlines() if "(INJECTED)" in line)


def _of_folder(lines: Sequence[str], folder: str) -> Iterator[Call]:
    counts: Counter[str] = Counter()
    main = lines[0].split()[0]  # the process that strace was attached to
    for line in lines:
        found = _CALL.match(line)
        if not found or found["pid"] != main:
            continue
        counts[found["name"]] += 1
        creates = found["name"] != "openat" or "O_CREAT" in line
        if folder in line and creates:
            yield Call(found["name"], counts[found["name"]], line)


class Scene(NamedTuple):
    """A command, what its folder holds before, and how that is looked at after."""

    set_up: Callable[[Path], object]  # makes what is in the folder before
    command: Callable[[Path], list[object]]
    left: Callable[[Path], object]  # what must be equal to the same of a command that met no fault
    whole: Callable[[Path], None]  # raises where the old state was lost
    once: bool = False  # whether it is refused where all is done


def every(what: str, cases: Sequence[Case], check: Callable[[Case, Path], None], folder: Path) -> None:
    """Try each case in a new path below ``folder``, and say how many held; fails with all that did not."""
    wrong: list[str] = []
    for number, case in enumerate(cases):
        try:
            check(case, folder / str(number))
        except AssertionError as error:
            wrong.append(f"{case}: {error}")
    print(f"{what}: {len(cases) - len(wrong)} of {len(cases)} cases hold")
    assert not wrong, "\n\n".join(wrong)
