"""What doctor finds in data that is known, and what preview draws."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.curate.doctor import Examination, examine, examined
from lookalike.curate.survey import Tile, near, same, sheet, survey, upright
from lookalike.data.loader import Loader
from lookalike.data.source import open_source
from lookalike.recipes import recipe_named
from tests.cli.test_cli import refused
from tests.conftest import Said
from tests.data.test_sources import table
from tests.support.films import film


def photo(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Blobs of colour, as different from each other as photos are."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 photos in two splits and classes; then copies, near copies, gray ones and broken ones."""
    root = tmp_path_factory.mktemp("album")
    for i in range(40):
        path = root / ("train" if i < 30 else "test") / "ab"[i % 2] / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(i).save(path, quality=95)
    a, b = root / "train" / "a", root / "test" / "b"
    shutil.copyfile(a / "02.jpg", b / "copy.jpg")
    photo(4).resize((48, 32)).save(a / "small.png")  # near 04
    photo(5).save(a / "again.jpg", quality=40)  # near 05
    Image.eval(photo(6), lambda value: 10 + int(value * 0.95)).save(a / "light.jpg")  # near 06
    photo(50).convert("L").save(a / "gray.png")
    photo(51).convert("L").convert("RGB").save(a / "gray.jpg")
    photo(52).convert("CMYK").save(a / "print.jpg")
    (a / "page.jpg").write_bytes(b"<html>")
    (a / "empty.jpg").touch()
    (b / "half.jpg").write_bytes((a / "08.jpg").read_bytes()[:700])
    return root


@pytest.fixture(scope="module")
def found(album: Path) -> Examination:
    return examine(album, None, 0, timed=False)


def groups(found: Examination, which: list[list[int]]) -> set[frozenset[str]]:
    return {frozenset(found.paths[row] for row in group) for group in which}


def test_it_finds_what_is_there(found: Examination) -> None:
    plain = found.plain()
    assert plain["pictures"] == 50
    assert plain["splits"] == {"train": 38, "test": 12}
    assert plain["classes"] == {"train": {"a": 23, "b": 15}, "test": {"a": 5, "b": 7}}
    assert plain["gray"] == 2
    assert plain["kinds"]["JPEG RGB"] >= 43
    assert (plain["kinds"]["JPEG CMYK"], plain["kinds"]["PNG L"]) == (1, 1)
    assert plain["short_side"] == {"min": 32, "median": 64, "max": 64}
    assert set(plain["broken"]) == {"train/a/page.jpg", "train/a/empty.jpg", "test/b/half.jpg"}
    json.dumps(plain)


def test_it_finds_what_is_double_and_nothing_else(found: Examination) -> None:
    copies = frozenset({"train/a/02.jpg", "test/b/copy.jpg"})
    assert groups(found, found.duplicates["exact"]) == {copies}
    assert groups(found, found.duplicates["near"]) == {
        copies,
        frozenset({"train/a/04.jpg", "train/a/small.png"}),
        frozenset({"train/b/05.jpg", "train/a/again.jpg"}),
        frozenset({"train/a/06.jpg", "train/a/light.jpg"}),
    }
    assert found.plain()["across_splits"] == 1


def test_it_says_it_in_plain_words(found: Examination) -> None:
    text = "\n".join(found.lines())
    for words in (
        "50 pictures (38 in train, 12 in test)",
        "classes in train: 2, each of 15 (b) to 23 (a) pictures",
        "short sides: 32 to 64 px, half of them up to 64 px, a tenth up to 64 px",
        "long sides: 48 to 96 px, half of them up to 96 px",
        "grayscale: 2 (4.3%)",
        "unreadable: 3 (6.00%)",
        "1 × the file is empty, first train/a/empty.jpg",
        "exact duplicates: 2 pictures in 1 group, 1 redundant; groups across splits, which inflate evaluations: 1",
        "pretrain would use recipe small_simclr: batches of 16, 48 px crops",
        "the median short side is 64 px",
    ):
        assert words in text


def test_it_writes_what_it_found(found: Examination, tmp_path: Path) -> None:
    written = found.write(tmp_path / "doctor")
    assert [path.name for path in written] == ["sheet.png", "duplicates.png", "bad_files.csv", "duplicates.csv"]
    with Image.open(tmp_path / "doctor" / "sheet.png") as image:
        assert image.width == 10 * 104 + 8
    rows = list(csv.reader(io.StringIO((tmp_path / "doctor" / "duplicates.csv").read_text())))
    assert rows[1] == ["0", "exact", "train", "train/a/02.jpg"]
    assert len(rows) == 1 + 2 + 8


