"""One record per picture, whatever kind of file says what lies in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.annotations.masks import Box, Outline
from lookalike.data.annotations.pictures import Omissions, Pictures
from lookalike.data.example import PictureSource
from lookalike.data.formats.disk import Local
from lookalike.data.formats.encoded import FileStore
from lookalike.data.formats.lists import class_name

Numbers = npt.NDArray[np.float64]
HIDDEN, VISIBLE = 1.0, 2.0  # COCO's words for a point that is known; 0 is one that is not


class Thing(NamedTuple):
    """One object as a file states it; ``box`` is left, top, right, bottom in pixels."""

    box: Box
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
    origins: dict[str, str] = field(default_factory=dict)  # the file that first described a picture

    def describe(self, path: str, things: Sequence[Thing], file: str, omissions: Omissions) -> None:
        """Add the objects of a picture, which may have been described before; raises UserError on contradictions."""
        known = self.things.setdefault(path, [])
        first = self.origins.setdefault(path, file)
        names: dict[Box, set[str]] = {}
        for thing in known:
            names.setdefault(thing.box, set()).add(thing.name)
        if contrary := next((thing for thing in things if thing.name not in names.get(thing.box, {thing.name})), None):
            box = [round(number, 1) for number in contrary.box]
            raise UserError(
                f"{file}: {path} has a {contrary.name} at {box}, which is a {min(names[contrary.box])} where {first} "
                "describes the picture first; keep one of them, or name one file: --annotations",
                BAD_DATA,
            )
        known += things


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
    names = {name: class_name(name) for name in raw.classes}
    names |= {thing.name: class_name(thing.name) for things in raw.things.values() for thing in things}
    classes = tuple(sorted(set(names.values())))
    numbers = {name: classes.index(plain) for name, plain in names.items()}
    scenes = [
        _scene(path, size, things, numbers, len(raw.joints), pictures.omissions)
        for path, things in sorted(raw.things.items())
        if (size := pictures.size(path)) is not None
    ]
    rows = {scene.path: row for row, scene in enumerate(scenes)}
    count_repeats(raw.splits, pictures.omissions)
    splits = {
        name: tuple(sorted(rows[path] for path in set(paths) if path in rows)) for name, paths in raw.splits.items()
    }
    notes = pictures.omissions.notes()
    return Annotated(pictures.root, tuple(scenes), classes, raw.joints, raw.bones, splits, notes)


def count_repeats(splits: Mapping[str, Sequence[str]], omissions: Omissions) -> None:
    """Pictures that a split lists again, and those that two splits share."""
    for name, paths in splits.items():
        omissions.add(f"repeated pictures in the list of {name}", name, len(paths) - len(set(paths)))
    for (name, paths), (other, others) in combinations(splits.items(), 2):
        if both := sorted(set(paths) & set(others)):
            omissions.add(f"pictures that are in both {name} and {other}", both[0], len(both))


def _distinct(things: Sequence[Thing], path: str, omissions: Omissions) -> list[Thing]:
    """Of objects with the same box, class and points only the first."""
    distinct = {
        (thing.box, thing.name, thing.crowd, tuple(map(tuple, thing.points))): thing for thing in reversed(things)
    }
    omissions.add("identical boxes, counted once", path, len(things) - len(distinct))
    return list(reversed(distinct.values()))


def _scene(
    path: str,
    size: tuple[int, int],
    things: Sequence[Thing],
    numbers: Mapping[str, int],
    joints: int,
    omissions: Omissions,
) -> Scene:
    height, width = size
    things = _distinct(things, path, omissions)
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
