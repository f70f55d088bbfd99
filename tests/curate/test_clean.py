"""Duplicates, leaks, wrong labels, outliers and samples in tables whose faults are known."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

import lookalike
from lookalike.core.errors import UserError
from lookalike.curate.aligned import SIDE, likeness
from lookalike.curate.calibration import DEFAULT, lowest
from lookalike.curate.clean import all_findings
from lookalike.curate.duplicates import kept, write_tree
from lookalike.curate.labels import votes
from lookalike.curate.same import nearest
from lookalike.curate.survey import gray_canvas
from lookalike.curate.table import Finding, Table, pictures_of
from lookalike.data.example import PictureSource, Rows
from lookalike.train.embeddings import write_embeddings
from lookalike.types import Embeddings
from tests.cli.test_cli import refused
from tests.conftest import Said
from tests.report.test_report import Checked

Say = Callable[..., Said]


def photo(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Blobs of colour, as different from each other as photos are, with detail."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def vector(image: Image.Image) -> npt.NDArray[np.float32]:
    """An embedding that calls edited pictures alike: colours at 6 x 6 places, and mirrored ones."""
    rows = [
        np.asarray(one.convert("RGB").resize((6, 6), Image.Resampling.BOX), np.float32)
        for one in (image, ImageOps.mirror(image))
    ]
    row = (rows[0] + rows[1]).reshape(-1)
    row = row - row.mean()
    return np.asarray(row / max(1e-6, float(np.linalg.norm(row))), np.float32)


def table_of(root: Path, classes: tuple[str, ...] = ("a", "b")) -> Table:
    """Of the pictures of split/class/name below ``root``."""
    paths = sorted(str(path.relative_to(root)) for path in root.rglob("*.*"))
    rows = np.stack([vector(Image.open(root / path)) for path in paths])
    parts = [path.split("/") for path in paths]
    label = np.array([classes.index(part[1]) if part[1] in classes else -1 for part in parts])
    rows = Embeddings(paths, [part[0] for part in parts], label, rows, classes)
    return Table(str(root), rows, pictures_of(rows, str(root)))


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 photos, and copies of some: equal, saved again without loss, smaller, cut, mirrored, framed, recoloured."""
    root = tmp_path_factory.mktemp("clean") / "album"
    for split, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
        (root / split / name).mkdir(parents=True)
    for i in range(60):
        photo(i).save(root / ("train" if i < 45 else "test") / "ab"[i % 2] / f"{i:02}.png")
    one = photo(0)
    (root / "train/a/10_equal.png").write_bytes((root / "train/a/10.png").read_bytes())
    one.save(root / "train/a/00_pixels.bmp")
    one.resize((60, 45)).save(root / "test/a/00_small.jpg", quality=60)
    photo(2).crop((10, 8, 100, 80)).save(root / "train/a/02_cut.png")
    ImageOps.mirror(photo(4)).save(root / "test/a/04_mirrored.png")
    ImageOps.expand(photo(6), 10, "white").save(root / "train/a/06_framed.png")
    ImageEnhance.Brightness(photo(8)).enhance(0.7).save(root / "train/a/08_dark.png")
    return root


@pytest.fixture(scope="module")
def table(album: Path) -> Table:
    return table_of(album)


@pytest.fixture(scope="module")
def found(table: Table) -> dict[str, list[tuple[str, str, str]]]:
    """What is found of each kind: path, reason, and the path beside it."""
    path = table.rows.path
    return {
        kind: [(path[one.row], one.reason, path[one.others[0]]) for one in some]
        for kind, some in all_findings(table, workers=0).items()
    }


