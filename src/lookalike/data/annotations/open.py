"""From a folder, and if need be an annotation file, to records; and COCO's JSON, which most of them are.

That has boxes, polygons, run lengths, crowds and keypoints (cocodataset.org, "data format").
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import json_in, whole
from lookalike.data.annotations.files import comma_separated, labelme, matlab, rows_of_objects, shapes_in, voc
from lookalike.data.annotations.masks import Box, Outline, bounds, outline
from lookalike.data.annotations.pictures import Omissions, Pictures, splits_in
from lookalike.data.annotations.record import Annotated, RawAnnotations, Thing, annotated
from lookalike.data.annotations.yolo import NAMES, YAML, names_in, points_shape, yolo
from lookalike.data.formats.files import TRAIN, by_split, listed
from lookalike.data.source import Say, query_split, shared, split_by_hash

_OTHERS = {  # words in names of COCO's files that hold no objects, and what they do hold
    "caption": "captions, which a recipe such as moco_captions learns from",
    "stuff": "regions of stuff, no objects: draw them as PNG masks (pycocotools: COCO.annToMask) for evaluate segment",
    "image_info": "a list of pictures without objects",
}
_POINTS = "keypoints"
_LISTS = ("images", "annotations", "categories")
_PANOPTIC = "panoptic"
_KINDS = "COCO's or labelme's .json, Pascal VOC's .xml, YOLO's .txt, a .mat or .csv with points"


def open_annotated(data: str | Path, file: str | None = None, points: bool = False) -> Annotated:
    """The records of a folder, of the kind of ``file`` or of the files in it; ``points`` where keypoints are wanted.

    Raises UserError where there is nothing that can be read, or nothing of what is wanted.
    """
    root = Path(data)
    if not root.is_dir():
        raise UserError(f"{root}: no folder; name the one that holds the pictures and their annotations", BAD_DATA)
    pictures = Pictures(root)
    raw = _of_file(pictures, Path(file)) if file else _in_folder(pictures, points)
    annotations = annotated(pictures, raw)
    if not annotations.scenes or not any(len(scene) for scene in annotations.scenes):
        why = "; ".join(annotations.notes) or "the annotations are empty"
        raise UserError(f"{file or root}: no object in any picture ({why})", BAD_DATA)
    if points and not any((scene.points[..., 2] > 0).any() for scene in annotations.scenes):
        raise UserError(
            f"{file or root}: no point in any picture; name the file that holds them: --annotations", BAD_DATA
        )
    return annotations


def split_annotated(annotations: Annotated, say: Say = lambda _: None) -> tuple[Annotated, Annotated]:
    """Train and test, else validation, by the annotation files' own lists or names, or by folders; else 80 and 20
    percent by a hash of the path. Pictures without an object teach nothing. ``say`` is told which, and what both share.
    """
    splits = {name: rows for name, rows in annotations.splits.items() if rows} or _by_folder(annotations)
    query, why = query_split({name: any(map(len, annotations.some(rows).scenes)) for name, rows in splits.items()})
    say(why)
    if query is not None:
        train, test = annotations.some(splits[TRAIN]), annotations.some(splits[query])
    else:
        whole = annotations.some(splits[TRAIN]) if TRAIN in splits and len(splits) > 1 else annotations
        paths = [scene.path for scene in whole.scenes]
        rows = split_by_hash(paths, torch.zeros(len(paths), dtype=torch.int64))
        train, test = whole.some(rows[0].tolist()), whole.some(rows[1].tolist())
    if leak := shared(train.pictures(), test.pictures()):
        say(leak)
    full = [row for row, scene in enumerate(train.scenes) if not scene.crowd.all()]
    if not full or not test.scenes:
        raise UserError(
            f"{annotations.root}: too few pictures with objects to train on some and test on others", BAD_DATA
        )
    return train.some(full), test


def _by_folder(annotations: Annotated) -> dict[str, tuple[int, ...]]:
    rows = {scene.path: row for row, scene in enumerate(annotations.scenes)}

    def split(path: str) -> str | None:
        words = splits_in(os.path.dirname(path))
        return next(iter(words)) if len(words) == 1 else None

    return {name: tuple(rows[path] for path in paths) for name, paths in by_split(list(rows), split).items()}


def _of_file(pictures: Pictures, file: Path) -> RawAnnotations:
    suffix = file.suffix.lower()
    if file.is_dir():
        inside = Path(os.path.relpath(file.resolve(), pictures.root.resolve())).as_posix() + "/"
        return _in_folder(pictures, False, inside)
    if not file.is_file():
        raise UserError(f"{file}: no such file; --annotations names {_KINDS}", BAD_DATA)
    if suffix == ".json" and shapes_in(file) is not None:
        return labelme(pictures, [pictures.relative(file)])
    if suffix == ".json":
        return coco(pictures, [file])
    if suffix == ".mat":
        return matlab(pictures, file)
    if suffix == ".csv":
        return comma_separated(pictures, [file])
    raise UserError(f"{file}: no annotations that can be read; --annotations names {_KINDS}, or a folder", BAD_DATA)


def _in_folder(pictures: Pictures, points: bool, inside: str = "") -> RawAnnotations:
    """What the files below the root state: the first kind there is, points first where they are wanted."""
    files = [f for f in listed(pictures.root, (".json", ".xml", ".txt", ".mat", ".csv")).files if f.startswith(inside)]
    if json := _coco_files(pictures.root, files, points):
        drawn = [file for file in json if shapes_in(file) is not None]
        others = _readable(pictures, [file for file in json if file not in drawn], among=bool(drawn))
        return coco(pictures, others) if others else labelme(pictures, [pictures.relative(file) for file in drawn])
    tables = _tables(pictures.root, files)
    if points and tables:
        return comma_separated(pictures, tables) if len(tables) > 1 else _of_file(pictures, tables[0])
    if xml := [file for file in files if file.lower().endswith(".xml")]:
        return voc(pictures, xml)
    text = [file for file in files if file.lower().endswith(".txt") and os.path.basename(file) not in NAMES]
    homes = {os.path.dirname(file) for file in text if pictures.beside(file) is not None}
    if text := [file for file in text if os.path.dirname(file) in homes]:
        beside = [pictures.root / folder / name for name in NAMES for folder in ("", "labels/")]
        beside += sorted(file for suffix in YAML for file in pictures.root.glob(f"*{suffix}") if file not in beside)
        settings = [file for file in beside if file.is_file()]
        names = next((names for file in settings if (names := names_in(file))), [])
        shape = next((shape for file in settings if file.suffix in YAML and (shape := points_shape(file))[0]), (0, 3))
        return yolo(pictures, text, names, shape)
    if tables:
        return comma_separated(pictures, tables) if len(tables) > 1 else _of_file(pictures, tables[0])
    held = [f"{file} holds {what}" for file in files for word, what in _OTHERS.items() if _is_json(file, word)]
    where, what = os.path.normpath(pictures.root / inside), (held or ["no annotations in it"])[0]
    raise UserError(f"{where}: {what}; --annotations names {_KINDS}", BAD_DATA)


def _is_json(file: str, word: str = "") -> bool:
    return file.lower().endswith(".json") and word in file.lower()


def _tables(root: Path, files: Sequence[str]) -> list[Path]:
    """The one table there is; of several those .csv that hold objects."""
    tables = [root / file for file in files if file.lower().endswith((".mat", ".csv"))]
    return (
        tables
        if len(tables) == 1
        else [file for file in tables if file.suffix.lower() == ".csv" and _holds_objects(file)]
    )


def _holds_objects(file: Path) -> bool:
    try:
        return bool(rows_of_objects(file))
    except UserError:
        return False


def _coco_files(root: Path, files: Sequence[str], points: bool) -> list[Path]:
    """COCO's files by their names: those of points where these are wanted, else those of objects."""
    names = [file for file in files if _is_json(file) and not any(word in file.lower() for word in _OTHERS)]
    pointed, panoptic = ([file for file in names if word in file.lower()] for word in (_POINTS, _PANOPTIC))
    objects = [file for file in names if file not in pointed and file not in panoptic]
    return [root / file for file in ((pointed or objects) if points else (objects or pointed or panoptic))]


