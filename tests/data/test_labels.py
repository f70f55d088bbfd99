"""Labels belong to the picture that they mean; what repeats or contradicts itself is counted, said or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lookalike.core.errors import UserError
from lookalike.data.annotations.open import open_annotated
from lookalike.data.annotations.pictures import Pictures
from lookalike.data.annotations.record import Annotated
from lookalike.data.source import open_source
from lookalike.data.text.source import find_captioned
from tests.support.scenery import coco_file, coco_object, photo

XML = """<annotation><filename>{name}</filename><object><name>cat</name><bndbox><xmin>{left}</xmin><ymin>3</ymin>
<xmax>30</xmax><ymax>24</ymax></bndbox></object></annotation>"""
NAMES = {5: "cat", 6: "dog"}
BOX = (5, 5, 13, 13)


def lefts(annotated: Annotated) -> dict[str, list[float]]:
    """The left sides of the boxes of each picture."""
    return {scene.path: scene.boxes[:, 0].tolist() for scene in annotated.scenes}


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def labelled(pictures: Mapping[int, str], boxes: Sequence[tuple[int, int, int]] = ((1, 5, 5),)) -> str:
    """A COCO file of pictures by id, and of boxes by their picture, left side and class."""
    objects = [coco_object(i, one, (left, 5, 13, 13), kind) for i, (one, left, kind) in enumerate(boxes)]
    return coco_file(pictures, objects, NAMES)


@pytest.mark.parametrize(
    ("there", "name", "near", "path"),
    [
        ("a/0.png", "b/0.png", "x.csv", None),
        ("images/a/0.png", "b/0.png", "x.json", None),
        ("a/i/0.png", "b/i/0.png", "x.json", None),
        ("images/a/0.png", "a/0.png", "x.json", "images/a/0.png"),
        ("0.png", "./a/0.png", "x.json", "0.png"),
        ("a/0.png", "x/../a/0.png", "x.json", "a/0.png"),
        ("img/0.png", "C:\\photos\\images\\0.png", "x.json", "img/0.png"),
        ("img/0.png", "C:\\photos\\1\\0.png", "x.json", "img/0.png"),
        ("b/0.png", "C:\\photos\\1\\0.png", "x.json", None),
        ("a/0.png", "b/../a/../0.png", "b/x.json", "a/0.png"),
        ("img/0.png", "images/0.png", "x.json", "img/0.png"),
        ("train_1/0.png", "train_2/0.png", "x.json", None),
        ("a/0.png b/0.png", "0.png", "x.json", None),  # either
        ("a/0.png b/0.png", "0.png", "b/x.json", "b/0.png"),
        ("a/0.png b/1.png", "0.png", "b/x.json", None),
        ("train2017/0.png", "0.png", "instances_val2017.json", None),
        ("train_station/0.png", "0.png", "val.json", "train_station/0.png"),
    ],
)
def test_a_name_finds_its_own_picture_or_none(
    tmp_path: Path, there: str, name: str, near: str, path: str | None
) -> None:
    for one in there.split():
        photo(tmp_path / one)
    assert Pictures(tmp_path).find(name, near) == path


@pytest.mark.parametrize(
    ("there", "name"),
    [
        ("e\u0301/e\u0301 1.png", "\u00e9/\u00e9 1.png"),
        ("my photo.png", "my%20photo.png"),
        ("IMG.PNG", "img.png"),
        ("a.PNG", "a.png"),
        ("a.jpeg", "a.jpg"),
        ("a.JPG", "a.jpeg"),
        ("a.tiff", "a.tif"),
    ],
)
def test_another_form_of_a_name_is_the_same_name_and_said(tmp_path: Path, there: str, name: str) -> None:
    photo(tmp_path / there)
    write(tmp_path / "x.json", labelled({1: name}))
    annotated = open_annotated(tmp_path)
    assert lefts(annotated) == {there: [5]}
    assert [note.split(" (")[0] for note in annotated.notes] == ["1 names that are written otherwise"]


def test_the_exact_form_of_a_name_comes_first(tmp_path: Path) -> None:
    for name in ("a.png", "A.png"):
        photo(tmp_path / name)
    assert [Pictures(tmp_path).find(name) for name in ("a.png", "A.png", "A.PNG")] == ["a.png", "A.png", None]
    (tmp_path / "A.png").unlink()
    assert Pictures(tmp_path).find_all(["A.png", "a.png", "x/a.png"], "") == [None, "a.png", "a.png"]
    write(tmp_path / "A.txt", "0 0.75 0.5 0.25 0.5\n")
    write(tmp_path / "a.txt", "0 0.5 0.5 0.25 0.5\n")
    assert lefts(open_annotated(tmp_path)) == {"a.png": [24]}


def test_labels_of_a_folder_that_is_not_there_are_counted(tmp_path: Path) -> None:
    photo(tmp_path / "images/one/0.png")
    write(tmp_path / "x.json", labelled({1: "one/0.png", 2: "two/0.png"}, ((1, 5, 5), (2, 9, 6))))
    annotated = open_annotated(tmp_path)
    assert lefts(annotated) == {"images/one/0.png": [5]}
    assert annotated.notes == ("1 pictures of x.json that are not in the folder, first two/0.png",)


def test_a_picture_that_two_folders_claim_is_nobodys(tmp_path: Path) -> None:
    photo(tmp_path / "0.png")
    photo(tmp_path / "1.png")
    write(tmp_path / "x.json", labelled({1: "one/0.png", 2: "two/0.png", 3: "one/1.png"}, ((1, 5, 5), (3, 9, 6))))
    annotated = open_annotated(tmp_path)
    assert lefts(annotated) == {"1.png": [9]}
    assert "1 pictures that x.json names in several folders, first 0.png" in annotated.notes


def test_an_xml_belongs_to_the_picture_of_its_own_stem(tmp_path: Path) -> None:
    for i in range(3):
        photo(tmp_path / f"{i}.png")
        write(tmp_path / f"{i}.xml", XML.format(name="0.png", left=1 + i))
    write(tmp_path / "00.xml", XML.format(name="0.png", left=9))  # a copy: of the same picture as 0.xml
    annotated = open_annotated(tmp_path)
    assert lefts(annotated) == {"0.png": [0], "1.png": [1], "2.png": [2]}
    assert annotated.notes == (
        "2 files that name another picture than that of their own stem, first 1.xml: not 0.png",
        "1 files whose picture has a file of its own or an earlier one, first 00.xml: 0.png is that of 0.xml",
    )


def test_of_photo_and_mask_of_one_stem_an_xml_describes_the_photo(tmp_path: Path) -> None:
    photo(tmp_path / "JPEGImages/0.jpg")
    photo(tmp_path / "SegmentationClass/0.png")
    write(tmp_path / "Annotations/0.xml", XML.format(name="0.jpg", left=5))
    assert lefts(open_annotated(tmp_path)) == {"JPEGImages/0.jpg": [4]}


def test_two_text_files_that_reach_one_picture(tmp_path: Path) -> None:
    photo(tmp_path / "images/one/0.png")
    for folder, x in {"labels": 0.25, "labels/one": 0.5, "labels/two": 0.75}.items():
        write(tmp_path / folder / "0.txt", f"0 {x} 0.5 0.25 0.5\n")
    write(tmp_path / "labels/two/1.txt", "0 0.5 0.5 0.5 0.5\n")
    annotated = open_annotated(tmp_path)
    assert lefts(annotated) == {"images/one/0.png": [24]}
    earlier = "labels/0.txt: images/one/0.png is that of labels/one/0.txt"
    assert f"1 files whose picture has a file of its own or an earlier one, first {earlier}" in annotated.notes


def test_rows_of_another_folder_are_counted(tmp_path: Path) -> None:
    photo(tmp_path / "a/0.png")
    row = "a/0.png,1,2,11,12\n"
    write(tmp_path / "t.csv", f"path,xmin,ymin,xmax,ymax\n{row}{row}b/0.png,3,3,9,9\n")
    annotated = open_annotated(tmp_path)
    assert lefts(annotated) == {"a/0.png": [1]}
    assert annotated.notes == (
        "1 identical boxes, counted once, first a/0.png",
        "1 rows of t.csv whose picture is not in the folder, first b/0.png",
    )


@pytest.mark.parametrize(
    ("images", "boxes", "reason"),
    [
        ([(0, "a.png"), (0, "b.png")], [(0, 5, 5)], "image id 0 stands for a.png and for b.png"),
        ([(0, "a.png"), ("0", "b.png")], [(0, 5, 5)], "image id 0 stands for a.png and for b.png"),
        ([(0, "a.png"), (1, "a.png")], [(0, 5, 5), (1, 5, 6)], "a dog at .* which is a cat where x.json"),
    ],
)
def test_contradictions_name_the_first(
    tmp_path: Path, images: list[tuple[Any, str]], boxes: list[tuple[int, int, int]], reason: str
) -> None:
    photo(tmp_path / "a.png")
    photo(tmp_path / "b.png")
    content = json.loads(labelled({}, boxes)) | {"images": [{"id": key, "file_name": name} for key, name in images]}
    write(tmp_path / "x.json", json.dumps(content))
    with pytest.raises(UserError, match=reason) as error:
        open_annotated(tmp_path)
    assert "\n" not in str(error.value)


def test_repeats_count_once_and_are_said(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    content = json.loads(labelled({1: "a.png", 2: "a.png"}, ((1, 5, 5), (2, 5, 5), (2, 9, 6), (7, 1, 5))))
    content["images"].append(content["images"][0])
    write(tmp_path / "x.json", json.dumps(content))
    annotated = open_annotated(tmp_path)
    assert lefts(annotated) == {"a.png": [5, 9]}
    assert annotated.notes == (
        "1 annotations of x.json of pictures that it does not list, first 7",
        "1 identical boxes, counted once, first a.png",
        "1 pictures that are described twice, first a.png (x.json, x.json)",
        "1 repeated image ids in x.json, first 1 (a.png)",
    )


def test_a_backup_and_a_file_of_another_kind_beside_the_annotations(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    for name in ("x.json", "x_backup.json"):
        write(tmp_path / name, labelled({1: "a.png"}, ((1, 5, 5), (1, 5, 6))))  # one box of two classes
    write(tmp_path / "info.json", '{"licence": "CC0"}')
    annotated = open_annotated(tmp_path)
    assert lefts(annotated) == {"a.png": [5, 5]}
    first, second, third = annotated.notes
    assert first.startswith("1 JSON files that hold no annotations of COCO's kind, first ")
    assert second == "2 identical boxes, counted once, first a.png"
    assert third == "1 pictures that are described twice, first a.png (x.json, x_backup.json)"


def test_what_train_and_test_share_is_said(tmp_path: Path) -> None:
    for name in "abc":
        photo(tmp_path / f"{name}.png")
    write(tmp_path / "train.json", labelled({1: "a.png", 2: "b.png"}))
    write(tmp_path / "test.json", labelled({1: "b.png", 2: "c.png"}))
    assert "1 pictures that are in both test and train, first b.png" in open_annotated(tmp_path).notes
    for name in ("train", "test"):
        (tmp_path / f"{name}.json").unlink()
    for name in "abc":
        write(tmp_path / f"{name}.xml", XML.format(name=f"{name}.png", left=3))
    write(tmp_path / "ImageSets/Main/train.txt", "a\nb\na\n")
    write(tmp_path / "ImageSets/Main/test.txt", "c\na\n")
    annotated = open_annotated(tmp_path)
    assert annotated.notes == (
        "1 pictures that are in both train and test, first a.png",
        "1 repeated pictures in the list of train, first train",
    )


def plain(**changes: Any) -> str:
    """A COCO file of one picture and one box, with changes to each."""
    content = json.loads(labelled({1: "a.png"}))
    for part in content.values():
        for one in part:
            one.update({name: change for name, change in changes.items() if name in one})
    return json.dumps(content)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_id": "1"},
        {"image_id": 1.0},
        {"category_id": "5"},
        {"category_id": 5.0},
        {"iscrowd": "0"},
        {"iscrowd": None},
        {"height": -1, "width": -1},
        {"height": 0, "width": 0},
        {"height": "48", "width": 64.0},
        {"bbox": None},
        {"segmentation": [5, 5, 13, 5, 13, 13, 5, 13]},
        {
            "bbox": [],
            "segmentation": {"size": [48, 64], "counts": [245] + [8, 40] * 7 + [8, 64 * 48 - 245 - 48 * 7 - 8]},
        },
    ],
)
def test_one_value_in_the_forms_that_tools_write(tmp_path: Path, changes: dict[str, Any]) -> None:
    photo(tmp_path / "a.png")
    write(tmp_path / "x.json", plain(**changes))
    annotated = open_annotated(tmp_path)
    (scene,) = annotated.scenes
    assert scene.boxes.tolist() == [[*BOX]]
    assert (annotated.notes, scene.crowd.tolist()) == ((), [False])
    assert scene.outlines[0] is not None


def test_a_caption_never_finds_another_picture(tmp_path: Path) -> None:
    photo(tmp_path / "a/0.png")
    write(tmp_path / "captions.csv", "image,caption\nb/0.png,of another\n")
    with pytest.raises(UserError, match=r"1 captions whose picture is not in the folder, first b/0\.png"):
        find_captioned(tmp_path)
    write(tmp_path / "captions.csv", "image,caption\nb/0.png,of another\na/0.png,its own\na/0.png,its own\n")
    with (tmp_path / "captions.csv").open("ab") as file:
        file.write(b"a/0.png,caf\xe9\n")
    source = open_source(tmp_path, find=find_captioned)
    assert source.texts(0) == ("its own",)  # type: ignore[attr-defined]
    assert source.unlisted == {
        "captions.csv": "1 captions that repeat one of the same picture, first a/0.png; "
        "1 captions whose picture is not in the folder, first b/0.png; "
        "1 lines that are no text, first line 5 (no valid UTF-8)"
    }


def test_captions_by_ids_as_strings_and_by_repeated_ids(tmp_path: Path) -> None:
    photo(tmp_path / "0.png")
    images = [{"id": 1.0, "file_name": "0.png"}]
    annotations = [{"image_id": "1", "caption": "words"}]
    write(tmp_path / "captions.json", json.dumps({"images": images, "annotations": annotations}))
    assert open_source(tmp_path, find=find_captioned).texts(0) == ("words",)  # type: ignore[attr-defined]
    images.append({"id": 1, "file_name": "1.png"})
    write(tmp_path / "captions.json", json.dumps({"images": images, "annotations": annotations}))
    with pytest.raises(UserError, match=r"image id 1 stands for 0\.png and for 1\.png"):
        find_captioned(tmp_path)
