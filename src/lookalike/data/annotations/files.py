"""Annotations in files other than COCO's: Pascal VOC's XML, labelme's JSON, and points in tables of MATLAB or .csv.

XML with a document type is refused, so nothing in it can expand. MATLAB's files are those of Leeds Sports Poses.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from xml.etree import ElementTree

import numpy as np

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import json_in, whole
from lookalike.data.annotations.masks import outline
from lookalike.data.annotations.pictures import Omissions, Pictures, one_file_each
from lookalike.data.annotations.record import VISIBLE, Numbers, RawAnnotations, Thing, known_points
from lookalike.data.decode import Unreadable
from lookalike.data.formats.disk import Local
from lookalike.data.formats.files import TEST, TRAIN, VALIDATION, lines_in, split_of
from lookalike.data.formats.lists import PATHS, SPLITS, table_in

_MOST_BYTES = 4 << 20  # bytes of one file: a picture with 10,000 objects takes 3 MB
_MOST_SHAPES = 64 << 20  # bytes of one file of labelme's, which may hold its picture
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
    by_file: dict[str, str] = {}
    for path, file in one_file_each(
        pictures, ((file, *_pictured(pictures, file, tree.findtext("filename"))) for file, tree in trees.items())
    ):
        if (size := pictures.size(path)) is not None:
            by_file[file] = path
            if _fits(trees[file], size):
                raw.things[path] = [
                    thing for part in trees[file].iter("object") if (thing := _voc_thing(part)) is not None
                ]
            else:
                pictures.omissions.add("pictures of another size than their annotations state", path)
    raw.splits = image_sets(pictures.root, "Main", by_file, pictures.omissions)
    return raw


def _trees(pictures: Pictures, files: Sequence[str]) -> Iterator[tuple[str, ElementTree.Element]]:
    for file in files:
        try:
            yield file, parsed(Local(pictures.root).whole(file))
        except Unreadable as unreadable:
            pictures.omissions.add("files that cannot be read", f"{file} ({unreadable.reason})")


def _pictured(pictures: Pictures, file: str, stated: object) -> tuple[str | None, bool]:
    """The picture of the file's own stem, else the one that it names; and whether it is the former."""
    name = stated.strip() if isinstance(stated, str) else ""
    own = pictures.beside(file, PurePosixPath(name.replace("\\", "/")).name)
    folder = file.rpartition("/")[0]
    other = pictures.find(name, f"{folder}/" if folder else "") if name else None
    if own and other and own != other:
        pictures.omissions.add("files that name another picture than that of their own stem", f"{file}: not {other}")
    return own or other, own is not None


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


def image_sets(root: Path, kind: str, files: Mapping[str, T], omissions: Omissions) -> dict[str, list[T]]:
    """What the lists of Pascal VOC's ImageSets name, by split; those of single classes do not count.

    ``kind`` is Main or Segmentation; the lists lie in a folder that holds the ``files``, however deep below the root.
    """
    splits: dict[str, list[T]] = {}
    for home in sorted({folder.as_posix() for file in files for folder in PurePosixPath(file).parents}):
        lists = next(
            (sets for sets in (root / home / "ImageSets" / kind, root / home / "ImageSets") if sets.is_dir()), None
        )
        if lists is not None:
            inside = "" if home == "." else f"{home}/"
            by_stem = {PurePosixPath(file).stem: value for file, value in files.items() if file.startswith(inside)}
            for split, some in _image_sets(lists, by_stem, omissions).items():
                splits.setdefault(split, []).extend(some)
    return splits


def _image_sets(folder: Path, by_stem: Mapping[str, T], omissions: Omissions) -> dict[str, list[T]]:
    splits: dict[str, list[T]] = {}
    for name, split in (("train", TRAIN), ("val", VALIDATION), ("test", TEST), ("trainval", TRAIN)):
        file = folder / f"{name}.txt"
        if split not in splits and file.is_file():
            with lines_in(file, "surrogateescape") as lines:
                stems = [line.strip() for line in lines if line.strip()]
            if known := [by_stem[stem] for stem in stems if stem in by_stem]:
                splits[split] = known
                missing = [stem for stem in stems if stem not in by_stem]
                what = f"names in {folder.name}/{name}.txt of no picture with annotations"
                omissions.add(what, missing[0] if missing else "", len(missing))
    return splits


