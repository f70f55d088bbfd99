"""The one error that users see."""

from __future__ import annotations

USAGE, BAD_DATA, IO, LOCKED = 2, 65, 74, 75


class Trouble(Exception):
    """What went wrong, where, and what to do next, in one line; ``code`` is the exit code of the command."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code
