"""Annotations with one file a picture: Pascal VOC's XML and YOLO's text.

XML with a document type is refused, so nothing in it can expand. YOLO has a line an object, ``class x y width height``
or a polygon, as shares of the picture's sides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree

import numpy as np
import yaml

from lookalike.data.annotations.masks import Polygons
from lookalike.data.annotations.record import Pictures, RawAnnotations, Thing
from lookalike.data.decode import Unreadable
from lookalike.data.formats.disk import Local
from lookalike.data.formats.files import TEST, TRAIN, VALIDATION

_MOST = 4 << 20  # bytes of one file: a picture with 10,000 objects takes 3 MB
NAMES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names", "_darknet.labels")
T = TypeVar("T")


def voc(pictures: Pictures, files: list[str]) -> RawAnnotations:
    """What the files, relative to the root, state; those that cannot be read are counted."""
    raw = RawAnnotations()
    by_stem: dict[str, str] = {}
    for file in files:
        try:
            tree = parsed(Local(pictures.root).whole(file))
        except Unreadable as unreadable:
            pictures.omissions.add("files that cannot be read", f"{file} ({unreadable.reason})")
            continue
        name = (tree.findtext("filename") or "").strip()
        path = (pictures.find(name, file) if name else None) or pictures.beside(file)
        if path is None:
            pictures.omissions.add("files whose picture is not in the folder", file)
        elif (size := pictures.size(path)) is not None:
            by_stem[Path(file).stem] = path
            if _fits(tree, size):
                raw.things[path] = [thing for part in tree.iter("object") if (thing := _voc_thing(part)) is not None]
            else:
                pictures.omissions.add("pictures of another size than their annotations state", path)
    raw.splits = image_sets(pictures.root / "ImageSets" / "Main", by_stem)
    return raw


def parsed(data: bytes) -> ElementTree.Element:
    """The tree of a small file without a document type; raises Unreadable."""
    if len(data) > _MOST:
        raise Unreadable(f"{len(data)} bytes are more than the limit of {_MOST}")
    try:
        text = data.decode("utf-8-sig")  # whatever the file declares: so nothing hides in another encoding
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise Unreadable("it has a document type")
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise Unreadable(f"no XML: {error}") from None


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
    """Whether the stated size, if it is one, is that of the picture."""
    says = tuple((tree.findtext(f"size/{side}") or "").strip() for side in ("height", "width"))
    return not all(side.isdecimal() and side.strip("0") for side in says) or tuple(map(str, size)) == says


def image_sets(folder: Path, by_stem: Mapping[str, T]) -> dict[str, list[T]]:
    """What the lists in a folder of Pascal VOC's ImageSets name, by split; those of single classes do not count."""
    splits: dict[str, list[T]] = {}
    for name, split in (("train", TRAIN), ("val", VALIDATION), ("test", TEST)):
        with suppress(OSError):
            lines = (folder / f"{name}.txt").read_text("utf-8", "surrogateescape").split("\n")
            splits[split] = [by_stem[stem] for line in lines if (stem := line.strip()) in by_stem]
    return splits


def yolo(pictures: Pictures, files: Sequence[str], names: Sequence[str]) -> RawAnnotations:
    """What the files, relative to the root, state; a picture without a file is left out, one with an empty file not."""
    raw = RawAnnotations(classes=set(names))
    for file in files:
        if (path := pictures.beside(file)) is None:
            pictures.omissions.add("files whose picture is not in the folder", file)
        elif (size := pictures.size(path)) is not None:
            try:
                lines = Local(pictures.root).whole(file).decode("utf-8", "replace").splitlines()
            except Unreadable as unreadable:
                pictures.omissions.add("files that cannot be read", f"{file} ({unreadable.reason})")
                continue
            things = [_yolo_thing(line.split(), names, *size) for line in lines if line.strip()]
            raw.things[path] = [thing for thing in things if thing is not None]
            pictures.omissions.add("lines that are no object", file, things.count(None))
    return raw


def _yolo_thing(words: Sequence[str], names: Sequence[str], height: int, width: int) -> Thing | None:
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
    text = file.read_text("utf-8", "replace")
    if file.suffix not in (".yaml", ".yml"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        content = yaml.load(text, yaml.BaseLoader)  # which knows strings, lists and dictionaries alone
    except yaml.YAMLError:
        return []
    names = content.get("names") if isinstance(content, dict) else None
    names = list(names.values()) if isinstance(names, dict) else names
    return [name for name in names if isinstance(name, str) and name] if isinstance(names, list) else []