def test_duplicates_have_the_first_reason_that_holds(found: dict[str, list[tuple[str, str, str]]]) -> None:
    reasons = {path: (reason, beside) for path, reason, beside in found["duplicates"]}
    assert reasons.pop("train/a/10_equal.png") == ("equal bytes", "train/a/10.png")
    assert reasons.pop("train/a/00.png") == ("equal pixels", "train/a/00_pixels.bmp")  # the larger file is kept
    assert reasons.pop("test/a/00_small.jpg") == ("perceptual hash", "train/a/00_pixels.bmp")
    assert reasons.pop("train/a/02_cut.png") == ("embedding", "train/a/02.png")
    assert reasons.pop("test/a/04_mirrored.png") == ("embedding", "train/a/04.png")  # not the one of test
    assert reasons.pop("train/a/06.png") == ("embedding", "train/a/06_framed.png")  # more pixels
    assert reasons.pop("train/a/08_dark.png")[1] == "train/a/08.png"  # sharper
    assert reasons == {}


def test_the_surest_come_first(found: dict[str, list[tuple[str, str, str]]]) -> None:
    assert {reason for _, reason, _ in found["duplicates"][:2]} == {"equal pixels", "equal bytes"}


def test_leaks_are_what_test_has_of_train(found: dict[str, list[tuple[str, str, str]]]) -> None:
    assert {path for path, _, _ in found["leaks"]} == {"test/a/00_small.jpg", "test/a/04_mirrored.png"}
    assert all(beside.startswith("train/a/0") for _, _, beside in found["leaks"])
    assert all("test has what train has" in reason for _, reason, _ in found["leaks"])


def test_tables_of_text_are_refused() -> None:
    rows = Embeddings(["a", "b"], ["train"] * 2, np.array([0, 1]), np.eye(2, dtype=np.float32), text=["x", "y"])
    for verb in (lookalike.duplicates, lookalike.leaks, lookalike.outliers):
        with pytest.raises(UserError, match="text"):
            verb(Table("words.parquet", rows))


def few(root: Path, count: int, make: Callable[[int], Image.Image] = photo) -> Table:
    (root / "train/a").mkdir(parents=True)
    for i in range(count):
        make(i).save(root / f"train/a/{i:02}.png")
    return table_of(root)


def test_one_picture_has_nothing_wrong(tmp_path: Path) -> None:
    table = few(tmp_path, 1)
    assert all_findings(table, workers=0) == {"leaks": [], "duplicates": [], "outliers": []}
    assert [one.row for one in lookalike.sample(table, n=5, how="diverse")] == [0]


def test_all_equal_pictures_are_one_group(tmp_path: Path) -> None:
    table = few(tmp_path, 20, lambda i: photo(0))
    found = all_findings(table, workers=0)
    assert [one.others for one in found["duplicates"]] == [(0,)] * 19
    assert found["outliers"] == []
    for how in ("typical", "diverse"):
        assert len(lookalike.sample(table, n=5, how=how)) == 5  # type: ignore[arg-type]


