"""Tables that are made on the disk: the same as in memory, whatever kills them, and updated."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import lookalike
from lookalike.core.errors import IO, LOCKED, USAGE, UserError
from lookalike.core.lock import Lock
from lookalike.train import embeddings, streamed
from lookalike.train.embeddings import embed_data, read_embeddings
from lookalike.train.streamed import embed_to
from lookalike.train.trained import Trained, load
from tests.conftest import Said
from tests.support.forks import Forks, Moment
from tests.support.forks import _arm as arm
from tests.support.ranks import ranks
from tests.support.runs import TINY, done

pytestmark = pytest.mark.any_precision

Say = Callable[..., Said]


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (20 + seed % 3, 16, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streamed") / "photos"
    for i in range(30):
        picture(folder / ("train" if i % 3 else "test") / "ab"[i % 2] / f"{i:02}.png", i)
    return folder


@pytest.fixture(scope="module")
def run(photos: Path) -> Path:
    out = photos.parent / "run"
    lookalike.pretrain(str(photos), out, recipe="tiny", steps=1, workers=0, quiet=True)
    return out


@pytest.fixture(scope="module")
def trained(run: Path) -> Trained:
    return load(run)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts of few rows; the children that are forked below have them, too."""
    for module, name in ((streamed, "ROWS"), (streamed, "CHUNK"), (embeddings, "ROWS")):
        monkeypatch.setattr(module, name, 4)


@pytest.fixture
def copied(photos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(photos, tmp_path / "photos"))


def left(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("."))


@pytest.mark.parametrize("layer", ["backbone", "head"])
def test_it_is_what_memory_would_hold_and_says_of_each_file_what_it_is(
    trained: Trained, photos: Path, tmp_path: Path, layer: str
) -> None:
    told: list[tuple[str, int, int]] = []
    how = {"layer": layer, "workers": 0, "progress": lambda *words: told.append(words)}
    done = embed_to(trained, str(photos), tmp_path / "a.parquet", **how)  # type: ignore[arg-type]
    table = read_embeddings(tmp_path / "a.parquet")
    held = embed_data(trained, str(photos), layer, workers=0)  # type: ignore[arg-type]
    assert (done.rows, done.width, done.new, done.kept, done.dropped) == (30, held.vectors.shape[1], 30, 0, 0)
    assert (table.path, table.split, table.classes, table.layer) == (held.path, held.split, held.classes, held.layer)
    assert table.origin == held.origin
    np.testing.assert_array_equal(table.label, held.label)
    np.testing.assert_array_equal(table.vectors, held.vectors)
    assert table.size is not None
    for path, size, digest in zip(table.path, table.size.tolist(), table.sha256 or []):
        with Image.open(photos / path) as image:
            assert (image.height, image.width) == tuple(size)
        assert sha256((photos / path).read_bytes()).hexdigest() == digest
    assert told[-1] == ("embedding", 30, 30)
    assert left(tmp_path) == []
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert schema.names == ["path", "split", "label", "class", "embedding", "width", "height", "sha256"]
    assert schema.field("embedding").type == pa.list_(pa.float32(), done.width)


def test_pictures_that_are_no_files_have_a_size_and_no_hash(trained: Trained, tmp_path: Path) -> None:
    embed_to(trained, "digits", tmp_path / "a.parquet", workers=0)
    table = read_embeddings(tmp_path / "a.parquet")
    assert table.size is not None
    assert set(map(tuple, table.size.tolist())) == {(8, 8)}
    assert set(table.sha256 or []) == {""}
    np.testing.assert_array_equal(table.vectors, embed_data(trained, "digits", workers=0).vectors)


@pytest.mark.usefixtures("small_parts")
def test_what_cannot_be_read_is_left_out_and_said_after_a_kill_too(
    trained: Trained, copied: Path, tmp_path: Path
) -> None:
    every = embed_data(trained, str(copied), workers=0)
    bad = [every.path[1], *every.path[8:12]]  # one of a part, and a whole one
    for path in bad:
        (copied / path).write_bytes(b"damaged")
    said: list[str] = []
    how = {"workers": 0, "say": said.append}
    with pytest.raises(KeyboardInterrupt):
        embed_to(trained, str(copied), tmp_path / "a.parquet", progress=interrupt_after(16), **how)  # type: ignore[arg-type]
    embed_to(trained, str(copied), tmp_path / "a.parquet", **how)  # type: ignore[arg-type]
    assert said[-2].startswith("goes on after 3 parts of 4 rows")
    assert said[-1].startswith(f"5 cannot be read, first {every.path[1]} (no picture")
    table = read_embeddings(tmp_path / "a.parquet")
    assert table.path == [path for path in every.path if path not in bad]


def interrupt_after(count: int) -> Callable[[str, int, int], None]:
    def told(what: str, done: int, total: int) -> None:
        if what == "embedding" and done >= count:
            raise KeyboardInterrupt

    return told


