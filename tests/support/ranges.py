"""A web server for a folder on this machine: links to what a folder holds, whole files, and ranges of them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit


class Server(ThreadingHTTPServer):
    """``asked`` counts (method, status), ``sent`` the bytes of bodies; the next ``ill`` requests are answered 503."""

    daemon_threads = True

    def __init__(self, root: Path, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.ranges = root, ranges
        self.asked: Counter[tuple[str, int]] = Counter()
        self.sent = self.ill = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.answer(True)

    def do_HEAD(self) -> None:
        self.answer(False)

    def answer(self, body: bool) -> None:
        path = self.server.root / unquote(urlsplit(self.path).path).lstrip("/")
        if self.server.ill > 0:
            self.server.ill -= 1
            return self.send(503, b"", body)
        if path.is_dir():
            names = [quote(entry.name) + "/" * entry.is_dir() for entry in sorted(path.iterdir())]
            return self.send(200, "".join(f'<a href="{name}">x</a>' for name in names).encode(), body)
        if not path.is_file():
            return self.send(404, b"", body)
        data, asked = path.read_bytes(), self.headers.get("Range")
        if asked is None or not self.server.ranges:
            return self.send(200, data, body)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(data) - int(last))
        end = min(int(last) if first and last else len(data) - 1, len(data) - 1)
        if start > end:
            return self.send(416, b"", body)
        return self.send(206, data[start : end + 1], body, {"Content-Range": f"bytes {start}-{end}/{len(data)}"})

    def send(self, status: int, data: bytes, body: bool, more: dict[str, str] | None = None) -> None:
        self.server.asked[self.command, status] += 1
        self.server.sent += len(data) * body
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(more or {})}.items():
            self.send_header(name, value)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(root: Path, ranges: bool = True) -> Iterator[Server]:
    """The server, until the block ends."""
    with Server(root, ranges) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
