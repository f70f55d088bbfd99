"""Memory that one step has freed is kept for the next: the system hands out every page anew, cleared, at a price."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed() -> bool:
    """Have malloc reuse large blocks instead of returning them to the system; whether it understood.

    glibc gives back what is large or last, and a training step asks for the same dozens of blocks again and again:
    filling a new one of 64 MB took six times as long as filling an old one (docs/results.md). The price is that the
    process stays as large as its largest step, as it does on a GPU.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, musl say
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))
