"""One record per picture, whatever kind of file says what lies in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lookalike.data.annotations.masks import Outline
from lookalike.data.decode import SUFFIXES, Header, Unreadable, header
from lookalike.data.example import PictureSource
from lookalike.data.formats.disk import Local
from lookalike.data.formats.encoded import FileStore
from lookalike.data.formats.files import listed, printable, split_of

Numbers = npt.NDArray[np.float64]
_HEAD = 1 << 16  # bytes of a picture that hold its header, as a rule
HIDDEN, VISIBLE = 1.0, 2.0  # COCO's words for a point that is known; 0 is one that is not


class Thing(NamedTuple):
    """One object as a file states it; ``box`` is left, top, right, bottom in pixels."""

    box: tuple[float, float, float, float]
    name: str
    crowd: bool = False
    ignored: bool = False
    area: float | None = None
    outline: Outline | None = None
    points: Sequence[Sequence[float]] = ()


@dataclass
class RawAnnotations:
    """What the files of one kind state."""

    things: dict[str, list[Thing]] = field(default_factory=dict)  # by the path of a listed picture
    splits: dict[str, list[str]] = field(default_factory=dict)  # paths, where the files say which split is which
    joints: tuple[str, ...] = ()
    bones: tuple[tuple[int, int], ...] = ()
    classes: set[str] = field(default_factory=set)  # named, whether or not there is a thing of theirs


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture and the N objects in it, of which there may be none."""

    path: str  # below the root
    height: int  # in pixels, upright, as the picture's own header says
    width: int
    boxes: Numbers  # (N, 4) left, top, right, bottom in pixels, inside the picture, of a positive area
    labels: npt.NDArray[np.int64]  # (N,) numbers of classes
    crowd: npt.NDArray[np.bool_]  # (N,) many objects at once: found or not, nothing is counted
    ignored: npt.NDArray[np.bool_]  # (N,) hard to see: the same, but learned from
    areas: Numbers  # (N,) of the outline where there is one, else of the box
    outlines: tuple[Outline | None, ...]
    points: Numbers  # (N, K, 3) x, y and whether it is known: 0, HIDDEN or VISIBLE

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False)
class Annotated:
    """Pictures below one folder with the objects in them."""

    root: Path
    scenes: tuple[Scene, ...]  # sorted by path
    classes: tuple[str, ...]  # sorted: the numbers that a file gives its classes change nothing
    joints: tuple[str, ...]  # (K,) names of points, of which "left" and "right" are each other in a mirror
    bones: tuple[tuple[int, int], ...]  # pairs of points to draw a line between
    splits: Mapping[str, tuple[int, ...]]  # rows
    notes: tuple[str, ...]  # what was left out, in words

    def pictures(self) -> PictureSource:
        """A row a scene."""
        return FileStore(Local(self.root), (scene.path for scene in self.scenes)).source()

    def some(self, rows: Sequence[int]) -> Annotated:
        """Only the scenes at ``rows``."""
        scenes = tuple(self.scenes[row] for row in rows)
        return Annotated(self.root, scenes, self.classes, self.joints, self.bones, {}, self.notes)


def annotated(pictures: Pictures, raw: RawAnnotations) -> Annotated:
    """The records of all pictures that can be read, with every object that has an area in its picture."""
    classes = tuple(sorted(raw.classes | {thing.name for things in raw.things.values() for thing in things}))
    numbers = {name: i for i, name in enumerate(classes)}
    scenes = [
        _scene(path, size, things, numbers, len(raw.joints), pictures.omissions)
        for path, things in sorted(raw.things.items())
        if (size := pictures.size(path)) is not None
    ]
    rows = {scene.path: row for row, scene in enumerate(scenes)}
    splits = {
        name: tuple(sorted(rows[path] for path in set(paths) if path in rows)) for name, paths in raw.splits.items()
    }
    notes = pictures.omissions.notes()
    return Annotated(pictures.root, tuple(scenes), classes, raw.joints, raw.bones, splits, notes)


