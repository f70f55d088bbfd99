"""Lists of paths: rows in the list's order, whatever became of the files."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import pytest

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.source import open_source, splits
from tests.support.packs import pictures

PNG = pictures(1)[0].data


def written(root: Path, name: str, text: str | bytes) -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root / name


def test_one_path_a_line(tmp_path: Path) -> None:
    outside = written(tmp_path, "else where/b c.png", PNG)
    for name in ("a.png", "sub/d.png", "sub/,.png"):
        written(tmp_path / "in", name, PNG)
    text = f"\ufeffsub/d.png\r\n\n{outside}\nmissing.png\na.png\nsub/d.png\n../else where/b c.png\nsub/,.png"
    source = open_source(written(tmp_path / "in", "list.txt", text))
    assert source.paths == ["sub/d.png", str(outside), "missing.png", "a.png", "../else where/b c.png", "sub/,.png"]
    assert [source.example(row, 16).bad for row in range(6)] == [
        None,
        None,
        "No such file or directory",
        None,
        None,
        None,
    ]
    assert source.labels.tolist() == [-1] * 6


def test_what_is_no_picture_is_a_bad_row(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    names = [b"pipe.png", b"/dev/zero", b".", b"nul\0.png", b"x" * 5000, b"https://example.org/a.png", b"\xff.png"]
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb") as file:
        file.write(PNG)
    source = open_source(written(tmp_path, "list.txt", b"\n".join(names)))
    reasons = [source.example(row, 16).bad for row in range(len(source))]
    assert reasons[:2] == ["not a regular file"] * 2
    assert reasons[-1] is None
    assert None not in reasons[:-1]
    "".join(source.paths).encode()


def test_a_table_with_labels_and_splits(tmp_path: Path) -> None:
    text = 'Label,"File",note,SPLIT\ndog,a.png,x,train\n"a, b",b.png,,dev\n,c.png,x,train\ndog,d.png\n'
    data = written(tmp_path, "list.csv", text)
    written(tmp_path, "a.png", PNG)
    assert splits(data) == ["train", "validation"]
    train = open_source(data)
    assert (train.paths, train.labels.tolist()) == (["a.png", "c.png"], [1, -1])
    assert open_source(data, "val").classes == train.classes == ["a, b", "dog"]


def test_repeated_rows_are_said(tmp_path: Path) -> None:
    written(tmp_path, "a.png", PNG)
    written(tmp_path, "b.png", PNG)
    data = written(
        tmp_path, "list.csv", "path,label,split\na.png,,train\nb.png,cat,train\n./a.png,dog,test\nb.png,cat,\n"
    )
    source = open_source(data)
    assert (source.paths, source.classes, source.labels.tolist()) == (["a.png", "b.png"], ["cat", "dog"], [1, 0])
    rest = "1 of them in another split, of which the first counts: a.png"
    assert source.unlisted == {"list.csv": f"2 rows repeat an earlier path, first a.png; {rest}"}


def test_numbers_are_numbered_as_numbers(tmp_path: Path) -> None:
    written(tmp_path, "a", PNG)
    source = open_source(written(tmp_path, "list.csv", "path,class\na,10\nb,9\nc,-1\nd,\n"))
    assert source.classes == ["9", "10"]
    assert source.labels.tolist() == [1, 0, -1, -1]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "\n\n", "no path in it"),
        ("a.txt", "Some words,\nno paths.\0\n" + "x" * 5000, "none leads to a file, as Some words"),
        ("a.csv", "", "names no column path"),
        ("a.csv", "x,y\n1,2\n", "names no column path"),
        ("a.csv", "path,label\n", "no path in it"),
        ("a.csv", "path,label\na,cat\nb,dog\na,dog\n", "a is cat first and dog in a later row"),
        ("a.csv", 'path\n"' + "x" * 200_000, "no table that can be read"),
    ],
)
def test_refusals(tmp_path: Path, name: str, text: str, words: str) -> None:
    csv.field_size_limit(sys.maxsize)  # as a reader of texts leaves it: Python has one limit for all
    with pytest.raises(UserError, match=words) as caught:
        open_source(written(tmp_path, name, text))
    assert caught.value.code == BAD_DATA
