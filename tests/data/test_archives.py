"""Tar shards and zip archives: what is found, what is refused, and that nothing is written or unpickled."""

from __future__ import annotations

import io
import os
import pickle
import random
import re
import stat
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.decode import Unreadable
from lookalike.data.formats import archives
from lookalike.data.loader import Loader
from lookalike.data.source import open_source
from tests.support.packs import pictures, write_tar

PNG = pictures(1)[0].data
ADDED: list[tuple[str, int]] | None = None  # while a watch is on


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    if ADDED is not None and event in ("open", "pickle.find_class", "os.mkdir", "os.rename", "os.symlink", "os.link"):
        ADDED.append((f"{event} {arguments[0]!r}", arguments[2] if event == "open" else os.O_WRONLY))


sys.addaudithook(audit)


@contextmanager
def nothing_written() -> Iterator[None]:
    """No file is opened to write, nothing is made, and no pickle names a class."""
    global ADDED
    ADDED = []
    try:
        yield
        assert [what for what, flags in ADDED if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)] == []
        assert ADDED  # the archive was opened, and that was seen
    finally:
        ADDED = None


def names(root: Path) -> list[str]:
    return open_source(root).paths


def refusal(data: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_source(data)
    assert caught.value.code == BAD_DATA
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Tar


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_way_to_write_a_name(tmp_path: Path, form: int) -> None:
    long = f"{'d' * 90}/{'e' * 60}/photo.png"  # ustar splits it into prefix and name
    longer = f"{'x' * 120}/{'y' * 150}.png"
    given = ["a.png", "./b.PNG", long, *([longer, "ü/ß.png"] if form != tarfile.USTAR_FORMAT else [])]
    write_tar(tmp_path / "a.tar", ((name, PNG) for name in given), form)
    source = open_source(tmp_path)
    assert source.paths == [f"a.tar/{name.removeprefix('./')}" for name in given]
    assert all(source.example(row, 16).bad is None for row in range(len(given)))
    assert source.unlisted == {}


def test_webdataset(tmp_path: Path) -> None:
    found = [
        ("000.jpg", PNG), ("000.cls", b"7\n"), ("000.txt", b"words"), ("000.seg.png", PNG),
        ("001.cls", b"3"), ("001.png", PNG), ("001.json", b'{"label": 9}'),
        ("002.webp", PNG), ("002.json", b'{"label": 7, "cls": true}'),
        ("003.png", PNG), ("003.json", b"[" * 100_000),
        ("sub/000.png", PNG), ("sub/000.cls", b"-1"),
        ("005.left.png", PNG), ("005.right.png", PNG), ("006.txt", b"no picture"),
        ("007.cls", b"seven"), ("007.png", PNG),
    ]  # fmt: skip
    write_tar(tmp_path / "s.tar", iter(found))
    source = open_source(tmp_path)
    assert [path.removeprefix("s.tar/") for path in source.paths] == [
        *("000.jpg", "001.png", "002.webp", "003.png", "sub/000.png", "005.left.png", "005.right.png", "007.png")
    ]
    assert source.labels.tolist() == [1, 0, 1, -1, -1, -1, -1, 2]
    assert source.classes == ["3", "7", "seven"]
    assert source.unlisted == {"3 other files not read": "2 .txt, 1 .json"}


def test_labels_in_words(tmp_path: Path) -> None:
    described = [("0", '{"class": "dog"}'), ("1", '{"class": "\\ud800"}'), ("2", '{"class": "cat"}')]
    write_tar(
        tmp_path / "s.tar", ((f"{k}.{s}", d) for k, j in described for s, d in (("png", PNG), ("json", j.encode())))
    )
    source = open_source(tmp_path)
    assert source.classes == ["\\ud800", "cat", "dog"]
    assert source.labels.tolist() == [2, 0, 1]


def test_shards_are_divided_by_their_names(tmp_path: Path) -> None:
    for shard in ("train-000", "train-001", "val-000", "extra"):
        write_tar(tmp_path / f"in-{shard}.tar", iter([("0.png", PNG), ("0.cls", str(len(shard)).encode())]))
    assert names(tmp_path) == ["in-train-000.tar/0.png", "in-train-001.tar/0.png"]
    assert len(open_source(tmp_path, "validation")) == 1
    assert open_source(tmp_path, "all").classes == ["7", "9"]


class Canary:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def hostile(path: Path, canary: Path) -> None:
    code = pickle.dumps(Canary(canary))
    with tarfile.open(path, "w") as archive:

        def add(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = PNG, link: str = "", **more: Any) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(data), link
            info.pax_headers = more
            archive.addfile(info, io.BytesIO(data))

        add("good.png")
        add("../../up.png")
        add("in/../../up.png")
        add("/abs.png")
        add("link.png", tarfile.SYMTYPE, b"", "/etc/passwd")
        add("hard.png", tarfile.LNKTYPE, b"", "good.png")
        add("pipe.png", tarfile.FIFOTYPE, b"")
        add("disk.png", tarfile.BLKTYPE, b"")
        add("old sparse.png", tarfile.GNUTYPE_SPARSE)
        add("sparse.png", GNU_sparse_map="0,1", **{"GNU.sparse.realsize": "1099511627776"})
        add("good.pkl", data=code)
        add("good.pickle", data=code)
        add("good.pyd", data=code)
        add("good.pth", data=code)
        add("good.cls", data=code)
        add("good.json", data=code)
        add(".hidden.png")
        add("nul\udcff.png")
        add("fake.png", data=code)
        add("folder.png/", tarfile.DIRTYPE, b"")
        add("last.png")


def test_a_hostile_tar_writes_nothing_and_unpickles_nothing(tmp_path: Path) -> None:
    hostile(tmp_path / "h.tar", tmp_path / "canary")
    with nothing_written():
        source = open_source(tmp_path)
        assert source.paths == [f"h.tar/{name}.png" for name in ("good", "nul\\xff", "fake", "last")]
        reasons = [source.example(row, 16).bad for row in range(4)]
        loader = Loader(source, 16, workers=0, max_bad=0.5)
        list(loader.batches([]))
    assert reasons == [None, None, "no picture, or its first bytes are damaged", None]
    assert os.listdir(tmp_path) == ["h.tar"]
    assert {path.removeprefix("h.tar/"): reason.split(",")[0] for path, reason in source.unlisted.items()} == {
        **dict.fromkeys(["../../up.png", "in/../../up.png", "/abs.png"], "its name leads out of the archive"),
        "link.png": "a symbolic link in an archive",
        "hard.png": "a hard link in an archive",
        "pipe.png": "a FIFO in an archive",
        "disk.png": "a device in an archive",
        **dict.fromkeys(["old sparse.png", "sparse.png"], "a sparse file in an archive"),
        **dict.fromkeys(["*.pkl", "*.pickle", "*.pyd", "*.pth"], "1 members may hold code"),
        "2 other files not read": "1 .cls",  # and 1 .json
    }
    assert set(loader.bad) == {*source.unlisted, "h.tar/fake.png"}


@pytest.mark.parametrize("cut", [1, 511, 1024, 1500, 2048, 2300, 4000])
def test_a_tar_that_was_cut_off_gives_what_is_whole(tmp_path: Path, cut: int) -> None:
    write_tar(tmp_path / "whole.tar", ((f"{i}.png", PNG) for i in range(4)))
    data, each = (tmp_path / "whole.tar").read_bytes(), 512 + -(-len(PNG) // 512) * 512
    (tmp_path / "whole.tar").unlink()
    (tmp_path / "cut.tar").write_bytes(data[:cut])
    whole = max(0, cut - 512 - len(PNG)) // each + (cut >= 512 + len(PNG))
    if not whole:
        assert "cut.tar: no picture in it" in refusal(tmp_path)
        return
    source = open_source(tmp_path)
    assert len(source) == whole
    assert all(source.example(row, 16).bad is None for row in range(whole))
    assert "cut off" in source.unlisted["cut.tar"]


def test_a_shard_that_shrinks_after_it_was_listed_has_bad_rows(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", ((f"{i}.png", PNG) for i in range(4)))
    source = open_source(tmp_path)
    os.truncate(tmp_path / "a.tar", 3000)
    assert [source.example(row, 16).bad is None for row in range(4)] == [True, True, False, False]
    assert "ends before byte" in str(source.example(3, 16).bad)
    (tmp_path / "a.tar").unlink()
    assert source.example(0, 16).bad == "No such file or directory"
    os.mkfifo(tmp_path / "a.tar")
    assert source.example(0, 16).bad == "not a regular file"


def test_files_that_are_no_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(PNG * 9)
    assert "no header of a tar archive at byte 0" in refusal(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(b"")
    assert "it ends at byte 0" in refusal(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.add(__file__, "a.png")
    assert "gunzip" in refusal(tmp_path / "a.tar")
    (tmp_path / "a.tar").rename(tmp_path / "a.tar.gz")
    for data in (tmp_path, tmp_path / "a.tar.gz"):
        assert "a compressed tar cannot be read at random" in refusal(data)
    os.mkfifo(tmp_path / "pipe.tar")
    assert "not a regular file" in refusal(tmp_path / "pipe.tar")


def test_shards_beside_pictures(tmp_path: Path) -> None:
    """A backup beside photos is no data, and a logo beside shards is none either."""
    write_tar(tmp_path / "a.tar", iter([("0.png", PNG)]))
    (tmp_path / "logo.png").write_bytes(PNG)
    assert names(tmp_path) == ["a.tar/0.png"]
    (tmp_path / "photo.png").write_bytes(PNG)
    assert names(tmp_path) == ["logo.png", "photo.png"]


def entry(name: bytes, size: bytes, kind: bytes = b"0", data: bytes = b"") -> bytes:
    head = bytearray(512)
    head[: len(name)], head[124 : 124 + len(size)], head[156:157] = name, size, kind
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + data + b"\0" * (-len(data) % 512)


UNREADABLE = r"damaged behind byte 1536|no header of a tar archive at byte 1536"  # as the Python at hand has it


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (entry(b"a.png", b"-0000001"), "no header"),
        (entry(b"a.png", b"99999999"), "no header"),
        (entry(b"a.png", b"\xff" * 12), "no header"),
        (entry(b"a.png", b"\x80" + b"\xff" * 11), "cut off"),
        (entry(b"a.png", b"77777777777"), "cut off"),
        (entry(b"x", b"77777777777", b"L"), "a name or record"),
        pytest.param(entry(b"x", b"00014000000", b"L", bytes(3 << 20)), "a name or record", id="3 MiB"),
        (entry(b"x", b"00000000005", b"x", b"9 a=b"), UNREADABLE),
        (entry(b"x", b"00000000012", b"x", b"10 size=x\n"), UNREADABLE),
        (entry(b"x", b"00000010000", b"x", b"9" * 4096), UNREADABLE),
        (entry(b"x", b"00000000040", b"x", b"32 size=" + b"9" * 23 + b"\n"), UNREADABLE),
        (entry(b"a.png", b"0", b"S")[:482] + b"\1" + bytes(29), "no header"),
    ],
)
def test_headers_that_lie(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.tar").write_bytes(entry(b"good.png", b"%011o" % len(PNG), data=PNG) + data)
    source = open_source(tmp_path)
    assert source.paths == ["a.tar/good.png"]
    assert any(re.search(reason, text) for text in source.unlisted.values()), source.unlisted


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=12))
@settings(max_examples=150, deadline=None)
def test_damage_ends_in_words(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    with tarfile.open(path, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("a.png", "é" * 80 + ".cls", "b.json", "b.png"):
            info = tarfile.TarInfo(name)
            info.size = 20
            archive.addfile(info, io.BytesIO(b"x" * 20))
    data = bytearray(path.read_bytes())
    for at, value in changes:
        data[at] = value
    path.write_bytes(data)
    with suppress(UserError):  # any other exception is a failure
        source: Any = open_source(path)
        assert len(source) <= 4
        assert all(len(source.read(row)) <= len(data) for row in range(len(source)))


# Zip


def test_zip_reads_what_a_folder_would_show(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("dog/1.png", "cat/1.PNG", "cat/notes.txt", "__MACOSX/cat/1.png", "cat/._1.png", "cat/deep/ü.png"):
            archive.writestr(name, PNG)
    source = open_source(tmp_path / "a.zip")
    assert source.paths == ["a.zip/dog/1.png", "a.zip/cat/1.PNG", "a.zip/cat/deep/ü.png"]
    assert source.labels.tolist() == [1, 0, 0]
    assert source.classes == ["cat", "dog"]
    assert open_source(tmp_path).paths == source.paths


def test_a_hostile_zip_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_LARGEST", 1 << 20)
    with zipfile.ZipFile(tmp_path / "h.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.png", PNG)
        archive.writestr("../up.png", PNG)
        archive.writestr("/abs.png", PNG)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("bomb.png", bytes(2 << 20))
        archive.writestr("lzma.png", PNG, zipfile.ZIP_LZMA)
        archive.writestr("code.pkl", pickle.dumps(Canary(tmp_path / "canary")))
        archive.writestr("twice.png", b"first")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("twice.png", PNG)
    with nothing_written():
        source = open_source(tmp_path)
        assert [source.example(row, 16).bad for row in range(len(source))] == [None, None]
    assert source.paths == ["h.zip/good.png", "h.zip/twice.png"]
    assert source.unlisted.pop("1 other file not read") == "1 .pkl"
    assert set(source.unlisted) == {f"h.zip/{name}.png" for name in ("../up", "/abs", "link", "bomb", "lzma")}
    assert os.listdir(tmp_path) == ["h.zip"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_whose_directory_lies(tmp_path: Path, method: int) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.png", bytes(5000) if method else PNG)
    data, at = bytearray(path.read_bytes()), path.read_bytes().index(b"PK\1\2")
    for field, value, reason in [
        (16, b"\1\2\3\4", "damaged in the archive"),
        (24, b"\x10\0\0\0", "damaged in the archive"),
        (20, b"\xff\xff\xff\0", "ends before byte"),
        (42, b"\1\0\0\0", "leads to no member"),
    ]:
        changed = data.copy()
        changed[at + field : at + field + 4] = value
        path.write_bytes(changed)
        with pytest.raises(Unreadable, match=reason):
            open_source(path).size(0)


def test_files_that_are_no_zip(tmp_path: Path) -> None:
    for data in (b"", b"PK\5\6", PNG, b"PK\5\6" + b"\xff" * 18):
        (tmp_path / "a.zip").write_bytes(data)
        assert "no zip archive that can be read" in refusal(tmp_path)


@given(st.integers(0, 2**32), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_a_damaged_zip_is_trouble_or_bad_rows(tmp_path_factory: pytest.TempPathFactory, seed: int, count: int) -> None:
    chance, path = random.Random(seed), tmp_path_factory.getbasetemp() / "damaged.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.png", "b.png", "ü.png"):
            archive.writestr(name, PNG)
    data = bytearray(path.read_bytes())
    for _ in range(count):
        data[chance.choice([chance.randrange(len(data)), -chance.randrange(1, 200)])] = chance.randrange(256)
    path.write_bytes(data)
    with suppress(UserError):  # any other exception is a failure
        source = open_source(path)
        assert all(isinstance(source.example(row, 16).bad, str | None) for row in range(len(source)))
        "".join(source.paths).encode()
