"""Frames of videos are rows: each is the frame that playing the whole file shows then, in any order, or a bad row."""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.core.errors import UserError
from lookalike.curate.prepare import prepare
from lookalike.data.decode import Unreadable
from lookalike.data.formats.disk import Local
from lookalike.data.loader import Loader
from lookalike.data.source import open_source, reference_and_query, splits_of
from lookalike.data.video import source as caching
from lookalike.data.video.decoder import FrameIndex, VideoDecoders, VideoFile, frame_index
from lookalike.data.video.source import Timeline, video_of
from tests.support.films import SIDE, decoded, film, folder_of_frames, number_in, only_sound, picture

KINDS = {
    "b-frames.mp4": {},
    "no count.mkv": {},  # matroska states none
    "variable.mkv": {"time_of": lambda number: number + number // 3 * 2},
    "variable.mp4": {"time_of": lambda number: number * (number + 3) // 4},
    "sound.mp4": {"sound": True},
    "stream.ts": {"container": "mpegts"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "old.avi": {"codec": "mpeg4"},
    "b-frames.avi": {},  # AVI has no times, and libav guesses wrong
    "raw.h264": {"container": "h264"},
    "one key.mp4": {"gop": 250},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lookalike" / "videos"


def shown(picture_file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture_file)))


@pytest.mark.parametrize("name", KINDS)
def test_any_frame_in_any_order_is_the_one_that_playing_shows(tmp_path: Path, name: str) -> None:
    path = film(tmp_path / name, **KINDS[name])
    decoders = VideoDecoders(Local(tmp_path))
    with path.open("rb", buffering=0) as file:
        index = frame_index(file)
    video, every = VideoFile(decoders, name, index), decoded(path)
    assert len(video.times) == len(every) == 40
    expected = KINDS[name].get("time_of", lambda number: number)
    # Containers round to their own unit, at most a millisecond.
    np.testing.assert_allclose(video.times, [expected(number) / 25 for number in range(40)], atol=1e-3)
    for number in range(40):
        assert np.array_equal(shown(video.read(number)), every[number])
        assert number_in(every[number].transpose(2, 0, 1)) == number
    assert decoders.of(name, index).seeks == len(index.keys)  # what follows a key frame is decoded on
    for number in random.Random(0).choices(range(40), k=60):
        assert np.array_equal(shown(video.read(number)), every[number]), number


def test_rows_are_addressed_by_video_and_time_labelled_by_folder_and_split(tmp_path: Path) -> None:
    for i, part in enumerate(["train/wave", "train/bend", "test/wave"]):
        film(tmp_path / part / "a.mp4", 10, first=20 * i)
    parts = splits_of(tmp_path)
    train, test = parts["train"], parts["test"]
    assert (len(train), len(test), train.classes) == (20, 10, ["bend", "wave"])
    assert train.paths[9:11] == ["train/bend/a.mp4#t=0.360000", "train/wave/a.mp4#t=0.000000"]
    assert train.labels.tolist() == [0] * 10 + [1] * 10
    assert [number_in(train.example(row, SIDE).pixels.numpy()) for row in range(20)] == [*range(20, 30), *range(10)]
    assert train.size(3) == (SIDE, SIDE)
    times = Timeline.of(train.paths)
    assert times.first.tolist() == [0] * 10 + [10] * 10
    assert times.last.tolist() == [9] * 10 + [19] * 10
    torch.testing.assert_close(times.times[:10], torch.arange(10).double() / 25)


def test_a_list_says_which_video_is_in_which_split(tmp_path: Path) -> None:
    for i in range(3):
        folder_of_frames(tmp_path / f"{i}", 5, 5 * i)
        film(tmp_path / f"{i}.mp4", 5, first=5 * i)
    for kind, suffix in (("frames@10:", ""), ("", ".mp4")):
        rows = [f"{i}{suffix},{'ab'[i % 2]},{'test' if i == 2 else 'train'}" for i in range(3)]
        (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
        parts = splits_of(f"{kind}{tmp_path / 'list.csv'}")
        assert parts["train"].labels.tolist() == [0] * 5 + [1] * 5
        assert [number_in(parts["test"].example(row, SIDE).pixels.numpy()) for row in range(5)] == list(range(10, 15))


def test_pictures_are_videos_where_the_name_says_so(tmp_path: Path) -> None:
    folder_of_frames(tmp_path / "frames" / "wave" / "person", 6)
    source = open_source(f"frames@12.5:{tmp_path / 'frames'}")
    assert [number_in(source.example(row, SIDE).pixels.numpy()) for row in range(6)] == list(range(6))
    assert np.array_equal(source.example(3, SIDE).pixels.permute(1, 2, 0), picture(3))
    assert [path.rpartition("=")[2] for path in source.paths[:3]] == ["0.000000", "0.080000", "0.160000"]
    assert video_of(source.paths[0]) == "wave/person"
    with pytest.raises(UserError, match="is a picture: name video files or frames:FOLDER"):
        Timeline.of(open_source(tmp_path / "frames").paths)
    with pytest.raises(UserError, match="frames a second"):
        open_source(f"frames@0:{tmp_path}")


def test_what_is_no_video_is_left_out_with_a_reason(tmp_path: Path) -> None:
    good = film(tmp_path / "good.mkv").read_bytes()
    (tmp_path / "truncated.mkv").write_bytes(good[: len(good) * 2 // 3])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "page.mp4").write_text("<html>" * 50)
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{tmp_path / 'good.mkv'}\n")
    (tmp_path / "head.mp4").write_bytes(film(tmp_path / "other.mp4").read_bytes()[:200])
    film(tmp_path / "one.mp4", 1)
    only_sound(tmp_path / "sound.mp4")
    source = open_source(tmp_path)
    assert {"empty.mp4", "page.mp4", "list.mp4", "head.mp4", "one.mp4", "sound.mp4"} <= source.unlisted.keys()
    assert source.unlisted["one.mp4"] == "a single frame is no video"
    assert source.unlisted["sound.mp4"] == "no stream of pictures in it"
    counts = {name: sum(video_of(path) == name for path in source.paths) for name in ("good.mkv", "truncated.mkv")}
    assert counts["good.mkv"] == 40
    assert 10 < counts["truncated.mkv"] < 40
    for row, path in enumerate(source.paths):
        if (example := source.example(row, SIDE)).bad is None:
            assert number_in(example.pixels.numpy()) == round(float(path.rpartition("=")[2]) * 25)


def damaged(good: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, a piece left out, or a piece of zeros."""
    file, start = bytearray(good), chance.randrange(300, len(good) - 200)
    match chance.randrange(3):
        case 0:
            for _ in range(20):
                file[chance.randrange(300, len(good))] = chance.randrange(256)
        case 1:
            del file[start : start + chance.randrange(20, 200)]
        case _:
            file[start : start + 100] = bytes(100)
    return bytes(file)


@pytest.mark.parametrize("name", ["stream.ts", "old.avi", "b-frames.mkv", "short.mkv", "raw.h264"])
def test_a_frame_of_a_damaged_file_does_not_depend_on_what_was_read_before(tmp_path: Path, name: str) -> None:
    kinds = KINDS | {"b-frames.mkv": {}, "short.mkv": {"codec": "mpeg4", "gop": 5}}
    good, chance, bad = film(tmp_path / name, **kinds[name]).read_bytes(), random.Random(name), 0
    for _ in range(12):
        (tmp_path / name).write_bytes(damaged(good, chance))
        with (tmp_path / name).open("rb", buffering=0) as file:
            try:
                index = frame_index(file)
            except Unreadable:
                continue

        def frames(order: Sequence[int], index: FrameIndex = index) -> dict[int, bytes | str]:
            video, read = VideoFile(VideoDecoders(Local(tmp_path)), name, index), {}
            for number in order:
                try:
                    read[number] = video.read(number)
                except Unreadable as unreadable:
                    read[number] = unreadable.reason
            return read

        numbers = range(len(index.ticks))
        forwards = frames(numbers)
        assert forwards == frames(numbers[::-1])
        assert forwards == frames(chance.sample(numbers, len(numbers)))
        bad += sum(isinstance(frame, str) for frame in forwards.values())
    assert bad > 0


def test_a_folder_without_a_good_video_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"a.mp4 cannot be used \("):
        open_source(tmp_path)


def test_the_index_is_made_once_and_again_for_what_has_changed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, read = tmp_path / "data", []
    for name in "abc":
        film(data / f"{name}.mp4", 5)

    def counting(disk: Local, name: str, real: object = caching._index_row) -> object:
        read.append(name)
        return real(disk, name)  # type: ignore[operator]

    monkeypatch.setattr(caching, "_index_row", counting)
    monkeypatch.setattr(caching, "cores", lambda: 0)
    first = open_source(data).paths
    assert (read, len(list(cache.iterdir()))) == (["a.mp4", "b.mp4", "c.mp4"], 1)
    assert open_source(data).paths == first
    film(data / "b.mp4", 7)
    assert len(open_source(data)) == 17
    assert read[3:] == ["b.mp4"]
    next(cache.iterdir()).write_bytes(b"damaged")
    assert len(open_source(data)) == 17
    assert read[4:] == ["a.mp4", "b.mp4", "c.mp4"]
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert len(open_source(data)) == 17
    assert not any(path.name.startswith(".") for path in cache.iterdir())


def test_frames_of_one_video_are_on_one_side_of_a_division(tmp_path: Path) -> None:
    for i in range(10):
        folder_of_frames(tmp_path / "ab"[i % 2] / f"{i}", 4)
    reference, query = reference_and_query(f"frames:{tmp_path}")
    sides = [{video_of(path) for path in part.paths} for part in (reference, query)]
    assert (len(sides[0]), len(sides[1]), sides[0] & sides[1]) == (8, 2, set())


def test_a_prepared_cache_of_videos_is_still_videos(tmp_path: Path) -> None:
    film(tmp_path / "data" / "a.mp4", 5)
    film(tmp_path / "data" / "b.mp4", 5)
    prepare(tmp_path / "data", tmp_path / "cache", size=SIDE, workers=0)
    times, again = (Timeline.of(open_source(tmp_path / name).paths) for name in ("data", "cache"))
    assert all(torch.equal(one, other) for one, other in zip(times, again, strict=True))


def test_workers_and_their_parent_do_not_move_each_others_place(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", 100, gop=30)
    source = open_source(tmp_path)
    here = torch.stack(
        [source.example(row, SIDE).pixels for row in range(100)]
    )  # the file is open now, and forks inherit it
    rows = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    loader = Loader(source, SIDE, 0, workers=2)
    for part, batch in zip(rows.split(50), loader.batches(rows.split(50)), strict=True):
        assert torch.equal(batch.material.pixels, here[part])
        assert torch.equal(source.example(7, SIDE).pixels, here[7])


def test_a_fork_may_drop_what_its_parent_had_open(tmp_path: Path) -> None:
    """A thread of libav's would be waited for in the fork, where it does not run."""
    path = film(tmp_path / "a.mp4")
    with path.open("rb", buffering=0) as file:
        index = frame_index(file)
    video = VideoFile(VideoDecoders(Local(tmp_path)), "a.mp4", index)
    video.read(5)

    def anew() -> None:
        video.read(7)
        gc.collect()

    child = multiprocessing.get_context("fork").Process(target=anew)
    child.start()
    child.join(60)
    code = child.exitcode
    child.kill()
    assert code == 0


def test_without_the_package_one_line_says_which_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film(tmp_path / "a.mp4", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"^video files need the package av: pip install 'lookalike\[video\]'$"):
        open_source(tmp_path)


def test_a_video_that_vanishes_is_a_bad_row(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", 5)
    source = open_source(tmp_path)
    os.unlink(tmp_path / "a.mp4")
    assert source.example(0, SIDE).bad == "No such file or directory"
    with pytest.raises(Unreadable):
        source.read(0)  # type: ignore[attr-defined]


def test_the_example_cuts_strips_into_folders_of_frames(tmp_path: Path) -> None:
    strips = tmp_path / "strips" / "wave"
    strips.mkdir(parents=True)
    Image.fromarray(np.concatenate([picture(number) for number in range(6)], 1)).save(strips / "a.png")
    script = Path(__file__).parents[2] / "examples" / "strips.py"
    for said in ("1 videos, 6 new frames", "1 videos, 0 new frames"):
        done = subprocess.run(
            [sys.executable, script, tmp_path / "strips", tmp_path / "frames"], capture_output=True, text=True
        )
        assert said in done.stdout, done.stderr
    source = open_source(f"frames:{tmp_path / 'frames'}")
    assert [number_in(source.example(row, SIDE).pixels.numpy()) for row in range(len(source))] == list(range(6))
    assert video_of(source.paths[0]) == "wave/a"
    Image.new("RGB", (100, 64)).save(strips / "odd.png")
    done = subprocess.run(
        [sys.executable, script, tmp_path / "strips", tmp_path / "other"], capture_output=True, text=True
    )
    assert "no row of square frames" in done.stderr
