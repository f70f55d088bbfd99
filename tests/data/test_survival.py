"""Nothing that lies in a folder of photos stops a training, changes what it learns, or costs much memory."""

from __future__ import annotations

import csv
import io
import os
import shutil
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.data.decode import SUFFIXES, Unreadable, decode
from lookalike.data.formats.files import printable
from tests.conftest import SHARED
from tests.data.test_decode import bomb, encoded
from tests.support.forks import Ended, Forks, digest

SIDE = 60_000
MADE_BAD = {
    "empty.jpg": "empty",
    "page.jpg": "no picture",
    "bomb.png": "more than the limit",
    "bomb.gif": "more than the limit",
    "bomb.tif": "more than the limit",
    "bomb.webp": "",  # Pillow before 13 has a reason of its own
    "pipe.jpg": "FIFO",
    "socket.jpg": "socket",
    "dead.jpg": "leads nowhere",
    "self.jpg": "leads nowhere",
    "locked.jpg": "Permission denied",
    "locked/": "Permission denied",
    "two\nlines.jpg": "empty",
    "\\xff\\xfe.jpg": "empty",
    "b" * 251 + ".jpg": "empty",
}


def photo(number: int) -> bytes:
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return encoded(small.resize((80, 60), Image.Resampling.BICUBIC), "JPEG")


def good_photos(root: Path) -> None:
    root.mkdir()
    for i in range(60):
        (root / f"good{i:02}.jpg").write_bytes(photo(i))


def huge(kind: str) -> bytes:
    """A picture whose header asks for 60,000 pixels a side, in the format's own words."""
    image = Image.new("RGB", (33, 35))
    data = encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    if kind == "GIF":  # the screen, and the first frame
        return data.replace(struct.pack("<HH", 33, 35), struct.pack("<HH", SIDE, SIDE))
    if kind == "TIFF":
        for tag, value in ((0x100, 33), (0x101, 35)):
            for size in (3, 4):
                before = struct.pack("<HHI", tag, size, 1) + struct.pack("<I", value)
                data = data.replace(before, struct.pack("<HHI", tag, 4, 1) + struct.pack("<I", SIDE))
        return data
    body = struct.pack("<4sIB3x", b"VP8X", 10, 0) + (SIDE - 1).to_bytes(3, "little") * 2 + data[12:]
    return struct.pack("<4sI4s", b"RIFF", 4 + len(body), b"WEBP") + body


def bad_files(root: Path) -> None:
    (root / "empty.jpg").touch()
    (root / "page.jpg").write_bytes(b"<!DOCTYPE html><html>not found</html>")
    (root / "bomb.png").write_bytes(bomb(SIDE, SIDE))
    for name, kind in (("gif", "GIF"), ("tif", "TIFF"), ("webp", "WEBP")):
        (root / f"bomb.{name}").write_bytes(huge(kind))
    os.mkfifo(root / "pipe.jpg")
    (root / "dead.jpg").symlink_to("nowhere.jpg")
    (root / "self.jpg").symlink_to("self.jpg")
    (root / "loop").symlink_to(root)
    (root / "folder.jpg").mkdir()
    (root / "two\nlines.jpg").touch()
    (root / ("b" * 251 + ".jpg")).touch()
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe.jpg")).touch()
    for name in (os.fsdecode(b"fine \xe9.jpg"), "fine\n.jpg", "f" * 251 + ".jpg", "fine.gif.JPEG"):
        (root / name).write_bytes(photo(1000))
    (root / "locked").mkdir()
    (root / "locked" / "photo.jpg").write_bytes(photo(1001))
    (root / "locked.jpg").write_bytes(photo(1002))
    (root / "locked").chmod(0)
    (root / "locked.jpg").chmod(0)


def a_socket(root: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    monkeypatch.chdir(root)  # its name may not be longer than 107 bytes
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket.jpg")
    return server


def odd_files(root: Path, shared: Path) -> dict[str, str]:
    """Every odd file of three collections; which of them are bad, and why."""
    bad: dict[str, str] = {}
    for name in ("pillow_images", "pngsuite", "exif_orientation"):
        shutil.copytree(shared / name, root / name)
        for path in (root / name).rglob("*"):
            if path.is_file() and path.name.lower().endswith(SUFFIXES):
                try:
                    decode(path.read_bytes(), 16)
                except Unreadable as unreadable:
                    bad[path.relative_to(root).as_posix()] = unreadable.reason
    return bad


def train(forks: Forks, data: Path, out: Path, workers: int, memory: float) -> Ended:
    fixed = ["--recipe", "tiny", "--steps", 12, "--checkups", 1, "--max-bad", "1.0", "--quiet"]
    ended = forks.run(["pretrain", data, "--out", out, *fixed, "--workers", workers, "--memory", memory])
    assert ended.code == 0, ended.errors
    return ended


def noted(out: Path) -> dict[str, str]:
    head, *rows = csv.reader(io.StringIO((out / "bad_files.csv").read_text()))
    assert head == ["path", "reason"]
    paths = [path for path, _ in rows]
    assert len(set(paths)) == len(paths)
    # Beside files one by one: how many of other kinds, and of masks, the collections have.
    return {path: reason for path, reason in rows if not path.endswith((" not read", "*mask.png"))}


def test_a_run_survives_all_of_it(tmp_path: Path, forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test makes, and beside the checkout also three collections of real odd files."""
    good_photos(tmp_path / "good")
    calm = train(forks, tmp_path / "good", tmp_path / "calm", 0, 0)
    root = tmp_path / "data"
    good_photos(root)
    odd = odd_files(root, SHARED) if SHARED.is_dir() else {}
    bad_files(root)
    try:
        with a_socket(root, monkeypatch):
            for number, (workers, memory) in enumerate([(2, 4.0), (0, 0.0), (1, 0.0), (2, 0.0), (4, 0.0)]):
                out = tmp_path / f"run{number}"
                ended = train(forks, root, out, workers, memory)
                assert ended.peak - calm.peak <= 200
                found = noted(out)
                assert found.keys() == odd.keys() | MADE_BAD.keys()
                assert [path for path, reason in (MADE_BAD | odd).items() if reason not in found[path]] == []
                assert digest(out) == digest(tmp_path / "run0")
    finally:
        (root / "locked").chmod(0o700)


def test_printable_names_are_what_the_table_says() -> None:
    assert printable(os.fsdecode(b"\xff\xfe.jpg")) == "\\xff\\xfe.jpg"
