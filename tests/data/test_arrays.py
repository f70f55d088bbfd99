"""What people hold in Python: arrays of both layouts, lists, datasets of torchvision's and of Hugging Face's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset
from torchvision.datasets import FakeData, ImageFolder

from lookalike.core.errors import BAD_DATA, USAGE, UserError
from lookalike.data.example import PictureSource
from lookalike.data.loader import Loader
from lookalike.data.source import native_side, open_source, reference_and_query, splits, splits_of
from tests.support.packs import IMAGE, pictures

PIXELS = torch.randint(0, 256, (6, 3, 8, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
HWC = PIXELS.permute(0, 2, 3, 1).contiguous()


def canvases(source: PictureSource, side: int = 8) -> Tensor:
    """(N, 3, S, S) in the order of the rows."""
    return next(iter(Loader(source, side, workers=0).batches([torch.arange(len(source))]))).material.pixels


@pytest.mark.parametrize(
    "data",
    [
        PIXELS,
        HWC,
        PIXELS.numpy(),
        HWC.numpy(),
        HWC.numpy()[::-1][::-1],
        np.asarray(HWC.numpy() / 255, ">f4"),
        PIXELS / 255,
        list(PIXELS),
        list(HWC),
        list(HWC.numpy()),
        tuple(PIXELS.numpy()),
        [Image.fromarray(array) for array in HWC.numpy()],
        [(Image.fromarray(array), 3) for array in HWC.numpy()],
        [{"image": array} for array in HWC.numpy()],
    ],
)
def test_both_layouts_and_lists_are_the_same_pictures(data: Any) -> None:
    source = open_source(data)
    assert (len(source), source.size(2), native_side(source)) == (6, (8, 10), 8)
    assert (canvases(source).int() - canvases(open_source(PIXELS)).int()).abs().max() <= 1  # Pillow's filter rounds


def test_arrays_that_nobody_may_write_are_read() -> None:
    frozen = HWC.numpy().copy()
    frozen.flags.writeable = False
    assert torch.equal(canvases(open_source(frozen)), canvases(open_source(PIXELS)))


@pytest.mark.parametrize(
    ("data", "words", "code"),
    [
        (np.array(["a"]), "an array of <U1 holds no pictures", BAD_DATA),
        (np.zeros((2, 8, 8, 4), np.uint8), r"an array of shape \(2, 8, 8, 4\) holds no pictures", BAD_DATA),
        (np.zeros((2, 8, 8), np.int64), "state no range", BAD_DATA),
        ([1, 2], "a list of int holds no pictures", BAD_DATA),
        ([], "the list is empty", BAD_DATA),
        (iter([1]), "a list_iterator is no data", USAGE),
        ({"left": PIXELS}, "its splits, train, validation and test; here are left", USAGE),
        ({"train": []}, "the list is empty", BAD_DATA),
        ({3: PIXELS}, "here are 3", USAGE),
    ],
)
def test_what_is_no_data_is_refused_in_one_line(data: Any, words: str, code: int) -> None:
    with pytest.raises(UserError, match=words) as caught:
        open_source(data)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_the_reason_why_nothing_can_be_read_is_said() -> None:
    class Broken:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, row: int) -> None:
            raise RuntimeError("disk on fire\nat sector 9")

    with pytest.raises(
        UserError, match=r"none of 3 pictures .* first #0 \(the dataset raised RuntimeError: disk on fire"
    ):
        native_side(open_source(Broken()))
    with pytest.raises(UserError, match="normalised"):
        native_side(open_source([torch.full((3, 8, 8), 7.0)]))


def test_datasets_of_torchvision(tmp_path: Path) -> None:
    for number, picture in enumerate(pictures(6)):
        path = tmp_path / "ab"[number % 2] / f"{number}.{picture.path.rpartition('.')[2]}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture.data)
    folder = ImageFolder(str(tmp_path))
    source, direct = open_source(folder), open_source(tmp_path)
    assert (source.labels.tolist(), source.classes) == (direct.labels.tolist(), direct.classes)
    assert torch.equal(canvases(source), canvases(direct))
    part = open_source(Subset(folder, [0, 4]))
    assert part.labels.tolist() == [0, 1]
    fake = open_source(FakeData(5, (3, 16, 12), num_classes=2))
    assert (len(fake), fake.size(0)) == (5, (16, 12))
    assert set(fake.labels.tolist()) <= {0, 1}


def test_datasets_by_split_are_a_divided_place() -> None:
    data = {"train": list(zip(PIXELS, [1, 0, 1, 1, 0, 0])), "val": list(zip(PIXELS[:3], [0, 1, 0]))}
    assert splits(data) == ["train", "validation"]
    assert [len(part) for part in splits_of(data).values()] == [6, 3]
    assert [part.paths[0] for part in reference_and_query(data)] == ["train#0", "validation#0"]
    every = open_source(data, "all")
    assert every.labels.tolist() == [1, 0, 1, 1, 0, 0, 0, 1, 0]
    assert torch.equal(every.example(7, 8).pixels, open_source(data, "dev").example(1, 8).pixels)
    assert len(set(every.paths)) == 9


def test_an_index_is_no_label(tmp_path: Path) -> None:
    assert open_source(list(zip(PIXELS, range(6)))).labels.tolist() == [-1] * 6
    assert (
        open_source([{"image": picture, "index": row % 2, "id": 7} for row, picture in enumerate(PIXELS)]).classes == []
    )
    images = pa.array([{"bytes": picture.data, "path": None} for picture in pictures(6)], IMAGE)
    for name in ("index", "__index_level_0__", "id", "idx", "label"):
        for values in (range(6), range(1, 7), [1, 0, 1, 1, 0, 0]):
            pq.write_table(pa.table({"image": images, name: pa.array(values)}), tmp_path / "t.parquet")
            source = open_source(tmp_path / "t.parquet")
            labelled = name == "label" and not isinstance(values, range)
            assert (source.labels >= 0).all() == labelled
            assert source.classes == (["0", "1"] if labelled else [])


def test_datasets_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    given = pictures(8)
    images = [{"bytes": picture.data, "path": None} for picture in given]
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    data = datasets.Dataset.from_dict({"photo": images, "kind": [0, 1] * 4}, features=features)
    source = open_source(data)
    assert (source.labels.tolist(), source.classes) == ([0, 1] * 4, ["cat", "dog"])
    assert source.example(3, 8).label == 1
    assert torch.equal(source.example(3, 8).pixels, open_source(list(data["photo"])).example(3, 8).pixels)
    torch_rows = open_source(data.with_format("torch"))
    assert (torch_rows.example(3, 8).bad, torch_rows.labels.tolist()) == (None, [0, 1] * 4)
    words = open_source(datasets.Dataset.from_dict({"image": list(data["photo"]), "label": ["x", "y"] * 4}))
    assert (words.labels.tolist(), words.classes) == ([0, 1] * 4, ["x", "y"])
    divided = datasets.DatasetDict({"train": data, "test": data.select(range(3))})
    assert splits(divided) == ["train", "test"]
    assert [len(part) for part in reference_and_query(divided)] == [8, 3]
    assert len(open_source(divided, "all")) == 11
    with pytest.raises(UserError, match="a IterableDataset is no data"):
        open_source(data.to_iterable_dataset())
    with pytest.raises(UserError, match="no map-style dataset: its item 0 raises KeyError"):
        open_source(data.to_pandas())
