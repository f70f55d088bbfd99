"""Every kind of annotation file, tiny ones and real ones, and what is wrong in them: counted, never a crash."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lookalike.core.errors import UserError
from lookalike.data.annotations.files import LEEDS
from lookalike.data.annotations.open import open_annotated, split_annotated
from lookalike.data.annotations.pictures import Pictures
from lookalike.data.annotations.record import Annotated
from lookalike.data.annotations.yolo import names_in
from tests.support.scenery import BODY, coco_file, coco_object, made, photo

VOC = """<annotation><filename>{name}</filename><size><width>64</width><height>48</height></size>
<object><name>cat</name><difficult>{hard}</difficult><part><name>head</name></part><bndbox><xmin>11</xmin><ymin>5</ymin>
<xmax>30</xmax><ymax>24</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>8</xmax><ymax>8</ymax></bndbox></object></annotation>"""


def only(found: Annotated) -> Any:
    """The one scene."""
    (scene,) = found.scenes
    return scene


def test_coco(tmp_path: Path) -> None:
    learned, asked = split_annotated(open_annotated(made(tmp_path), points=True))
    assert learned.classes == ("dot", "square")
    assert (learned.joints, learned.bones) == (BODY, ((0, 1),))  # a bone to a point that is not there is none
    assert [scene.path for scene in asked.scenes] == [f"val2017/{i}.png" for i in (10, 11, 12, 13)]
    assert len(learned.scenes) == 9  # the picture without an object teaches nothing
    first, empty = asked.scenes[0], asked.scenes[1]
    assert (first.height, first.width, len(empty)) == (48, 64, 0)
    assert first.boxes.tolist() == [[5, 6, 33, 38], [44, 12, 56, 24], [0, 0, 32, 48]]
    assert first.labels.tolist() == [1, 0, 0]
    assert first.crowd.tolist() == [False, False, True]
    assert [shape is None for shape in first.outlines] == [False, True, False]
    assert first.outlines[0].mask(48, 64).sum() == first.areas[0]  # type: ignore[union-attr]
    assert first.points[0].tolist() == [[7, 8, 2], [31, 8, 1], [19, 36, 2]]
    assert not first.points[1:].any()


def test_renumbered_classes_change_nothing(tmp_path: Path) -> None:
    a, b = (open_annotated(made(tmp_path / str(i), ids=ids)) for i, ids in enumerate(({}, {"square": 9, "dot": 2})))
    for one, other in zip(a.scenes, b.scenes, strict=True):
        assert np.array_equal(one.labels, other.labels)
        assert np.array_equal(one.boxes, other.boxes)


def test_coco_says_what_it_could_not_use(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    photo(tmp_path / "small.png", 20, 20)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    outside = tmp_path.parent / f"outside-{tmp_path.name}.png"
    photo(outside)
    annotations = [
        coco_object(1, 1, (2, 2, 10, 10)),
        coco_object(2, 1, (2, 2, 2, 10)),  # no area
        coco_object(3, 1, (70, 2, 90, 10)),  # beside the picture
        coco_object(4, 1, (2, 2, 90, 10)),  # partly outside
        coco_object(5, 1, (2, 2, 9, 9), kind=77),
        coco_object(6, 1, (2, 2, 9, 9)) | {"bbox": [1, 2, float("nan"), 3]},
        coco_object(7, 1, (2, 2, 9, 9)) | {"segmentation": {"size": [9999, 9999], "counts": [1]}},
        coco_object(8, 99, (2, 2, 9, 9)),
    ]
    pictures = {1: "a.png", 2: "small.png", 3: "broken.png", 4: f"../{outside.name}", 5: "/etc/passwd", 6: "b.png"}
    (tmp_path / "x.json").write_text(coco_file(pictures, annotations, {5: "thing"}))
    found = open_annotated(tmp_path)
    assert only(found).boxes.tolist() == [[2, 2, 10, 10], [2, 2, 64, 10], [2, 2, 9, 9]]
    assert [note.split(",")[0] for note in found.notes] == [
        "1 annotations of x.json of pictures that it does not list",
        "2 annotations of x.json without a box or a class",
        "2 objects without an area in their picture",
        "1 outlines that cannot be read",
        "1 pictures of another size than their annotations state",
        "3 pictures of x.json that are not in the folder",
        "1 pictures that cannot be read",
    ]


def test_voc(tmp_path: Path) -> None:
    for i in range(5):
        photo(tmp_path / "images" / f"p{i}.png")
        (tmp_path / f"p{i}.xml").write_text(VOC.format(name="../../etc/passwd" if i else "p0.png", hard=int(i == 2)))
    (tmp_path / "bomb.xml").write_text(
        '<!DOCTYPE a [<!ENTITY b "bb">]><annotation><filename>&b;</filename></annotation>'
    )
    (tmp_path / "torn.xml").write_text("<annotation><object>")
    found = open_annotated(tmp_path)
    assert found.classes == ("cat", "dog")
    assert [scene.path for scene in found.scenes] == [f"images/p{i}.png" for i in range(5)]  # by their own names
    assert [scene.boxes.tolist() for scene in found.scenes] == [[[10, 4, 30, 24]]] * 5  # pixels count from 1
    assert [scene.ignored.tolist() for scene in found.scenes] == [[i == 2] for i in range(5)]
    assert sum(note.startswith("2 files that cannot be read") for note in found.notes) == 1
    parts = split_annotated(found)
    assert sorted(len(part.scenes) for part in parts) == [1, 4]
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name, rows in {"train": "012", "val": "34", "cat_val": "0"}.items():
        (lists / f"{name}.txt").write_text("".join(f"p{row}\n" for row in rows) + "missing\n")
    learned, asked = split_annotated(open_annotated(tmp_path))
    assert [scene.path[-5] for scene in (*learned.scenes, *asked.scenes)] == list("01234")


def test_yolo(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "train/c", "val/d"):
        photo(tmp_path / "images" / f"{name}.png")
        (tmp_path / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
    labels = tmp_path / "labels"
    (labels / "train/a.txt").write_text("1 0.5 0.5 0.25 0.5\nnonsense\n7 .5 .5 .1 .1\n0 0.5 0.5 nan 1\n")
    (labels / "train/b.txt").write_text("0 0 0 0.5 0 0.5 0.5\n")
    (labels / "train/c.txt").touch()
    (labels / "val/d.txt").write_text("0 0.5 0.5 1.5 1\n")
    (tmp_path / "data.yaml").write_text(
        "path: .\nnc: 2\nnames:\n  0: 'red car'  # the first\n  1: bus\ntrain: images\n"
    )
    learned, asked = split_annotated(open_annotated(tmp_path))
    assert learned.classes == ("bus", "red car")
    assert [scene.path for scene in learned.scenes] == ["images/train/a.png", "images/train/b.png"]  # c is empty
    assert learned.scenes[0].boxes.tolist() == [[24, 12, 40, 36]]
    assert learned.scenes[0].labels.tolist() == [0]
    assert learned.scenes[1].boxes.tolist() == [[0, 0, 32, 24]]
    assert 350 < learned.scenes[1].outlines[0].mask(48, 64).sum() < 420  # type: ignore[union-attr]  # half of the box
    assert only(asked).boxes.tolist() == [[0, 0, 64, 48]]
    assert any(note.startswith("3 lines that are no object") for note in learned.notes)


@pytest.mark.parametrize(
    "text",
    [
        "names: [a, 'b c']",
        "names: ['a',\n  'b c']\n",
        'nc: 2\nnames:\n- "a"\n- b c # said\n\nval: x',
        "names: # below\n  0: a\n  1: b c\nx: 1",
    ],
)
def test_names_of_classes(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    assert names_in(tmp_path / "data.yaml") == ["a", "b c"]


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("data.yaml", "names: {1: dog, 0: cat}", ["cat", "dog"]),
        ("data.yaml", "names:\n  1: dog\n  0: cat\n", ["cat", "dog"]),
        ("data.yaml", "names: {2: dog, 0: cat}", ["cat", "1", "dog"]),
        ("data.yaml", "names: ['', 'king''s']", ["0", "king's"]),
        ("data.yaml", 'names: ["caf\\u00e9", "c#"]', ["caf\u00e9", "c#"]),
        ("data.yaml", '{"names": ["cat [a]", "dog"], "nc": 2}', ["cat [a]", "dog"]),
        ("classes.txt", "\ufeffcat\n\ndog\n\n", ["cat", "1", "dog"]),
    ],
)
def test_names_keep_their_numbers(tmp_path: Path, name: str, text: str, names: list[str]) -> None:
    (tmp_path / name).write_text(text)
    assert names_in(tmp_path / name) == names


@pytest.mark.parametrize(
    "line",
    [
        b"\xef\xbb\xbf0 0.5 0.5 0.25 0.5\n",
        b"0.0 0.5 0.5 0.25 0.5\n",
        b"0,0.5,0.5,0.25,0.5\n",
        b"0, 0.5, 0.5, 0.25, 0.5\r\n",
        b"0 0.5 0.5 0.25 0.5 0.93\n",
        "0 0.5 0.5 0.25 0.5\n".encode("utf-16"),
    ],
)
def test_lines_in_the_forms_that_tools_write(tmp_path: Path, line: bytes) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(line)
    found = open_annotated(tmp_path)
    assert only(found).boxes.tolist() == [[24, 12, 40, 36]]
    assert (found.classes, found.notes) == (("0",), ())
    (tmp_path / "a.txt").write_bytes(b"0 32 24 10 10\n")
    with pytest.raises(UserError, match="1 lines that are no object, of shares between 0 and 1, first a"):
        open_annotated(tmp_path)


@pytest.mark.parametrize(
    ("shape", "rest", "last"),
    [
        ("[4, 3]", "0.25 0.25 2 0.75 0.25 1 0 0 0 0.25 0.75 2", [16, 36, 2]),
        ("[4, 3]", "0.25 0.25 2 0.75 0.25 1 0 0 0 0.25 0.75 2 0.93", [16, 36, 2]),
        ("[4, 2]", "0.25 0.25 0.75 0.25 0 0 0.25 0.75", [16, 36, 2]),
    ],
)
def test_points_behind_a_box(tmp_path: Path, shape: str, rest: str, last: list[int]) -> None:
    photo(tmp_path / "images/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text(f"0 0.5 0.5 0.25 0.5 {rest}\n")
    (tmp_path / "cards.yaml").write_text(f"kpt_shape: {shape}\nnames:\n  0: card\n")
    found = open_annotated(tmp_path, points=True)
    scene = only(found)
    assert (found.classes, found.joints, found.notes) == (("card",), ("0", "1", "2", "3"), ())
    assert scene.boxes.tolist() == [[24, 12, 40, 36]]
    assert (scene.points[0, 0].tolist(), scene.points[0, 2].tolist()) == ([16, 12, 2], [0, 0, 0])
    assert scene.points[0, 3].tolist() == last
    assert scene.outlines == (None,)


@pytest.mark.parametrize("encoding", ["iso-8859-1", "utf-16", "cp1252", "utf-8", "utf-8-sig"])
def test_xml_in_the_encoding_that_it_declares(tmp_path: Path, encoding: str) -> None:
    photo(tmp_path / "a.png")
    head = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>'
    text = head + VOC.format(name="a.png", hard=0).replace("cat", "caf\u00e9")
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    assert open_annotated(tmp_path).classes == ("caf\u00e9", "dog")
    (tmp_path / "a.xml").write_bytes(text.replace("<annotation>", "<!DOCTYPE a><annotation>").encode(encoding))
    with pytest.raises(UserError, match="document type"):
        open_annotated(tmp_path)


def test_leeds(tmp_path: Path) -> None:
    table = np.full((14, 3, 5), -9.0)
    table[0, :, 4], table[1, :, 4], table[2, :, 4] = (10, 20, 1), (30, 40, 1), (5, 5, 0)
    table[3, :, 4] = (200, 3, 1)  # outside of the picture
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": table, "other": np.zeros(3)})
    for name in ("im00005", "im00001", "im00009", "none"):
        photo(tmp_path / f"{name}.png")
    found = open_annotated(tmp_path, points=True)
    assert found.joints == LEEDS
    nobody, somebody = found.scenes
    assert (nobody.path, len(nobody), somebody.path) == ("im00001.png", 0, "im00005.png")
    assert somebody.points[0, :2].tolist() == [[10, 20, 2], [30, 40, 2]]
    assert not somebody.points[0, 2:].any()
    assert somebody.boxes.tolist() == [[8, 18, 32, 42]]
    assert any(note.startswith("2 pictures that have no row in joints.mat") for note in found.notes)


def test_comma_separated(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    photo(tmp_path / "b.png")
    head = "Path,class,xmin,ymin,xmax,ymax,left_eye_x,left_eye_y,right_eye_x,right_eye_y\n"
    (tmp_path / "t.csv").write_text(
        f"{head}a.png,cat,1,2,11,12,3,4,,\na.png,dog,1,2,,12\n\nc.png,cat,1,2,3,4,1,1,2,2\n"
    )
    scene = only(open_annotated(tmp_path, points=True))
    assert scene.boxes.tolist() == [[1, 2, 11, 12]]
    assert scene.points.tolist() == [[[3, 4, 2], [0, 0, 0]]]
    (tmp_path / "t.csv").write_text("file,eye_x,eye_y,eye_v,ear_x,ear_y,ear_v\nb.png,3,4,0,5,5,1\nb.png,7,9,1,5,5,1")
    scene = only(open_annotated(tmp_path, points=True))
    assert scene.boxes.tolist() == [[4.6, 4.6, 7.4, 9.4]]  # one point alone has no extent


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"[1, 2"),
        ("a.json", b'{"images": [], "annotations": {}}'),
        ("a.json", b'{"images": [], "annotations": [], "categories": []}'),
        ("a.json", b"[" * 200_000),
        ("a.mat", b"MATLAB 5.0 MAT-file, Platform: none" + bytes(200)),
        ("a.mat", b""),
        ("a.csv", b"a,b\n1,2\n"),
        ("a.csv", b"path,x_x,x_y\nnone.png,1,2\n"),
        ("a.csv", b'path,x_x,x_y\n"\0'),
        ("a.xml", b"<annotation/>"),
        ("a.txt", b""),
    ],
)
def test_files_that_hold_nothing_are_one_line_of_trouble(tmp_path: Path, name: str, content: bytes) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    for file in (None, str(tmp_path / name)):
        with pytest.raises(UserError) as error:
            open_annotated(tmp_path, file, points=name.endswith(("mat", "csv")))
        assert "\n" not in str(error.value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["a.png", "../a.png", "", 1, 5]),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=6,
)


def damaged(draw: st.DrawFn) -> bytes:
    """A COCO file, some values of which are anything."""
    plain = json.loads(coco_file({1: "a.png"}, [coco_object(i, 1, (2, 2, 10, 10)) for i in (1, 2)], {5: "thing"}))
    for part in plain.values():
        for one in part:
            for name in list(one):
                if draw(st.integers(0, 3)) == 0:
                    one[name] = draw(PLAIN)
    return json.dumps(plain).encode()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.composite(damaged)())
def test_any_damage_is_dropped_or_trouble(tmp_path: Path, content: bytes) -> None:
    if not (tmp_path / "a.png").exists():
        photo(tmp_path / "a.png")
    (tmp_path / "a.json").write_bytes(content)
    try:
        scene = only(open_annotated(tmp_path))
    except UserError:
        return
    assert np.isfinite(scene.boxes).all()
    assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()
    assert (scene.areas > 0).all()


def test_a_name_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "train" / "a.png")
    photo(tmp_path / "in" / "val" / "a.png")
    photo(tmp_path / "b.png")
    pictures = Pictures(tmp_path / "in")
    for name in ("../b.png", str(tmp_path / "b.png"), "..", "/", "", "b.png", "a.png/", "\0"):
        assert pictures.find(name) in (None, "train/a.png", "val/a.png")
    assert pictures.find("../b.png") is None
    assert pictures.find("a.png", "instances_val2017.json") == "val/a.png"
    assert pictures.find("x/train/a.png", "val.json") == "train/a.png"
    assert os.path.lexists(tmp_path / "in" / (pictures.find("\\train\\a.png") or ""))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("folder", "points", "learned", "asked", "classes", "objects"),
    [
        ("coco_mini", False, 80, 79, 80, 1363),
        ("coco_mini", True, 36, 79, 1, 290),
        ("raccoon", False, 80, 20, 1, 109),
        ("lspet", True, 400, 100, 1, 500),
    ],
)
def test_real_annotations(
    shared: Path, folder: str, points: bool, learned: int, asked: int, classes: int, objects: int
) -> None:
    found = open_annotated(shared / folder, points=points)
    parts = split_annotated(found)
    assert [len(part.scenes) for part in parts] == [learned, asked]
    assert (len(found.classes), sum(map(len, found.scenes)), found.notes) == (classes, objects, ())
