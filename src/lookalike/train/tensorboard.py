"""What TensorBoard reads: ``tb/`` in a run folder, written where the extra ``[log]`` is installed.

metrics.jsonl stays the truth. TensorBoard's own SummaryWriter is not used: it writes from a thread, up to two minutes
late, which a kill would lose and a fork of a decoding worker would copy; a record is a dozen lines.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


class Board:
    """The event file of one process, created with the first value. A later one voids the steps it repeats."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step
        self._file: IO[bytes] | None = None

    @classmethod
    def open(cls, folder: Path, step: int) -> Board | None:
        """For a run that goes on after ``step``; None without TensorBoard."""
        return cls(folder, step) if importlib.util.find_spec("tensorboard") else None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """The values of one step by their tags."""
        if self._file is None:
            self._file = self._begin()
        points = [{"tag": tag, "simple_value": value} for tag, value in values.items()]
        self._write(step=step, summary={"value": points})

    def sync(self) -> None:
        """Make what was added survive a power cut."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Nothing is added after this."""
        if self._file is not None:
            self._file.close()

    def _begin(self) -> IO[bytes]:
        """A new file, after all others by its name: readers take them in that order, whatever the clock says."""
        self.folder.mkdir(exist_ok=True)
        number = 1
        while (path := self.folder / f"events.out.tfevents.{number:010}.lookalike").exists():
            number += 1
        self._file = path.open("xb")
        self._write(file_version="brain.Event:2")
        self._write(step=self.step + 1, session_log={"status": "START"})  # readers drop this step and all after it
        return self._file

    def _write(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        writer = RecordWriter(self._file)
        writer.write(Event(wall_time=time.time(), **event).SerializeToString())
        writer.flush()
