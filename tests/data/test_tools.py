"""Annotations as labelme, DeepLabCut, COCO's panoptic task and Pascal VOC lay them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike.core.errors import UserError
from lookalike.data.annotations.open import open_annotated
from tests.support.scenery import coco_file, coco_object, photo

SQUARE = [[5, 5], [25, 5], [25, 25], [5, 25]]
XML = "<annotation><object><name>cat</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"


def write(file: Path, text: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def shape(
    label: str, points: list[list[float]], kind: str | None = "polygon", group: int | None = None
) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": group}


def labelme(picture: str, *shapes: dict[str, Any], height: int = 48) -> str:
    """One file of labelme's."""
    size = {"imageHeight": height, "imageWidth": 64, "imageData": None}
    return json.dumps({"version": "5.0", "flags": {}, "imagePath": picture, "shapes": list(shapes), **size})


def test_labelme_boxes_polygons_and_circles(tmp_path: Path) -> None:
    for i in range(3):
        photo(tmp_path / f"images/{i}.png")
    box = shape("dog", [[25, 25], [5, 5]], "rectangle")
    write(tmp_path / "json/0.json", labelme("..\\images\\0.png", shape("cat", SQUARE, None), box))
    circle, line = shape("ball", [[20, 20], [23, 24]], "circle"), shape("x", [[1, 1], [2, 2]], "line")
    write(tmp_path / "json/1.json", labelme("elsewhere.png", circle, line))
    write(tmp_path / "json/2.json", labelme("2.png", shape("cat", SQUARE), height=47))
    annotated = open_annotated(tmp_path)
    first, second = annotated.scenes
    assert annotated.classes == ("ball", "cat", "dog")
    assert first.boxes.tolist() == [[5, 5, 25, 25]] * 2
    assert second.boxes.tolist() == [[15, 15, 25, 25]]
    cat, dog = first.outlines
    assert dog is None
    assert cat is not None
    assert int(cat.mask(48, 64).sum()) == 400
    assert annotated.notes == (
        "1 pictures of another size than their annotations state, first images/2.png",
        "1 shapes that are no box, polygon or point, first json/1.json",
    )
    assert len(open_annotated(tmp_path, str(tmp_path / "json/0.json")).scenes) == 1


def test_labelme_groups_are_objects_with_their_points(tmp_path: Path) -> None:
    photo(tmp_path / "0.png")
    photo(tmp_path / "1.png")
    parts = [shape("cat", [[x, y] for x, y in SQUARE], group=3), shape("cat", [[30, 5], [40, 5], [40, 9]], group=3)]
    points = [shape("tail", [[7, 8]], "point", 3), shape("nose", [[20, 9]], "point", 3)]
    write(tmp_path / "0.json", labelme("0.png", *parts, shape("cat", SQUARE), *points))
    write(tmp_path / "1.json", labelme("1.png", shape("cat", SQUARE), shape("nose", [[10, 10]], "point")))
    annotated = open_annotated(tmp_path, points=True)
    first, second = annotated.scenes
    assert annotated.joints == ("nose", "tail")
    assert first.boxes.tolist() == [[5, 5, 40, 25], [5, 5, 25, 25]]
    assert first.points.tolist() == [[[20, 9, 2], [7, 8, 2]], [[0, 0, 0]] * 2]
    assert second.points.tolist() == [[[10, 10, 2], [0, 0, 0]]]


def test_files_of_labelme_beside_an_export_to_coco(tmp_path: Path) -> None:
    photo(tmp_path / "0.png")
    write(tmp_path / "0.json", labelme("0.png", shape("dog", SQUARE)))
    write(tmp_path / "all.json", coco_file({1: "0.png"}, [coco_object(1, 1, (5, 5, 13, 13))], {5: "cat"}))
    assert open_annotated(tmp_path).classes == ("cat",)


@pytest.mark.parametrize("path", ["labeled-data/a/{}.png", "labeled-data,a,{}.png"])
def test_a_table_of_deeplabcut_is_of_points(tmp_path: Path, path: str) -> None:
    blank = "," * path.count(",")
    for i in range(2):
        photo(tmp_path / f"labeled-data/a/{i}.png")
    head = [f"scorer{blank},me,me,me,me", f"bodyparts{blank},nose,nose,tail,tail", f"coords{blank},x,y,x,y"]
    rows = [f"{path.format(0)},5,6,15,16", f"{path.format(1)},7,8,,", f"{path.format(2)},1,1,2,2"]
    write(tmp_path / "labeled-data/a/CollectedData_me.csv", "\n".join([*head, *rows]))
    annotated = open_annotated(tmp_path, points=True)
    assert (annotated.joints, annotated.classes) == (("nose", "tail"), ("animal",))
    assert [scene.points.tolist() for scene in annotated.scenes] == [[[[5, 6, 2], [15, 16, 2]]], []]
    assert annotated.notes == (
        "1 objects without an area in their picture, first labeled-data/a/1.png",
        "1 rows of CollectedData_me.csv whose picture is not in the folder, first labeled-data/a/2.png",
    )