def test_any_workers_and_any_kind_of_source_see_the_same(album: Path, found: Examination, tmp_path: Path) -> None:
    both = survey([open_source(album, split) for split in ("train", "test")], 2)
    for one, other in zip(both, found.survey, strict=True):
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
    images = [{"bytes": (album / path).read_bytes(), "path": path} for path in found.paths]
    table(tmp_path / "t.parquet", images)
    packed = survey([open_source(tmp_path / "t.parquet")], 0)
    assert np.array_equal(packed.content, found.survey.content)
    assert same(packed.content[packed.good], packed.good) == found.duplicates["exact"]
    pixels = torch.stack([torch.full((3, 8, 8), i, dtype=torch.uint8) for i in (1, 1, 200)])
    plain = survey([open_source(pixels)], 0)
    assert same(plain.content, plain.good) == [[0, 1]]
    assert near(plain) == [[0, 1]]  # all of them have the hash of a flat picture, but not the colour


def test_data_that_cannot_be_trained_on_is_reported_all_the_same(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"")
    found = examine(tmp_path, None, 0)
    text = "\n".join(found.lines())
    assert "unreadable: 3 (100.00%)" in text
    assert "pretraining would not start: none of 3 pictures can be read" in text
    assert [path.name for path in found.write(tmp_path / "doctor")] == ["bad_files.csv"]


def test_frames_of_one_video_are_no_duplicates_and_two_equal_videos_are(tmp_path: Path) -> None:
    for video, seed in (("a", 1), ("b", 2)):
        (tmp_path / "films" / video).mkdir(parents=True)
        for frame in range(3):
            photo(seed).save(tmp_path / "films" / video / f"{frame}.png")
    once = examine(f"frames:{tmp_path / 'films'}", None, 0, timed=False)
    assert once.duplicates == {"exact": [], "near": []}
    shutil.copytree(tmp_path / "films" / "a", tmp_path / "films" / "again")
    twice = examine(f"frames:{tmp_path / 'films'}", None, 0, timed=False)
    assert [len(group) for group in twice.duplicates["exact"]] == [6]


def test_the_commands(say: Callable[..., Said], album: Path, tmp_path: Path) -> None:
    code, out, err = say("doctor", album, "--out", tmp_path / "d", "--json", tmp_path / "d.json", "--workers", 0)
    assert (code, err) == (0, "")
    assert "an epoch takes about" in out
    assert json.loads((tmp_path / "d.json").read_text())["training"]["minutes_an_epoch"] > 0
    code, out, err = say("doctor", "--json", tmp_path / "machine.json")
    assert (code, err) == (0, "")
    assert "torch" in out
    assert set(json.loads((tmp_path / "machine.json").read_text())) >= {"torch", "memory", "extras"}
    refused(say("doctor", tmp_path / "missing"), 65, "missing")
    command = ("preview", album, "tiny", "--out", tmp_path / "p" / "sheet.png", "--rows", 4)
    code, out, err = say(*command, "--pretext.first.blur", 1)
    assert (code, err) == (0, "")
    assert "4 pictures and their views by tiny" in out
    refused(say("preview", album, "tinny", "--out", tmp_path / "x.png"), 2, "did you mean tiny?")


def test_a_preview_shows_the_views_that_are_trained_on(say: Callable[..., Said], tmp_path: Path) -> None:
    for i in range(16):
        photo(i, (160, 160)).save(tmp_path / f"{i:02}.png")
    arguments = ("--rows", 1, "--epoch", 3, "--out", tmp_path / "sheet.png", "--pretext.first.size", 160)
    assert say("preview", tmp_path, "tiny", *arguments, "--canvas", 160)[0] == 0
    with Image.open(tmp_path / "sheet.png") as image:
        drawn = np.asarray(image).astype(np.int16)
    recipe = recipe_named("tiny", 16, 160)
    view = replace(recipe.pretext.first, size=160)
    loader = Loader(open_source(tmp_path), 160, workers=0)
    batch = next(iter(loader.batches([torch.arange(16)])))
    key = view(batch.material, batch.rows, recipe.seed, 3, 1)
    shown = drawn[36:196, -168:-8]
    apart = [np.abs(pixels.permute(1, 2, 0).numpy() - shown).mean() for pixels in view.displayable(key).short()]
    assert min(apart) < 1


