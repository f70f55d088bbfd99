"""What is fetched when a person asks, from a server on this machine: its size is said first, and its hash checked."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from lookalike.core.errors import IO, UserError
from lookalike.exchange.downloads import web_file

CONTENT = b"weights" * 300_000
SHA = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Gives CONTENT for every path that ends in .pth or .safetensors, as torchvision's server and the Hub do."""

    def do_HEAD(self) -> None:
        self.send_response(200 if self.path.endswith((".pth", ".safetensors")) else 404)
        stated = "0" * 64 if "/bad/" in self.path else SHA
        names = {"ETag": f'"{stated}"', "X-Repo-Commit": "0" * 40, "Content-Length": str(len(CONTENT))}
        for name, value in names.items():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        Thread(target=serving.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{serving.server_port}"
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        yield address
        serving.shutdown()


def test_a_file_of_the_web_is_fetched_once(server: str, tmp_path: Path) -> None:
    url, said = f"{server}/models/net-{SHA[:8]}.pth", list[str]()
    with pytest.raises(UserError, match="add --download, or put"):
        web_file("torchvision:net", url, False, said.append)
    path = web_file("torchvision:net", url, True, said.append)
    assert path.read_bytes() == CONTENT
    assert said == [f"{url}: 2.1 MB"]
    assert web_file("torchvision:net", url, False, said.append) == path


def test_a_file_of_another_hash_is_refused_and_not_kept(server: str, tmp_path: Path) -> None:
    url = f"{server}/models/net-01234567.pth"
    with pytest.raises(UserError, match="invalid hash value") as error:
        web_file("torchvision:net", url, True, lambda _: None)
    assert error.value.code == IO
    assert not [path for path in (tmp_path / "torch").rglob("*") if path.is_file()]


FETCH = """
from lookalike.core.errors import UserError
from lookalike.exchange.downloads import hub_file
for repo in ("timm/net", "timm/bad"):
    try:
        path = hub_file("timm:net", repo, ("model.safetensors", "pytorch_model.bin"), True, print)
        assert hub_file("timm:net", repo, ("model.safetensors",), False, print) == path
        print(len(path.read_bytes()))
    except UserError as error:
        print(error)
"""


def test_files_of_the_hub_are_fetched_once_and_kept_if_their_hash_is_right(server: str, tmp_path: Path) -> None:
    places = {"HF_ENDPOINT": server, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, "-c", FETCH], env={**os.environ, **places}, capture_output=True, text=True)
    fetched, count, said, refused = done.stdout.splitlines()
    assert (fetched, count) == ("huggingface.co/timm/net, model.safetensors: 2.1 MB", str(len(CONTENT)))
    assert said == "huggingface.co/timm/bad, model.safetensors: 2.1 MB"
    assert "its sha256 is" in refused
    assert [path.parts[-4] for path in (tmp_path / "hub").rglob("*.safetensors")] == ["models--timm--net"]
