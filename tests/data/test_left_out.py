"""Folders and archives as people have them: nothing that lies in them is left out without a word."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.data.source import open_source, splits, splits_of
from tests.conftest import Said
from tests.data.test_sources import picture, plant
from tests.support.packs import write_tar

PNG = picture()


def tar(path: Path, *members: tuple[str, bytes]) -> Path:
    write_tar(path, iter(members))
    return path


def labels(data: Path, split: str | None = None) -> dict[str, str | None]:
    """The class of each picture by its name; None where it has none."""
    source = open_source(data, split)
    numbers = source.labels.tolist()
    return {path: source.classes[n] if n >= 0 else None for path, n in zip(source.paths, numbers)}


# Splits and classes


@pytest.mark.parametrize(
    "folders",
    [
        ("airplane", "bus", "test_tube", "train_station"),
        ("test_tube", "train_station"),
        ("train", "bus", "tram"),
        ("val d'isere", "val thorens"),
        ("dev-ops", "eval sheet", "train track"),
    ],
)
def test_a_class_that_begins_with_a_word_for_a_split(tmp_path: Path, folders: tuple[str, ...]) -> None:
    root = plant(tmp_path, *(f"{folder}/{i}.png" for folder in folders for i in range(2)))
    assert splits(root) == []
    assert open_source(root).classes == sorted(folders)


@pytest.mark.parametrize(
    ("folders", "found"),
    [
        (("train2017", "val2017"), ["train", "validation"]),
        (("Train Images", "Test Images"), ["train", "test"]),
        (("training_set", "test_set", "extra"), ["train", "test"]),
        (("train_cropped", "dev_cropped"), ["train", "validation"]),
        (("train-00", "train-01", "eval-00"), ["train", "test"]),
        (("Training", "Validation "), ["train", "validation"]),
        (("train_128px", "test_128px"), ["train", "test"]),
    ],
)
def test_folders_that_are_splits(tmp_path: Path, folders: tuple[str, ...], found: list[str]) -> None:
    assert splits(plant(tmp_path, *(f"{folder}/{c}/1.png" for folder in folders for c in "ab"))) == found


def test_a_stray_picture_takes_no_label_from_the_others(tmp_path: Path) -> None:
    root = plant(tmp_path, *(f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in "12"))
    plant(root, "train/preview.png")
    assert labels(root, "train")["train/a/1.png"] == "a"
    assert labels(root, "train")["train/preview.png"] is None
    assert set(labels(root, "test").values()) == {"a", "b"}


def test_pictures_beside_the_splits_are_counted(tmp_path: Path) -> None:
    root = plant(tmp_path, "train/1.png", "test/1.png", "unlabeled/x/1.png", "unlabeled/2.png", "logo.png", "top.png")
    assert open_source(root).unlisted == {
        "unlabeled/": "2 outside of the splits train and test",
        "logo.png": "2 outside of the splits train and test",
    }


def test_rows_of_tables_and_lists_beside_the_splits_are_counted(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{i}.png" for i in range(4)))
    (tmp_path / "list.csv").write_text("path,split\n0.png,train\n1.png,test\n2.png,\n3.png,extra\n")
    assert open_source(tmp_path / "list.csv").unlisted == {
        "list.csv": "2 rows of no split (nothing, extra) are left out, first 2.png"
    }


def test_shards_beside_the_splits_are_counted(tmp_path: Path) -> None:
    for name in ("a-train", "a-val", "extra"):
        tar(tmp_path / f"{name}.tar", ("1.png", PNG))
    assert open_source(tmp_path).unlisted == {"extra.tar": "1 outside of the splits train and validation"}


def test_a_class_is_one_however_its_name_is_composed(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "bäume") for form in ("NFC", "NFD"))
    assert composed != apart
    plant(tmp_path / "folders", f"train/{composed}/1.png", "train/gras/1.png", f"test/{apart}/1.png", "test/gras/1.png")
    for source in splits_of(tmp_path / "folders").values():
        assert (source.classes, source.labels.tolist()) == ([composed, "gras"], [0, 1])
    plant(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "list.csv").write_text(f"path,label\n1.png,{apart}\n2.png,{composed}\n3.png,gras\n")
    assert open_source(tmp_path / "list.csv").labels.tolist() == [0, 0, 1]
    members = [(f"{name}/{i}.png", PNG) for i in range(2) for name in (composed, apart, "gras")]
    assert open_source(tar(tmp_path / "a.tar", *members)).classes == [composed, "gras"]


# What is not read


def test_other_files_are_counted_by_suffix(tmp_path: Path) -> None:
    names = [*(f"a/{i}.TGA" for i in range(10)), *(f"{i}.psd" for i in range(3)), "LICENSE", "a.b/IMG.20240101"]
    root = plant(tmp_path, "1.png", *names, ".hidden", "Thumbs.db", "a/desktop.ini")
    assert open_source(root).unlisted == {"15 other files not read": "10 .tga, 3 .psd, 2 without a suffix"}


def test_kinds_of_data_that_are_not_chosen_count_as_others(tmp_path: Path) -> None:
    root = plant(tmp_path, "1.png", "2.png", "3.png", "film.mp4", "more.zip")
    assert open_source(root).unlisted == {"2 other files not read": "1 .mp4, 1 .zip"}
    for name in "012":
        tar(root / f"{name}.tar", (f"{name}.png", PNG))
    assert open_source(root).unlisted == {"5 other files not read": "3 .png, 1 .mp4, 1 .zip"}


def test_many_suffixes_are_not_all_named(tmp_path: Path) -> None:
    root = plant(tmp_path, "1.png", *(f"x.{letter}xx" for letter in "abcdefghij"))
    (said,) = open_source(root).unlisted.items()
    assert said[0] == "10 other files not read"
    assert said[1].endswith(", 2 other kinds")


def test_thumbnails_of_a_nas_are_no_pictures(tmp_path: Path) -> None:
    root = plant(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png", "cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg")
    source = open_source(root)
    assert source.paths == ["cat/1.png", "cat/2.png", "dog/1.png"]
    assert list(source.unlisted) == ["cat/@eaDir/"]


# Archives


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("v1.{}.png", "v1.{}.cls"),
        ("2024.05.{}.png", "2024.05.{}.cls"),
        ("dr.jones.{}.png", "dr.jones.{}.cls"),
        ("in.2/{}.png", "in.2/{}.cls"),
        ("{}.input.png", "{}.output.cls"),
        ("a{}.jones.png", "a{}.jones.cls"),
    ],
)
def test_labels_of_members_with_dots(tmp_path: Path, name: str, label: str) -> None:
    members = [m for i in range(4) for m in ((name.format(i), PNG), (label.format(i), b"cat" if i % 2 else b" dog\n"))]
    source = open_source(tar(tmp_path / "a.tar", *members))
    assert len(source) == 4
    assert list(labels(tmp_path / "a.tar").values()) == ["dog", "cat", "dog", "cat"]


def test_a_label_is_never_that_of_another_sample(tmp_path: Path) -> None:
    members = [("v1.0.png", PNG), ("v1.0.cls", b"cat"), ("v1.1.png", PNG), ("mr.a.png", PNG), ("mr.b.png", PNG)]
    members += [("mr.a.cls", b"dog"), ("mr.b.cls", b"cat")]
    assert list(labels(tar(tmp_path / "a.tar", *members)).values()) == ["cat", None, "dog", "cat"]


def test_numbers_written_as_text_stay_text(tmp_path: Path) -> None:
    written = [b"01", b"1", b"0", "ähre".encode(), b"\x00\x01"]
    members = [m for i, data in enumerate(written) for m in ((f"{i}.png", PNG), (f"{i}.cls", data))]
    assert list(labels(tar(tmp_path / "a.tar", *members)).values()) == ["01", "1", "0", "ähre", None]
    values = [1.0, 0, True, "a", 0.5]
    members = [
        m for i, v in enumerate(values) for m in ((f"{i}.png", PNG), (f"{i}.json", json.dumps({"label": v}).encode()))
    ]
    assert list(labels(tar(tmp_path / "b.tar", *members)).values())[1:] == ["0", "1", "a", None]


def test_an_outer_folder_of_an_archive_hides_neither_classes_nor_splits(tmp_path: Path) -> None:
    names = [f"flowers/v2/{c}/{i}.png" for c in ("lily", "rose") for i in range(2)]
    assert set(labels(tar(tmp_path / "a.tar", *((name, PNG) for name in names))).values()) == {"lily", "rose"}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in names:
            archive.writestr(name.replace("v2", "train"), PNG)
            archive.writestr(name.replace("v2", "test"), PNG)
        archive.writestr("__MACOSX/x.png", PNG)
    assert splits(tmp_path / "a.zip") == ["train", "test"]
    assert set(labels(tmp_path / "a.zip", "test").values()) == {"lily", "rose"}


def test_a_stray_member_takes_no_label_from_the_others(tmp_path: Path) -> None:
    members = [("preview.png", PNG), *((f"{c}/{i}.png", PNG) for c in "ab" for i in range(2))]
    assert list(labels(tar(tmp_path / "a.tar", *members)).values()) == [None, "a", "a", "b", "b"]


# Masks


def photo(path: Path, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    saved(path, Image.fromarray(noise))


def mask(path: Path, value: int = 255) -> None:
    pixels = np.zeros((24, 32), np.uint8)
    pixels[4:12, 5:20] = value
    saved(path, Image.fromarray(pixels))


def saved(path: Path, image: Image.Image) -> None:
    file = io.BytesIO()
    image.save(file, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.getvalue())


@pytest.mark.parametrize(
    ("of_photo", "of_masks", "said"),
    [
        ("images/{}.png", ["masks/{}.png"], {"masks/": 3}),
        ("JPEGImages/{}.png", ["SegmentationClass/{}.png", "SegmentationObject/{}.png"], None),
        ("set/train/{}.png", ["set/trainannot/{}.png"], {"set/trainannot/": 3}),
        ("{}.png", ["{}_mask.png"], {"*mask.png": 3}),
        ("x/{}.png", ["x/{}-label.png"], {"x/*label.png": 3}),
        ("s/id{}/images/id{}.png", ["s/id{}/masks/a{}.png", "s/id{}/masks/b{}.png"], {"*/masks/": 6}),
        ("leftImg8bit/train/a/a_{}_leftImg8bit.png", ["gtFine/train/a/a_{}_gtFine_labelIds.png"], None),
    ],
)
def test_masks_are_no_photos(tmp_path: Path, of_photo: str, of_masks: list[str], said: dict[str, int] | None) -> None:
    for i in range(3):
        photo(tmp_path / of_photo.replace("{}", str(i)), i)
        for number, name in enumerate(of_masks):
            mask(tmp_path / name.replace("{}", str(i)), 1 + 50 * number)
    source = open_source(tmp_path, "all")
    assert len(source) == 3
    assert source.classes == []
    if said is not None:
        what = "masks of pictures beside them, which are no photos"
        assert source.unlisted == {name: f"{count} {what}" for name, count in said.items()}


def test_what_is_only_called_a_mask_is_a_photo(tmp_path: Path) -> None:
    for i in range(3):
        for j, folder in enumerate(("with_mask", "without_mask", "masks", "images", "label")):
            photo(tmp_path / folder / f"{i}.png", 10 * j + i)
    assert len(open_source(tmp_path)) == 15
    for i in range(3):
        mask(tmp_path / "alone" / "masks" / f"{i}.png")
    assert len(open_source(tmp_path / "alone")) == 3


# Who says it


def test_every_verb_that_opens_data_says_what_is_left_out(tmp_path: Path, say: Callable[..., Said]) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    for i in range(16):
        photo(data / ("train" if i < 10 else "test") / "ab"[i % 2] / f"{i:02}.png", i)
    (data / "test/a/page.png").write_bytes(b"<html>")
    (data / "train/a/none.png").write_bytes(b"")
    plant(data, "1.tga", "train/2.tga", "notes.md", "more/1.png")
    left = "3 other files not read: 2 .tga, 1 .md; more/: 1 outside of the splits train and test"
    empty, page = "train/a/none.png (the file is empty)", "test/a/page.png (no picture but a page of the web"
    code, out, _ = say("pretrain", data, "--out", run, "--steps", 2, "--batch", 4, "--workers", 0, "--max-bad", 0.5)
    assert code == 0
    assert out.startswith(f"{left}\n")
    assert f"1 cannot be read, first {empty}; all of them in {run / 'bad_files.csv'}" in out
    rows = (run / "bad_files.csv").read_text()
    assert '3 other files not read,"2 .tga, 1 .md"' in rows
    assert "more/,1 outside" in rows
    for verb in (
        ["embed", run, data, "--out", tmp_path / "e.parquet"],
        ["evaluate", "knn", run, data],
        ["prepare", data, "--out", tmp_path / "cache"],
    ):
        code, out, _ = say(*verb, "--workers", 0)
        assert code == 0
        assert out.count(left) == 1
        assert "cannot be read, first" in out
        assert empty in out
        assert page in out or verb[0] != "evaluate"  # others say both in one line
    assert "more/" in (tmp_path / "cache" / "bad_files.csv").read_text()


def test_an_evaluation_names_the_folder_that_was_meant(tmp_path: Path, say: Callable[..., Said]) -> None:
    for i in range(8):
        photo(tmp_path / "photos" / "pets" / "ab"[i % 2] / f"{i}.png", i)
    data, run = tmp_path / "photos", tmp_path / "run"
    code, out, _ = say("pretrain", data, "--out", run, "--steps", 2, "--batch", 4, "--workers", 0)
    meant = f"did you mean {data / 'pets'}, which holds 2 classes: a, b?"
    assert code == 0
    assert meant in out
    code, _, error = say("evaluate", "knn", run, data, "--workers", 0)
    assert code == 65
    assert error == f"lookalike: {data} has no labels to evaluate by: {meant}\n"
    assert say("evaluate", "knn", run, data / "pets", "--workers", 0)[0] == 0


def test_names_beyond_ascii_are_read_in_any_locale(tmp_path: Path) -> None:
    root = plant(tmp_path / "données", "chât/é1.png", "chât/é2.png", "chien/1.png")
    code = (
        "import os, sys; from lookalike.data.source import open_source;"
        f"source = open_source(os.fsdecode({os.fsencode(root)!r}));"
        "assert sys.getfilesystemencoding() == 'ascii';"
        "print(ascii(source.classes), [source.example(row, 8).bad for row in range(len(source))])"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | plain, capture_output=True, check=True)
    assert done.stdout == b"['chien', 'ch\\xe2t'] [None, None, None]\n"