@pytest.mark.usefixtures("small_parts")
def test_parts_of_another_model_or_of_other_data_are_thrown_away(
    trained: Trained, copied: Path, tmp_path: Path
) -> None:
    def interrupted(layer: str = "backbone") -> None:
        with pytest.raises(KeyboardInterrupt):
            embed_to(trained, str(copied), tmp_path / "a.parquet", layer, 0, interrupt_after(9))  # type: ignore[arg-type]
        assert left(tmp_path) == [".a.parquet.parts"]

    def finished() -> list[str]:
        said: list[str] = []
        embed_to(trained, str(copied), tmp_path / "a.parquet", workers=0, say=said.append)
        embed_to(trained, str(copied), tmp_path / "b.parquet", workers=0)
        assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
        assert left(tmp_path) == []
        return said

    interrupted()
    assert "goes on" in finished()[0]
    interrupted("head")
    assert "thrown away" in finished()[0]
    interrupted()
    picture(copied / "train" / "a" / "02.png", 99)
    assert "thrown away" in finished()[0]
    interrupted()
    (part := tmp_path / ".a.parquet.parts" / "00000000.parquet").write_bytes(part.read_bytes()[:-30] + b"\0" * 30)
    with pytest.raises(UserError, match="was damaged, and is gone now: the same command makes it again") as refused:
        finished()
    assert refused.value.code == IO
    finished()
    lock = Lock(tmp_path / ".a.parquet.parts")
    with pytest.raises(UserError, match="is in use by pid") as refused:
        finished()
    assert refused.value.code == LOCKED
    lock.release()


def _embeds(run: Path, data: Path, out: Path, update: bool = False) -> list[int]:
    return list(embed_to(run, str(data), out, workers=0, update=update))


def _killed(moment: Moment, *arguments: object) -> int | None:
    """The exit code of a fork of this process that embeds, or minus the signal that it gets at the moment."""

    def child() -> None:
        torch.set_num_threads(1)  # the parent's pool of threads does not exist here
        arm(moment)
        _embeds(*arguments)  # type: ignore[arg-type]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of forking beside threads, which sleep
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
    process.join(120)
    return process.exitcode


