"""Containers of videos: which frames they hold, found without decoding where that can be.

libav reads many formats with a record of holes, so only containers on a list are opened, from a file that is open
already: no playlist leads to other files or to the network.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, dropwhile, pairwise
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from lookalike.core.errors import USAGE, UserError
from lookalike.data.decode import MAX_PIXELS, Unreadable
from lookalike.data.formats.disk import Disk
from lookalike.data.pool import stopped

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".3gp"),
    *(".h264", ".hevc"),
)
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,h264,hevc"
_MOST_FRAMES = 1 << 24  # of one video: a week
_COVER = 0x400  # AV_DISPOSITION_ATTACHED_PIC: the cover of a sound file
_TICK = 1e-6  # seconds: the shortest difference between two times

Packet = tuple[int | None, int | None, bool]  # pts, dts, whether decoding can start at it
Ticks = npt.NDArray[np.int64]


class FrameIndex(NamedTuple):
    """The frames of a video, before any is decoded.

    ``ticks`` (N,) are the frames' times in the container's unit, rising. Where the container has no times that can be
    relied on, they are 0, 1, 2, ... and ``counted``: a frame is then found by counting from a key frame.
    """

    ticks: Ticks
    keys: Ticks  # (K,) numbers of the frames at which decoding can start; the first is 0
    seeks: Ticks  # (K,) the decoding times (dts) of their packets
    unit: float  # seconds
    height: int
    width: int
    counted: bool

    @property
    def times(self) -> list[float]:
        """(N,) seconds from the first frame."""
        seconds: list[float] = ((self.ticks - self.ticks[:1]) * self.unit).tolist()
        return seconds


def libav() -> Any:
    """The package av; raises UserError where it is missing."""
    try:
        import av
    except ImportError:
        raise UserError("video files need the package av: pip install 'lookalike[video]'", USAGE) from None
    return av


@contextmanager
def streaming(file: BinaryIO) -> Iterator[tuple[Any, Any]]:
    """The container in an open file and its first video stream; every error leaves as Unreadable."""
    av = libav()
    try:
        allowed = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
        # Titles that are not UTF-8 are no error; av 19 and newer see to that themselves.
        titles = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
        with av.open(file, "r", container_options=allowed, **titles) as container:
            streams = [s for s in container.streams.video if not s.disposition & _COVER]
            if not streams:
                raise Unreadable("no stream of pictures in it")
            stream = streams[0]
            _refuse_huge(stream.codec_context)
            yield container, stream
    except (Unreadable, UserError):
        raise
    except Exception as error:  # damaged files make av raise IndexError and others, too
        raise Unreadable(line(error)) from None


def _refuse_huge(codec: Any) -> None:
    """Refuse sizes that a few bytes of header can claim; one thread, since threads do not survive a fork."""
    if codec is None:
        raise Unreadable("its pictures are coded in an unknown way")
    if codec.width * codec.height > MAX_PIXELS:
        raise Unreadable(f"{codec.width}x{codec.height} pixels are too many")
    codec.thread_count = 1
    codec.options = {"max_pixels": str(MAX_PIXELS)}


def frame_index(file: BinaryIO) -> FrameIndex:
    """Every frame of an open video file; raises Unreadable.

    In most containers the packets tell times and key frames, at the cost of reading the file once (of .mp4, its table).
    Where times are missing, repeated, or AVI's, which count packets, everything is decoded once and counted.
    """
    with streaming(file) as (container, stream):
        packets: list[Packet] = []
        for packet in container.demux(stream):
            stopped()  # says that this goes on
            if packet.size and not packet.is_discard:
                packets.append((packet.pts, packet.dts, packet.is_keyframe))
            if len(packets) > _MOST_FRAMES:
                raise Unreadable(f"more than {_MOST_FRAMES} frames")
        if not packets:
            raise Unreadable("no frame in it")
        times = sorted(pts for pts, _, _ in packets if pts is not None)
        unit = float(stream.time_base or 0)
        apart = min((after - before for before, after in pairwise(times)), default=1) * unit >= _TICK
        if len(times) == len(packets) and apart and container.format.name != "avi":
            container.seek(times[0], stream=stream)
            return _by_time(packets, next(frames(container.demux(stream), []), None), stream, unit)
    file.seek(0)
    with streaming(file) as (container, stream):
        return _by_count(container, stream, [dts for _, dts, key in packets if key])


def _by_time(packets: list[Packet], first: Any, stream: Any, unit: float) -> FrameIndex:
    """The index of packets that all have times of their own; ``first`` is a frame."""
    rows = sorted((pts, dts if dts is not None else pts, key) for pts, dts, key in packets if pts is not None)
    keys = [number for number, (_, _, key) in enumerate(rows) if key]
    if not keys or first is None:
        raise Unreadable("no frame in it can be decoded")
    rows, keys = rows[keys[0] :], [key - keys[0] for key in keys]  # what comes before the first cannot be decoded
    ticks, seeks = (np.array(part, np.int64) for part in ([row[0] for row in rows], [rows[key][1] for key in keys]))
    return FrameIndex(ticks, np.array(keys, np.int64), seeks, unit, *_size(stream, first), False)


def _by_count(container: Any, stream: Any, seeks: list[int | None]) -> FrameIndex:
    keys, count, first = [], 0, None
    for frame in frames(container.demux(stream), []):
        stopped()
        first = first or frame
        if frame.key_frame:
            keys.append(count)
        count += 1
    if first is None:
        raise Unreadable("no frame in it can be decoded")
    if len(keys) != len(seeks) or keys[:1] != [0] or None in seeks or len(set(seeks)) < len(seeks):
        keys, seeks = [0], [0]  # the key frames cannot be relied on: decoding always begins at the start
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    numbers = np.arange(count), np.array(keys, np.int64), np.array(seeks, np.int64)
    return FrameIndex(*numbers, 1 / min(rate, 1 / _TICK), *_size(stream, first), True)


def _size(stream: Any, frame: Any) -> tuple[int, int]:
    """Upright (height, width) in square pixels, by one frame."""
    width = square(frame.width, stream.sample_aspect_ratio)
    return (width, frame.height) if frame.rotation % 180 else (frame.height, width)


def square(width: int, aspect: Any) -> int:
    """The width in pixels that are as wide as high."""
    return round(width * float(aspect)) if aspect and 0.1 < float(aspect) < 10 else width


def frames(packets: Iterator[Any], errors: list[str]) -> Generator[Any, None, None]:
    """Every frame that can be decoded, in the order of time; why others cannot is added to ``errors``."""
    while True:
        try:
            packet = next(packets, None)
        except Exception as error:  # the file ends in the middle of a packet, or worse
            errors.append(line(error))
            return
        if packet is None:
            return
        try:
            decoded = packet.decode()
        except Exception as error:
            errors.append(line(error))
            continue
        yield from decoded


def line(error: Exception) -> str:
    """The error in one line that is the same in every process."""
    return getattr(error, "strerror", None) or type(error).__name__


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
        if not self.index.counted:
            self._decoded = self._timed(decoded)
            return
        numbered = dropwhile(lambda frame: not frame.key_frame, decoded) if key else decoded
        self._decoded = enumerate(numbered, self._keys[key])

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
        for frame in decoded:
            number = int(np.searchsorted(self.index.ticks, frame.pts)) if frame.pts is not None else -1
            if 0 <= number < len(self.index.ticks) and self.index.ticks[number] == frame.pts:
                yield number, frame


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
            pixels = upright(self._decoders.of(self._path, self._index).frame(frame))
            return b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()
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