def _readable(pictures: Pictures, files: list[Path], among: bool) -> list[Path]:
    """Those that hold COCO's lists; the others are counted, or all are kept where none does and they are not ``among``
    files of another kind.
    """
    reasons: dict[Path, str] = {}
    for file in files if len(files) > 1 or among else ():
        try:
            lists_of(file, *_LISTS)
        except UserError as error:
            reasons[file] = str(error)
    if among or len(reasons) < len(files):
        for reason in reasons.values():
            pictures.omissions.add("JSON files that hold no annotations of COCO's kind", reason)
    return [file for file in files if file not in reasons] or ([] if among else files)


def coco(pictures: Pictures, files: list[Path]) -> RawAnnotations:
    """What the files state, each of which may be a split; raises UserError where one is no COCO file."""
    raw = RawAnnotations()
    for file in files:
        name = file.name if file.parent == pictures.root else f"{file.parent.name}/{file.name}"
        paths = _File(pictures, file, name).read(raw)
        for split in splits_in(name):
            raw.splits[split] = list(dict.fromkeys([*raw.splits.get(split, []), *paths]))
    return raw


class _File:
    def __init__(self, pictures: Pictures, file: Path, name: str) -> None:
        self.pictures, self.file, self.name = pictures, file, name
        self.omissions = pictures.omissions
        self.images, annotations, self.categories = lists_of(file, *_LISTS)
        self.annotations = [one for annotation in annotations for one in self._parts(annotation)]

    def _parts(self, annotation: dict[str, Any]) -> Iterable[dict[str, Any]]:
        """The annotation; of a panoptic one, which is of a whole picture, the segments that are things."""
        if not isinstance(segments := annotation.get("segments_info"), list):
            return [annotation]
        things = {id_of(one.get("id")) for one in self.categories if one.get("isthing", 1)}
        parts = [one for one in segments if isinstance(one, dict)]
        kept = [
            {**one, "image_id": annotation.get("image_id")} for one in parts if id_of(one.get("category_id")) in things
        ]
        where = str(annotation.get("file_name"))
        self.omissions.add(f"segments of {self.name} that are stuff, no things", where, len(parts) - len(kept))
        return kept

    def read(self, raw: RawAnnotations) -> list[str]:
        listed = {id_of(image.get("id")) for image in self.images}
        paths = self._listed_pictures()
        named = [(id_of(one.get("id")), str(one["name"])) for one in self.categories if "name" in one]
        names = one_meaning(self.file, "class", named, self.omissions)
        raw.classes |= set(names.values())
        for category in self.categories:
            _note_joints(raw, category)
        things: dict[Any, list[Thing]] = {key: [] for key in paths}
        for annotation in self.annotations:
            key = id_of(annotation.get("image_id"))
            if key not in listed:
                self.omissions.add(f"annotations of {self.name} of pictures that it does not list", str(key))
            elif (path := paths.get(key)) and (thing := self._thing(annotation, names, path)) is not None:
                things[key].append(thing)
        for key, path in paths.items():
            if path in raw.origins:
                self.omissions.add("pictures that are described twice", f"{path} ({raw.origins[path]}, {self.name})")
            raw.describe(path, things[key], self.name, self.omissions)
        return list(dict.fromkeys(paths.values()))

    def _listed_pictures(self) -> dict[Any, str]:
        """Paths by id of the pictures that are there and have the size that the file states."""
        pairs = [(id_of(image.get("id")), image.get("file_name")) for image in self.images]
        for key, name in pairs:
            if key is None or not isinstance(name, str):
                self.omissions.add(f"pictures of {self.name} that are not in the folder", str(name))
        names = one_meaning(self.file, "image", pairs, self.omissions)
        sizes = {
            id_of(image.get("id")): (id_of(image.get("height")), id_of(image.get("width"))) for image in self.images
        }
        found = zip(names.items(), self.pictures.find_all(names.values(), self.pictures.relative(self.file)))
        return {key: path for (key, name), path in found if self._is_there(name, path, sizes[key]) and path}

    def _is_there(self, name: str, path: str | None, stated: tuple[Any, Any]) -> bool:
        if path is None:
            self.omissions.add(f"pictures of {self.name} that are not in the folder", name)
            return False
        size = self.pictures.size(path)
        known = all(_is(side, int) and side > 0 for side in stated)  # VIA writes -1
        if size is not None and known and stated != size:
            self.omissions.add("pictures of another size than their annotations state", path)
        return size is not None and not (known and stated != size)

    def _thing(self, annotation: dict[str, Any], names: dict[Any, str], path: str) -> Thing | None:
        shape, size = annotation.get("segmentation"), self.pictures.size(path)
        drawn = outline(shape, *size) if shape and size else None
        if shape and drawn is None:
            self.omissions.add("outlines that cannot be read", path)
        box, name = _box(annotation.get("bbox"), drawn), names.get(id_of(annotation.get("category_id")))
        if name is None or box is None:
            self.omissions.add(f"annotations of {self.name} without a box or a class", path)
            return None
        area, crowd = annotation.get("area"), annotation.get("iscrowd")
        return Thing(
            box,
            name,
            crowd=crowd.strip().lower() in ("1", "true") if isinstance(crowd, str) else bool(crowd),
            area=float(area) if _finite(area) else None,  # type: ignore[arg-type]
            outline=drawn,
            points=_points(annotation.get("keypoints")),
        )


