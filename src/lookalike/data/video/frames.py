"""Videos that are stored as pictures: a folder of frames each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from lookalike.data.formats.disk import Disk
from lookalike.data.image.decode import header

RATE = 25.0  # frames a second, where nobody says

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


def netpbm(pixels: Bytes) -> bytes:
    """Pixels (H, W, 3) as a picture file, which costs a copy."""
    return b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()
