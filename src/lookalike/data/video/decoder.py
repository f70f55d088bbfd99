"""Frames of video files by number: each is decoded from the last key frame before it, whatever was read earlier."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import chain, dropwhile
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from lookalike.core.errors import UserError
from lookalike.data.formats.disk import Disk
from lookalike.data.image.decode import Unreadable
from lookalike.data.video.container import FrameIndex, frames, line, square, streaming


class VideoDecoder:
    """An open video. A frame depends on the file alone: no seek begins with what others left in container or codec."""

    def __init__(self, file: BinaryIO, index: FrameIndex) -> None:
        self.index, self.seeks = index, 0
        self._file, self._open = file, ExitStack()
        self._keys: list[int] = index.keys.tolist()
        self._key = -1  # the number of the key frame that decoding began at
        self._decoded: Iterator[tuple[int, Any]] = iter(())
        self._shown: tuple[int, Any] | None = None
        self._next: tuple[int, Any] | None = None
        self._errors: list[str] = []

    def close(self) -> None:
        """Lets go of the file."""
        self._open.close()
        self._file.close()

    def frame(self, number: int) -> Any:
        """The frame on the screen when frame ``number`` should be; raises Unreadable."""
        key = bisect.bisect_right(self._keys, number) - 1
        if key != self._key or self._shown is None or self._shown[0] > number:
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

    def _seek(self, key: int) -> None:
        """Stand before key frame number ``key``."""
        self.seeks += 1
        self._key, self._shown, self._next, self._errors = key, None, None, []
        decoded = frames(self._packets(key), self._errors)
        self._decoded = self._counted(decoded, key) if self.index.counted else self._timed(decoded)

    def _packets(self, key: int) -> Iterator[Any]:
        """From a key frame on. One that a seek does not find is looked for from the start of the file."""
        container, stream = self._reopen()
        if key == 0:
            return iter(container.demux(stream))
        with suppress(Exception):  # of a damaged file: reading it from the start says what is wrong
            container.seek(int(self.index.seeks[key]), stream=stream)
            return self._beginning_at(key, container.demux(stream))
        container, stream = self._reopen()
        return self._beginning_at(key, container.demux(stream))

    def _reopen(self) -> tuple[Any, Any]:
        """The container and its stream as if nothing had been read; raises Unreadable."""
        self._open.close()
        self._file.seek(0)
        return self._open.enter_context(streaming(self._file))

    def _beginning_at(self, key: int, packets: Iterator[Any]) -> Iterator[Any]:
        """Packets from a key frame on; raises Unreadable where it is not among them."""
        key_time = int(self.index.seeks[key] if self.index.counted else self.index.ticks[self._keys[key]])
        for packet in packets:
            time = packet.dts if self.index.counted else packet.pts
            if packet.is_keyframe and time is not None and time >= key_time:
                if time > key_time:
                    break
                return chain([packet], packets)
        raise Unreadable("its key frame is missing")

    def _timed(self, decoded: Iterator[Any]) -> Iterator[tuple[int, Any]]:
        """Frames with numbers by time."""
        for frame in decoded:
            number = int(np.searchsorted(self.index.ticks, frame.pts)) if frame.pts is not None else -1
            if 0 <= number < len(self.index.ticks) and self.index.ticks[number] == frame.pts:
                yield number, frame

    def _counted(self, decoded: Iterator[Any], key: int) -> Iterator[tuple[int, Any]]:
        """Frames with numbers that are counted from a key frame on."""
        return enumerate(dropwhile(lambda frame: not frame.key_frame, decoded) if key else decoded, self._keys[key])


class VideoDecoders:
    """Decodes files of a disk, the last of which stays open. A fork opens its own: both would move one place in it."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self._open: tuple[str, int, VideoDecoder] | None = None

    def of(self, path: str, index: FrameIndex) -> VideoDecoder:
        """The decoder of one file; raises Unreadable."""
        if self._open is None or self._open[:2] != (path, os.getpid()):
            self.close()
            try:
                self._open = path, os.getpid(), VideoDecoder(self.disk.file(path), index)
            except OSError as error:
                raise Unreadable(error.strerror or type(error).__name__) from None
        return self._open[2]

    def close(self) -> None:
        """Whatever comes next opens its file anew."""
        if self._open is not None:
            self._open[2].close()
        self._open = None

    __del__ = close


class VideoFile:
    """A video whose frames are decoded one by one."""

    def __init__(self, decoders: VideoDecoders, path: str, index: FrameIndex) -> None:
        self._decoders, self._path, self._index = decoders, path, index
        self.times = index.times

    def size(self, frame: int) -> tuple[int, int]:
        """Upright (height, width) in pixels, from the index."""
        return self._index.height, self._index.width

    def read(self, frame: int) -> bytes:
        """One frame as an uncompressed picture file (PPM); raises Unreadable."""
        try:
            return ppm(upright(self._decoders.of(self._path, self._index).frame(frame)))
        except Exception as error:
            self._decoders.close()
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


def ppm(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Pixels (H, W, 3) as a picture file, which costs a copy."""
    return b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()
