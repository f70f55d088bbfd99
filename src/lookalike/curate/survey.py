"""What every picture of a source is: size, kind, colour, content, and what it looks like, in a few numbers each."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.Image import Resampling

from lookalike.data.decode import Unreadable, decode, header
from lookalike.data.example import Example, PictureSource, broken
from lookalike.data.pool import ordered
from lookalike.data.prepared import Prepared

SIDE = 64  # px at which pictures are looked at: enough for a hash of 9 x 8, and large JPEGs decode at an eighth
THUMB = 8
_TASK = 64
_GRAY = 1.0  # of 255: the mean spread of the three colours up to which a picture is gray; sepia has 5 and more
_NEAR = 3  # bits of 64 in which the hashes of near duplicates may differ: so one of four bands of 16 is equal
_ALIKE = 6.0  # of 255: the mean difference of their 8 x 8 colours
_CROWD = 200  # hashes that share a band: more than that is a plain background, whose pairs are not looked at one by one

_ONES = np.array([i.bit_count() for i in range(256)], np.uint8)  # np.bitwise_count came with numpy 2

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]


class Survey(NamedTuple):
    """N pictures; what is known of a broken one are its path, its kind if it has any, and the reason in ``bad``."""

    kinds: Counter[str]  # such as "JPEG RGB"
    sizes: npt.NDArray[np.int64]  # (N, 2) height, width
    lengths: npt.NDArray[np.int64]  # (N,) bytes of the file, 0 where it is none
    content: Words  # (N,) of the bytes of the file, or of its pixels
    looks: Words  # (N,) dHash
    thumbs: Bytes  # (N, 8 * 8 * 3)
    gray: npt.NDArray[np.bool_]
    bad: dict[int, str]

    @property
    def good(self) -> npt.NDArray[np.int64]:
        """The rows that can be read."""
        return np.setdiff1d(np.arange(len(self.sizes)), np.fromiter(self.bad, np.int64, len(self.bad)))


class _Facts(NamedTuple):
    """One picture."""

    kind: str
    height: int
    width: int
    length: int
    content: int
    look: int
    gray: bool
    thumb: bytes
    bad: str | None


def survey(source: PictureSource, workers: int, progress: Callable[[int], None] = lambda _: None) -> Survey:
    """Look at every row of ``source``, about 250 bytes of memory and the time to decode each."""
    tasks = (range(i, min(i + _TASK, len(source))) for i in range(0, len(source), _TASK))
    every: list[_Facts] = []
    for _, part in ordered(partial(_look_at, source, largest(source, SIDE)), tasks, workers):
        every += part
        progress(len(part))
    return Survey(
        Counter(facts.kind for facts in every if facts.kind),
        np.array([(facts.height, facts.width) for facts in every], np.int64).reshape(-1, 2),
        np.array([facts.length for facts in every], np.int64),
        np.array([facts.content for facts in every], np.uint64),
        np.array([facts.look for facts in every], np.uint64),
        np.frombuffer(b"".join(facts.thumb for facts in every), np.uint8).reshape(-1, 3 * THUMB**2),
        np.array([facts.gray for facts in every], np.bool_),
        {row: facts.bad for row, facts in enumerate(every) if facts.bad is not None},
    )


def largest(source: PictureSource, side: int) -> int:
    """``side``, or the side of a prepared cache where that is smaller."""
    return min(side, source.own) if isinstance(source, Prepared) else side


def joined(parts: Sequence[Survey]) -> Survey:
    """The surveys of several sources as one, rows in turn."""
    kinds: Counter[str] = Counter()
    bad: dict[int, str] = {}
    start = 0
    for part in parts:
        kinds.update(part.kinds)
        bad |= {start + row: reason for row, reason in part.bad.items()}
        start += len(part.sizes)
    sizes, lengths, content, looks, thumbs, gray = (np.concatenate(c) for c in zip(*(part[1:-1] for part in parts)))
    return Survey(kinds, sizes, lengths, content, looks, thumbs, gray, bad)


def _look_at(source: PictureSource, side: int, rows: range) -> list[_Facts]:
    return [_facts(source, row, side) for row in rows]


def _facts(source: PictureSource, row: int, side: int) -> _Facts:
    """One picture; its file is read once."""
    kind, data = "", b""
    if source.read is not None:
        try:
            data = source.read(row)
            head = header(data)
            kind = f"{head.kind} {head.mode}"
            example = Example(*decode(data, side), -1, "")
        except Unreadable as unreadable:
            example = broken(side, -1, "", unreadable.reason)
    else:
        example = source.example(row, side)
    pixels = np.ascontiguousarray(example.pixels.permute(1, 2, 0).numpy())
    content = hashlib.sha256(data or pixels.tobytes()).digest()[:8]
    spread = float((pixels.max(2).astype(np.int16) - pixels.min(2)).mean())
    thumb = np.asarray(Image.fromarray(pixels).resize((THUMB, THUMB), Resampling.BOX)).tobytes()
    number = int.from_bytes(content, "little")
    size = example.height, example.width
    return _Facts(kind, *size, len(data), number, look(pixels), spread <= _GRAY, thumb, example.bad)


def look(pixels: Bytes) -> int:
    """64 bits of what a picture (H, W, 3) looks like: whether it darkens from left to right, at 8 x 8 places.

    dHash (Krawetz 2013, "Kind of like that"): it stays where a picture is made smaller, lighter, or saved again.
    """
    small = Image.fromarray(pixels).convert("L").resize((9, 8), Resampling.BOX)
    gray = np.asarray(small, dtype=np.int16)
    return int.from_bytes(np.packbits(gray[:, :-1] > gray[:, 1:]).tobytes(), "little")


def same(values: Words, rows: npt.NDArray[np.int64]) -> list[list[int]]:
    """Groups of two or more of ``rows`` whose values are equal, each in order."""
    order = rows[np.argsort(values[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(values[order], prepend=values[order][:1] + np.uint64(1)))
    return sorted(group.tolist() for group in np.split(order, starts) if len(group) > 1)


def near(survey: Survey, rows: npt.NDArray[np.int64]) -> list[list[int]]:
    """Groups of ``rows`` that look alike, each in order: hashes at most 3 bits apart, and about the same colours.

    Hashes so near have one of four bands of 16 bits in common, so only those are compared that share one: O(N) for
    pictures that differ. Hashes that very many share (plain backgrounds) count as alike only where they are equal.
    """
    parent = {int(row): int(row) for row in rows}

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for group in same(survey.looks, rows):
        _join_alike(survey, np.array(group), parent, root)
    firsts = np.unique(survey.looks[rows], return_index=True)[1]
    single = rows[firsts]
    for band in range(4):
        keys = (survey.looks[single] >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(keys, kind="stable")
        for bucket in np.split(single[order], np.flatnonzero(np.diff(keys[order])) + 1):
            if 1 < len(bucket) <= _CROWD:
                _join_near(survey, bucket, parent, root)
    groups: dict[int, list[int]] = {}
    for row in parent:
        groups.setdefault(root(row), []).append(row)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def _join_alike(
    survey: Survey, group: npt.NDArray[np.int64], parent: dict[int, int], root: Callable[[int], int]
) -> None:
    """Join those of one hash whose colours are those of the first, of what is left the same, a few times over."""
    for _ in range(8):
        if len(group) < 2:
            return
        alike = _colours_apart(survey, group[0], group) <= _ALIKE
        for row in group[alike].tolist():
            parent[root(row)] = root(int(group[0]))
        group = group[~alike]


def _join_near(
    survey: Survey, bucket: npt.NDArray[np.int64], parent: dict[int, int], root: Callable[[int], int]
) -> None:
    """Join the pairs of a bucket that are near."""
    looks = survey.looks[bucket]
    apart = _ONES[(looks[:, None] ^ looks[None, :])[..., None].view(np.uint8)].sum(-1)
    for i, j in zip(*np.nonzero(np.triu(apart <= _NEAR, 1))):
        if _colours_apart(survey, bucket[i], bucket[j : j + 1])[0] <= _ALIKE:
            parent[root(int(bucket[j]))] = root(int(bucket[i]))


def _colours_apart(survey: Survey, one: int, others: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(B,) the mean difference of 8 x 8 colours."""
    return np.asarray(np.abs(survey.thumbs[others].astype(np.int16) - survey.thumbs[one]).mean(axis=1))
