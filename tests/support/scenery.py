"""Small pictures with bright squares in them, annotated in every kind of file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]


def photo(path: Path, height: int = 48, width: int = 64, boxes: Sequence[Box] = ()) -> None:
    """Noise with a coloured rectangle at each box."""
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 90, (height, width, 3))
    for i, (left, top, right, bottom) in enumerate(boxes):
        pixels[top:bottom, left:right, i % 3] = 250
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def coco_object(number: int, picture: int, box: Box, kind: int = 5, **more: Any) -> dict[str, Any]:
    """One annotation; its outline is the box."""
    left, top, right, bottom = box
    return {
        "id": number,
        "image_id": picture,
        "category_id": kind,
        "bbox": [left, top, right - left, bottom - top],
        "area": (right - left) * (bottom - top),
        "iscrowd": 0,
        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
        **more,
    }


def coco_file(
    pictures: Mapping[int, str],
    annotations: Sequence[dict[str, Any]],
    names: Mapping[int, str],
    size: tuple[int, int] = (48, 64),
    joints: Sequence[str] = (),
) -> str:
    """A whole file."""
    height, width = size
    return json.dumps(
        {
            "images": [{"id": i, "file_name": name, "height": height, "width": width} for i, name in pictures.items()],
            "annotations": list(annotations),
            "categories": [
                {"id": i, "name": name} | ({"keypoints": list(joints), "skeleton": [[1, 2], [9, 9]]} if joints else {})
                for i, name in names.items()
            ],
        }
    )


BODY = ("left_hand", "right_hand", "head")


def made(root: Path, count: int = 10, ids: Mapping[str, int] | None = None) -> Path:
    """A folder of ``count`` pictures for training and 4 for validation with dots, squares and points on them.

    Among them a crowd, an object without an outline, one without points and a picture without objects.
    """
    ids = ids or {"square": 5, "dot": 9}
    for split, first, last in (("train", 0, count), ("val", count, count + 4)):
        annotations: list[dict[str, Any]] = []
        for i in range(first, last):
            square: Box = (4 + i % 9, 6 + i % 5, 30 + i % 7, 36 + i % 4)
            dot: Box = (44, 10 + i % 8, 56, 22 + i % 8)
            photo(root / f"{split}2017" / f"{i}.png", boxes=(square, dot))
            if i == first + 1:
                continue
            left, top, right, bottom = square
            points = [left + 2, top + 2, 2, right - 2, top + 2, 1, (left + right) // 2, bottom - 2, 2]
            number = 10 * i + 1
            annotations.append(coco_object(number, i, square, ids["square"], keypoints=points, num_keypoints=3))
            annotations.append(coco_object(number + 1, i, dot, ids["dot"], keypoints=[0] * 9, num_keypoints=0))
            if i == first:
                del annotations[-1]["segmentation"]
                runs = {"size": [48, 64], "counts": [0, 48 * 32, 48 * 32]}
                crowd = coco_object(number + 2, i, (0, 0, 32, 48), ids["dot"], iscrowd=1, segmentation=runs)
                annotations.append(crowd)
        pictures = {i: f"{i}.png" for i in range(first, last)}
        names = {number: name for name, number in ids.items()}
        text = coco_file(pictures, annotations, names, joints=BODY)
        folder = root / "annotations"
        folder.mkdir(exist_ok=True)
        (folder / f"instances_{split}2017.json").write_text(text)
        (folder / f"person_keypoints_{split}2017.json").write_text(text)
    return root
