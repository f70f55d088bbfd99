"""What a person decides of pictures: lines that are only ever added to a file beside the table."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from lookalike.core.errors import BAD_DATA, IO, LOCKED, UserError
from lookalike.core.files import cannot_write, json_in, sync_folder

Verdict = Literal["keep", "drop", "relabel"]
VERDICTS: tuple[str, ...] = get_args(Verdict)


class Decision(NamedTuple):
    """On one picture of one queue; a path and not a row, so that it holds for the next table, too."""

    path: str
    queue: str
    verdict: Verdict
    label: str | None = None  # the new one, of relabel


class Decisions:
    """The file, which one process at a time writes: a JSON object a line, on the disk before ``add`` returns.

    ``undo`` adds a line that takes an earlier one back. What is torn or no decision is passed over when it is read.
    """

    def __init__(self, path: Path) -> None:
        """Raises UserError where another process holds the file, or it cannot be written."""
        self.path, self.passed_over, self._lock = path, 0, threading.Lock()
        self._standing: dict[int, Decision] = {}  # by number, in the order in which they were made
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            text = path.read_bytes()
            sync_folder(path.parent)
        except BlockingIOError:
            raise UserError(
                f"{path} is in use by another explore: end it, or name another --decisions", LOCKED
            ) from None
        except OSError as error:
            raise UserError(f"{cannot_write(path, error)}; or name another --decisions", IO) from None
        self._torn, self._last = not text.endswith(b"\n") and bool(text), 0
        if text and not self._replay(text):
            raise UserError(f"{path} holds no decisions: name another --decisions", BAD_DATA)

    def _replay(self, text: bytes) -> bool:
        """Whether any line was one of ours."""
        lines = [line for line in text.split(b"\n") if line.strip()]
        known = [entry for line in lines if (entry := _entry(line)) is not None]
        self.passed_over = len(lines) - len(known)
        for number, what in known:
            self._last = max(self._last, number)
            if isinstance(what, Decision):
                self._standing[number] = what
            else:
                self._standing.pop(what, None)
        return bool(known) or not lines

    def add(self, decision: Decision) -> int:
        """Its number. Raises UserError where it cannot be written; then it does not stand."""
        about = {"path": decision.path, "queue": decision.queue, "decision": decision.verdict}
        with self._lock:
            number = self._write(about | ({} if decision.label is None else {"label": decision.label}))
            self._standing[number] = decision
        return number

    def undo(self) -> Decision | None:
        """Take back the newest that stands; None where none does."""
        with self._lock:
            if not self._standing:
                return None
            newest = max(self._standing)
            self._write({"undo": newest})
            return self._standing.pop(newest)

    def standing(self) -> Iterator[Decision]:
        """Those that were not taken back, in the order in which they were made."""
        with self._lock:
            yield from list(self._standing.values())

    def close(self) -> None:
        """Let others write; a file that was made for nothing is taken away."""
        with suppress(OSError):
            if os.fstat(self._file).st_size == 0:
                self.path.unlink()
            os.close(self._file)

    def _write(self, about: dict[str, Any]) -> int:
        entry = {"id": self._last + 1, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **about}
        line = (b"\n" if self._torn else b"") + json.dumps(entry).encode() + b"\n"
        try:
            self._torn = os.write(self._file, line) < len(line)
            if self._torn:
                raise OSError(28, "the disk took only a part")
            os.fsync(self._file)
        except OSError as error:
            self._torn = True  # whatever there is of this line, the next begins a new one
            raise UserError(cannot_write(self.path, error, len(line)), IO) from None
        self._last += 1
        return self._last


def _entry(line: bytes) -> tuple[int, Decision | int] | None:
    """A number, and the decision, or the number of the one that is taken back; None of any other line."""
    with suppress(ValueError, KeyError, TypeError, OverflowError):
        entry = json_in(line)
        number = int(entry["id"])
        if "undo" in entry:
            return number, int(entry["undo"])
        words = (entry["path"], entry["queue"], entry["decision"], entry.get("label"))
        if all(isinstance(word, str) for word in words[:3]) and words[2] in VERDICTS:
            return number, Decision(words[0], words[1], words[2], None if words[3] is None else str(words[3]))
    return None
