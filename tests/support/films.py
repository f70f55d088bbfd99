"""Videos with known frames: frame n shows n in eight black and white columns, which no codec can blur."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

Bytes = npt.NDArray[np.uint8]
SIDE = 32


def picture(number: int) -> Bytes:
    """(SIDE, SIDE, 3)."""
    columns = [255 * (number >> bit & 1) for bit in range(8)]
    return np.broadcast_to(np.repeat(np.array(columns, np.uint8), SIDE // 8)[None, :, None], (SIDE, SIDE, 3)).copy()


def number_in(pixels: Bytes) -> int:
    """The number that a picture (3, S, S) of any side shows."""
    columns = pixels.mean((0, 1)).reshape(8, -1)
    middle = columns[:, columns.shape[1] // 4 : -(columns.shape[1] // 4) or None].mean(1)
    return int(sum(1 << bit for bit in range(8) if middle[bit] > 128))


def film(
    path: Path,
    count: int = 40,
    codec: str = "libx264",
    container: str | None = None,
    gop: int = 12,
    between: int = 2,
    first: int = 0,
    time_of: Callable[[int], int] = lambda number: number,
    sound: bool = False,
) -> Path:
    """A video file of 25 frames a second, ``between`` of which are B-frames; frame i comes at time_of(i) / 25."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exact = {"fflags": "+bitexact"}  # or a container writes a random number into itself, and damage would be drawn anew
    with av.open(path, "w", format=container, options=exact) as made:
        stream: Any = made.add_stream(codec, rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = gop
        if codec in ("libx264", "mpeg4"):
            stream.codec_context.max_b_frames = between
        beside: Any = made.add_stream("aac", rate=48000) if sound else None
        if beside is not None:
            _sing(made, beside)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(first + number), "rgb24")
            frame.pts = time_of(number)
            made.mux(stream.encode(frame))
        made.mux(stream.encode())
    return path


def only_sound(path: Path) -> Path:
    """A file that nobody can see."""
    with av.open(path, "w") as made:
        _sing(made, made.add_stream("aac", rate=48000))
    return path


def _sing(made: Any, stream: Any) -> None:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), "flt", "mono")
    frame.sample_rate = 48000
    made.mux(stream.encode(frame))
    made.mux(stream.encode())


def folder_of_frames(folder: Path, count: int = 20, first: int = 0) -> Path:
    """A video as a picture a frame."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(picture(first + number)).save(folder / f"{number:03}.png")
    return folder


def decoded(path: Path) -> list[Bytes]:
    """Every frame in the order of a player."""
    with av.open(path) as opened:
        return [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]
