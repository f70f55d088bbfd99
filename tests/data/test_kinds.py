"""Every kind of place gives the same pictures, labels and batches, in any process."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lookalike.data.decode import decode
from lookalike.data.example import Source
from lookalike.data.loader import Loader
from lookalike.data.source import open_source, reference_and_query, splits
from tests.support.packs import CLASSES, KINDS, Picture, digest, pack, pictures, report, write_tar
from tests.support.ranges import Server, served

COUNT, SIDE, NATIVE = 23, 12, 40
REMOTE = ("folder", "parquet", "tar", "tars", "zip")
EVERY = (*KINDS, *(f"http {kind}" for kind in REMOTE), *(f"memory {kind}" for kind in REMOTE))
Make = Callable[[str], Source]


@pytest.fixture(scope="module")
def given() -> list[Picture]:
    return pictures(COUNT, NATIVE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture(scope="module")
def opened(given: list[Picture], server: Server, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The source of a kind, packed once."""
    made: dict[str, Source] = {}

    def make(kind: str) -> Source:
        if kind not in made:
            where, _, form = kind.rpartition(" ")
            if where == "http":
                pytest.importorskip("aiohttp", reason="aiohttp is not installed")
            data = pack(form, given, (server.root if where else tmp_path_factory.mktemp(form)) / form)
            inside = data.relative_to(server.root) if where else data
            if where == "memory":
                to_memory(data, f"memory://{inside}")
            address = {"": str(data), "http": f"{server.url}/{inside}", "memory": f"memory://{inside}"}
            made[kind] = open_source(address[where])
        return made[kind]

    return make


def to_memory(data: Path, url: str) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    for path in [data] if data.is_file() else sorted(path for path in data.rglob("*") if path.is_file()):
        name = url if data.is_file() else f"{url}/{path.relative_to(data)}"
        system.pipe_file(name.removeprefix("memory:/"), path.read_bytes())


@pytest.mark.parametrize("kind", EVERY)
def test_rows_in_any_order(kind: str, given: list[Picture], opened: Make) -> None:
    source = opened(kind)
    assert len(source) == len(source.paths) == len(set(source.paths)) == COUNT
    for row in [7, 0, 22, 7, 21, 8]:
        example, picture = source.example(row, SIDE), given[row]
        assert example.bad is None
        assert torch.equal(example.pixels, decode(picture.data, SIDE).pixels)
        assert example.path == source.paths[row]
        assert example.label == int(source.labels[row])
        assert source.size(row) == (example.height, example.width) == (NATIVE, NATIVE)
    assert source.example(3, 5).pixels.shape == (3, 5, 5)
    captions = {f"{COUNT} other files not read": f"{COUNT} .txt"}
    assert source.unlisted == (captions if kind.endswith("tars") else {})


@pytest.mark.parametrize("kind", EVERY)
def test_labels(kind: str, given: list[Picture], opened: Make) -> None:
    source = opened(kind)
    if kind.endswith("txt"):
        assert source.labels.tolist() == [-1] * COUNT
        assert source.classes == []
        return
    assert source.labels.tolist() == [picture.label for picture in given]
    assert source.classes == (["0", "1"] if kind.endswith("tars") else CLASSES)


@pytest.mark.parametrize("kind", [*KINDS, "memory folder", "memory parquet", "http tars"])
def test_workers_give_equal_batches(kind: str, opened: Make) -> None:
    source = opened(kind)
    steps = [torch.tensor([3, 22, 0, 9]), torch.tensor([8, 15, 1, 22]), torch.tensor([4, 2, 6, 20])]

    def batches(workers: int) -> list[torch.Tensor]:
        return [batch.material.pixels for batch in Loader(source, SIDE, 0, workers).batches(iter(steps))]

    expected = batches(0)
    for workers in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(expected, batches(workers), strict=True))


def test_a_spawned_process_reads_the_same(opened: Make) -> None:
    kinds = [kind for kind in EVERY if not kind.startswith("memory")]  # which no other process sees
    try:
        sources = [opened(kind) for kind in kinds]
    except pytest.skip.Exception:
        sources = [opened(kind) for kind in kinds if not kind.startswith("http")]
    expected = {digest(source) for source in sources}  # and all have been read here before
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    child = context.Process(target=report, args=(sources, results))
    child.start()
    assert set(results.get()) == expected
    child.join()
    assert len(expected) == 1


def test_pickled_sources_carry_no_pictures(opened: Make) -> None:
    for kind in KINDS:
        digest(opened(kind))
        assert len(pickle.dumps(opened(kind))) < 15_000 < COUNT * NATIVE**2 * 3


@pytest.mark.parametrize("kind", ["parquet", "arrow", "tar", "zip"])
def test_names_that_are_no_unicode(
    kind: str, given: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shut").mkdir()
    made = pack(kind, given, tmp_path / "made")
    made = next(made.glob("*.arrow"), next(made.glob("*.parquet"), made))
    made.rename(tmp_path / f"\udcff{made.suffix}")
    shutil.rmtree(tmp_path / "made")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("shut/"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = open_source(tmp_path)
    assert source.paths[0].startswith(f"\\xff{made.suffix}")
    assert [source.example(row, SIDE).bad for row in range(COUNT)] == [None] * COUNT
    assert source.unlisted == {"shut/": "Permission denied"}


@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow", "tars", "zip", "tar"])
def test_splits(kind: str, given: list[Picture], tmp_path: Path) -> None:
    """The same names divide archives, tables and folders; classes are shared."""
    make_divided(kind, given, tmp_path)
    data = next((path for path in tmp_path.iterdir() if path.suffix in (".csv", ".zip", ".tar")), tmp_path)
    assert splits(data) == ["train", "test"]
    train, test = open_source(data), open_source(data, "test")
    assert (len(train), len(test)) == (15, 8)
    assert train.classes == test.classes
    assert train.labels.tolist() + test.labels.tolist() == [picture.label for picture in given]
    assert torch.equal(test.example(2, SIDE).pixels, decode(given[17].data, SIDE).pixels)
    assert [len(part) for part in reference_and_query(data)] == [15, 8]
    assert len(open_source(data, "all")) == COUNT


def make_divided(kind: str, given: list[Picture], root: Path) -> None:
    parts = {"train": given[:15], "test": given[15:]}
    if kind == "csv":
        lines = [f"{part}/{p.path},{p.label},{part}" for part, found in parts.items() for p in found]
        (root / "list.csv").write_text("\n".join(["file_name,label,split", *lines]))
        for part, found in parts.items():
            pack("folder", found, root / part)
    elif kind in ("zip", "tar"):
        members = [(f"{part}/{p.path}", p.data) for part in ("test", "train") for p in parts[part]]
        if kind == "tar":
            write_tar(root / "all.tar", iter(members))
        else:
            with zipfile.ZipFile(root / "all.zip", "w") as archive:
                for name, data in members:
                    archive.writestr(name, data)
    else:
        for part, found in parts.items():
            pack(kind, found, root / part)