def _box(plain: Any, drawn: Outline | None) -> Box | None:
    """Left, top, right and bottom of a box, or of the outline where no box is stated."""
    if plain is None or plain == []:
        return None if drawn is None else bounds(drawn)
    if not _is(plain, list) or len(plain) != 4 or not all(map(_finite, plain)):
        return None
    left, top, width, height = map(float, plain)
    return left, top, left + width, top + height


def lists_of(file: Path, *names: str) -> tuple[list[dict[str, Any]], ...]:
    """The lists of objects that a file of COCO's holds by these names; raises UserError."""
    try:
        content = json_in(whole(file))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; check its permissions", BAD_DATA) from None
    except ValueError as error:
        raise UserError(f"{file}: no JSON that can be read ({str(error)[:100]}); fetch it again", BAD_DATA) from None
    parts = [content.get(name) for name in names] if isinstance(content, dict) else []
    if not parts or not all(isinstance(part, list) for part in parts):
        keys = f"{', '.join(names[:-1])} and {names[-1]}"
        raise UserError(f"{file}: it has no lists of {keys}, as COCO's files have", BAD_DATA)
    return tuple([one for one in part if isinstance(one, dict)] for part in parts)  # type: ignore[union-attr]


def one_meaning(file: Path, what: str, pairs: Iterable[tuple[Any, Any]], omissions: Omissions) -> dict[Any, str]:
    """The name that each id stands for; repeats are counted, and two names of one id raise UserError."""
    meanings: dict[Any, str] = {}
    for key, name in pairs:
        if key is None or not isinstance(name, str):
            continue
        if key in meanings:
            omissions.add(f"repeated {what} ids in {file.name}", f"{key} ({name})")
        if (first := meanings.setdefault(key, name)) != name:
            raise UserError(
                f"{file}: the {what} id {key} stands for {first} and for {name}; give each an id of its own", BAD_DATA
            )
    return meanings


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


def id_of(value: Any) -> Any:
    """An id: 3, 3.0 and "3" are the same; None for what is none."""
    if _is(value, float) and value.is_integer():
        return int(value)
    if _is(value, str) and value.isascii() and value.isdigit() and len(value) < 19 and str(int(value)) == value:
        return int(value)
    return value if _is(value, int, str) else None