def labelme(pictures: Pictures, files: Sequence[str]) -> RawAnnotations:
    """What labelme's JSON files, relative to the root, state: boxes, polygons, circles and points by name."""
    read = {file: content for file in files if (content := shapes_in(pictures.root / file)) is not None}
    points = (shape for content in read.values() for shape in content["shapes"] if shape["shape_type"] == "point")
    raw = RawAnnotations(joints=tuple(sorted({shape["label"] for shape in points})))
    named = ((file, *_pictured(pictures, file, content.get("imagePath"))) for file, content in read.items())
    for path, file in one_file_each(pictures, named):
        if (size := pictures.size(path)) is not None:
            stated = (read[file].get("imageHeight"), read[file].get("imageWidth"))
            if all(type(side) is int and side > 0 for side in stated) and stated != size:
                pictures.omissions.add("pictures of another size than their annotations state", path)
                continue
            shapes = [shape for shape in read[file]["shapes"] if _drawn(shape)]
            pictures.omissions.add(
                "shapes that are no box, polygon or point", file, len(read[file]["shapes"]) - len(shapes)
            )
            raw.things[path] = _labelme_things(shapes, raw.joints, size)
    return raw


def shapes_in(file: Path) -> dict[str, Any] | None:
    """The content of a file of labelme's, each shape with a label, a type and points; None for another file."""
    try:
        data = whole(file) if file.stat().st_size < _MOST_SHAPES else b""
        content = json_in(data) if b'"shapes"' in data else None
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        return None
    shapes = [shape for shape in content["shapes"] if isinstance(shape, dict)]
    plain = {"label": "", "shape_type": "polygon", "points": []}  # old files state no type
    content["shapes"] = [plain | {k: v for k, v in shape.items() if v is not None} for shape in shapes]
    for shape in content["shapes"]:
        shape["label"], shape["shape_type"] = str(shape["label"]), str(shape["shape_type"])
    return content


def _drawn(shape: Mapping[str, Any]) -> bool:
    """Whether it is of a kind that is read, with a name and as many points as it takes."""
    least = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2, "point": 1}.get(shape["shape_type"])
    corners = shape["points"]
    pairs = isinstance(corners, list) and all(isinstance(one, list) and len(one) == 2 for one in corners)
    numbers = pairs and all(type(number) in (int, float) for one in corners for number in one)
    return bool(least and numbers and len(corners) >= least and shape["label"].strip())


def _labelme_things(shapes: Sequence[Mapping[str, Any]], joints: Sequence[str], size: tuple[int, int]) -> list[Thing]:
    """Shapes of one name and group are one object; points belong to that of their group, or to the only one."""
    parts: dict[object, list[Mapping[str, Any]]] = {}
    points: dict[object, list[list[float]]] = {}
    for i, shape in enumerate(shapes):
        group = shape.get("group_id")
        if shape["shape_type"] == "point":
            known = points.setdefault(group, [[0.0, 0.0, 0.0] for _ in joints])
            known[joints.index(shape["label"])] = [*map(float, shape["points"][0]), VISIBLE]
        else:
            parts.setdefault((shape["label"], i if group is None else f"group {group}"), []).append(shape)
    groups = [some[0].get("group_id") if len(parts) > 1 else next(iter(points), None) for some in parts.values()]
    things = [_shaped(some, points.pop(group, ()), size) for some, group in zip(parts.values(), groups)]
    return things + [Thing(around(np.array(some)), "object", points=some) for some in points.values()]


def _shaped(parts: Sequence[Mapping[str, Any]], points: Sequence[Sequence[float]], size: tuple[int, int]) -> Thing:
    rings = [shape["points"] for shape in parts if shape["shape_type"] == "polygon"]
    drawn = outline([[number for corner in ring for number in corner] for ring in rings], *size) if rings else None
    corners = np.concatenate([_corners(shape) for shape in parts])
    left, top, right, bottom = map(float, (*corners.min(0), *corners.max(0)))
    return Thing((left, top, right, bottom), parts[0]["label"].strip(), outline=drawn, points=points)


