"""The one error that users see."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from importlib.util import find_spec

USAGE, BAD_DATA, IO, LOCKED = 2, 65, 74, 75

PLATFORMS = "lookalike runs on Linux and macOS; on Windows, run it in WSL 2 (Linux inside Windows)"


class UserError(Exception):
    """What went wrong, where, and what to do next, in one line; ``code`` is the exit code of the command."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


def meant(word: str, names: Iterable[str], otherwise: str | None = None) -> str:
    """The hint for somebody who wrote ``word``: the nearest of ``names``, else ``otherwise``, else all of them."""
    names = list(names)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else otherwise or f"there are {', '.join(names)}"


def refuse_platform() -> None:
    """Raise UserError where processes cannot fork or lock files, as decoding workers and run folders do."""
    if not hasattr(os, "fork") or find_spec("fcntl") is None:
        raise UserError(PLATFORMS)