def test_sheets_survive_odd_shapes_and_words() -> None:
    thin = upright(torch.zeros(3, 8, 8, dtype=torch.uint8), 5000, 1, 96)
    assert thin.size == (1, 96)
    content = sheet([Tile(thin, "a\nb" + "ü漢" * 80)], 3, 96, "title\x00")
    assert Image.open(io.BytesIO(content)).size == (3 * 104 + 8, 28 + 96 + 14 + 16)


def told(data: object) -> str:
    """What doctor says of any data."""
    return "\n".join(examined(str(data), None, 0, timed=False).lines())


def test_it_speaks_of_sentences(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a b c d\n\nthe same\nthe same\n")
    (tmp_path / "test.txt").write_text("the same\nother\n")
    text = told(tmp_path)
    for words in (
        "5 sentences (3 in train, 2 in test), 11 words",
        "1 to 4 words, half of them up to 2; the longest is train.txt:1",
        "repeated: 3 in 1 group, 2 redundant; groups across splits, which inflate evaluations: 1",
        "left out: train.txt: 1 blank lines",
        "--recipe simcse",
    ):
        assert words in text
    assert "picture" not in text
    found = examined(str(tmp_path / "train.txt"), None)
    assert json.loads(json.dumps(found.plain()))["sentences"] == 3
    assert [path.name for path in found.write(tmp_path / "doctor")] == ["bad_files.csv"]


def test_it_speaks_of_videos(tmp_path: Path) -> None:
    for name, count in (("a", 20), ("b", 40)):
        film(tmp_path / f"{name}.mp4", count)
    text = told(tmp_path)
    assert "2 videos of " in text
    assert "kB, 60 frames (no splits)" in text
    assert "length: 0.8 to 1.6 s, half of them up to 1.2 s" in text
    assert "rate: 25 frames a second; --recipe video_moco" in text
    assert "PPM" not in text
    assert "60 pictures" not in text


def test_it_speaks_of_captions(tmp_path: Path) -> None:
    for i in range(3):
        photo(i).save(tmp_path / f"{i}.jpg")
    (tmp_path / "captions.csv").write_text("image,caption\n0.jpg,a dog\n0.jpg,a cat\n1.jpg,a cow\n")
    text = told(tmp_path)
    assert "3 pictures (no splits)" in text
    assert "captions: of 2 pictures, up to 2 each: --recipe moco_captions" in text


def test_it_names_what_is_left_out_and_what_has_no_class(tmp_path: Path) -> None:
    for i, name in enumerate(("train/a/0", "train/b/0", "train/a/1", "train/top", "test/a/0", "test/B/0", "extra/0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo(i).save(tmp_path / f"{name}.jpg")
    for name in ("1.tga", "2.tga", "notes.md"):
        (tmp_path / name).touch()
    text = told(tmp_path)
    for words in (
        "classes in train: 2, each of 1 (b) to 2 (a) pictures; 1 without a class, first train/top.jpg",
        "classes in train alone: b; others have some of them but for capitals",
        "classes in test alone: B",
        "left out: 3 other files not read: 2 .tga, 1 .md",
        "left out: extra/: 1 outside of the splits train and test",
    ):
        assert words in text
    written = examined(str(tmp_path), None, 0, timed=False).write(tmp_path / "doctor")
    assert "3 other files not read" in next(path for path in written if path.name == "bad_files.csv").read_text()


@pytest.mark.parametrize(
    ("inside", "found"),
    [
        ("data/{}/{}", "data, which holds the splits train, test"),
        ("x/y/{}{}", "x/y, which holds 4 classes: testa, testb, traina, trainb"),
    ],
)
def test_an_outer_folder_that_hides_what_is_in_it_is_named(tmp_path: Path, inside: str, found: str) -> None:
    for i, (split, name) in enumerate((s, c) for s in ("train", "test") for c in "aabb"):
        path = tmp_path / inside.format(split, name) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(i).save(path)
    assert f"did you mean {tmp_path}/{found}?" in told(tmp_path)
