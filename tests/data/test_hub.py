"""``hub:owner/name`` from the Hub's own cache, without a network; and Arrow files as datasets saves them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from lookalike.core.errors import BAD_DATA, IO, USAGE, UserError, of_timm
from lookalike.data.source import open_source, splits
from tests.support.packs import columns, pack, pictures

GIVEN = pictures(6)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache that holds one dataset, and no network."""
    constants = import_module("huggingface_hub.constants")
    utils = import_module("huggingface_hub.utils")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "datasets--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    pack("parquet", GIVEN, snapshot / "plain")
    (snapshot / "plain" / "0000.parquet").rename(snapshot / "plain" / "train-00000-of-00001.parquet")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    yield tmp_path
    (utils.close_session if hasattr(utils, "close_session") else utils.reset_sessions)()  # which stays offline


@pytest.mark.parametrize("name", ["owner/name", "owner/name/plain", f"owner/name@{COMMIT}", "owner/name/plain@main"])
def test_a_dataset_in_the_cache(cache: Path, name: str) -> None:
    assert splits(f"hub:{name}") == ["train"]
    source = open_source(f"hub:{name}")
    assert source.classes == ["ant", "bee"]
    assert [source.example(row, 16).bad for row in range(6)] == [None] * 6


def test_refusals(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, words, code in [
        ("owner/other", "cannot be fetched", IO),
        ("owner/name/elsewhere", "no picture, table or archive", BAD_DATA),
        ("owner", "no name of a dataset", USAGE),
        ("owner/name/../../x", "no name of a dataset", USAGE),
        ("owner/name?x", "no name of a dataset", USAGE),
    ]:
        with pytest.raises(UserError, match=words) as caught:
            open_source(f"hub:{name}")
        assert caught.value.code == code
        assert "\n" not in str(caught.value)


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a download asks for: what a dataset's repository holds, and its files."""

    files: ClassVar[dict[str, bytes]] = {}
    fetched: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        path, _, name = self.path.partition("?")[0].partition(f"{COMMIT}/")
        if path == "/api/datasets/owner/name/revision/main":
            siblings = [{"rfilename": name} for name in self.files]  # what older versions of huggingface_hub go by
            return self.send(json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode())
        if path == f"/api/datasets/owner/name/tree/{COMMIT}":
            tree = [{"type": "file", "path": n, "size": len(d), "oid": n} for n, d in self.files.items()]
            return self.send(json.dumps(tree).encode())
        if path != "/datasets/owner/name/resolve/" or name not in self.files:
            return self.send_error(404)
        self.fetched.append(name)
        return self.send(self.files[name], ETag=f'"{name}"', **{"X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def send(self, data: bytes, **headers: str) -> None:
        self.send_response(200)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_dataset_is_fetched_once_and_only_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = import_module("huggingface_hub.constants")
    pack("parquet", GIVEN, tmp_path / "made")
    table = (tmp_path / "made" / "0000.parquet").read_bytes()
    Hub.files = {"README.md": b"# words", "name.py": b"raise SystemExit", "plain/test-00000.parquet": table}
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, import_module("huggingface_hub.file_download")):  # older versions keep a copy
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        source = open_source("hub:owner/name", "test")
        again = open_source("hub:owner/name", "test")
        server.shutdown()
    assert [source.example(row, 16).bad for row in range(6)] == [None] * 6
    assert again.paths == source.paths == [f"plain/test-00000.parquet#{row}" for row in range(6)]
    assert set(Hub.fetched) == {"plain/test-00000.parquet"}


# Arrow


def test_what_datasets_saves_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    columns_ = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    rows = [{"image": {"bytes": p.data, "path": None}, "label": p.label} for p in GIVEN]
    made = datasets.Dataset.from_list(rows, features=columns_)
    datasets.DatasetDict(train=made.select([5, 0, 3]), test=made).save_to_disk(str(tmp_path / "saved"))
    assert splits(tmp_path / "saved") == ["train", "test"]
    train, test = open_source(tmp_path / "saved"), open_source(tmp_path / "saved", "test")
    assert [train.example(row, 16).pixels.tolist() for row in range(3)] == [
        test.example(row, 16).pixels.tolist() for row in (5, 0, 3)
    ]
    assert (train.classes, train.labels.tolist()) == (["ant", "bee"], [1, 0, 1])


def arrow(path: Path, table: Any, file: bool = False) -> Path:
    make = pa.ipc.new_file if file else pa.ipc.new_stream
    with make(path, table.schema) as stream:
        stream.write_table(table, max_chunksize=4)
    return path


def test_both_forms_of_arrow_and_files_that_are_no_rows(tmp_path: Path) -> None:
    table = columns(GIVEN)
    assert len(open_source(arrow(tmp_path / "a.arrow", table, file=True))) == 6
    arrow(tmp_path / "cache-0.arrow", table)
    assert len(open_source(tmp_path)) == 12
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
    assert open_source(tmp_path).paths == [f"a.arrow#{row}" for row in range(6)]


def test_damaged_arrow(tmp_path: Path) -> None:
    images = pa.array([b"0123", b"4567", None])
    nulls = pa.table({"image": images})
    source = open_source(arrow(tmp_path / "a.arrow", nulls))
    assert source.example(2, 16).bad == "the table holds no bytes for this row"
    whole = (tmp_path / "a.arrow").read_bytes()
    offsets = b"\0\0\0\0\4\0\0\0\10\0\0\0"
    assert offsets in whole
    beyond = [
        whole.replace(offsets, b"\0\0\0\0\0\0\0\x7f\10\0\0\0"),
        whole.replace(offsets, offsets[:8] + b"\0\0\0\x7f"),
    ]
    for data in (*beyond, whole[:100], b"ARROW1", b""):
        (tmp_path / "a.arrow").write_bytes(data)
        with pytest.raises(UserError, match="no Arrow file that can be read") as caught:
            open_source(tmp_path)
        assert caught.value.code == BAD_DATA
    arrow(tmp_path / "a.arrow", nulls)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"state\.json cannot be read"):
        open_source(tmp_path)


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="needs the package nothing_such, which timm brings: pip install nothing_such"):
        of_timm("nothing_such")