@pytest.mark.usefixtures("small_parts")
def test_killed_at_any_write_the_same_call_ends_with_the_same_bytes(run: Path, photos: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole" / "a.parquet"
    _embeds(run, photos, whole)
    codes = []
    for count in (1, 2, 5, 9, 14, 20, 27, 35, 44, 99):
        out = tmp_path / str(count) / "a.parquet"
        codes.append(_killed(Moment(f"/{count}/", count), run, photos, out))
        assert not out.exists() or out.read_bytes() == whole.read_bytes()
        _embeds(run, photos, out)
        assert out.read_bytes() == whole.read_bytes()
        assert os.listdir(out.parent) == ["a.parquet"]
    assert codes.count(-signal.SIGKILL) >= 6
    assert codes[-1] == 0


# Updates


@pytest.mark.usefixtures("small_parts")
def test_an_update_embeds_what_is_new_or_changed_and_drops_what_is_gone(
    say: Say, run: Path, copied: Path, tmp_path: Path
) -> None:
    table, fresh = tmp_path / "a.parquet", tmp_path / "b.parquet"
    command = ("embed", run, copied, "--workers", 0, "--out")
    assert say(*command, table, "--update")[0] == 0  # there is none: it is made
    before = table.read_bytes()
    _, out, err = say(*command, table, "--update")
    assert "0 new or changed, 30 as they were, 0 gone" in out + err
    assert table.read_bytes() == before
    notes = pa.array([f"note {i}" for i in range(30)])
    pq.write_table(pq.read_table(table).append_column("note", notes), table)
    noted = dict(zip(read_embeddings(table).path, notes.to_pylist()))
    picture(copied / "train" / "a" / "new.png", 77)
    picture(copied / "train" / "a" / "02.png", 78)
    (copied / "test" / "a" / "00.png").unlink()
    (copied / "train" / "b" / "05.png").rename(copied / "train" / "a" / "05.png")
    _, out, err = say(*command, table, "--update")
    assert "3 new or changed, 27 as they were, 3 gone" in out + err
    assert say(*command, fresh)[0] == 0
    now, made = read_embeddings(table), read_embeddings(fresh)
    assert (now.path, now.split, now.sha256, now.origin) == (made.path, made.split, made.sha256, made.origin)
    np.testing.assert_array_equal(now.label, made.label)
    np.testing.assert_allclose(now.vectors, made.vectors, atol=2e-2 if bf16() else 1e-5)  # batches of other sizes
    kept = set(noted) - {"train/a/02.png", "test/a/00.png", "train/b/05.png"}
    assert dict(zip(now.path, pq.read_table(table)["note"].to_pylist())) == {
        path: noted[path] if path in kept else None for path in made.path
    }
    assert say(*command, table)[0] == 0  # anew
    assert table.read_bytes() == fresh.read_bytes()


def bf16() -> bool:
    return os.environ.get("LOOKALIKE_PRECISION") == "bf16"


@pytest.mark.usefixtures("small_parts")
def test_an_update_goes_on_too_and_order_does_not_matter(trained: Trained, copied: Path, tmp_path: Path) -> None:
    embed_to(trained, str(copied), tmp_path / "a.parquet", workers=0)
    held = pq.read_table(tmp_path / "a.parquet")
    order = np.random.default_rng(0).permutation(30)
    pq.write_table(held.take(order), tmp_path / "a.parquet", row_group_size=7)
    for name in ("b", "c"):
        shutil.copy(tmp_path / "a.parquet", tmp_path / f"{name}.parquet")
    for i in range(4):
        picture(copied / "train" / "a" / f"new{i}.png", 80 + i)
    done = embed_to(trained, str(copied), tmp_path / "b.parquet", workers=0, update=True)
    assert done[2:] == (4, 30, 0)
    with pytest.raises(KeyboardInterrupt):
        embed_to(trained, str(copied), tmp_path / "c.parquet", workers=0, update=True, progress=interrupt_after(3))
    assert embed_to(trained, str(copied), tmp_path / "c.parquet", workers=0, update=True) == done
    assert (tmp_path / "b.parquet").read_bytes() == (tmp_path / "c.parquet").read_bytes()
    vectors = dict(zip(held["path"].to_pylist(), held["embedding"].to_pylist()))
    now = read_embeddings(tmp_path / "b.parquet")
    for path, row in zip(now.path, now.vectors.tolist()):
        assert "new" in path or row == vectors[path]


def test_what_is_no_file_is_as_it_was_where_all_data_is(trained: Trained, tmp_path: Path) -> None:
    embed_to(trained, "digits", tmp_path / "a.parquet", workers=0)
    assert embed_to(trained, "digits", tmp_path / "a.parquet", workers=0, update=True)[2:] == (0, 1797, 0)


def test_an_update_by_another_model_is_refused(say: Say, run: Path, photos: Path, tmp_path: Path) -> None:
    lookalike.pretrain(str(photos), tmp_path / "run", recipe="tiny", steps=2, workers=0, quiet=True)
    table = tmp_path / "a.parquet"
    embed_to(run, str(photos), table, workers=0)
    before = table.read_bytes()
    for wrong in ((tmp_path / "run", photos), (run, photos, "--layer", "head")):
        code, _, err = say("embed", *wrong, "--out", table, "--update")
        assert (code, err.count("\n")) == (USAGE, 1)
        assert "leave out --update" in err
    old = Path(__file__).parent.parent / "data" / "v0.1" / "table.parquet"
    shutil.copy(old, tmp_path / "old.parquet")
    assert "leave out --update" in say("embed", run, photos, "--out", tmp_path / "old.parquet", "--update")[2]
    assert "--update is for tables in .parquet" in say("embed", run, photos, "--out", "a.csv", "--update")[2]
    assert table.read_bytes() == before


# Processes, and memory


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_embed_shares_of_one_table(run: Path, copied: Path, tmp_path: Path, world: int) -> None:
    (copied / "train" / "a" / "02.png").write_bytes(b"damaged")
    alone = _embeds(run, copied, tmp_path / "a.parquet")
    for update in (False, True):
        answers = ranks(world, _embeds, run, copied, tmp_path / "b.parquet", update)
        assert answers == [[29, *alone[1:2], 29 * (not update), 29 * update, 0]] * world
        assert (tmp_path / "b.parquet").read_bytes() == (tmp_path / "a.parquet").read_bytes()
    assert left(tmp_path) == []


def test_memory_does_not_grow_with_the_rows(forks: Forks, tmp_path: Path) -> None:
    """4 KB a row: 40,000 more would be 164 MB in memory, and twice that where they are joined."""
    picture(tmp_path / "a.png", 0)
    data = (tmp_path / "a.png").read_bytes()
    for rows in (5_000, 45_000):
        (tmp_path / str(rows)).mkdir()
        pq.write_table(pa.table({"image": [data] * rows}), tmp_path / str(rows) / "a.parquet", row_group_size=500)
    wide = [1024 if word == "16" else word for word in TINY]  # of the head
    done(forks.run(["pretrain", tmp_path / "5000", "--out", tmp_path / "run", *wide, "--steps", 1]))
    peaks = []
    for rows in (5_000, 45_000):
        command = ["embed", tmp_path / "run", tmp_path / str(rows), "--layer", "head", "--workers", 0, "--out"]
        ended = forks.run([*command, tmp_path / f"{rows}.parquet"])
        done(ended)
        peaks.append(ended.peak)
        assert pq.read_metadata(tmp_path / f"{rows}.parquet").num_rows == rows
    assert peaks[1] - peaks[0] < 125  # allocators keep up to 87 of what is freed