def test_tables_of_deeplabcut_with_individuals_of_several_videos(tmp_path: Path) -> None:
    head = [["scorer", *["me"] * 8], ["individuals", *["one"] * 4, *["two"] * 4]]
    head += [["bodyparts", *["nose", "nose", "tail", "tail"] * 2], ["coords", *["x", "y"] * 4]]
    text = "".join(",".join(cells) + "\n" for cells in head)
    for video, row in {"a": "5,6,9,16,25,26,35,36", "b": ",,,,25,26,35,36"}.items():
        photo(tmp_path / video / "0.png")
        write(tmp_path / video / "points.csv", f"{text}{video}/0.png,{row}\n")
    write(tmp_path / "notes.csv", "who,when\nme,today\n")
    annotated = open_annotated(tmp_path, points=True)
    assert [scene.points[..., 0].tolist() for scene in annotated.scenes] == [[[5, 9], [25, 35]], [[25, 35]]]


def test_things_of_panoptic_annotations_are_boxes(tmp_path: Path) -> None:
    photo(tmp_path / "0.jpg")
    segments = [{"id": 9, "category_id": kind, "bbox": [5, 5, 8, 8], "area": 50, "iscrowd": 0} for kind in (1, 2)]
    content = {
        "images": [{"id": 1, "file_name": "0.jpg", "height": 48, "width": 64}],
        "annotations": [{"image_id": 1, "file_name": "0.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
    }
    write(tmp_path / "annotations/panoptic_val.json", json.dumps(content))
    annotated = open_annotated(tmp_path)
    (scene,) = annotated.scenes
    assert scene.boxes.tolist() == [[5, 5, 13, 13]]
    assert [annotated.classes[label] for label in scene.labels] == ["cat"]
    stuff = "1 segments of annotations/panoptic_val.json that are stuff, no things, first 0.png"
    assert annotated.notes == (stuff,)


@pytest.mark.parametrize(("name", "words"), [("stuff_val.json", "regions of stuff"), ("captions.json", "captions")])
def test_what_holds_no_objects_is_named(tmp_path: Path, name: str, words: str) -> None:
    photo(tmp_path / "0.jpg")
    write(tmp_path / name, coco_file({1: "0.jpg"}, [coco_object(1, 1, (5, 5, 13, 13))], {5: "sky"}))
    with pytest.raises(UserError, match=f"{name} holds {words}"):
        open_annotated(tmp_path)


@pytest.mark.parametrize("home", ["", "VOCdevkit/VOC2012/"])
def test_image_sets_lie_beside_annotations_wherever_these_are(tmp_path: Path, home: str) -> None:
    for i in range(4):
        photo(tmp_path / f"{home}JPEGImages/{i}.jpg")
        write(tmp_path / f"{home}Annotations/{i}.xml", f"{XML}</object></annotation>")
    sets = tmp_path / f"{home}ImageSets/Main"
    write(sets / "trainval.txt", "2\r\n0\r\n7\r\n")
    write(sets / "test.txt", "3\n1\n")
    write(sets / "cat_train.txt", "3 1\n1 1\n")
    annotated = open_annotated(tmp_path)
    assert annotated.splits == {"train": (0, 2), "test": (1, 3)}
    assert annotated.notes == ("1 names in Main/trainval.txt of no picture with annotations, first 7",)


def test_a_table_of_boxes_says_which_split_a_row_is_of(tmp_path: Path) -> None:
    for i in range(3):
        photo(tmp_path / f"{i}.png")
    rows = [
        f"{i}.png;{split};1;2;11;12;caf\u00e9" for i, split in [(2, "Train"), (0, "train"), (1, "val"), (2, "train")]
    ]
    write(tmp_path / "t.csv", "\n".join(["path;split;xmin;ymin;xmax;ymax;label", *rows]).encode("cp1252"))
    annotated = open_annotated(tmp_path)
    assert (annotated.splits, annotated.classes) == ({"train": (0, 2), "validation": (1,)}, ("caf\u00e9",))
    assert np.array_equal(annotated.scenes[0].boxes, [[1, 2, 11, 12]])
