"""Where files lie: one way to list them and to read spans of them, for this machine's folders and for remote ones."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from lookalike.data.formats.files import Listing, listed, printable
from lookalike.data.image.decode import Unreadable

MAX_BYTES = 1 << 30  # of one file: more is no picture that anybody wants to learn from


class Disk(Protocol):
    """Files by relative POSIX paths. Nothing is held open between calls, so forked and spawned workers may share it."""

    @property
    def piece(self) -> int:
        """Bytes that are best read at once when a file is walked through."""

    @property
    def at_once(self) -> int:
        """How many files are best walked through at a time."""

    def listed(self, suffixes: Sequence[str]) -> Listing:
        """The files that end in one of ``suffixes``; raises UserError."""

    def file(self, path: str) -> BinaryIO:
        """A file to seek in; raises OSError."""

    def span(self, path: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start`` on; raises Unreadable."""

    def whole(self, path: str) -> bytes:
        """All bytes of one file; raises Unreadable."""

    def name(self, path: str) -> str:
        """What messages call a file."""


class Local(NamedTuple):
    """A folder of this machine. Opening a file each time costs 10 µs, a hundredth of decoding a photo."""

    root: Path

    @property
    def piece(self) -> int:
        """A page: the next header of an archive lies in it or far away."""
        return 4096

    @property
    def at_once(self) -> int:
        """Four: a share answers them side by side, and where all comes from memory it costs nothing."""
        return 4

    def listed(self, suffixes: Sequence[str]) -> Listing:
        """The files that end in one of ``suffixes``."""
        return listed(self.root, suffixes)

    def file(self, path: str) -> BinaryIO:
        """A file to seek in; raises OSError, for a FIFO too."""
        number = self._open(path)
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise OSError("not a regular file")
        return os.fdopen(number, "rb", buffering=0)

    def span(self, path: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start`` on; raises Unreadable."""
        try:
            with self.file(path) as file:
                file.seek(start)
                data = file.read(length)
        except (OSError, ValueError) as error:
            raise Unreadable(_reason(error)) from None
        if len(data) != length:
            raise Unreadable(f"{printable(path)} ends before byte {start + length}")
        return data

    def whole(self, path: str) -> bytes:
        """All bytes of one file; raises Unreadable."""
        try:
            number = self._open(path)
            try:
                return _all_of(number)
            finally:
                os.close(number)
        except (OSError, ValueError) as error:
            raise Unreadable(_reason(error)) from None

    def name(self, path: str) -> str:
        """The path from here."""
        return printable(os.path.join(self.root, path))

    def _open(self, path: str) -> int:
        # Not blocking, should a FIFO have taken the file's place since it was listed.
        return os.open(os.path.join(self.root, path), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))


def _all_of(number: int) -> bytes:
    """What an open file holds, in a third of the time that a file object takes; raises Unreadable and OSError."""
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("not a regular file")
    if status.st_size > MAX_BYTES:
        raise Unreadable(f"{status.st_size} bytes are more than the limit of {MAX_BYTES}")
    data = os.read(number, status.st_size)
    while len(data) < status.st_size and (more := os.read(number, status.st_size - len(data))):
        data += more  # a share may hand over less at a time
    return data


def _reason(error: Exception) -> str:
    """The error in words that are the same everywhere; ValueError is a path with a NUL in it."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