def test_plain_pictures_are_the_same_only_where_they_are_equal(tmp_path: Path) -> None:
    """They have no detail that could agree."""
    table = few(tmp_path, 4, lambda i: Image.new("RGB", (60 + i // 2, 60), "white"))
    assert {(one.row, one.others) for one in lookalike.duplicates(table, workers=0)} == {(1, (0,)), (3, (2,))}


def test_a_picture_that_cannot_be_read_any_more_is_no_duplicate(tmp_path: Path) -> None:
    table = few(tmp_path, 6)
    for i in (1, 2):
        (tmp_path / f"train/a/{i:02}.png").write_bytes(b"gone")
    assert all_findings(table, workers=0)["duplicates"] == []


def test_two_classes_are_needed_for_wrong_labels(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="labels of one class alone"):
        lookalike.labels(few(tmp_path / "one", 5))
    with pytest.raises(UserError, match="no labels"):
        lookalike.labels(table_of(tmp_path / "one", ("x",)))
    with pytest.raises(UserError, match="typical needs none"):
        lookalike.sample(table_of(tmp_path / "one", ("x",)), how="uncertain")


def clusters(wrong: int = 0, seed: int = 0) -> Table:
    """120 rows around three directions, labelled by them but for the first few."""
    rng = np.random.default_rng(seed)
    label = np.arange(120) % 3
    rows = np.eye(8)[label] + rng.normal(0, 0.15, (120, 8))
    label[:wrong] = (label[:wrong] + 1) % 3
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return Table("clusters", Embeddings([f"{i:03}" for i in range(120)], ["train"] * 120, label, rows, ("x", "y", "z")))


def test_wrong_labels_come_with_the_right_ones() -> None:
    found = lookalike.labels(clusters(wrong=6))
    assert {one.row for one in found[:6]} == set(range(6))
    assert [one.reason for one in sorted(found[:6])] == [f"looks like {'xyz'[i % 3]}" for i in range(6)]
    assert all(0.5 < one.score <= 1 for one in found)
    assert len(found) <= 8
    assert all(row % 3 == found[0].row % 3 for row in found[0].others)


def test_copies_are_no_evidence_of_a_label() -> None:
    """Five copies of one row have its wrong label, too: they would outvote the truth."""
    table = clusters(wrong=1)
    rows = np.concatenate([table.rows.vectors, np.repeat(table.rows.vectors[:1], 25, 0)])
    label = np.concatenate([table.rows.label, np.repeat(table.rows.label[:1], 25)])
    share = votes(torch.from_numpy(rows), torch.from_numpy(label), 3)
    assert int(share[0].argmax()) == 0 != int(label[0])


def test_samples() -> None:
    table = clusters()
    typical = lookalike.sample(table, n=3, how="typical")
    assert {one.row % 3 for one in typical} == {0, 1, 2}
    diverse = lookalike.sample(table, n=3, how="diverse")
    assert {one.row % 3 for one in diverse} == {0, 1, 2}
    assert len({one.row for one in lookalike.sample(table, n=500, how="diverse")}) == 120
    assert len({one.row for one in lookalike.sample(table, n=500, how="typical")}) == 120
    between = table.rows.vectors.copy()
    between[7] = (np.eye(8)[0] + np.eye(8)[1]) / 2**0.5
    table = Table("between", replace(table.rows, vectors=between))
    first = lookalike.sample(table, n=2, how="uncertain")[0]
    assert (first.row, first.reason) in {(7, "x or y"), (7, "y or x")}


def test_only_rows_without_a_label_are_sampled_where_there_are_any() -> None:
    table = clusters()
    table.rows.label[60:] = -1
    for how in ("typical", "diverse", "uncertain"):
        assert min(one.row for one in lookalike.sample(table, n=10, how=how)) >= 60  # type: ignore[arg-type]
    with pytest.raises(UserError, match="typical, diverse, uncertain"):
        lookalike.sample(table, how="tipical")  # type: ignore[arg-type]


def test_odd_pictures_have_their_reasons(tmp_path: Path) -> None:
    odd = {1: Image.new("RGB", (120, 90), (3, 3, 3)), 2: Image.new("RGB", (120, 90), "white"), 3: photo(3, (900, 90))}
    table = few(tmp_path, 30, lambda i: odd.get(i, photo(i)))
    found = {one.row: one for one in lookalike.outliers(table, workers=0)}
    assert set(found) == {1, 2, 3}
    assert found[3].reason in ("very wide", "very large")
    assert found[1].reason in ("dark", "nearly uniform", "blurred", "far from everything")
    assert all(0.5 <= one.score < 1 and len(one.others) == 3 for one in found.values())


def test_what_many_have_is_no_oddity(tmp_path: Path) -> None:
    table = few(tmp_path, 40, lambda i: photo(i, (90, 120) if i % 3 else (120, 90)))
    assert [one for one in lookalike.outliers(table, workers=0) if "wide" in one.reason] == []


@pytest.mark.parametrize("edit", ["mirror", "cut", "frame", "darker", "stretched"])
def test_edited_pictures_agree_and_others_do_not(edit: str) -> None:
    edits: dict[str, Callable[[Image.Image], Image.Image]] = {
        "mirror": ImageOps.mirror,
        "cut": lambda image: image.crop((12, 9, 100, 80)),
        "frame": lambda image: ImageOps.expand(image, 12, "black"),
        "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.5),
        "stretched": lambda image: image.resize((90, 90)),
    }
    images = [photo(i) for i in range(8)] + [edits[edit](photo(i)) for i in range(8)]
    canvases = torch.from_numpy(np.stack([gray_canvas(np.asarray(image), SIDE) for image in images]))
    sizes = torch.tensor([image.size[::-1] for image in images])
    first, second = torch.arange(8), torch.arange(8) + 8
    same = likeness(canvases, sizes, torch.stack([first, second], 1))
    other = likeness(canvases, sizes, torch.stack([first, second.roll(1)], 1))
    assert float(same.min()) > 0.9 > 0.8 > float(other.max())
    swapped = likeness(canvases, sizes, torch.stack([second, first], 1))
    assert torch.allclose(same, swapped, atol=0.03)


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=40), st.randoms())
@settings(deadline=None, max_examples=100)
def test_groups_are_stars(count: int, edges: list[tuple[int, int]], draw: object) -> None:
    pairs = {(min(a, b), max(a, b)) for a, b in edges if a != b and max(a, b) < count}
    order = np.random.default_rng(len(pairs)).permutation(count)
    stars = kept(order, np.array(sorted(pairs), np.int64).reshape(-1, 2), count)
    for row, star in enumerate(stars.tolist()):
        assert stars[star] == star  # whoever stands for others is kept
        assert row == star or (min(row, star), max(row, star)) in pairs  # and is the same as each of them
    keepers = np.flatnonzero(stars == np.arange(count))
    assert not any((a, b) in pairs for a in keepers.tolist() for b in keepers.tolist())  # no two of them the same


@given(st.integers(0, 1000), st.floats(0.5, 0.98), st.floats(0.5, 0.98))
@settings(deadline=None, max_examples=50)
def test_more_precision_never_asks_for_less(seed: int, one: float, other: float) -> None:
    rng = np.random.default_rng(seed)
    others = rng.beta(2, 3, 2000)
    scores = np.concatenate([rng.beta(9, 1 + 2 * rng.random(), 200), rng.beta(2, 3, 5000)])
    assert lowest(others, scores, min(one, other)) <= lowest(others, scores, max(one, other))


def test_the_threshold_rises_where_others_look_alike() -> None:
    rng = np.random.default_rng(0)
    copies = rng.uniform(0.8, 1, 300)
    far, near = rng.beta(2, 6, 3000), rng.beta(6, 3, 3000)
    assert lowest(far, np.concatenate([copies, far]), 0.95) < lowest(near, np.concatenate([copies, near]), 0.95)
    assert 0.5 < DEFAULT < 1


@pytest.mark.parametrize("copies", [0, 3, 100, 1000])
@pytest.mark.parametrize("precision", [0.8, 0.95])
def test_of_what_is_found_so_many_are_right_however_rare_copies_are(copies: int, precision: float) -> None:
    wrong, found = 0, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        strangers = rng.beta(4, 6, 20_000)
        value = lowest(rng.beta(4, 6, 4800), np.concatenate([rng.beta(30, 1.5, copies), strangers]), precision)
        wrong, found = wrong + (strangers >= value).sum(), found + (strangers >= value).sum()
        found += (np.random.default_rng(seed).beta(30, 1.5, copies) >= value).sum() if copies else 0
    assert wrong <= max(20, 1.5 * (1 - precision) * found)  # a handful by chance where there are no copies


@pytest.mark.parametrize("width", [16, 300])
def test_nearest_are_those_of_all_products(width: int) -> None:
    rng = np.random.default_rng(0)
    count = 1100 if width > 256 else 50
    rows = torch.from_numpy(rng.normal(size=(count, width)).astype(np.float32))
    rows[1:40] = rows[0] + 0.3 * rows[1:40]
    rows = torch.nn.functional.normalize(rows, dim=1)
    cosines = rows @ rows.T
    cosines.fill_diagonal_(-2)
    assert (nearest(rows, 5)[:40] == cosines.topk(5, 1).indices[:40].numpy()).mean() > 0.99
    assert nearest(rows[:1], 5).shape == (1, 0)
    assert nearest(rows[:3], 5).shape == (3, 2)


# ---- the command line ----


@pytest.fixture(scope="module")
def parquet(table: Table, album: Path) -> Path:
    write_embeddings(table.rows, album.parent / "album.parquet")
    return album.parent / "album.parquet"


def test_duplicates_command(parquet: Path, album: Path, tmp_path: Path, say: Say) -> None:
    before = sorted(path.name for path in album.rglob("*"))
    marked, page, tree = tmp_path / "marked.parquet", tmp_path / "page.html", tmp_path / "once"
    words = ("duplicates", parquet, album, "--out", marked, "--page", page, "--json", tmp_path / "all.json")
    code, out, err = say(*words, "--workers", 0)
    assert code == 0, err
    assert "edited views of them" in out
    assert "7 of 67 pictures are the same as one that is kept" in out
    rows = pq.read_table(marked).to_pylist()
    assert {row["path"] for row in rows if row["duplicate_of"]} == {
        one["path"] for one in json.loads((tmp_path / "all.json").read_text())["found"]
    }
    assert lookalike.search(str(marked), [rows[0]["path"]], top=1)  # it still is a table
    Checked(page.read_text("utf-8"))
    assert page.read_text("utf-8").count("<img") == 14
    say("duplicates", parquet, album, "--keep-tree", tree, "--top", 0, "--workers", 0)
    links = [path.stat().st_nlink for path in tree.rglob("*.*")]
    assert links == [2] * 60
    assert sorted(path.name for path in album.rglob("*")) == before
    refused(say("duplicates", parquet, album, "--keep-tree", tree, "--workers", 0), 2, "holds something")


def test_what_is_kept_is_copied_to_another_disk(tmp_path: Path) -> None:
    """Hard links end at the file system."""
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    table, said = few(tmp_path / "data", 3), list[str]()
    with TemporaryDirectory(dir=other) as folder:
        out = Path(folder) / "kept"
        assert write_tree(table, [Finding(1, 1.0, "equal bytes", (0,))], tmp_path / "data", out, said.append) == 2
        assert sorted(path.name for path in out.rglob("*.png")) == ["00.png", "02.png"]
        assert "2 of 2 are copies" in said[0]
        assert (out / "train/a/00.png").read_bytes() == (tmp_path / "data/train/a/00.png").read_bytes()


def test_paths_that_lead_elsewhere_are_not_linked(tmp_path: Path) -> None:
    table = few(tmp_path / "data", 2)
    rows = Rows(table.pictures, [0, 1])  # type: ignore[arg-type]
    rows.paths = ["../secret.png", "train/a/00.png"]  # type: ignore[assignment]
    outside = Table("outside", table.rows, cast(PictureSource, rows))
    with pytest.raises(UserError, match="lies outside"):
        write_tree(outside, [], tmp_path / "data", tmp_path / "kept", print)
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("verb", ["leaks", "labels", "outliers", "sample"])
def test_lists(parquet: Path, album: Path, tmp_path: Path, say: Say, verb: str) -> None:
    out, more = tmp_path / "list.csv", ("--n", 7) if verb == "sample" else ()
    code, _, err = say(verb, parquet, album, *more, "--out", out, "--workers", 0)
    assert code == 0, err
    head, *rows = csv.reader(out.read_text("utf-8").splitlines())
    assert head == ["path", "split", "score", "reason", "beside"]
    assert len(rows) == {"leaks": 2, "sample": 7}.get(verb, len(rows))
    refused(say(verb, parquet, album, "--out", "list.txt"), 2, ".csv")
