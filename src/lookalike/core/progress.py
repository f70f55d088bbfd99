"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


def silent(what: str, done: int, total: int) -> None:
    """Shows nothing."""


def counted(progress: Progress, what: str, total: int, done: int = 0) -> Callable[[int], None]:
    """``progress`` for work that says how much more of ``total`` is done each time; ``done`` of it was before."""

    def more(count: int) -> None:
        nonlocal done
        done += count
        progress(what, done, total)

    return more
