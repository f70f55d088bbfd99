"""Annotations in files other than COCO's: Pascal VOC's XML, and points in tables of MATLAB or .csv.

XML with a document type is refused, so nothing in it can expand. MATLAB's files are those of Leeds Sports Poses.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TypeVar
from xml.etree import ElementTree

import numpy as np
import scipy.io

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.annotations.pictures import Pictures, one_file_each
from lookalike.data.annotations.record import VISIBLE, Numbers, RawAnnotations, Thing, known_points
from lookalike.data.decode import Unreadable
from lookalike.data.formats.disk import Local
from lookalike.data.formats.encoded import PATHS
from lookalike.data.formats.files import TEST, TRAIN, VALIDATION, lines_in

_MOST_BYTES = 4 << 20  # bytes of one file: a picture with 10,000 objects takes 3 MB
PADDING = 0.1  # of its longer side, around the known points of somebody without a box
PERSON = "person"
LEEDS = (
    *("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist"),
    *("right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck", "head_top"),
)
"""The points of Leeds Sports Poses and its extended training set, in the order of its README."""

_BONES = ((0, 1), (1, 2), (3, 4), (4, 5), (2, 3), (6, 7), (7, 8), (9, 10), (10, 11), (8, 12), (9, 12), (12, 13))
_MOST_NUMBERS = 100_000_000  # numbers of one table
_CLASSES = ("class", "label", "name")
_SIDES = ("xmin", "ymin", "xmax", "ymax")
T = TypeVar("T")


def voc(pictures: Pictures, files: list[str]) -> RawAnnotations:
    """What the files, relative to the root, state; those that cannot be read are counted."""
    raw = RawAnnotations()
    trees = dict(_trees(pictures, files))
    by_stem: dict[str, str] = {}
    for path, file in one_file_each(
        pictures, ((file, *_pictured(pictures, file, tree)) for file, tree in trees.items())
    ):
        if (size := pictures.size(path)) is not None:
            by_stem[Path(file).stem] = path
            if _fits(trees[file], size):
                raw.things[path] = [
                    thing for part in trees[file].iter("object") if (thing := _voc_thing(part)) is not None
                ]
            else:
                pictures.omissions.add("pictures of another size than their annotations state", path)
    raw.splits = image_sets(pictures.root / "ImageSets" / "Main", by_stem)
    return raw


def _trees(pictures: Pictures, files: Sequence[str]) -> Iterator[tuple[str, ElementTree.Element]]:
    for file in files:
        try:
            yield file, parsed(Local(pictures.root).whole(file))
        except Unreadable as unreadable:
            pictures.omissions.add("files that cannot be read", f"{file} ({unreadable.reason})")


def _pictured(pictures: Pictures, file: str, tree: ElementTree.Element) -> tuple[str | None, bool]:
    """The picture of the file's own stem, else the one that it names; and whether it is the former."""
    name = (tree.findtext("filename") or "").strip()
    own = pictures.beside(file, PurePosixPath(name.replace("\\", "/")).name)
    folder = file.rpartition("/")[0]
    stated = pictures.find(name, f"{folder}/" if folder else "") if name else None
    if own and stated and own != stated:
        pictures.omissions.add("files that name another picture than that of their own stem", f"{file}: not {stated}")
    return own or stated, own is not None


def parsed(data: bytes) -> ElementTree.Element:
    """The tree of a small file without a document type; raises Unreadable."""
    if len(data) > _MOST_BYTES:
        raise Unreadable(f"{len(data)} bytes are more than the limit of {_MOST_BYTES}")
    try:
        text = _xml_text(data)  # and never its bytes to the parser: so nothing hides in another encoding
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise Unreadable("it has a document type")
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise Unreadable(f"no XML: {error}") from None


def _xml_text(data: bytes) -> str:
    """By the byte order mark, else by the encoding that the file declares, else as UTF-8."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    declared = re.match(rb"""\s*<\?xml[^>]{0,99}?encoding\s*=\s*["']([\w.-]{1,30})["']""", data)
    return data.decode("utf-8-sig" if declared is None or declared[1].lower() == b"utf-8" else declared[1].decode())


def _voc_thing(part: ElementTree.Element) -> Thing | None:
    """VOC counts pixels from 1 and the last one belongs to the box."""
    try:
        left, top, right, bottom = (
            float(part.findtext(f"bndbox/{side}") or "nan") for side in ("xmin", "ymin", "xmax", "ymax")
        )
    except ValueError:
        left = top = right = bottom = float("nan")
    name = (part.findtext("name") or "").strip()
    hard = (part.findtext("difficult") or "").strip() == "1"
    return Thing((left - 1, top - 1, right, bottom), name, ignored=hard) if name else None


def _fits(tree: ElementTree.Element, size: tuple[int, int]) -> bool:
    stated = tuple((tree.findtext(f"size/{side}") or "").strip() for side in ("height", "width"))
    return not all(side.isdecimal() and side.strip("0") for side in stated) or tuple(map(str, size)) == stated


def image_sets(folder: Path, by_stem: Mapping[str, T]) -> dict[str, list[T]]:
    """What the lists in a folder of Pascal VOC's ImageSets name, by split; those of single classes do not count."""
    splits: dict[str, list[T]] = {}
    for name, split in (("train", TRAIN), ("val", VALIDATION), ("test", TEST)):
        with suppress(OSError):
            lines = (folder / f"{name}.txt").read_text("utf-8", "surrogateescape").split("\n")
            splits[split] = [by_stem[stem] for line in lines if (stem := line.strip()) in by_stem]
    return splits


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
        name = next((name for name, shape in shapes.items() if shape[1] == 3 and np.prod(shape) <= _MOST_NUMBERS), None)
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
    paths = pictures.find_all([row[path_column] for row in rows], pictures.relative(file))
    for row, path in zip(rows, paths):
        if path is None:
            pictures.omissions.add(f"rows of {file.name} whose picture is not in the folder", row[path_column])
        elif (size := pictures.size(path)) is not None:
            raw.things.setdefault(path, []).append(_row_thing(row, joints, size))
    return raw


def _rows(file: Path) -> list[dict[str, str]]:
    """Cells by the names of their columns, in small letters; raises UserError."""
    with lines_in(file, "replace") as lines:
        reader = csv.reader(lines)
        head = [name.strip().lower() for name in next(reader, [])]
        return [dict(zip(head, [*cells, *[""] * len(head)])) for cells in reader if any(cells)]


def _row_thing(row: Mapping[str, str], joints: Sequence[str], size: tuple[int, int]) -> Thing:
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
