"""YOLO's text: a line an object, ``class x y width height`` or a polygon, as shares of the picture's sides."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np

from lookalike.data.annotations.masks import Polygons
from lookalike.data.annotations.pictures import Pictures
from lookalike.data.annotations.record import RawAnnotations, Thing
from lookalike.data.formats.disk import Local
from lookalike.data.image.decode import Unreadable

NAMES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names", "_darknet.labels")


def yolo(pictures: Pictures, files: Sequence[str], names: Sequence[str]) -> RawAnnotations:
    """What the files, relative to the root, state; a picture without a file is left out, one with an empty file not."""
    raw = RawAnnotations(classes=set(names))
    for file in files:
        path = pictures.beside(file)
        size = pictures.size(path) if path is not None else None
        if path is None:
            pictures.omissions.add("files whose picture is not in the folder", file)
        elif size is not None:
            try:
                lines = Local(pictures.root).whole(file).decode("utf-8", "replace").splitlines()
            except Unreadable as unreadable:
                pictures.omissions.add("files that cannot be read", f"{file} ({unreadable.reason})")
                continue
            things = [_thing(line.split(), names, *size) for line in lines if line.strip()]
            raw.things[path] = [thing for thing in things if thing is not None]
            pictures.omissions.add("lines that are no object", file, things.count(None))
    return raw


def _thing(words: Sequence[str], names: Sequence[str], height: int, width: int) -> Thing | None:
    try:
        number, shares = int(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        return None
    if number < 0 or (names and number >= len(names)) or not all(map(math.isfinite, shares)):
        return None
    name = names[number] if names else str(number)
    if len(shares) == 4:
        x, y, w, h = shares
        return Thing(((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height), name)
    if len(shares) < 6 or len(shares) % 2:
        return None
    corners = (np.array(shares).reshape(-1, 2) * [width, height]).clip(0, [width, height])
    left, top, right, bottom = map(float, (*corners.min(0), *corners.max(0)))
    return Thing((left, top, right, bottom), name, outline=Polygons((corners.reshape(-1),), height, width))


def names_in(file: Path) -> list[str]:
    """The classes of a file of names, one a line, or of ``names`` in a data.yaml; [] where there are none."""
    lines = file.read_text("utf-8", "replace").splitlines()
    items = lines if file.suffix not in (".yaml", ".yml") else _items(lines)
    return [name for item in items if (name := _word(item))]


def _items(lines: Sequence[str]) -> list[str]:
    """What stands under ``names``: a list in brackets, or one item a line with a dash or a number before it."""
    start = next((i for i, line in enumerate(lines) if line.startswith("names:")), len(lines))
    below = list(takewhile(lambda line: not line.strip() or line[0] in " \t-#", lines[start + 1 :]))
    first = "".join(lines[start : start + 1]).removeprefix("names:").split(" #")[0].strip()
    if not first.startswith(("[", "{")):
        return below
    text = re.split(r"[\]}]", " ".join([first[1:], *lines[start + 1 :]]))[0]
    return text.split(",")


def _word(item: str) -> str:
    """A name without its dash or number, its quotes, and what is said about it."""
    text = re.sub(r"^\s*(-|\d+\s*:)", "", re.split(r"(?:^|\s)#", item)[0])
    return text.strip().strip("'\"")
