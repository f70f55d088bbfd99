"""Tables of points: MATLAB's files as of Leeds Sports Poses, and CSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import scipy.io

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.annotations.record import VISIBLE, Numbers, Pictures, RawAnnotations, Thing, known_points
from lookalike.data.formats.encoded import PATHS
from lookalike.data.formats.files import lines_in

PADDING = 0.1  # of its longer side, around the known points of somebody without a box
PERSON = "person"
LEEDS = (
    *("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist"),
    *("right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck", "head_top"),
)
"""The points of Leeds Sports Poses and its extended training set, in the order of its README."""

_BONES = ((0, 1), (1, 2), (3, 4), (4, 5), (2, 3), (6, 7), (7, 8), (9, 10), (10, 11), (8, 12), (9, 12), (12, 13))
_MOST = 100_000_000  # numbers of one table
_CLASSES = ("class", "label", "name")
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def matlab(pictures: Pictures, file: Path) -> RawAnnotations:
    """A table (K, 3, N) of x, y and whether the point is seen: the picture whose name ends in number n is row n - 1.

    A point that lies outside of its picture is not known, whatever the table says. Raises UserError.
    """
    table = _table(file)
    count = table.shape[0]
    raw = RawAnnotations(joints=LEEDS if count == len(LEEDS) else tuple(str(i) for i in range(count)))
    raw.bones = _BONES if count == len(LEEDS) else ()
    for path in pictures.paths:
        number = re.search(r"(\d{1,9})$", PurePosixPath(path).stem)
        row = int(number[1]) - 1 if number else -1
        size = pictures.size(path) if 0 <= row < table.shape[2] else None
        if size is not None:
            points = _visible(table[:, :, row], size)
            raw.things[path] = [Thing(around(points), PERSON, points=points.tolist())]
        elif not 0 <= row < table.shape[2]:
            pictures.omissions.add(f"pictures that have no row in {file.name}", path)
    return raw


def _table(file: Path) -> Numbers:
    """The one array of three dimensions in a file; raises UserError."""
    try:
        shapes = {name: shape for name, shape, kind in scipy.io.whosmat(file) if len(shape) == 3 and kind != "cell"}
        name = next((name for name, shape in shapes.items() if shape[1] == 3 and np.prod(shape) <= _MOST), None)
        if name is None:
            names = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"
            raise UserError(f"{file}: no array of shape (points, 3, pictures) in it; of three sides: {names}", BAD_DATA)
        return np.asarray(scipy.io.loadmat(file, variable_names=[name])[name], dtype=np.float64)
    except UserError:
        raise
    except Exception as error:  # scipy's reader has a dozen for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise UserError(f"{file}: no MATLAB file that can be read ({reason}); fetch it again", BAD_DATA) from None


def _visible(points: Numbers, size: tuple[int, int]) -> Numbers:
    """(K, 3) the same points, each of them VISIBLE or 0."""
    points = known_points(points, size)
    points[:, 2] = np.where(points[:, 2] > 0, VISIBLE, 0)
    return points


def around(points: Numbers) -> tuple[float, float, float, float]:
    """The extent of the known points (K, 3) and ``PADDING``; of no area where none is known."""
    visible = points[points[:, 2] > 0, :2]
    if not len(visible):
        return (0.0, 0.0, 0.0, 0.0)
    low, high = visible.min(0), visible.max(0)
    room = PADDING * float((high - low).max())
    left, top, right, bottom = map(float, (*(low - room), *(high + room)))
    return left, top, right, bottom


def comma_separated(pictures: Pictures, file: Path) -> RawAnnotations:
    """A row an object: a path; NAME_x, NAME_y and, if you like, NAME_v for points; xmin, ymin, xmax, ymax; class.

    An empty cell is a point that is not known. Raises UserError.
    """
    rows = _rows(file)
    head = list(rows[0]) if rows else []
    path_column = next((name for name in PATHS if name in head), None)
    joints = tuple(name.removesuffix("_x") for name in head if name.endswith("_x") and f"{name[:-2]}_y" in head)
    if path_column is None or not (joints or set(_SIDES) <= set(head)):
        raise UserError(
            f"{file}: its first line names no path, or neither NAME_x and NAME_y nor xmin to ymax", BAD_DATA
        )
    raw = RawAnnotations(joints=joints)
    for row in rows:
        path = pictures.find(row[path_column], file.name)
        if path is None:
            pictures.omissions.add(f"rows of {file.name} whose picture is not in the folder", row[path_column])
        elif (size := pictures.size(path)) is not None:
            raw.things.setdefault(path, []).append(_thing(row, joints, size))
    return raw


def _rows(file: Path) -> list[dict[str, str]]:
    """Cells by the names of their columns, in small letters; raises UserError."""
    with lines_in(file, "replace") as lines:
        reader = csv.reader(lines)
        head = [name.strip().lower() for name in next(reader, [])]
        return [dict(zip(head, [*cells, *[""] * len(head)])) for cells in reader if any(cells)]


def _thing(row: Mapping[str, str], joints: Sequence[str], size: tuple[int, int]) -> Thing:
    values = [[_number(row.get(f"{name}_{part}", "")) for part in "xyv"] for name in joints]
    points = np.array(values, dtype=np.float64).reshape(-1, 3)
    if joints and f"{joints[0]}_v" not in row:
        points[:, 2] = VISIBLE
    points = _visible(points, size)
    left, top, right, bottom = (_number(row.get(side, "")) for side in _SIDES)
    boxed = all(side in row for side in _SIDES)
    name = next((row[column] for column in _CLASSES if row.get(column)), PERSON if joints else "object")
    return Thing((left, top, right, bottom) if boxed else around(points), name, points=points.tolist())


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
