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


TABLE = "path,label\np/0.png,cat\np/1.png,dog\n"
"""What all of the following forms state."""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", TABLE.replace(",", ";")),
        ("a.csv", TABLE.replace(",", "\t")),
        ("a.tsv", TABLE.replace(",", "\t")),
        ("a.csv", TABLE.replace(",", " | ")),
        ("a.csv", TABLE.replace(",", " , ").replace("\n", "\r\n")),
        ("a.csv", "sep=;\n" + TABLE.replace(",", ";")),
        ("a.csv", "# of today, by me\n\n" + TABLE + "\n\n"),
        ("a.csv", "#" + TABLE),
        ("a.csv", TABLE.upper().replace("PNG", "png").replace("P/", "p/").replace("CAT", "cat").replace("DOG", "dog")),
        ("a.csv", TABLE.encode("utf-16")),
        ("a.csv", TABLE.encode("utf-16-le")),
        ("a.csv", TABLE.encode("utf-16-be")),
        ("a.csv", TABLE.encode("utf-32")),
        ("a.csv", "\ufeff" + TABLE),
        ("a.csv", TABLE.partition("\n")[2]),
        ("a.csv", "cat;p/0.png\ndog;p/1.png"),
        ("a.csv", 'note;split;"class";File\n"a; b";x;cat;p/0.png\n,;x;dog;p/1.png\n'),
        ("a.csv", TABLE.replace("/", "\\")),
        ("a.csv", TABLE.replace("p/1", "p\\1")),
        ("a.csv", TABLE.replace("p/", "./p/")),
        ("a.csv", TABLE.replace("p/", "images/p/")),
        ("a.csv", TABLE.replace("p/", "C:\\photos\\p\\")),
        ("a.csv", TABLE.replace("p/", "/home/somebody/p/")),
        ("a.csv", TABLE.replace("png", "PNG")),
        ("a.csv", "id,label\n0,cat\n1,dog\n"),
        ("lists/a.csv", TABLE),
        ("a.txt", "p/0.png cat\np/1.png dog\n"),
        ("a.txt", "p/0.png\tcat\r\np/1.png\tdog\r\n"),
        ("a.txt", "# path, label\np/0.png, cat\np/1.png, dog"),
    ],
)
def test_one_table_in_the_forms_that_tools_write(tmp_path: Path, name: str, text: str | bytes) -> None:
    for i in range(2):
        written(tmp_path, f"p/{i}.png", PNG)
    source = open_source(written(tmp_path, name, text))
    assert [source.classes[label] for label in source.labels.tolist()] == ["cat", "dog"]
    assert [source.example(row, 8).bad for row in range(len(source))] == [None, None]


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["01", "1", "01"], ["01", "1"], [0, 1, 0]),
        (["1.0", "0.0", "1."], ["0", "1"], [1, 0, 1]),
        (["1.0", "nan", "1"], ["1"], [0, -1, 0]),
        (["0.37", "1.0", "0"], [], [-1, -1, -1]),
        (["none", "cat", ""], ["cat", "none"], [1, 0, -1]),
        (["e\u0301", "\u00e9", "x"], ["x", "\u00e9"], [1, 1, 0]),
        (["1" * 25, "2", "2"], ["1" * 25, "2"], [0, 1, 1]),
    ],
)
def test_labels_are_read_as_they_are_written(
    tmp_path: Path, labels: list[str], classes: list[str], numbers: list[int]
) -> None:
    for i in range(3):
        written(tmp_path, f"{i}.png", PNG)
    rows = "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels))
    source = open_source(written(tmp_path, "a.csv", f"path,label\n{rows}"))
    assert (source.classes, source.labels.tolist()) == (classes, numbers)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("path,label\n0.png,0.37\n1.png,1\n", "numbers such as 0.37 are no classes: there are no labels"),
        ("path,label\n0.png,0\n1.png,1\nx/0.png,2\n", "labels that count the rows are no classes: there are no labels"),
        ("path,label\n0.png,cat\n1.png,\n", "1 of 2 rows have no label, first 1.png"),
        ("path,label\n0.png,cat\n9.png,dog\n8.png,dog\n", "2 of 3 rows name a file that is not there, first 9.png"),
        ("path,split\n0.png,train\n1.png,fold3\n", "1 rows of no split (fold3) are left out, first 1.png"),
        ("path,split\n0.png,a\n1.png,b\n", "the column of splits names none (a, b)"),
        (
            "path,species\n0.png,cat\n1.png,dog\n",
            "no column is called label, labels, fine_label, class, and species is not read",
        ),
        (
            "0.png,cat,3\n1.png,dog,4\n",
            "of 2 columns without a name none is read: give the one of labels the name label",
        ),
        (b"path,label\n0.png,caf\xe9\n1.png,x\n", "labels that are no UTF-8 are read as Windows-1252, first caf\u00e9"),
        ("path\n/a/x/0.png\n/a/x/1.png\n", "no path leads anywhere as it stands: /a/x/0.png is taken to be x/0.png"),
    ],
)
def test_what_a_list_leaves_out_or_changes_is_said(tmp_path: Path, text: str | bytes, note: str) -> None:
    for i in range(2):
        written(tmp_path, f"{i}.png", PNG)
        written(tmp_path, f"x/{i}.png", PNG)
    assert open_source(written(tmp_path, "a.csv", text), "all").unlisted == {"a.csv": note}


def test_another_form_of_a_name_is_found_and_said(tmp_path: Path) -> None:
    for name in ("e\u0301.png", "a.JPG", "b.png"):
        written(tmp_path, name, PNG)
    source = open_source(written(tmp_path, "a.csv", "path\n\u00e9.png\na.jpeg\nb.png\nc.png\n"))
    assert source.paths == ["e\u0301.png", "a.JPG", "b.png", "c.png"]
    assert source.unlisted["a.csv"] == (
        "2 paths are written otherwise (capitals, %20, accents), first \u00e9.png is e\u0301.png; "
        "1 of 4 rows name a file that is not there, first c.png"
    )


def test_a_moved_list_finds_no_other_folders_pictures(tmp_path: Path) -> None:
    written(tmp_path, "b/0.png", PNG)
    with pytest.raises(UserError, match=r"none leads to a file, as a/0.png; 1 pictures lie below .* first b/0.png"):
        open_source(written(tmp_path, "a.csv", "path\na/0.png\n"))


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
    written(tmp_path, "a", PNG)
    with pytest.raises(UserError, match=words) as caught:
        open_source(written(tmp_path, name, text))
    assert caught.value.code == BAD_DATA
