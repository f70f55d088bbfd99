"""Ctrl-C and SIGTERM finish the step that runs."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

_HANDLED = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """While open, the first signal is only noted in ``received``; a second one acts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids handlers
            self._before = {number: signal.signal(number, self._note) for number in _HANDLED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number


def leave(number: int) -> NoReturn:
    """End the process by what a signal asked for, once everything is saved."""
    print("stopped and saved; the same command with the same --out continues", file=sys.stderr)
    sys.exit(128 + number)
