"""COCO's JSON: boxes, polygons, run lengths, crowds, keypoints (cocodataset.org, "data format")."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.annotations.masks import outline
from lookalike.data.annotations.record import Pictures, RawAnnotations, Thing, splits_in


def coco(pictures: Pictures, files: list[Path]) -> RawAnnotations:
    """What the files state, each of which may be a split; raises UserError where one is no COCO file."""
    raw = RawAnnotations()
    for file in files:
        name = file.name if file.parent == pictures.root else f"{file.parent.name}/{file.name}"
        paths = _File(pictures, file, name).read(raw)
        for split in splits_in(name):
            raw.splits.setdefault(split, []).extend(paths)
    return raw


class _File:
    def __init__(self, pictures: Pictures, file: Path, name: str) -> None:
        self.pictures, self.file, self.name = pictures, file, name
        self.omissions = pictures.omissions
        self.images, self.annotations, self.categories = lists_of(file, "images", "annotations", "categories")

    def read(self, raw: RawAnnotations) -> list[str]:
        """The paths of its pictures."""
        paths = dict(self._listed_pictures())
        names = {key: str(one["name"]) for one in self.categories if _is(key := one.get("id"), int) and "name" in one}
        raw.classes |= set(names.values())
        for category in self.categories:
            _note_joints(raw, category)
        for path in paths.values():
            raw.things.setdefault(path, [])
        for annotation in self.annotations:
            path = paths.get(_key(annotation.get("image_id")))
            if path is not None and (thing := self._thing(annotation, names, path)) is not None:
                raw.things[path].append(thing)
        return list(paths.values())

    def _listed_pictures(self) -> Iterator[tuple[Any, str]]:
        """(id, path) of the pictures that are there and have the size that the file states."""
        for image in self.images:
            key, name = image.get("id"), image.get("file_name")
            path = self.pictures.find(name, self.name) if isinstance(name, str) and _is(key, int, str) else None
            if path is None:
                self.omissions.add(f"pictures of {self.name} that are not in the folder", str(name))
                continue
            size, says = self.pictures.size(path), (image.get("height"), image.get("width"))
            if size is None:
                continue
            if says != (None, None) and says != size:
                self.omissions.add("pictures of another size than their annotations state", path)
                continue
            yield key, path

    def _thing(self, annotation: dict[str, Any], names: dict[Any, str], path: str) -> Thing | None:
        box, name = annotation.get("bbox"), names.get(_key(annotation.get("category_id")))
        if name is None or not _is(box, list) or len(box) != 4 or not all(map(_finite, box)):  # type: ignore[arg-type]
            self.omissions.add(f"annotations of {self.name} without a box or a class", path)
            return None
        left, top, width, height = map(float, box)  # type: ignore[arg-type]
        shape, size = annotation.get("segmentation"), self.pictures.size(path)
        drawn = outline(shape, *size) if shape and size else None
        if shape and drawn is None:
            self.omissions.add("outlines that cannot be read", path)
        area = annotation.get("area")
        return Thing(
            (left, top, left + width, top + height),
            name,
            crowd=bool(annotation.get("iscrowd")),
            area=float(area) if _finite(area) else None,  # type: ignore[arg-type]
            outline=drawn,
            points=_points(annotation.get("keypoints")),
        )


def lists_of(file: Path, *names: str) -> tuple[list[dict[str, Any]], ...]:
    """The lists of objects that a file of COCO's holds by these names; raises UserError."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; check its permissions", BAD_DATA) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: no JSON that can be read ({str(error)[:100]}); fetch it again", BAD_DATA) from None
    parts = [content.get(name) for name in names] if isinstance(content, dict) else []
    if not parts or not all(isinstance(part, list) for part in parts):
        keys = f"{', '.join(names[:-1])} and {names[-1]}"
        raise UserError(f"{file}: it has no lists of {keys}, as COCO's files have", BAD_DATA)
    return tuple([one for one in part if isinstance(one, dict)] for part in parts)  # type: ignore[union-attr]


def _note_joints(raw: RawAnnotations, category: dict[str, Any]) -> None:
    names, bones = category.get("keypoints"), category.get("skeleton")
    if not isinstance(names, list) or raw.joints:
        return
    raw.joints = tuple(map(str, names))
    pairs = [bone for bone in bones if _is(bone, list) and len(bone) == 2] if isinstance(bones, list) else []
    numbers = range(1, len(names) + 1)
    raw.bones = tuple((a - 1, b - 1) for a, b in pairs if _is(a, int) and _is(b, int) and a in numbers and b in numbers)


def _points(flat: Any) -> list[list[float]]:
    if not isinstance(flat, list) or not flat or not all(map(_finite, flat)) or len(flat) % 3:
        return []
    return [[float(number) for number in flat[i : i + 3]] for i in range(0, len(flat), 3)]


def _finite(value: Any) -> bool:
    return _is(value, int, float) and abs(value) < 1e300 and math.isfinite(value)


def _is(value: Any, *kinds: type) -> bool:
    return type(value) in kinds


def _key(value: Any) -> Any:
    """What a dictionary can be asked for."""
    return value if _is(value, int, str) else None