def _scene(
    path: str,
    size: tuple[int, int],
    things: Sequence[Thing],
    numbers: Mapping[str, int],
    joints: int,
    omissions: Omissions,
) -> Scene:
    height, width = size
    boxes = np.array([thing.box for thing in things], dtype=np.float64).reshape(-1, 4)
    boxes = np.nan_to_num(boxes, nan=0.0, posinf=0.0, neginf=0.0).clip(0, [width, height, width, height])
    sides = boxes[:, 2:] - boxes[:, :2]
    good = np.asarray((sides > 0).all(1))
    omissions.add("objects without an area in their picture", path, int((~good).sum()))
    kept = [thing for thing, fits in zip(things, good) if fits]
    stated = np.array([thing.area or 0 for thing in kept], dtype=np.float64)
    return Scene(
        path,
        height,
        width,
        boxes[good],
        np.array([numbers[thing.name] for thing in kept], dtype=np.int64),
        np.array([thing.crowd for thing in kept], dtype=bool),
        np.array([thing.ignored for thing in kept], dtype=bool),
        np.where((stated > 0) & (stated < np.inf), stated, sides[good].prod(1)),
        tuple(thing.outline for thing in kept),
        _points([thing.points for thing in kept], joints, size),
    )


def _points(lists: Sequence[Sequence[Sequence[float]]], joints: int, size: tuple[int, int]) -> Numbers:
    """(N, K, 3) x, y and 0, HIDDEN or VISIBLE."""
    points = np.zeros((len(lists), joints, 3))
    for row, values in zip(points, lists):
        if len(values) == joints and joints:
            row[:] = np.array(values, dtype=np.float64)
    points = known_points(points, size)
    points[..., 2] = np.where(points[..., 2] > 0, points[..., 2].clip(HIDDEN, VISIBLE), 0)
    return points


def known_points(points: Numbers, size: tuple[int, int]) -> Numbers:
    """(..., 3) with 0 for points that are no numbers, not seen, or outside of a picture of ``size`` (height, width)."""
    height, width = size
    x, y, visibility = points[..., 0], points[..., 1], points[..., 2]
    with np.errstate(invalid="ignore"):
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (visibility > 0)
    return np.where(inside[..., None], points, 0.0)


class Omissions:
    """Kinds of things that were left out, how many, and where the first one is."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, what: str, where: str, count: int = 1) -> None:
        """``count`` more of a kind, in words."""
        if count:
            self.counts[what] = self.counts.get(what, 0) + count
            self._first.setdefault(what, printable(where))

    def notes(self) -> tuple[str, ...]:
        """One line a kind."""
        return tuple(f"{count} {what}, first {self._first[what]}" for what, count in sorted(self.counts.items()))


class Pictures:
    """Those below a folder, as annotation files name them: a name finds a listed picture or none, never a path.

    Listed once; counts what could not be found or read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = listed(root, SUFFIXES).files
        self.omissions = Omissions()
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for path in self.paths:
            name = PurePosixPath(path)
            self._by_name.setdefault(name.name, []).append(path)
            self._by_stem.setdefault(name.stem, []).append(path)
        self._sizes: dict[str, tuple[int, int] | None] = {}

    def find(self, name: str, near: str = "") -> str | None:
        """The picture that a file ``near`` calls ``name``: that of most common last parts, then of the same split."""
        called = PurePosixPath(name.replace("\\", "/"))
        return self._nearest(self._by_name.get(called.name, []), called, near)

    def beside(self, path: str) -> str | None:
        """The picture of the same stem as an annotation file of its own."""
        file = PurePosixPath(path)
        return self._nearest(self._by_stem.get(file.stem, []), file, path)

    def _nearest(self, candidates: list[str], called: PurePosixPath, near: str) -> str | None:
        words = splits_in(near)

        def fit(path: str) -> tuple[int, bool]:
            parts = zip(reversed(PurePosixPath(path).parent.parts), reversed(called.parent.parts))
            common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], parts))
            return common, bool(splits_in(path) & words)

        return max(candidates, key=fit, default=None)

    def size(self, path: str) -> tuple[int, int] | None:
        """Upright (height, width) in pixels; None, and counted, where the picture cannot be read."""
        if path not in self._sizes:
            try:
                head = self._header(path)
                self._sizes[path] = head.height, head.width
            except Unreadable as unreadable:
                self.omissions.add("pictures that cannot be read", f"{path} ({unreadable.reason})")
                self._sizes[path] = None
        return self._sizes[path]

    def _header(self, path: str) -> Header:
        """From the first bytes where they are enough: COCO's 118,000 pictures are 19 GB. Raises Unreadable."""
        try:
            with Local(self.root).file(path) as file:
                return header(file.read(_HEAD))
        except (OSError, ValueError, Unreadable):
            return header(Local(self.root).whole(path))


def splits_in(path: str) -> set[str]:
    """The splits that words of a path name: ``instances_val2017.json`` and ``val2017/1.jpg`` are both validation."""
    words = re.split(r"[/_.-]", path)
    return {split for word in words if (split := split_of(word)) is not None}
