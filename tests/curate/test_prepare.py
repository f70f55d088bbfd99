"""A prepared cache: the same rows, pixels and runs as its data, whole after a kill, and honest about damage."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.core.errors import BAD_DATA, USAGE, UserError
from lookalike.curate.prepare import prepare
from lookalike.data.loader import Loader
from lookalike.data.prepared import Prepared
from lookalike.data.source import native_side, open_source, reference_and_query, splits
from tests.cli.test_cli import LIGHT, refused
from tests.conftest import Said
from tests.data.test_sources import picture, plant, table
from tests.support.forks import Forks, Moment, digest

pytestmark = pytest.mark.any_precision

SMALL = 3 * 16 * 16 * 20  # bytes of a shard: 20 rows


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 + 14 pictures of noise in two splits and two classes, of many sizes, three of them broken."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(64):
        path = root / ("train" if i < 50 else "val") / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16 + i, 30, 3), dtype=np.uint8)).save(path)
    (root / "train" / "a" / "04.png").write_bytes(b"<html>")
    (root / "train" / "a" / "48.png").write_bytes((root / "train" / "a" / "48.png").read_bytes()[:100])
    (root / "val" / "b" / "51.png").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def cache(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cache") / "cache"
    done = prepare(photos, out, 16, workers=0, shard_bytes=SMALL)
    assert (done.rows, done.side, [shard.rows for shard in done.shards]) == (64, 16, [20, 20, 10, 14])
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_rows(one: Any, other: Any, side: int) -> None:
    assert (one.paths, one.classes, len(one)) == (other.paths, other.classes, len(other))
    assert one.labels.tolist() == other.labels.tolist()
    for row in range(len(one)):
        a, b = one.example(row, side), other.example(row, side)
        assert torch.equal(a.pixels, b.pixels)
        assert a[1:] == b[1:]


def test_rows_are_those_of_the_data(photos: Path, cache: Path) -> None:
    assert splits(cache) == splits(photos) == ["train", "validation"]
    for split in (None, "train", "val"):
        same_rows(open_source(cache, split), open_source(photos, split), 16)
    assert native_side(open_source(cache)) == native_side(open_source(photos))
    assert [part.paths for part in reference_and_query(cache)] == [part.paths for part in reference_and_query(photos)]
    assert len(open_source(cache, "all")) == 64
    listed = (cache / "bad_files.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in listed] == ["path", "train/a/04.png", "train/a/48.png", "val/b/51.png"]


def test_batches_come_from_the_map_and_are_those_of_the_data(photos: Path, cache: Path) -> None:
    rows = [torch.tensor([2, 49, 24, 0]), torch.arange(50)]  # 2 and 24 are broken
    wanted = list(Loader(open_source(photos), 16, workers=0, max_bad=0.1).batches(rows))
    loader = Loader(open_source(cache), 16, 0, 2, max_bad=0.1)
    assert loader.cached
    for one, other in zip(wanted, loader.batches(rows), strict=True):
        assert torch.equal(one.rows, other.rows)
        assert all(torch.equal(a, b) for a, b in zip(one.material, other.material, strict=True))
    assert sorted(loader.bad) == ["train/a/04.png", "train/a/48.png"]
    with pytest.raises(UserError, match="2 of 50 pictures"):
        Loader(open_source(cache), 16)


def test_a_batch_that_somebody_holds_is_never_overwritten(cache: Path) -> None:
    source = open_source(cache, "val")
    assert isinstance(source, Prepared)
    rows = [torch.arange(i, i + 4) for i in range(10)]
    every = [source.take(chosen)[0] for chosen in rows]
    for chosen, pixels in zip(rows, every, strict=True):
        assert torch.equal(pixels, torch.stack([source.example(row, 16).pixels for row in chosen.tolist()]))
    view = source.take(rows[0])[0][1:, :, 3:].float().sum()
    part = every.pop(3)[2, 1]
    before = part.clone()
    for _ in range(6):
        source.take(rows[8])
    assert torch.equal(part, before)
    assert source.take(rows[0])[0][1:, :, 3:].float().sum() == view
    addresses = {source.take(chosen)[0].data_ptr() for chosen in rows}
    assert len(addresses) < 4  # and what nobody holds is used again


def test_a_run_from_the_cache_is_the_run_from_the_data(
    say: Callable[..., Said],
    photos: Path,
    cache: Path,
    tmp_path: Path,
) -> None:
    common = ("--steps", 6, "--max-bad", 0.1, "--quiet", *LIGHT)
    for name, data in (("data", photos), ("cache", cache)):
        assert say("pretrain", data, "--out", tmp_path / name, *common) == (0, "", "")
    assert digest(tmp_path / "data") == digest(tmp_path / "cache")
    for name, data in (("data", photos), ("cache", cache)):
        command = ("evaluate", "knn", tmp_path / "data", data, "--json", tmp_path / f"{name}.json", "--workers", 0)
        assert say(*command)[0] == 0
    one, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("data", "cache"))
    assert one | {"data": ""} == other | {"data": ""}
    command = ("pretrain", cache, "--out", tmp_path / "window", "--window", 2, *common)
    assert say(*command) == (0, "", "")
    refused(say("pretrain", photos, "--out", tmp_path / "none", "--window", 2, *common), 2, "--window", "shards")


def test_smaller_canvases_are_made_of_it_and_larger_ones_refused(photos: Path, cache: Path, tmp_path: Path) -> None:
    smaller = Loader(open_source(cache), 8, workers=0, max_bad=0.1)
    direct = Loader(open_source(photos), 8, workers=0, max_bad=0.1)
    one, other = (next(iter(loader.batches([torch.arange(50)]))).material for loader in (smaller, direct))
    assert torch.equal(one.sizes, other.sizes)
    assert (one.pixels.float() - other.pixels.float()).abs().mean() < 16  # noise, made small at once or twice
    with pytest.raises(UserError, match="--size 32") as caught:
        Loader(open_source(cache), 32)
    assert caught.value.code == USAGE
    prepare("digits", tmp_path / "digits", workers=0)  # at their own 8 px, of which any canvas can be made
    assert open_source(tmp_path / "digits").example(0, 32).pixels.shape == (3, 32, 32)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_bytes_for_any_workers(photos: Path, cache: Path, tmp_path: Path, workers: int) -> None:
    prepare(photos, tmp_path / "other", 16, workers=workers, shard_bytes=SMALL)
    assert files(tmp_path / "other") == files(cache)


def test_jpegs_are_smaller_and_alike(tmp_path: Path) -> None:
    prepare("digits", tmp_path / "raw", 32, workers=0)
    prepare("digits", tmp_path / "jpeg", 32, jpeg=90, workers=0)
    raw, jpeg = (open_source(tmp_path / name) for name in ("raw", "jpeg"))
    assert len(files(tmp_path / "jpeg")["shards/00000.bin"]) < 0.5 * len(files(tmp_path / "raw")["shards/00000.bin"])
    assert (raw.labels == jpeg.labels).all()
    assert (
        max(
            float((raw.example(i, 32).pixels.float() - jpeg.example(i, 32).pixels.float()).abs().mean())
            for i in range(20)
        )
        < 6
    )
    assert jpeg.example(3, 32)[1:] == raw.example(3, 32)[1:]
    assert not Loader(jpeg, 32, 0, 0).cached


def test_tables_keep_their_splits_and_classes(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("test", 3)):
        images = [{"bytes": picture(i, (20, 20)), "path": f"{split}{i}.png"} for i in range(count)]
        table(tmp_path / f"data/{split}-00000-of-00001.parquet", images, [i % 2 for i in range(count)], ["no", "yes"])
    prepare(tmp_path / "data", tmp_path / "cache", workers=0)
    assert splits(tmp_path / "cache") == ["train", "test"]
    for split in ("train", "test"):
        same_rows(open_source(tmp_path / "cache", split), open_source(tmp_path / "data", split), 20)


# Killed, damaged, changed


def test_killed_anywhere_it_goes_on_to_the_same_bytes(forks: Forks, photos: Path, tmp_path: Path) -> None:
    command = ("prepare", photos, "--size", 48, "--jpeg", 40, "--workers", 0, "--quiet", "--out")
    assert forks.run([*command, tmp_path / "whole"]).code == 0
    wanted = files(tmp_path / "whole")
    assert len(wanted) == 8  # two splits, so two shards
    killed = 0
    for count in range(3, 40, 9):
        out = tmp_path / f"killed {count}"
        if forks.run([*command, out], Moment(str(out), count)).code != -signal.SIGKILL:
            break
        killed += 1
        ended = forks.run([*command, out])
        assert ended.code == 0, ended.errors
        assert files(out) == wanted
    assert killed > 1


def test_shards_that_are_whole_are_kept(photos: Path, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    shutil.copytree(cache, out)
    state = json.loads((out / "canvases.json").read_text())
    (out / "canvases.json").write_text(json.dumps(state | {"finished": False, "shards": []}))
    (out / "index" / "00002.parquet").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    with pytest.raises(UserError, match="not finished") as caught:
        open_source(out)
    assert caught.value.code == BAD_DATA
    prepare(photos, out, 16, workers=0, shard_bytes=SMALL)
    assert files(out) == files(cache)
    after = {path.name: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    assert [name for name in sorted(before) if before[name] != after[name]] == ["00002.bin"]


def test_damage_is_noticed_and_mended(photos: Path, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    shutil.copytree(cache, out)
    content = bytearray((out / "shards" / "00001.bin").read_bytes())
    content[768 * 5 + 100] ^= 1
    (out / "shards" / "00001.bin").write_bytes(content)
    source = open_source(out)
    assert isinstance(source, Prepared)
    source.take(torch.tensor([24]))
    for read in (
        lambda: source.take(torch.tensor([0, 25])),
        lambda: source.example(25, 16),
        lambda: open_source(out).example(25, 8),
    ):
        with pytest.raises(UserError, match=r"00001.bin is damaged .*prepare again") as caught:
            read()
        assert caught.value.code == BAD_DATA
    (out / "shards" / "00003.bin").write_bytes(b"short")
    open_source(out)
    with pytest.raises(UserError, match=r"00003.bin is damaged \(5 bytes instead of 10752\)"):
        open_source(out, "val")
    prepare(photos, out, 16, workers=0, shard_bytes=SMALL)
    assert files(out) == files(cache)


def test_what_a_cache_was_made_of_and_how_cannot_change(photos: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copytree(cache, tmp_path / "cache")
    before = files(tmp_path / "cache")
    for changed in ({"size": 8}, {"size": 16, "jpeg": 90}, {"size": 16, "split": "train"}):
        with pytest.raises(UserError, match="other settings"):
            prepare(photos, tmp_path / "cache", workers=0, shard_bytes=SMALL, **changed)
    plant(tmp_path / "photos", "train/a/new.png")
    with pytest.raises(UserError, match=r"1 added \(train/a/new.png\)"):
        prepare(tmp_path / "photos", tmp_path / "cache", 16, workers=0, shard_bytes=SMALL)
    assert files(tmp_path / "cache") == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    for out in ("other", "other/thesis.tex"):
        with pytest.raises(UserError, match=r"--out"):
            prepare(photos, tmp_path / out, 16, workers=0)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"side": "16"},
        {"shards": [[20, 15360]]},
        {"shards": [["../../etc/passwd", 20, 1, ""]]},
        {"side": 17},
    ],
)
def test_a_cache_of_somebody_else(cache: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    out = tmp_path / "cache"
    shutil.copytree(cache, out)
    (out / "canvases.json").write_text(json.dumps(json.loads((out / "canvases.json").read_text()) | change))
    with pytest.raises(UserError) as caught:
        open_source(out)
    assert caught.value.code == BAD_DATA


def test_hashes_are_those_of_the_shards(cache: Path) -> None:
    for number, (rows, length, sha) in enumerate(json.loads((cache / "canvases.json").read_text())["shards"]):
        content = (cache / "shards" / f"{number:05}.bin").read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (length, sha)
        assert length == rows * 768


def test_the_command_says_what_it_did(say: Callable[..., Said], photos: Path, tmp_path: Path) -> None:
    code, out, err = say("prepare", photos, "--out", tmp_path / "cache", "--size", 16, "--workers", 0)
    assert (code, err) == (0, "")
    assert "64 pictures of 16 px, 0.00 GB in 2 shards" in out
    assert "3 cannot be read, first train/a/04.png" in out
    refused(
        say("prepare", photos, "--out", tmp_path / "x", "--jpeg", 99), 2, "--jpeg must be at least 1 and at most 95"
    )
    refused(say("prepare", tmp_path / "missing", "--out", tmp_path / "x"), 65, "missing")
