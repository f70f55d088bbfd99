"""What is refused before the work begins."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

from lookalike.trouble import IO, Trouble


def at_least(command: object, **limits: float) -> None:
    """Refuse numbers below their limit."""
    for name, limit in limits.items():
        given = getattr(command, name)
        if any(not value >= limit for value in (given if isinstance(given, tuple) else [given]) if value is not None):
            raise Trouble(f"--{name.replace('_', '-')} must be at least {limit:g}")


def refuse_unwritable(path: str | None) -> None:
    """Raise Trouble where a file cannot be written, before the work that would be in it; makes its folder."""
    if path:
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            with tempfile.TemporaryFile(dir=target.parent):
                pass
        except OSError as error:
            raise Trouble(f"cannot write {target} ({error.strerror}): choose another file", IO) from None
