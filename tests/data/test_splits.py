"""Which split an evaluation tests on and why; what its parts share, and what one of them alone has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lookalike.core.errors import UserError
from lookalike.data.annotations.open import open_annotated, split_annotated
from lookalike.data.annotations.segmentation import pairs
from lookalike.data.example import Source
from lookalike.data.source import open_source, query_split, reference_and_query, splits
from lookalike.data.text.source import find_text
from tests.support.packs import pictures
from tests.support.scenery import coco_file, coco_object, photo

PNGS = [picture.data for picture in pictures(12)]


def put(root: Path, *names: str, first: int = 0) -> Path:
    """A picture of its own at each of these names."""
    for i, name in enumerate(names, first):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNGS[i])
    return root


def table(file: Path, labels: object = None, names: Sequence[str] = (), first: int = 0, **more: Any) -> Path:
    """Two pictures as parquet, of labels that the metadata may name."""
    images = [{"bytes": data, "path": None} for data in PNGS[first : first + 2]]
    columns = pa.table({"image": images} | ({} if labels is None else {"label": labels}) | more)
    if names:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
        columns = columns.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(columns, file)
    return file


def words_of(source: Source) -> list[str | None]:
    return [source.classes[label] if label >= 0 else None for label in source.labels.tolist()]


def told(data: object) -> tuple[list[int], list[str]]:
    """The numbers of rows of reference and queries, and what was said."""
    said: list[str] = []
    parts = reference_and_query(str(data), say=said.append)
    return list(map(len, parts)), said


@pytest.mark.parametrize(
    ("labelled", "query", "why"),
    [
        ({"train": True, "validation": True, "test": True}, "test", "tested on test"),
        ({"train": False, "test": False}, "test", "tested on test"),  # captions
        ({"train": True, "validation": True}, "validation", "tested on validation: there is no test split"),
        ({"train": True, "validation": True, "test": False}, "validation", "tested on validation: test has no labels"),
        ({"train": True, "test": False}, None, "test has no labels"),
        ({"train": True}, None, "there is only train"),
        ({"all": True}, None, "there are no splits"),
        ({"validation": True, "test": True}, None, "there is no train split"),
    ],
)
def test_which_split_and_why(labelled: Mapping[str, bool], query: str | None, why: str) -> None:
    drawn = "tested on a fifth, drawn by a hash of the names: "
    assert query_split(labelled) == (query, why if query else drawn + why)


def test_a_labelled_validation_part_stands_in_for_a_test_part_without_labels(tmp_path: Path) -> None:
    for i, (name, labels) in enumerate({"train": [0, 1], "validation": [1, 0], "test": [-1, -1]}.items()):
        table(tmp_path / "a" / f"{name}.parquet", labels, first=2 * i)
        table(tmp_path / "b" / f"{name}.parquet", labels if name != "test" else None, first=2 * i)
    for folder in "ab":
        assert told(tmp_path / folder) == ([2, 2], ["tested on validation: test has no labels"])
        assert open_source(str(tmp_path / folder)).labels.tolist() == [0, 1]


def test_what_one_part_alone_has_is_said(tmp_path: Path) -> None:
    rows = ["0,cat,train", "1,dog,train", "2,,train", "3,cat,test", "4,cow,test"]
    put(tmp_path, *(f"{i}.png" for i in range(5)))
    (tmp_path / "a.csv").write_text("path,label,split\n" + "".join(f"{row[0]}.png{row[1:]}\n" for row in rows))
    assert told(tmp_path / "a.csv")[1] == [
        "tested on test",
        "a.csv: 1 of 5 rows have no label, first 2.png",
        "classes in the reference alone: dog",
        "classes in the queries alone: cow",
        "1 of 3 rows of the reference have no label and are left out, first 2.png",
    ]


@pytest.mark.parametrize("kind", ["folders", "list", "parquet"])
def test_the_same_bytes_in_both_parts_are_a_leak(tmp_path: Path, kind: str) -> None:
    names = ["train/a/0.png", "train/b/1.png", "test/a/2.png", "test/b/3.png"]
    put(tmp_path / "photos", *names)
    (tmp_path / "photos" / names[3]).write_bytes(PNGS[0])
    data, first = tmp_path / "photos", "test/b/3.png is train/a/0.png"
    if kind == "list":
        rows = [f"photos/{name},{name.split('/')[1]},{name.split('/')[0]}\n" for name in names]
        (data := tmp_path / "a.csv").write_text("path,label,split\n" + "".join(rows))
        first = "photos/test/b/3.png is photos/train/a/0.png"
    if kind == "parquet":
        data, first = tmp_path / "t", "test.parquet#1 is train.parquet#0"
        table(data / "train.parquet", [0, 1])
        table(data / "test.parquet", [0, 1], first=2)
        swapped = pa.table({"image": [{"bytes": PNGS[i], "path": None} for i in (2, 0)], "label": [0, 1]})
        pq.write_table(swapped, data / "test.parquet")
    assert told(data)[1] == ["tested on test", f"leak: 1 of 2 queries are in the reference too, first {first}"]


def test_alike_at_both_ends_is_not_the_same(tmp_path: Path) -> None:
    for i, name in enumerate(["train/a", "train/b", "test/a", "test/b"]):  # of one size, with the same pieces
        body = bytearray(100_000)
        body[30_000] = i
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / f"{i}.png").write_bytes(body)
    assert told(tmp_path)[1] == ["tested on test"]


def test_the_parts_of_annotations_and_masks_say_the_same(tmp_path: Path) -> None:
    for i in range(3):
        photo(tmp_path / f"{i}.png", 48, 64 + i)
    photo(tmp_path / "3.png", 48, 65)  # the picture of 1.png
    for name, some in {"train": (0, 1), "val": (2, 3)}.items():
        names = {i: f"{i}.png" for i in some}
        text = coco_file(names, [coco_object(i, i, (5, 5, 13, 13)) for i in some], {5: "cat"}, (-1, -1))
        (tmp_path / f"{name}.json").write_text(text)
    said: list[str] = []
    split_annotated(open_annotated(tmp_path), said.append)
    leak = "leak: 1 of 2 queries are in the reference too, first 3.png is 1.png"
    assert said == ["tested on validation: there is no test split", leak]


def test_image_sets_of_masks_lie_where_the_masks_do(tmp_path: Path) -> None:
    home = tmp_path / "VOCdevkit/VOC2012"
    for i in range(4):
        photo(home / f"JPEGImages/{i}.jpg", 48, 64 + i)
        photo(home / f"SegmentationClass/{i}.png", 48, 64 + i)
    (sets := home / "ImageSets/Segmentation").mkdir(parents=True)
    (sets / "train.txt").write_text("1\n3\n2\n")
    (sets / "val.txt").write_text("0\n")
    found = pairs(str(tmp_path))
    assert (len(found.reference), len(found.query)) == (3, 1)
    assert found.notes == ("tested on validation: there is no test split",)


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(["cat", "dog"]).dictionary_encode(),
        pa.array(["cat", "dog"], pa.large_string()),
        pa.array(["cat", "dog"], pa.string_view()),
        pa.array([["cat"], ["dog"]]),
        pa.array([" cat", "dog "]),
    ],
)
def test_words_of_any_type_are_labels(tmp_path: Path, labels: pa.Array) -> None:
    try:
        source = open_source(table(tmp_path / "a.parquet", labels))
    except pa.ArrowNotImplementedError:
        pytest.skip("this pyarrow writes no such column")
    assert words_of(source) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([True, False], ["true", "false"]),
        ([1.0, 0.0], ["1", "0"]),
        ([1.0, None], ["1", None]),
        (["01", "1"], ["01", "1"]),
        (pa.array([7, 9], pa.uint8()), ["7", "9"]),
        (pa.array([9, 7]).dictionary_encode(), ["9", "7"]),
    ],
)
def test_numbers_of_any_type_are_labels(tmp_path: Path, labels: Any, words: list[str | None]) -> None:
    assert words_of(open_source(table(tmp_path / "a.parquet", labels))) == words


@pytest.mark.parametrize(
    ("columns", "note"),
    [
        ({"labels": [0.37, 1.0]}, "numbers such as 0.37 are no classes: there are no labels"),
        ({"labels": [0, None]}, "1 of 2 rows have no label"),
        ({"labels": [[1, 2], [3]]}, "labels such as [1, 2] are several of a row, and none is read"),
        ({"species": ["a", "b"]}, "no column is called label, labels, fine_label, class, and species is not read"),
        ({"split": ["train", "x"]}, "1 rows of no split (x) are left out, first a.parquet#1"),
    ],
)
def test_what_is_not_read_of_a_table_is_said(tmp_path: Path, columns: dict[str, Any], note: str) -> None:
    source = open_source(table(tmp_path / "a.parquet", **columns), "all")
    assert note in source.unlisted["a.parquet"]


def test_numbers_have_one_name_in_all_parts(tmp_path: Path) -> None:
    table(tmp_path / "train.parquet", [0, 1], ["caf\u00e9", "dog", "cow"])
    table(tmp_path / "test.parquet", [1, 0], ["cafe\u0301", "dog"], first=2)
    assert words_of(open_source(tmp_path, "test")) == ["dog", "caf\u00e9"]
    table(tmp_path / "test.parquet", ["dog", "caf\u00e9"], first=2)
    assert words_of(open_source(tmp_path, "test")) == ["dog", "caf\u00e9"]
    table(tmp_path / "test.parquet", [1, 0], ["dog", "caf\u00e9"], first=2)
    with pytest.raises(
        UserError, match=r"its label 0 is caf\u00e9, which is dog in .*test.parquet; number the classes"
    ):
        open_source(tmp_path)


def test_a_column_of_splits_is_obeyed(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", [0, 1], split=["test", "train"])
    assert splits(tmp_path) == ["train", "test"]
    assert open_source(tmp_path, "test").paths == ["a.parquet#0"]


TEXT = [("one", "pos", "train"), ("two", "neg", "train"), ("three", "pos", "dev"), ("four", "neg", "")]


def text_table(folder: Path, kind: str) -> Path:
    """The same rows in a kind of table."""
    file, heads = folder / f"a.{kind}", ("text", "label", "split")
    if kind == "parquet":
        pq.write_table(pa.table({name: [row[i] for row in TEXT] for i, name in enumerate(heads)}), file)
    elif kind == "jsonl":
        file.write_text("\n".join(json.dumps(dict(zip(heads, row))) for row in TEXT))
    else:
        file.write_text("\n".join({"csv": ",", "tsv": "\t"}[kind].join(row) for row in (heads, *TEXT)))
    return file


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_column_of_splits_in_a_table_of_text_is_obeyed(tmp_path: Path, kind: str) -> None:
    said: list[str] = []
    parts = reference_and_query(str(text_table(tmp_path, kind)), find=find_text, say=said.append)
    assert [[part.texts(row) for row in range(len(part))] for part in parts] == [[("one",), ("two",)], [("three",)]]  # type: ignore[misc]
    assert [words_of(part) for part in parts] == [["pos", "neg"], ["pos"]]
    last = f"a.{kind}:{4 if kind in ('jsonl', 'parquet') else 5}"
    assert said == [
        "tested on validation: there is no test split",
        f"a.{kind}: 1 rows of no split (nothing) are left out, first {last}",
        "classes in the reference alone: neg",
    ]


def test_texts_in_both_parts_are_a_leak(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("one\ntwo\n")
    (tmp_path / "test.txt").write_text("two\nthree\n")
    said: list[str] = []
    reference_and_query(str(tmp_path), find=find_text, say=said.append)
    assert said == ["tested on test", "leak: 1 of 2 queries are in the reference too, first test.txt:1 is train.txt:2"]


def test_rows_of_tensors_have_no_paths_to_share() -> None:
    said: list[str] = []
    images = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1).expand(10, 3, 4, 4)
    reference_and_query(images, say=said.append)
    assert said == ["tested on a fifth, drawn by a hash of the names: there are no splits"]
