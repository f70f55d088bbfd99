"""Videos that lie here as pictures: a folder of frames each, or a strip of square frames side by side."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from lookalike.data.formats.disk import Disk
from lookalike.data.image.decode import Unreadable, header, rgb

RATE = 25.0  # frames a second, where nobody says
_KEPT = 8  # strips that are kept decoded

Bytes = npt.NDArray[np.uint8]


class FrameFolder:
    """Pictures in the order of their names."""

    def __init__(self, disk: Disk, files: Sequence[str], rate: float) -> None:
        self._disk, self._files = disk, sorted(files)
        self.times = [frame / rate for frame in range(len(files))]

    def size(self, frame: int) -> tuple[int, int]:
        """Upright (height, width) in pixels, from the header; raises Unreadable."""
        found = header(self.read(frame))
        return found.height, found.width

    def read(self, frame: int) -> bytes:
        """One picture; raises Unreadable."""
        return self._disk.whole(self._files[frame])


def by_folder(files: Sequence[str]) -> dict[str, list[str]]:
    """The pictures that lie directly in each folder; those beside all folders are the folder ``.``."""
    found: dict[str, list[str]] = {}
    for path in files:
        found.setdefault(str(PurePosixPath(path).parent), []).append(path)
    return found


class Strips:
    """Opens strips, and keeps the last ones decoded; the suffix of a name says nothing."""

    def __init__(self, disk: Disk, rate: float) -> None:
        self.disk, self.rate = disk, rate
        self._kept: OrderedDict[str, Bytes] = OrderedDict()

    def open(self, path: str) -> Strip:
        """By its header; raises Unreadable."""
        found = header(self.disk.whole(path))
        if found.width % found.height:
            raise Unreadable(f"{found.width}x{found.height} pixels are no row of square frames")
        return Strip(self, path, found.height, found.width // found.height)

    def decoded(self, path: str) -> Bytes:
        """(H, N H, 3); raises Unreadable."""
        found = self._kept.pop(path, None)
        self._kept[path] = rgb(self.disk.whole(path)) if found is None else found
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[path]


class Strip:
    """Square frames side by side in one picture."""

    def __init__(self, strips: Strips, path: str, side: int, count: int) -> None:
        self._strips, self._path, self._side = strips, path, side
        self.times = [frame / strips.rate for frame in range(count)]

    def size(self, frame: int) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self._side, self._side

    def read(self, frame: int) -> bytes:
        """One frame; raises Unreadable."""
        found = self._strips.decoded(self._path)
        start = frame * self._side
        return netpbm(found[: self._side, start : start + self._side])


def netpbm(pixels: Bytes) -> bytes:
    """Pixels (H, W, 3) as a picture file, which costs a copy."""
    return b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()
