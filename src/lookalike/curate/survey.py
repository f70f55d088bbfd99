"""Looking at pictures: what each is in a few numbers, which look alike, and sheets of thumbnails."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Resampling
from torch import Tensor

from lookalike.core.devices import refuse_unheld
from lookalike.core.progress import Progress, silent
from lookalike.data.decode import Unreadable, decode, header
from lookalike.data.example import Example, PictureSource, broken
from lookalike.data.order import some_rows
from lookalike.data.pool import ordered, stopped
from lookalike.data.prepared import Prepared

_SIDE = 64  # px at which pictures are looked at: enough for a hash of 9 x 8, and large JPEGs decode at an eighth
_THUMB = 8
_TASK = 64
_GRAY = 1.0  # of 255: the mean spread of the three colours up to which a picture is gray; sepia has 5 and more
_NEAR = 3  # bits of 64 in which the hashes of near duplicates may differ: so one of four bands of 16 is equal
_ALIKE = 6.0  # of 255: the mean difference of their 8 x 8 colours
_CROWD = 200  # hashes that share a band: more than that is a plain background, whose pairs are not looked at one by one

_GAP, _LINE = 8, 14  # px of a sheet: between tiles, and a line of text
_PAPER, _INK = "white", (60, 60, 60)

_BLOCK = 4096  # canvases at a time: 60 MB of numbers of 16 bits
_ROW = 500  # bytes of memory for what is known of a picture, while it is gathered
_ONES = np.array([i.bit_count() for i in range(256)], np.uint8)  # np.bitwise_count came with numpy 2

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


class Survey(NamedTuple):
    """N pictures; what is known of a broken one are its path, its kind if it has any, and the reason in ``bad``."""

    kinds: Counter[str]  # such as "JPEG RGB"
    sizes: Numbers  # (N, 2) height, width
    lengths: Numbers  # (N,) bytes of the file, 0 where it is none
    content: Words  # (N,) of the bytes of the file, or of its pixels
    looks: Words  # (N,) dHash
    thumbs: Bytes  # (N, 8 * 8 * 3)
    gray: npt.NDArray[np.bool_]
    canvases: Bytes  # (N, C, C) gray, of the side C that was asked for
    bad: dict[int, str]

    @property
    def good(self) -> Numbers:
        """The rows that can be read."""
        return np.setdiff1d(np.arange(len(self.sizes)), np.fromiter(self.bad, np.int64, len(self.bad)))


_KNOWN = np.dtype(
    [
        *(("sizes", np.int64, 2), ("lengths", np.int64), ("content", np.uint64), ("looks", np.uint64)),
        *(("thumbs", np.uint8, 3 * _THUMB**2), ("gray", np.bool_)),
    ]
)
"""Of one picture, by the names of ``Survey``."""


class _Facts(NamedTuple):
    """One picture."""

    known: tuple[tuple[int, int], int, int, int, Bytes, bool]  # of ``_KNOWN``
    kind: str
    bad: str | None
    canvas: Bytes


def survey(
    sources: Collection[PictureSource], workers: int | None, progress: Progress = silent, canvas: int = 0
) -> Survey:
    """Look at every row of ``sources`` in turn, about 250 bytes of memory and the time to decode each.

    ``canvas`` is the side of the small gray pictures that are kept, none by default, up to 64 px.
    """
    total, kinds, bad, done = sum(map(len, sources)), Counter[str](), dict[int, str](), 0
    size = total * (_ROW + canvas**2)
    refuse_unheld(f"the looks of {total:,} pictures", size, "name some of the files alone, such as a shard")
    canvases, known = np.empty((total, canvas, canvas), np.uint8), np.empty(total, _KNOWN)
    for source in sources:
        tasks = (range(i, min(i + _TASK, len(source))) for i in range(0, len(source), _TASK))
        look = partial(_look_at, source, largest(source, _SIDE), canvas)
        for _, part in ordered(look, tasks, workers, part=partial(_path, source)):
            for row, facts in enumerate(part, done):
                known[row], canvases[row] = facts.known, facts.canvas
                if facts.bad is not None:
                    bad[row] = facts.bad
            kinds.update(facts.kind for facts in part if facts.kind)
            done += len(part)
            progress("looking at pictures", done, total)
    columns = {name: known[name].copy() for name in _KNOWN.names or ()}  # each for itself in memory
    return Survey(kinds=kinds, canvases=canvases, bad=bad, **columns)


def largest(source: PictureSource, side: int) -> int:
    """``side``, or the side of a prepared cache where that is smaller."""
    return min(side, source.own) if isinstance(source, Prepared) else side


def _look_at(source: PictureSource, side: int, canvas: int, rows: range) -> list[_Facts]:
    return [_facts(source, row, side, canvas) for row in rows if not stopped()]


def _path(source: PictureSource, rows: range, number: int) -> str:
    return source.paths[rows[number]]


def _facts(source: PictureSource, row: int, side: int, canvas: int) -> _Facts:
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
    thumb = np.asarray(Image.fromarray(pixels).resize((_THUMB, _THUMB), Resampling.BOX)).reshape(-1)
    number, size = int.from_bytes(content, "little"), (example.height, example.width)
    known = (size, len(data), number, look(pixels), thumb, spread <= _GRAY)
    return _Facts(known, kind, example.bad, gray_canvas(pixels, canvas))


def gray_canvas(pixels: Bytes, side: int) -> Bytes:
    """A picture (H, W, 3) in gray, squashed to (side, side)."""
    if not side:
        return np.empty((0, 0), np.uint8)
    return np.asarray(Image.fromarray(pixels).convert("L").resize((side, side), Resampling.BILINEAR))


def look(pixels: Bytes) -> int:
    """64 bits of what a picture (H, W, 3) looks like: whether it darkens from left to right, at 8 x 8 places.

    dHash (Krawetz 2013, "Kind of like that"): it stays where a picture is made smaller, lighter, or saved again.
    """
    small = Image.fromarray(pixels).convert("L").resize((9, 8), Resampling.BOX)
    gray = np.asarray(small, dtype=np.int16)
    return int.from_bytes(np.packbits(gray[:, :-1] > gray[:, 1:]).tobytes(), "little")


def same(values: npt.NDArray[np.generic], rows: Numbers) -> list[list[int]]:
    """Groups of two or more of ``rows`` (M,) whose ``values`` (M,) are equal, each in order."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(values[order][1:] != values[order][:-1]) + 1
    return sorted(group.tolist() for group in np.split(rows[order], starts) if len(group) > 1)