def _corners(shape: Mapping[str, Any]) -> Numbers:
    """(N, 2) points that a shape reaches to; a circle is given by its middle and a point on it."""
    corners = np.array(shape["points"], dtype=np.float64)
    if shape["shape_type"] != "circle":
        return corners
    radius = float(np.hypot(*(corners[1] - corners[0])))
    return np.stack([corners[0] - radius, corners[0] + radius])


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
    import scipy.io

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


def comma_separated(pictures: Pictures, files: Sequence[Path]) -> RawAnnotations:
    """A row an object: a path; NAME_x, NAME_y and perhaps NAME_v for points; xmin, ymin, xmax, ymax; class; split.

    An empty cell is a point that is not known. DeepLabCut's tables, of three or four head rows, are read too. Raises
    UserError.
    """
    raw = RawAnnotations()
    for file in files:
        rows = rows_of_objects(file)
        joints = _joints(rows)
        if raw.things and joints != raw.joints:
            raise UserError(
                f"{file}: its points are others than those of {files[0]}; name one: --annotations", BAD_DATA
            )
        raw.joints = joints
        _add_rows(pictures, file, rows, raw)
    return raw


def rows_of_objects(file: Path) -> list[dict[str, str]]:
    """Cells by the names of their columns, in small letters, that of the picture as ``path``; raises UserError."""
    cells = table_in(file, {*PATHS, *_CLASSES, *_SIDES})
    deeplabcut = bool(cells) and cells[0][0].strip().lower() == "scorer"
    rows = (
        list(_deeplabcut(cells))
        if deeplabcut
        else [dict(zip(cells[0], [*row, *[""] * len(cells[0])])) for row in cells]
    )
    rows = [{name.strip().lower(): cell.strip() for name, cell in row.items()} for row in rows]
    path = next((name for name in PATHS if rows and name in rows[0]), None)
    if path is None or not (_joints(rows) or set(_SIDES) <= set(rows[0])):
        raise UserError(
            f"{file}: its first line names no path, or neither NAME_x and NAME_y nor xmin to ymax", BAD_DATA
        )
    return [row | {"path": row[path]} for row in rows[0 if deeplabcut else 1 :]]


def _joints(rows: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    head = rows[0] if rows else {}
    return tuple(name.removesuffix("_x") for name in head if name.endswith("_x") and f"{name[:-2]}_y" in head)


def _deeplabcut(cells: Sequence[Sequence[str]]) -> Iterator[dict[str, str]]:
    """An object a row, from DeepLabCut's tables, whose head is scorer, perhaps individuals, bodyparts and coords."""
    words = ("scorer", "individuals", "bodyparts", "coords")
    heads = {row[0].strip().lower(): row for row in cells[:4] if row[0].strip().lower() in words}
    axes = heads.get("coords", [])
    start = next((i for i, axis in enumerate(axes) if axis.strip().lower() in ("x", "y")), len(axes))
    names = [f"{part}_{axis}" for part, axis in zip(heads.get("bodyparts", []), axes)]
    who = heads.get("individuals", [""] * len(axes))
    every = dict.fromkeys(names[start:], "")
    for row in cells[len(heads) :]:
        objects: dict[str, dict[str, str]] = {}
        for column in range(start, min(len(row), len(names), len(who))):
            if row[column].strip():
                objects.setdefault(who[column], dict(every))[names[column]] = row[column]
        path = "/".join(part for part in row[:start] if part)
        yield from ({"path": path, "class": "animal", **points} for points in objects.values() or [every])


def _add_rows(pictures: Pictures, file: Path, rows: Sequence[Mapping[str, str]], raw: RawAnnotations) -> None:
    """The objects of one table, by the pictures that it names."""
    paths = pictures.find_all([row["path"] for row in rows], pictures.relative(file))
    splits = {name: dict.fromkeys(some) for name, some in raw.splits.items()}
    for row, path in zip(rows, paths):
        if path is None:
            pictures.omissions.add(f"rows of {file.name} whose picture is not in the folder", row["path"])
        elif (size := pictures.size(path)) is not None:
            raw.things.setdefault(path, []).append(_row_thing(row, raw.joints, size))
            if (split := split_of(next((row[name] for name in SPLITS if name in row), ""))) is not None:
                splits.setdefault(split, {})[path] = None
    raw.splits = {name: list(some) for name, some in splits.items()}


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
