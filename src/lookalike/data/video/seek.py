"""Frames of video files by number: what is a little ahead is decoded on to, what is not is sought."""

from __future__ import annotations

import bisect
import os
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, dropwhile
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from lookalike.core.errors import UserError
from lookalike.data.formats.disk import Disk
from lookalike.data.image.decode import Unreadable
from lookalike.data.video.frames import netpbm
from lookalike.data.video.open import Index, frames, line, square, streaming

_NEAR = 8  # frames: decoding so many is cheaper than a seek
_OPEN = 4  # files that a process keeps open


class Reader:
    """An open video and where its decoder stands: a frame a little ahead is decoded on to, others are sought."""

    def __init__(self, file: BinaryIO, index: Index) -> None:
        self.index, self.sought, self._file = index, 0, file
        self._enter()
        self._keys: list[int] = index.keys.tolist()
        self._decoded: Iterator[tuple[int, Any]] = iter(())
        self._shown: tuple[int, Any] | None = None
        self._next: tuple[int, Any] | None = None
        self._errors: list[str] = []

    def close(self) -> None:
        """Lets go of the file."""
        self._open.__exit__(None, None, None)
        self._file.close()

    def frame(self, number: int) -> Any:
        """The frame on the screen when frame ``number`` should be; raises Unreadable."""
        key = bisect.bisect_right(self._keys, number) - 1
        near = self._keys[key] - (0 if self._errors else _NEAR)
        if self._shown is None or not near <= self._shown[0] <= number:
            self._seek(key)
        while self._shown is None or self._shown[0] < number:
            self._next = self._next or next(self._decoded, None)
            if self._next is None or self._next[0] > number:
                break
            self._shown, self._next = self._next, None
        if self._shown is None or (self._shown[0] < number and self._errors):
            raise Unreadable(self._errors[-1] if self._errors else "the frame cannot be decoded")
        if self._shown[1].is_corrupt:
            raise Unreadable("the frame is damaged")
        return self._shown[1]

    def _enter(self) -> None:
        """Open the container in the file, which is let go where that fails; raises Unreadable."""
        self._open = streaming(self._file)
        try:
            self._container, self._stream = self._open.__enter__()
        except Unreadable:
            self._file.close()
            raise

    def _seek(self, key: int) -> None:
        """Stand before key frame number ``key``, or before an earlier one where the container cannot find it."""
        self.sought += 1
        self._shown, self._errors = None, []
        if self.index.counted:
            self._decoded = self._counted(key)
            self._next = next(self._decoded, None)
            return
        for start in range(key, -1, -1):
            self._find(start)
            self._decoded = self._timed()
            self._next = next(self._decoded, None)
            if self._next is not None and self._next[0] <= self._keys[key]:
                return

    def _find(self, key: int) -> None:
        """Let the container go to a key frame, or to its start by opening it anew."""
        if key:
            self._container.seek(int(self.index.seeks[key]), stream=self._stream)
            return
        self._open.__exit__(None, None, None)
        self._file.seek(0)
        self._enter()

    def _timed(self) -> Iterator[tuple[int, Any]]:
        """What is decoded from here on, with numbers by time."""
        for frame in frames(self._container.demux(self._stream), self._errors):
            number = int(np.searchsorted(self.index.ticks, frame.pts)) if frame.pts is not None else -1
            if 0 <= number < len(self.index.ticks) and self.index.ticks[number] == frame.pts:
                yield number, frame

    def _counted(self, key: int) -> Iterator[tuple[int, Any]]:
        """What is decoded from a key frame on, or from the start if that is not where the container says."""
        self._find(key)
        packets = self._container.demux(self._stream)
        first = next(packets, None)
        if key and (first is None or first.dts != self.index.seeks[key]):
            self._find(key := 0)
            packets, first = self._container.demux(self._stream), None
        begun = chain([] if first is None else [first], packets)
        after = dropwhile(lambda frame: not frame.key_frame, frames(begun, self._errors))
        return enumerate(after if key else frames(begun, self._errors), self._keys[key])


class Readers:
    """The last few files that a process read, open. A fork opens its own: both would move one place in a file."""

    def __init__(self, disk: Disk) -> None:
        self.disk, self._process = disk, os.getpid()
        self._kept: OrderedDict[str, Reader] = OrderedDict()

    def of(self, path: str, index: Index) -> Reader:
        """The reader of one file; raises Unreadable."""
        if self._process != os.getpid():
            self.__del__()
            self._process = os.getpid()
        found = self._kept.pop(path, None) or Reader(self._file(path), index)
        self._kept[path] = found
        if len(self._kept) > _OPEN:
            self._kept.popitem(last=False)[1].close()
        return found

    def __del__(self) -> None:
        while self._kept:
            self._kept.popitem()[1].close()

    def drop(self, path: str) -> None:
        """After an error: whatever comes next opens the file anew."""
        if path in self._kept:
            self._kept.pop(path).close()

    def _file(self, path: str) -> BinaryIO:
        try:
            return self.disk.file(path)
        except OSError as error:
            raise Unreadable(error.strerror or type(error).__name__) from None


class VideoFile:
    """A video that is decoded when a frame is asked for."""

    def __init__(self, readers: Readers, path: str, index: Index) -> None:
        self._readers, self._path, self._index = readers, path, index
        self.times = index.times

    def size(self, frame: int) -> tuple[int, int]:
        """Upright (height, width) in pixels, from the index."""
        return self._index.height, self._index.width

    def read(self, frame: int) -> bytes:
        """One frame; raises Unreadable."""
        try:
            return netpbm(upright(self._readers.of(self._path, self._index).frame(frame)))
        except Exception as error:
            self._readers.drop(self._path)
            if isinstance(error, Unreadable | UserError):
                raise
            raise Unreadable(line(error)) from None


def upright(frame: Any) -> npt.NDArray[np.uint8]:
    """(H, W, 3) as the frame is shown: turned upright, its pixels square."""
    width = square(frame.width, frame.sample_aspect_ratio if hasattr(frame, "sample_aspect_ratio") else None)
    # One thread: a fork that inherits the frame would wait for those of its scaler, which it has not, to end.
    shown = frame.reformat(format="rgb24", width=width, height=frame.height, threads=1)
    pixels = shown.to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
