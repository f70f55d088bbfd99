"""Files that are whole or not there: published by rename, synced to the disk."""

from __future__ import annotations

import csv
import errno
import glob
import hashlib
import io
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lookalike.core.errors import BAD_DATA, IO, UserError

UNFINISHED = ".tmp"
"""How the names of files and folders end that are not published yet; they begin with a dot."""

NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP)
"""The errors of a path that is no file, or no ordinary one (``opened``); others may be gone at the next try."""

HASHES = "hashes.json"
"""The sha256 of files that lie beside it, by name: of one that is being replaced, of the old one and the new one."""

_COMPUTED = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r", "\n", "'")


def write_atomically(path: Path, data: bytes) -> None:
    """Publish ``data`` under ``path`` by rename: a reader, or a crash, sees the old file or the new one, whole."""
    with publishing(path) as file:
        file.write(data)


@contextmanager
def publishing(path: Path) -> Iterator[BinaryIO]:
    """The same of what is written to the file inside; nothing is published where an error leaves."""
    temporary, left = unfinished(path)
    try:
        for dead in left:
            dead.unlink(missing_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def publish(folder: Path, files: Mapping[str, bytes]) -> None:
    """``write_atomically`` each, and before that their hashes, so that at any moment what is there is known by one."""
    before = _hashes(folder)
    now = {name: [*_accepted(folder / name, before.get(name)), _sha256(data)] for name, data in files.items()}
    write_json(folder / HASHES, before | now)
    for name, data in files.items():
        write_atomically(folder / name, data)


def known(path: Path) -> bytes:
    """All of a file that is as it was published, if it was; raises OSError, and UserError for a damaged one."""
    data, hashes = whole(path), _hashes(path.parent).get(path.name)
    if hashes is not None and _sha256(data) not in hashes:
        advice = f"bring it back, or, if it shall be so, remove {HASHES} beside it"
        raise UserError(f"{path} is not as it was written: {advice}", BAD_DATA)
    return data


def _accepted(path: Path, hashes: Sequence[str] | None) -> list[str]:
    """The hash of a file that is there, unless it is damaged."""
    found = [_sha256(whole(path))] if path.is_file() else []
    return [one for one in found if hashes is None or one in hashes]


def _hashes(folder: Path) -> dict[str, list[str]]:
    """Those of a folder; none of one that older versions wrote."""
    path = folder / HASHES
    with suppress(OSError, ValueError):
        found = json_in(whole(path)) if path.exists() else {}
        if isinstance(found, dict) and all(isinstance(hashes, list) for hashes in found.values()):
            return found
    warnings.warn(f"{path} is damaged: whether files beside it are as they were written is not known", stacklevel=3)
    return {}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def unfinished(path: Path) -> tuple[Path, list[Path]]:
    """What this process calls ``path`` until it is published, and what others that are dead have left of it here."""
    whole_letters = os.fsencode(path.name)[:200].decode("utf-8", "ignore")  # of a name that is itself as long as can be
    short = os.fsdecode(whole_letters.encode())
    prefix = f".{short}.{zlib.crc32(socket.gethostname().encode()):08x}-"
    found = path.parent.glob(f"{glob.escape(prefix)}*{UNFINISHED}")
    own = path.with_name(f"{prefix}{os.getpid()}{UNFINISHED}")
    return own, [left for left in found if _is_dead(left.name.removeprefix(prefix).removesuffix(UNFINISHED))]


def _is_dead(pid: str) -> bool:
    """Whether there is no process of that number, if it is one."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (ValueError, OSError):
        pass  # it is not ours, or its process lives
    return False


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, published by rename."""
    write_atomically(path, as_json(value))


def as_json(value: Any) -> bytes:
    """Indented JSON."""
    return (json.dumps(value, indent=2) + "\n").encode()


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table with a head, published by rename; see ``cell``."""
    text = io.StringIO()
    csv.writer(text).writerows([head, *([cell(value) for value in row] for row in rows)])
    write_atomically(path, text.getvalue().encode("utf-8", "surrogateescape"))


def cell(value: object) -> object:
    """A value as a table of text holds it: words that a spreadsheet would compute, or run, begin with an apostrophe.

    So do those that begin with one, so that nothing is lost where the first apostrophe is taken off.
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(_COMPUTED) else value


def cannot_write(path: str | Path, error: OSError, needed: int = 0) -> str:
    """Why a file of ``needed`` bytes, 0 if that is not known, cannot be written, and what to do."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            with suppress(OSError):
                free = shutil.disk_usage(next(part for part in Path(path).absolute().parents if part.exists())).free
                wanted = f"{needed} bytes are needed, " if needed else ""
                return f"cannot write {path} ({error.strerror}): {wanted}{free} are free on its disk: free some space"
        case errno.EROFS:
            return f"cannot write {path} ({error.strerror}): its disk takes no writing now: mount it to be written"
    return f"cannot write {path} ({error.strerror or error})"


def of_system(error: Exception) -> OSError | None:
    """The error of the system, if it is one, or one in the words of safetensors, which has its number there."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"os error (\d+)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def true_cell(text: str) -> str:
    """What ``cell`` has made of a word, as it was."""
    return text[1:] if text.startswith("'") and text[1:].startswith(_COMPUTED) else text


def opened(path: str | Path) -> io.BufferedReader:
    """An ordinary file, to read; raises OSError for any other, where reading might wait, or never end."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
    return open(number, "rb")


def whole(path: str | Path) -> bytes:
    """All of an ordinary file; raises OSError."""
    with opened(path) as file:
        return file.read()


def json_in(data: str | bytes) -> Any:
    """What JSON says; raises ValueError, too where it is nested deeper than Python reads."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds; a damaged file is UserError."""
    try:
        return json_in(known(path))
    except OSError as error:
        missing = error.errno in NOT_THERE
        hint = "is this a run folder of lookalike?" if missing else "let this user read it, or look at its disk"
        raise UserError(f"{path} cannot be read ({error.strerror}): {hint}", BAD_DATA if missing else IO) from None
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): is this a run folder of lookalike?", BAD_DATA) from None


def refuse_unwritable(path: str | Path, folder: bool = False, size: int = 0) -> None:
    """Raise UserError where a file of ``size`` bytes, or files in a ``folder``, cannot be written; leaves nothing.

    It is asked before the work that they would hold. Folders that are missing would be made.
    """
    file = Path(path) / "file" if folder else Path(path)
    try:
        base = next(parent for parent in (*file.parents, Path()) if os.path.lexists(parent))
        for part in (str(file), *(os.path.join(base, part) for part in file.relative_to(base).parts)):
            with suppress(FileNotFoundError):  # any other error, such as a name that is too long, says no
                mode = os.stat(part).st_mode
                if part == str(file) and (not stat.S_ISREG(mode) or file.parent == Path("/dev")):
                    raise OSError(errno.EISDIR, "it is a folder" if stat.S_ISDIR(mode) else "it is no ordinary file")
        with tempfile.TemporaryFile(dir=base, prefix=".", suffix=UNFINISHED):
            pass
        if size > (free := shutil.disk_usage(base).free):
            raise OSError(errno.ENOSPC, f"it needs {size / 1e9:.2g} GB and its disk has {free / 1e9:.2g} GB free")
    except OSError as error:
        what, other = ("to ", "--out") if folder else ("", "file")
        raise UserError(f"cannot write {what}{path} ({error.strerror}): choose another {other}", IO) from None