def near(survey: Survey) -> list[list[int]]:
    """Groups of rows that look alike, each in order, by chains of ``near_pairs``."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges, count = near_pairs(survey), len(survey.sizes)
    graph = coo_array((np.ones(len(edges), np.bool_), tuple(edges.T)), (count, count))
    return same(connected_components(graph, directed=False)[1], np.arange(count))


def near_pairs(survey: Survey) -> Numbers:
    """(P, 2) rows that look alike: hashes at most 3 bits apart, and about the same colours; some occur twice.

    Hashes so near have one of four bands of 16 bits in common, so only those are compared that share one: O(N) for
    pictures that differ. Hashes that very many share (plain backgrounds) count as alike only where they are equal.
    """
    rows = survey.good
    pairs = [pair for group in same(survey.looks[rows], rows) for pair in _of_one_hash(survey, np.array(group))]
    single = rows[np.unique(survey.looks[rows], return_index=True)[1]]
    for band in range(4):
        keys = (survey.looks[single] >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        buckets = (np.array(bucket) for bucket in same(keys, single) if len(bucket) <= _CROWD)
        pairs += [_of_near_hashes(survey, bucket) for bucket in buckets]
    return np.concatenate([np.empty((0, 2), np.int64), *pairs])


def _of_one_hash(survey: Survey, group: Numbers) -> list[Numbers]:
    """Pairs (P, 2) of the first and those with its colours, then of what is left the same, a few times over."""
    pairs = []
    for _ in range(8):
        if len(group) < 2:
            break
        alike = _colours_apart(survey, group[:1], group) <= _ALIKE
        pairs.append(np.stack([np.broadcast_to(group[:1], alike.sum()), group[alike]], 1))
        group = group[~alike]
    return pairs


def _of_near_hashes(survey: Survey, bucket: Numbers) -> Numbers:
    """The pairs (P, 2) of a bucket that look alike."""
    looks = survey.looks[bucket]
    apart = _ONES[(looks[:, None] ^ looks[None, :])[..., None].view(np.uint8)].sum(-1)
    pairs = bucket[np.argwhere(np.triu(apart <= _NEAR, 1))]
    return pairs[_colours_apart(survey, pairs[:, 0], pairs[:, 1]) <= _ALIKE]


def _colours_apart(survey: Survey, some: Numbers, others: Numbers) -> npt.NDArray[np.float64]:
    """(P,) the mean difference of 8 x 8 colours."""
    return np.asarray(np.abs(survey.thumbs[others].astype(np.int16) - survey.thumbs[some]).mean(axis=1))


def sharpness(survey: Survey) -> npt.NDArray[np.float64]:
    """(N,) the mean step between neighbouring pixels of the small gray pictures, of 255."""
    means = [np.empty(0)]
    for start in range(0, len(survey.canvases), _BLOCK):
        some = survey.canvases[start : start + _BLOCK].astype(np.int16)
        steps = [np.abs(np.diff(some, axis=axis)).mean((1, 2)) for axis in (1, 2)]
        means.append((steps[0] + steps[1]) / 2)
    return np.concatenate(means)


class Tile(NamedTuple):
    """One picture of a sheet, and what is written beneath it."""

    image: Image.Image
    words: str = ""


def random_rows(count: int, most: int) -> Tensor:
    """At most ``most`` of ``count`` rows in an order that is random and always the same."""
    return some_rows(count, most, draw=3)


def upright(pixels: Tensor, height: int, width: int, side: int) -> Image.Image:
    """A canvas uint8 (3, S, S) in the shape of its picture, of at most ``side`` pixels; small ones are enlarged."""
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return image.resize(size, Resampling.NEAREST if max(height, width) <= side // 2 else Resampling.LANCZOS)


def sheet(tiles: Sequence[Tile], columns: int, side: int, title: str = "") -> bytes:
    """A PNG of ``tiles`` in rows of ``columns``, each in a square of ``side`` pixels."""
    line = _LINE if any(tile.words for tile in tiles) else 0
    rows, head = -(-len(tiles) // columns), 2 * _LINE if title else 0
    size = columns * (side + _GAP) + _GAP, head + rows * (side + line + _GAP) + _GAP
    paper, font = Image.new("RGB", size, _PAPER), ImageFont.load_default(11)
    draw = ImageDraw.Draw(paper)
    draw.text((_GAP, _GAP), _printable(title), _INK, font)
    for i, (image, words) in enumerate(tiles):
        left, top = _GAP + i % columns * (side + _GAP), head + _GAP + i // columns * (side + line + _GAP)
        paper.paste(image, (left + (side - image.width) // 2, top + (side - image.height) // 2))
        draw.text((left, top + side + 1), _shortened(_printable(words), side, font), _INK, font)
    file = io.BytesIO()
    paper.save(file, "PNG")
    return file.getvalue()


def _shortened(words: str, side: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The end of the words, as far as it fits: of a path, the file's name."""
    if font.getlength(words) <= side:
        return words
    while words and font.getlength("…" + words) > side:
        words = words[1:]
    return "…" + words


def _printable(words: str) -> str:
    """One line of what any font can draw."""
    return "".join(letter if letter.isprintable() else "?" for letter in words)
