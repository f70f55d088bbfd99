"""From a folder, and if need be an annotation file, to records: which kind of file it is, and which part asks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.annotations.coco import coco
from lookalike.data.annotations.files import NAMES, comma_separated, matlab, names_in, voc, yolo
from lookalike.data.annotations.record import Annotated, Pictures, RawAnnotations, annotated, splits_in
from lookalike.data.formats.files import TEST, TRAIN, VALIDATION, by_split, listed
from lookalike.data.source import split_by_hash

_OTHERS = ("caption", "panoptic", "stuff", "image_info")  # words in names of COCO's files that hold no objects
_POINTS = "keypoints"
_KINDS = "COCO's .json, Pascal VOC's .xml, YOLO's .txt, a .mat or .csv with points"


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


def split_annotated(annotations: Annotated) -> tuple[Annotated, Annotated]:
    """Train and test, else validation, by the annotation files' own lists or names, or by folders; else 80 and 20
    percent by a hash of the path. Pictures without an object teach nothing.
    """
    splits = {name: rows for name, rows in annotations.splits.items() if rows} or _by_folder(annotations)
    query = TEST if TEST in splits else VALIDATION
    if TRAIN in splits and query in splits:
        train, test = annotations.some(splits[TRAIN]), annotations.some(splits[query])
    else:
        paths = [scene.path for scene in annotations.scenes]
        rows = split_by_hash(paths, torch.zeros(len(paths), dtype=torch.int64))
        train, test = annotations.some(rows[0].tolist()), annotations.some(rows[1].tolist())
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
    """What one file, or a folder of files inside the data, states."""
    suffix = file.suffix.lower()
    if file.is_dir():
        inside = Path(os.path.relpath(file.resolve(), pictures.root.resolve())).as_posix() + "/"
        return _in_folder(pictures, False, inside)
    if not file.is_file():
        raise UserError(f"{file}: no such file; --annotations names {_KINDS}", BAD_DATA)
    if suffix == ".json":
        return coco(pictures, [file])
    if suffix == ".mat":
        return matlab(pictures, file)
    if suffix == ".csv":
        return comma_separated(pictures, file)
    raise UserError(f"{file}: no annotations that can be read; --annotations names {_KINDS}, or a folder", BAD_DATA)


def _in_folder(pictures: Pictures, points: bool, inside: str = "") -> RawAnnotations:
    """What the files below the root state: the first kind there is, points first where they are wanted."""
    files = [f for f in listed(pictures.root, (".json", ".xml", ".txt", ".mat", ".csv")).files if f.startswith(inside)]
    if json := _coco_files(pictures.root, files, points):
        return coco(pictures, json)
    tables = [file for file in files if file.lower().endswith((".mat", ".csv"))]
    if points and len(tables) == 1:
        return _of_file(pictures, pictures.root / tables[0])
    if xml := [file for file in files if file.lower().endswith(".xml")]:
        return voc(pictures, xml)
    text = [file for file in files if file.lower().endswith(".txt") and os.path.basename(file) not in NAMES]
    if text := [file for file in text if pictures.beside(file) is not None]:
        return yolo(pictures, text, _names(pictures.root))
    if len(tables) == 1:
        return _of_file(pictures, pictures.root / tables[0])
    raise UserError(f"{pictures.root}: no annotations in it; --annotations names {_KINDS}", BAD_DATA)


def _coco_files(root: Path, files: Sequence[str], points: bool) -> list[Path]:
    """COCO's files by their names: those of points where these are wanted, else those of objects."""
    names = [file for file in files if file.lower().endswith(".json")]
    objects = [file for file in names if not any(word in file.lower() for word in (*_OTHERS, _POINTS))]
    pointed = [file for file in names if _POINTS in file.lower()]
    return [root / file for file in ((pointed or objects) if points else (objects or pointed))]


def _names(root: Path) -> list[str]:
    """The classes of YOLO's labels, where a file beside them names them."""
    for name in NAMES:
        for folder in ("", "labels/"):
            if (root / folder / name).is_file() and (names := names_in(root / folder / name)):
                return names
    return []
