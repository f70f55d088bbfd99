"""Video files: an index of their frames, made without decoding where that can be, and frames by number.

libav reads many formats with a record of holes, so only containers on a list are opened, from a file that is open
already: no playlist leads to other files or to the network.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from lookalike.core.errors import USAGE, UserError
from lookalike.data.image.decode import MAX_PIXELS, Unreadable

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".3gp"),
    *(".h264", ".hevc"),
)
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,h264,hevc"
_MOST = 1 << 24  # frames of one video: a week
_COVER = 0x400  # AV_DISPOSITION_ATTACHED_PIC: a picture of what there is to hear
_TICK = 1e-6  # seconds that are told apart

Packet = tuple[int | None, int | None, bool]  # pts, dts, whether decoding can start at it
Ticks = npt.NDArray[np.int64]


class Index(NamedTuple):
    """What is known of a video before a frame is decoded.

    ``ticks`` (N,) are the frames' times in the container's unit, rising; where it has none that can be relied on they
    are 0, 1, 2, ... and ``counted``: frames are then told by counting from a key frame.
    """

    ticks: Ticks
    keys: Ticks  # (K,) numbers of the frames at which decoding can start; the first of all is one
    seeks: Ticks  # (K,) where the container finds them
    unit: float  # seconds
    height: int
    width: int
    counted: bool

    @property
    def times(self) -> list[float]:
        """(N,) seconds from the first frame."""
        found: list[float] = ((self.ticks - self.ticks[:1]) * self.unit).tolist()
        return found


def libav() -> Any:
    """The package av; raises UserError where it is missing."""
    try:
        import av
    except ImportError:
        raise UserError("video files want the package av: pip install 'lookalike[video]'", USAGE) from None
    return av


@contextmanager
def streaming(file: BinaryIO) -> Iterator[tuple[Any, Any]]:
    """The container in an open file and its first stream of pictures; every error leaves as Unreadable."""
    av = libav()
    try:
        allowed = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
        # Titles that are no UTF-8 are no error: av 19 and newer see to that by themselves.
        odd = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
        with av.open(file, "r", container_options=allowed, **odd) as container:
            streams = [s for s in container.streams.video if not s.disposition & _COVER]
            if not streams:
                raise Unreadable("no stream of pictures in it")
            stream = streams[0]
            _checked(stream.codec_context)
            yield container, stream
    except (Unreadable, UserError):
        raise
    except Exception as error:  # damaged files make av raise IndexError and others, too
        raise Unreadable(line(error)) from None


def _checked(codec: Any) -> None:
    """Refuse what a few bytes of header ask for; one thread, since threads do not survive a fork."""
    if codec is None:
        raise Unreadable("its pictures are coded in a way that is not known here")
    if codec.width * codec.height > MAX_PIXELS:
        raise Unreadable(f"{codec.width}x{codec.height} pixels are too many")
    codec.thread_count = 1
    codec.options = {"max_pixels": str(MAX_PIXELS)}


def index(file: BinaryIO) -> Index:
    """Every frame of an open video file; raises Unreadable.

    Packets tell the times and key frames of most containers, at the cost of reading the file once (of .mp4, its table).
    Where times are missing, twice there or AVI's, which count packets, everything is decoded once and counted.
    """
    with streaming(file) as (container, stream):
        packets: list[Packet] = []
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                packets.append((packet.pts, packet.dts, packet.is_keyframe))
            if len(packets) > _MOST:
                raise Unreadable(f"more than {_MOST} frames")
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


def _by_time(packets: list[Packet], first: Any, stream: Any, unit: float) -> Index:
    """The index of packets that all have times of their own; ``first`` is a frame."""
    found = sorted((pts, dts if dts is not None else pts, key) for pts, dts, key in packets if pts is not None)
    keys = [number for number, (_, _, key) in enumerate(found) if key]
    if not keys or first is None:
        raise Unreadable("no frame in it can be decoded")
    found, keys = found[keys[0] :], [key - keys[0] for key in keys]  # what comes before the first cannot be decoded
    ticks, seeks = (np.array(part, np.int64) for part in ([f[0] for f in found], [found[key][1] for key in keys]))
    return Index(ticks, np.array(keys, np.int64), seeks, unit, *_size(stream, first), False)


def _by_count(container: Any, stream: Any, seeks: list[int | None]) -> Index:
    """The index by decoding everything."""
    keys, count, first = [], 0, None
    for frame in frames(container.demux(stream), []):
        first = first or frame
        if frame.key_frame:
            keys.append(count)
        count += 1
    if first is None:
        raise Unreadable("no frame in it can be decoded")
    if len(keys) != len(seeks) or keys[:1] != [0] or None in seeks or len(set(seeks)) < len(seeks):
        keys, seeks = [0], [0]  # where key frames lie cannot be relied on: every search begins at the start
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    numbers = np.arange(count), np.array(keys, np.int64), np.array(seeks, np.int64)
    return Index(*numbers, 1 / min(rate, 1 / _TICK), *_size(stream, first), True)


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
            made = packet.decode()
        except Exception as error:
            errors.append(line(error))
            continue
        yield from made


def line(error: Exception) -> str:
    """The error in one line that is the same in every process."""
    return getattr(error, "strerror", None) or type(error).__name__
