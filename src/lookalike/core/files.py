"""Files that are whole or not there: published by rename, synced to the disk."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lookalike.core.errors import BAD_DATA, IO, UserError

UNFINISHED = ".tmp"
"""How the names of files and folders end that are not published yet; they begin with a dot."""


def write_atomically(path: Path, data: bytes) -> None:
    """Publish ``data`` under ``path`` by rename: a reader, or a crash, sees the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, published by rename."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table with a head, published by rename."""
    text = io.StringIO()
    csv.writer(text).writerows([head, *rows])
    write_atomically(path, text.getvalue().encode("utf-8", "surrogateescape"))


def read_json(path: Path) -> Any:
    """What a JSON file holds; a damaged file is UserError."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): is this a run folder of lookalike?", BAD_DATA) from None


def refuse_unwritable(path: str | None) -> None:
    """Raise UserError where a file cannot be written, before the work that would be in it; makes its folder."""
    if path:
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            with tempfile.TemporaryFile(dir=target.parent):
                pass
        except OSError as error:
            raise UserError(f"cannot write {target} ({error.strerror}): choose another file", IO) from None
