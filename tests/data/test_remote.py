"""Remote places: only what is asked for is fetched, and what the network does never changes a row."""

from __future__ import annotations

import gc
import multiprocessing
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lookalike.core.errors import BAD_DATA, IO, USAGE, UserError
from lookalike.data.formats import disk
from lookalike.data.source import native_side, open_source
from tests.support.packs import pack, pictures
from tests.support.ranges import Server, served

GIVEN = pictures(20, 64)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    monkeypatch.setattr(disk, "_WAITS", (0.01, 0.01))
    with served(tmp_path) as server:
        yield server


@pytest.mark.parametrize("kind", ["parquet", "tars", "zip", "folder"])
def test_a_row_costs_one_picture(kind: str, server: Server) -> None:
    data = pack(kind, GIVEN, server.root / kind)
    source = open_source(f"{server.url}/{data.relative_to(server.root)}")
    server.sent = 0
    assert source.example(13, 16).bad is None
    one = len(GIVEN[13].data)
    assert server.sent < (8 * one if kind == "parquet" else one + 100)


def test_a_range_of_shards(server: Server) -> None:
    pack("tars", GIVEN, server.root / "data")
    source = open_source(f"{server.url}/data/shard-{{000000..000001}}.tar")
    assert source.paths == open_source(server.root / "data").paths
    with pytest.raises(UserError, match="no such file"):
        open_source(f"{server.url}/data/shard-{{000000..000002}}.tar")


def test_a_passing_illness_is_waited_for(server: Server) -> None:
    data = pack("tars", GIVEN, server.root / "data")
    source = open_source(f"{server.url}/{data.name}")
    server.ill = 2
    assert source.example(4, 16).bad is None
    server.ill = 3
    with pytest.raises(UserError, match="cannot be reached") as caught:
        source.example(4, 16)
    assert caught.value.code == IO


def test_forks_leave_their_parents_connections_alone(server: Server) -> None:
    """They share the parent's epoll: if one closed what it inherits, the parent would not hear the next answer."""
    pack("folder", GIVEN, server.root / "data")
    source = open_source(f"{server.url}/data/")

    def read() -> None:
        assert source.example(0, 16).bad is None
        gc.collect()

    read()  # over a connection that stays open
    fork = multiprocessing.get_context("fork").Process(target=read)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of forking beside threads
        fork.start()
    fork.join()
    assert fork.exitcode == 0
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(source.example, 1, 16).result(timeout=60).bad is None


def test_what_is_gone_is_a_bad_row(server: Server) -> None:
    pack("folder", GIVEN, server.root / "data")
    source = open_source(f"{server.url}/data/")
    (server.root / "data" / source.paths[2]).unlink()
    (server.root / "data" / source.paths[3]).write_bytes(b"")
    assert source.example(2, 16).bad == "no such file"
    assert source.example(3, 16).bad is not None
    assert native_side(source) == 64


def test_a_server_without_ranges_is_said(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    data = pack("tar", GIVEN, tmp_path / "data")
    with served(tmp_path, ranges=False) as server:
        source = open_source(f"{server.url}/data/{data.name}")  # so small that it is one piece
        with pytest.raises(UserError, match="no parts of files"):
            source.example(0, 16)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_WAITS", ())
    for url, words, code in [
        ("memory://nowhere", "no such file", BAD_DATA),
        ("memory://nowhere/a.tar", "no such file", BAD_DATA),
        ("memory://nowhere/a.parquet", "no such file", BAD_DATA),
        ("simplecache::memory://nowhere", "chained", USAGE),
        ("nonsense://nowhere", "nonsense", USAGE),
    ]:
        with pytest.raises(UserError, match=words) as caught:
            open_source(url)
        assert caught.value.code == code, url
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UserError, match=r"lookalike\[remote\]"):
        open_source("memory://elsewhere")


def test_an_unreachable_server(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    monkeypatch.setattr(disk, "_WAITS", (0.01,))
    with pytest.raises(UserError, match="cannot be reached") as caught:
        open_source("http://127.0.0.1:9/data")
    assert caught.value.code == IO
