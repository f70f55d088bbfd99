"""Sources: what is listed, labelled, divided and refused."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lookalike.core.errors import BAD_DATA, USAGE, UserError
from lookalike.data.decode import Unreadable
from lookalike.data.example import Rows
from lookalike.data.formats import files
from lookalike.data.source import native_side, open_source, reference_and_query, split_by_hash, splits, splits_of


def picture(colour: int = 0, size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (colour, colour, colour)).save(file, kind)
    return file.getvalue()


def plant(root: Path, *paths: str) -> Path:
    """Files below root: pictures, each of its own gray, where the name is one of a picture."""
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(i) if path.lower().endswith((".png", ".jpg", ".webp")) else b"text")
    return root


def table(
    path: Path, images: Sequence[Any], labels: Sequence[Any] | None = None, names: list[str] | None = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {"image": pa.array(images)}
    if labels is not None:
        columns["label"] = pa.array(labels)
    made = pa.table(columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(made, path, row_group_size=3)


def grays(source: Any, side: int = 8) -> list[int]:
    return [int(source.example(row, side).pixels[0, 0, 0]) for row in range(len(source))]


def refusal(*arguments: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        open_source(*arguments)
    assert "\n" not in str(caught.value)
    return caught.value


# Folders


def test_any_layout_sorted(tmp_path: Path) -> None:
    root = plant(tmp_path, "z.PNG", "a/b/c.png", "a.png", "notes.txt", ".hidden.png", "__MACOSX/a.png", ".git/x.png")
    source = open_source(root)
    assert source.paths == ["a.png", "a/b/c.png", "z.PNG"]
    assert grays(source) == [2, 1, 0]
    assert source.labels.tolist() == [-1] * 3
    assert source.classes == []
    example = source.example(1, 8)
    assert (example.path, example.label, example.bad, example.height, example.width) == ("a/b/c.png", -1, None, 8, 8)


def test_class_folders_are_labels(tmp_path: Path) -> None:
    source = open_source(plant(tmp_path, "dog/1.png", "cat/deep/2.png", "cat/1.png"))
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [0, 0, 1]
    assert source.example(2, 8).label == 1
    stray = open_source(plant(tmp_path, "stray.png"))
    assert (stray.classes, stray.labels.tolist()) == (["cat", "dog"], [0, 0, 1, -1])
    assert not open_source(plant(tmp_path, "1.png", "2.png", "3.png")).classes  # most lie outside of folders


def test_one_folder_is_no_class(tmp_path: Path) -> None:
    assert open_source(plant(tmp_path, "images/1.png", "images/2.png")).labels.tolist() == [-1, -1]


def test_splits_share_classes(tmp_path: Path) -> None:
    root = plant(tmp_path, "train/b/1.png", "train/c/1.png", "val/a/1.png", "val/c/1.png", "test/1.png", "test/2.png")
    assert splits(root) == ["train", "validation", "test"]
    train, val, test = (open_source(root, name) for name in ("train", "val", "test"))
    assert open_source(root).paths == train.paths == ["train/b/1.png", "train/c/1.png"]
    assert train.labels.tolist() == [1, 2]
    assert val.labels.tolist() == [0, 2]
    assert train.classes == val.classes == ["a", "b", "c"]
    assert test.labels.tolist() == [-1, -1]
    assert len(open_source(root, "all")) == 6
    assert {name: len(source) for name, source in splits_of(root).items()} == {"train": 2, "validation": 2, "test": 2}
    reference, query = reference_and_query(root)
    assert (reference.paths, query.paths) == (train.paths, val.paths)  # test has no labels


def test_split_names() -> None:
    assert files.split_of("val2017") == files.split_of("Dev") == "validation"
    assert files.split_of("trainannot") is None
    assert files.table_split("data/train-00000-of-00001.parquet") == "train"
    assert files.table_split("my_test.parquet") == "test"
    assert files.table_split("validation/0000.parquet") == "validation"
    assert files.table_split("0000.parquet") is None


def test_a_class_called_train_is_no_split(tmp_path: Path) -> None:
    root = plant(tmp_path, "train/1.png", "bus/1.png", "tram/1.png")
    assert splits(root) == []
    assert open_source(root).classes == ["bus", "train", "tram"]
    plant(root, "test/1.png", "unlabeled/1.png")
    assert splits(root) == ["train", "test"]


def test_unknown_split(tmp_path: Path) -> None:
    root = plant(tmp_path, "train/1.png", "test/1.png")
    error = refusal(root, "val")
    assert error.code == USAGE
    assert "train, test" in str(error)
    assert refusal("digits", "train").code == USAGE


def test_no_train_means_everything(tmp_path: Path) -> None:
    assert len(open_source(plant(tmp_path, "val/1.png", "test/1.png"))) == 2


def test_weird_trees(tmp_path: Path) -> None:
    root = plant(tmp_path / "data", "real/1.png", "real/2.png")
    outside = plant(tmp_path / "outside", "3.png", "../4.png")
    (root / "loop").symlink_to(root)
    (root / "up").symlink_to(tmp_path)
    (root / "again").symlink_to(root / "real")
    (root / "more").symlink_to(outside)
    (root / "same.png").symlink_to(root / "real" / "1.png")
    (root / "same too.png").symlink_to(outside / "3.png")
    (root / "other.png").symlink_to(tmp_path / "4.png")
    (root / "dead.png").symlink_to("nowhere")
    (root / "self.png").symlink_to("self.png")
    os.mkfifo(root / "pipe.png")
    assert open_source(root).paths == ["more/3.png", "other.png", "real/1.png", "real/2.png"]


def test_odd_names_are_read_and_printable(tmp_path: Path) -> None:
    plant(tmp_path, "new\nline.png", "ü.png", "x" * 251 + ".png")
    with open(os.fsencode(tmp_path) + b"/\xff\xfe.png", "wb") as file:
        file.write(picture(9))
    source = open_source(tmp_path)
    assert all(source.example(row, 8).bad is None for row in range(4))
    assert "\\xff\\xfe.png" in source.paths
    "".join(source.paths).encode()
    assert len(set(source.paths)) == 4


def test_a_file_that_changes_its_kind_is_bad_not_fatal(tmp_path: Path) -> None:
    source = open_source(plant(tmp_path, "a.png", "b.png", "c.png"))
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").unlink()
    os.mkfifo(tmp_path / "b.png")
    assert source.example(0, 8).bad == "No such file or directory"
    assert source.example(1, 8).bad == "not a regular file"
    assert source.example(2, 8).bad is None
    with pytest.raises(Unreadable):
        source.size(0)


def test_unreadable_folders_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, scandir = plant(tmp_path, "a/1.png", "b/1.png"), os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("b/"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = open_source(root)
    assert source.paths == ["a/1.png"]
    assert source.unlisted == {"b/": "Permission denied"}


def test_refusals_of_paths(tmp_path: Path) -> None:
    assert "no such file" in str(refusal(tmp_path / "missing"))
    assert "empty" in str(refusal(tmp_path))
    plant(tmp_path, "a.doc", "b/c.csv", "b/d.mp3")
    assert "3 files" in str(refusal(tmp_path))
    assert "parquet" in str(refusal(tmp_path / "a.doc"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    assert "broken.parquet" in str(refusal(tmp_path / "broken.parquet"))
    for path in ("missing", "b", "a.doc", "broken.parquet"):
        assert refusal(tmp_path / path).code == BAD_DATA


# Parquet


@pytest.mark.parametrize("nested", [True, False])
def test_tables(tmp_path: Path, nested: bool) -> None:
    images = [{"bytes": picture(i), "path": f"{i}.png"} if nested else picture(i) for i in range(8)]
    table(tmp_path / "data/train-00000-of-00002.parquet", images[:5], [0, 1, 0, 1, -1], ["no", "yes"])
    table(tmp_path / "data/train-00001-of-00002.parquet", images[5:7], [0, 0], ["no", "yes"])
    table(tmp_path / "data/test-00000-of-00001.parquet", images[7:], [1], ["no", "yes"])
    source = open_source(tmp_path)
    assert splits(tmp_path) == ["train", "test"]
    assert grays(source) == list(range(7))
    assert [grays(source)[row] for row in (6, 0, 3)] == [6, 0, 3]
    assert source.labels.tolist() == [0, 1, 0, 1, -1, 0, 0]
    assert source.classes == ["no", "yes"]
    assert source.paths[5] == ("5.png" if nested else "data/train-00001-of-00002.parquet#0")
    assert grays(open_source(tmp_path, "test")) == [7]
    assert grays(pickle.loads(pickle.dumps(source))) == list(range(7))
    assert grays(source, 4) == list(range(7))
    assert len(open_source(tmp_path / "data/train-00000-of-00002.parquet")) == 5


def test_string_labels_and_repeated_paths(tmp_path: Path) -> None:
    images = [{"bytes": picture(i), "path": "same.png"} for i in range(4)]
    table(tmp_path / "t.parquet", images, ["b", None, "a", "b"])
    source = open_source(tmp_path / "t.parquet")
    assert source.labels.tolist() == [1, -1, 0, 1]
    assert source.classes == ["a", "b"]
    assert source.paths == [f"t.parquet#{i}" for i in range(4)]


def test_rows_without_bytes_are_bad(tmp_path: Path) -> None:
    table(tmp_path / "t.parquet", [{"bytes": None, "path": "a"}, None, {"bytes": picture(3), "path": "b"}])
    source = open_source(tmp_path / "t.parquet")
    assert [source.example(row, 8).bad is None for row in range(3)] == [False, False, True]


def test_tables_go_before_pictures_only_with_pictures_in_them(tmp_path: Path) -> None:
    plant(tmp_path, "assets/logo.png")
    pq.write_table(pa.table({"path": ["x"]}), tmp_path / "embeddings.parquet")
    assert open_source(tmp_path).paths == ["assets/logo.png"]
    table(tmp_path / "a.parquet", [picture(1)])
    assert open_source(tmp_path).paths == ["a.parquet#0"]


def test_no_image_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"], "label": [1]}), tmp_path / "t.parquet")
    for path in (tmp_path, tmp_path / "t.parquet"):
        error = refusal(path)
        assert error.code == BAD_DATA
        assert "text, label" in str(error)


# Arrays and datasets


@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 1, 4, 6), (3, 3, 4, 6)])
def test_tensors(shape: tuple[int, ...]) -> None:
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    for data in (images, images.numpy(), images / 255):
        source = open_source(data)
        example = source.example(1, 8)
        assert example.pixels.shape == (3, 8, 8)
        assert (example.height, example.width) == source.size(0) == (4, 6)
        assert torch.equal(example.pixels, open_source(images).example(1, 8).pixels)


def test_tensors_keep_their_values() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(open_source(images).example(1, 8).pixels, images[1])
    assert torch.equal(open_source(images / 255).example(1, 8).pixels, images[1])


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 5, 4, 4), torch.randn(3, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.long), torch.zeros(4)]
)
def test_tensors_that_are_no_pictures(images: torch.Tensor) -> None:
    assert refusal(images).code == BAD_DATA


class Listed:
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Any:
        if isinstance(self.items[row], Exception):
            raise self.items[row]
        return self.items[row]


def test_map_style_datasets() -> None:
    gray = Image.new("RGB", (6, 4), (7, 7, 7))
    array = np.full((4, 6, 3), 7, np.uint8)
    tensor = torch.full((3, 4, 6), 7, dtype=torch.uint8)
    items = [
        gray,
        (gray, 2),
        {"image": gray, "label": 1},
        (tensor, torch.tensor(0)),
        [array, np.int64(1)],
        tensor / 255,
    ]
    source = open_source(Listed(items))
    assert grays(source) == [7] * 6
    assert source.labels.tolist() == [-1, 2, 1, 0, 1, -1]
    assert source.classes == ["0", "1", "2"]
    assert {(source.example(row, 8).height, source.example(row, 8).width) for row in range(6)} == {(4, 6)}


def test_bad_items_are_bad_rows() -> None:
    items = [OSError("gone"), "text", torch.randn(3, 4, 4) - 9, torch.zeros(7), None, (torch.zeros(3, 4, 4), 1)]
    source = open_source(Listed(items))
    assert [source.example(row, 8).bad is None for row in range(6)] == [False] * 5 + [True]
    assert refusal(Listed([])).code == BAD_DATA
    assert refusal(7).code == USAGE


def test_digits() -> None:
    source = open_source("digits")
    assert len(source) == 1797
    assert source.example(5, 16).pixels.shape == (3, 16, 16)
    assert source.labels.bincount(minlength=10).min() > 170
    assert int(open_source("digits").example(0, 8).pixels.max()) > 230
    assert native_side(source) == 8


# Division by hash


def test_one_split_is_divided(tmp_path: Path) -> None:
    reference, query = reference_and_query("digits")
    assert (len(reference), len(query)) == (1438, 359)
    assert not set(reference.paths) & set(query.paths)
    assert query.example(3, 8).label == int(query.labels[3])
    assert query.example(3, 8).path == query.paths[3]
    assert query.example(0, 12).pixels.shape == (3, 12, 12)
    root = plant(tmp_path, *[f"train/{c}/{i}.png" for c in "ab" for i in range(10)])
    assert [len(part) for part in reference_and_query(root)] == [16, 4]


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=200))
@settings(max_examples=30, deadline=None)
def test_division_is_whole_stratified_and_a_function_of_the_path(labels: list[int]) -> None:
    paths, every = [f"{i}.jpg" for i in range(len(labels))], torch.tensor(labels)
    reference, query = split_by_hash(paths, every)
    assert torch.equal(torch.cat([reference, query]).sort().values, torch.arange(len(labels)))
    for label in torch.unique(every):
        count, queries = int((every == label).sum()), int((every[query] == label).sum())
        assert abs(queries - 0.2 * count) <= 1
        assert queries < count
    turned = split_by_hash(paths[::-1], every.flip(0))
    assert {paths[::-1][row] for row in turned[1].tolist()} == {paths[row] for row in query.tolist()}


def test_division_never_changes() -> None:
    assert split_by_hash([f"{i}.jpg" for i in range(10)], torch.zeros(10))[1].tolist() == [1, 7]


def test_native_side(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(picture(0, (40 + i, 20 + i), "JPEG"))
    (tmp_path / "5.jpg").write_bytes(b"")
    assert native_side(open_source(tmp_path)) == 22
    empty = Rows(open_source(tmp_path), torch.tensor([5]))
    with pytest.raises(UserError):
        native_side(empty)


@pytest.mark.shared
def test_real_data(shared: Path) -> None:
    photos = open_source(shared / "imagenette128", "train")
    assert (len(photos), len(photos.classes), native_side(photos, 16)) == (9469, 10, 128)
    assert [len(part) for part in reference_and_query(shared / "imagenette128")] == [9469, 1500]
    assert splits(shared / "coco_mini") == ["train", "validation"]
    assert splits(shared / "raccoon") == []
    cifar = open_source(shared / "cifar10", "test")
    assert (len(cifar), cifar.classes[0], int(cifar.labels.bincount().min())) == (10_000, "airplane", 1000)
    assert cifar.example(9_999, 8).bad is None
