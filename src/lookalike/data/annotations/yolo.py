"""YOLO's text files: a line an object, ``class x y width height`` or a polygon, as shares of the picture's sides.

Behind a box may stand points, whose number the data.yaml gives as ``kpt_shape``, and a confidence.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.core.errors import of_timm
from lookalike.core.files import whole
from lookalike.data.annotations.masks import Polygons
from lookalike.data.annotations.pictures import Pictures, one_file_each
from lookalike.data.annotations.record import VISIBLE, RawAnnotations, Thing
from lookalike.data.decode import Unreadable
from lookalike.data.formats.disk import Local

NAMES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names", "_darknet.labels")
YAML = (".yaml", ".yml")


def yolo(
    pictures: Pictures, files: Sequence[str], names: Sequence[str], shape: tuple[int, int] = (0, 3)
) -> RawAnnotations:
    """What the files, relative to the root, state; a picture without a file is left out, one with an empty file not.

    ``shape`` is how many points follow each box, and of how many numbers each is: 2 or 3.
    """
    raw = RawAnnotations(classes=set(names), joints=tuple(map(str, range(shape[0]))))
    for path, file in one_file_each(pictures, ((file, pictures.beside(file), True) for file in files)):
        if (size := pictures.size(path)) is not None:
            try:
                lines = plain_text(Local(pictures.root).whole(file)).splitlines()
            except Unreadable as unreadable:
                pictures.omissions.add("files that cannot be read", f"{file} ({unreadable.reason})")
                continue
            things = [
                _yolo_thing(line.replace(",", " ").split(), names, shape, *size) for line in lines if line.strip()
            ]
            raw.things[path] = [thing for thing in things if thing is not None]
            pictures.omissions.add("lines that are no object, of shares between 0 and 1", file, things.count(None))
    return raw


def plain_text(data: bytes) -> str:
    """UTF-16 where a byte order mark says so, else UTF-8."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8-sig", "replace")


def _yolo_thing(
    words: Sequence[str], names: Sequence[str], shape: tuple[int, int], height: int, width: int
) -> Thing | None:
    try:
        number, shares = int(float(words[0])), [float(word) for word in words[1:]]
    except (ValueError, OverflowError):
        return None
    if number != float(words[0]):
        return None
    if number < 0 or (names and number >= len(names)) or not all(map(math.isfinite, shares)):
        return None
    name = names[number] if names else str(number)
    points = _yolo_points(shares[4:], shape, height, width)
    if points or len(shares) == 4 or (len(shares) == 5 and 0 <= shares[4] <= 1):  # a confidence at the end
        x, y, w, h = shares[:4]
        if not (0 <= x <= 1 and 0 <= y <= 1):  # pixels or percent
            return None
        box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        return Thing(box, name, points=points)
    if len(shares) < 6 or len(shares) % 2:
        return None
    corners = (np.array(shares).reshape(-1, 2) * [width, height]).clip(0, [width, height])
    left, top, right, bottom = map(float, (*corners.min(0), *corners.max(0)))
    return Thing((left, top, right, bottom), name, outline=Polygons((corners.reshape(-1),), height, width))


def _yolo_points(shares: Sequence[float], shape: tuple[int, int], height: int, width: int) -> list[list[float]]:
    """x, y in pixels and visibility of the points behind a box, and of nothing else behind them but a confidence."""
    count, numbers = shape
    if not count or len(shares) - count * numbers not in (0, 1):
        return []
    values = np.array(shares[: count * numbers]).reshape(count, numbers)
    visible = values[:, 2] if numbers == 3 else np.where(values.any(1), VISIBLE, 0)
    return np.stack([values[:, 0] * width, values[:, 1] * height, visible], 1).tolist()  # type: ignore[no-any-return]


def points_shape(file: Path) -> tuple[int, int]:
    """``kpt_shape`` of a data.yaml: points of an object, and numbers of a point; (0, 3) where there is none."""
    try:
        count, numbers = map(int, _content(plain_text(whole(file)))["kpt_shape"])
    except (KeyError, TypeError, ValueError):
        return 0, 3
    return (count, numbers) if 0 < count < 1000 and numbers in (2, 3) else (0, 3)


def names_in(file: Path) -> list[str]:
    """The classes of a file of names, one a line, or of ``names`` in a data.yaml, by number; [] where there are none.

    A number without a name is its own name.
    """
    text = plain_text(whole(file))
    if file.suffix not in YAML:
        return _by_number(dict(enumerate(line.strip() for line in text.rstrip().splitlines())))
    content = _content(text)
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        return _by_number({int(key): name for key, name in names.items() if str(key).isdecimal() and len(key) < 6})
    return _by_number(dict(enumerate(names))) if isinstance(names, list) else []


def _content(text: str) -> Any:
    """What YAML says, of strings, lists and dictionaries alone; None for what is none."""
    yaml = of_timm("yaml")
    try:
        return yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def _by_number(names: Mapping[int, object]) -> list[str]:
    named = (names.get(number) for number in range(max(names, default=-1) + 1))
    return [name if isinstance(name, str) and name else str(number) for number, name in enumerate(named)]
