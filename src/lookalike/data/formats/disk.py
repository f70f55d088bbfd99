"""Where files lie: one way to list them and to read spans of them, for this machine's folders and for remote ones."""

from __future__ import annotations

import io
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from lookalike.core.errors import BAD_DATA, IO, USAGE, UserError
from lookalike.data.decode import Unreadable, one_line
from lookalike.data.formats.files import Listing, is_hidden, is_thumbnail, listed, on_disk, printable, suffix_of

_WAITS = (0.5, 2.0, 8.0)  # seconds between tries
MAX_BYTES = 1 << 30  # of one file: more is no picture that anybody wants to learn from


@dataclass(frozen=True)
class Local:
    """A folder of this machine. Opening a file each time costs 10 µs, a hundredth of decoding a photo."""

    root: Path
    piece: ClassVar[int] = 4096  # bytes read at once in a walk: the next header of an archive is as near, or far away
    at_once: ClassVar[int] = 4  # files walked through: a share answers side by side, and from memory it costs nothing

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
        return os.open(on_disk(self.root, path), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))


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


@dataclass(frozen=True)
class Remote:
    """A folder that fsspec can open (s3://, gs://, https://, ...). Every process makes its own connections.

    A file that is not there is a bad row. A disk that cannot be reached is UserError, after some tries: another picture
    in the place of one that the network lost would make the run depend on the network.
    """

    url: str
    piece: ClassVar[int] = 4 << 20  # bytes read at once in a walk: one request takes as long as reading some MiB
    at_once: ClassVar[int] = 8  # connections

    def listed(self, suffixes: Sequence[str]) -> Listing:
        """The files that end in one of ``suffixes``, except hidden ones; raises UserError."""
        system, root = _opened(self.url)
        root = root.rstrip("/") + "/"
        try:  # not ``find``, which leaves out the folders that it cannot list
            walk = self._retried(lambda: list(system.walk(root, on_error="raise")))
        except OSError as error:
            raise UserError(f"{self.url}: {error}; look at the address", BAD_DATA) from None
        paths = (f"{folder.rstrip('/')}/{name}" for folder, _, files in walk for name in files)
        names = [path.removeprefix(root) for path in paths if path.startswith(root)]  # a page may link elsewhere
        shown = [name for name in names if not any(map(is_hidden, name.split("/"))) and not is_thumbnail(name)]
        files = sorted(name for name in shown if name.lower().endswith(tuple(suffixes)))
        others = Counter(suffix_of(name) for name in shown if not name.lower().endswith(tuple(suffixes)))
        return Listing(files, others, {})

    def file(self, path: str) -> BinaryIO:
        """A file to seek in; raises FileNotFoundError and UserError."""
        return _Ranges(self, path)  # type: ignore[return-value]  # a RawIOBase is one

    def size(self, path: str) -> int:
        """Bytes of one file; raises FileNotFoundError and UserError."""
        system, root = _opened(self.url)
        size = self._retried(lambda: system.size(_joined(root, path)))
        if size is None:
            raise UserError(f"{self.name(path)}: the server does not tell its size; copy the file here", IO)
        return int(size)

    def span(self, path: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start`` on; raises Unreadable and UserError."""
        try:
            data = self.fetch(path, start, start + length) if length else b""
        except OSError as error:
            raise Unreadable(str(error)) from None
        if len(data) > length:
            raise UserError(f"{self.name(path)}: the server gives no parts of files; copy the data here", IO)
        if len(data) < length:
            raise Unreadable(f"{printable(path)} ends before byte {start + length}")
        return data

    def whole(self, path: str) -> bytes:
        """All bytes of one file; raises Unreadable and UserError."""
        try:
            data = self.fetch(path, 0, MAX_BYTES + 1)
        except OSError as error:
            raise Unreadable(str(error)) from None
        if len(data) > MAX_BYTES:
            raise Unreadable(f"more bytes than the limit of {MAX_BYTES}")
        return data

    def name(self, path: str) -> str:
        """The address."""
        return printable(_joined(self.url, path))

    def fetch(self, path: str, start: int, end: int) -> bytes:
        """The bytes from ``start`` to ``end``, fewer at the end of the file; raises OSError and UserError."""
        system, root = _opened(self.url)
        return bytes(self._retried(lambda: system.cat_file(_joined(root, path), start=start, end=end)))

    def _retried(self, request: Callable[[], Any]) -> Any:
        """What the disk answers; raises OSError for a lasting refusal, UserError when it cannot be reached."""
        waits = iter(_WAITS)
        while True:
            try:
                return request()
            except Exception as error:  # every protocol has classes of its own
                if (lasting := _lasting(error)) is not None:
                    raise lasting from None
                if (wait := next(waits, None)) is None:
                    raise UserError(
                        f"{self.url} cannot be reached ({one_line(error)}): try the same command again later", IO
                    ) from None
                time.sleep(wait)


class _Ranges(io.RawIOBase):
    """A remote file to seek in; each read is one request."""

    def __init__(self, disk: Remote, path: str) -> None:
        self._disk, self._path, self._at = disk, path, 0
        self._length = disk.size(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._length - self._at))
        try:
            buffer[:length] = self._disk.span(self._path, self._at, length)
        except Unreadable as unreadable:
            raise OSError(unreadable.reason) from None
        self._at += length
        return length


def _opened(url: str) -> tuple[Any, str]:
    """The file system and the path in it, one a process. Raises UserError."""
    return _connected(url, os.getpid())


@cache
def _connected(url: str, _: int) -> tuple[Any, str]:
    """By address and process: what a fork inherits stays here, not in fsspec's own cache, which a fork clears.

    Closing a connection would take its socket from the epoll that both share, and the parent would wait in vain.
    """
    if "::" in url:
        raise UserError(f"{url}: chained addresses are not opened; name the place itself", USAGE)
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UserError(f"{url} wants the package fsspec: pip install 'lookalike[remote]'", USAGE) from None
    try:
        system, path = url_to_fs(url, skip_instance_cache=True)
    except ImportError as error:
        raise UserError(f"{url}: {one_line(error)}: pip install 'lookalike[remote]'", USAGE) from None
    except ValueError as error:
        raise UserError(f"{url}: {one_line(error)}; s3://, gs:// and https:// are known", USAGE) from None
    return system, str(path)


Disk = Local | Remote
"""Files by relative POSIX paths. Nothing is held open between calls, so forked and spawned workers may share it."""


def _joined(root: str, path: str) -> str:
    return f"{root.rstrip('/')}/{path}" if path else root


def _lasting(error: Exception) -> Exception | None:
    """The refusal that asking again would not change, as an OSError; None for an error that may pass."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError("no such file")
    if isinstance(error, PermissionError):
        return PermissionError("permission denied")
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 429):
        return OSError(f"HTTP status {status}")
    return None
