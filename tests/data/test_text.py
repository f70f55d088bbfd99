"""Text from files: what is a row, what is none and why, and which columns hold what."""

from __future__ import annotations

import csv
import json
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lookalike.core.errors import UserError
from lookalike.data.example import Rows
from lookalike.data.fingerprint import changes
from lookalike.data.source import open_source, reference_and_query, splits_of
from lookalike.data.text.files import LONGEST
from lookalike.data.text.source import find_text

QUIET = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def found(data: object, pairs: bool = False) -> dict[str, tuple[str, ...]]:
    source = find_text(str(data), pairs).rows(None)
    return dict(zip(source.paths, map(texts_of(source), range(len(source)))))


def texts_of(source: object) -> object:
    return source.texts  # type: ignore[attr-defined]


def test_a_row_is_a_line_known_by_its_file_and_number(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "\ufefffirst\r\n\n  second \nthird")
    assert found(file) == {"a.txt:1": ("first",), "a.txt:3": ("second",), "a.txt:4": ("third",)}
    assert find_text(str(file)).rows(None).unlisted == {"a.txt": "1 blank lines, which are no rows"}


def test_what_is_no_text_is_no_row_and_says_why(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", b"good\n\xff\xfe bad\nwith \0 in it\n" + b"x" * (1 << 20) + b"\nlast\n")
    source = find_text(str(file)).rows(None)
    assert source.unlisted == {"a.txt:2": "no valid UTF-8", "a.txt:3": "holds a NUL: no text"}
    assert source.refused == 2
    assert found(file) == {"a.txt:1": ("good",), "a.txt:4": ("x" * LONGEST,), "a.txt:5": ("last",)}


def test_a_letter_that_the_limit_cuts_is_left_out(tmp_path: Path) -> None:
    line = "ä" * LONGEST  # two bytes each, after one that shifts them
    assert found(write(tmp_path / "a.txt", "x" + line)) == {"a.txt:1": ("x" + "ä" * (LONGEST // 2 - 1),)}
    table = write(tmp_path / "b.csv", f"text\nx{line}\n")
    assert found(table) == {"b.csv:2": ("x" + "ä" * (LONGEST // 2 - 1),)}


@given(st.lists(st.binary(max_size=40), max_size=12))
@QUIET
def test_any_bytes_are_lines_or_are_refused(tmp_path: Path, lines: list[bytes]) -> None:
    file = write(tmp_path / "a.txt", b"a line\n" + b"\n".join(lines))
    texts = found(file)
    assert all(text.strip() == text and text and "\0" not in text for (text,) in texts.values())
    raw = (b"a line\n" + b"\n".join(lines)).split(b"\n")
    for path, (text,) in texts.items():
        assert raw[int(path.split(":")[1]) - 1].decode("utf-8", "replace").lstrip("\ufeff").strip() == text


@given(st.binary(max_size=200))
@QUIET
def test_any_bytes_are_a_table_or_one_line_of_trouble(tmp_path: Path, data: bytes) -> None:
    for name in ("a.csv", "a.tsv", "a.parquet"):
        file = write(tmp_path / name, b"text,score\n" * name.endswith("v") + data)
        with suppress(UserError):
            assert all(text and "\0" not in text for (text,) in found(file).values())


cells = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=8))
@QUIET
def test_what_csv_writes_is_read_again(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    file = tmp_path / "a.csv"
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([("text", "other"), *rows, ("the last", "")])
    assert [text for (text,) in found(file).values()] == [*(t.strip() for t, _ in rows if t.strip()), "the last"]


def test_columns_by_their_usual_names_by_number_or_as_they_are_named(tmp_path: Path) -> None:
    usual = write(tmp_path / "a.csv", 'id,sentence1,sentence2,score\n1,"one, two",three,4.5\n2,four,five,0\n')
    assert found(usual, True) == {"a.csv:2": ("one, two", "three"), "a.csv:3": ("four", "five")}
    assert find_text(str(usual), True).rows(None).scores.tolist() == [4.5, 0]
    assert list(found(usual)) == ["a.csv:2:1", "a.csv:2:2", "a.csv:3:1", "a.csv:3:2"]  # each text by itself
    nameless = write(tmp_path / "b.csv", "one,two,4.5\nthree,four,1\n")
    assert found(nameless, True) == {"b.csv:1": ("one", "two"), "b.csv:2": ("three", "four")}
    assert find_text(str(nameless), True).rows(None).scores.tolist() == [4.5, 1]
    other = write(tmp_path / "c.tsv", 'nr\tthe "body\tmood\n7\ta " quote\thappy\n')
    assert found(f'{other}:the "body') == {"c.tsv:2": ('a " quote',)}
    assert found(f"{other}:2,3", True) == {"c.tsv:1": ('the "body', "mood"), "c.tsv:2": ('a " quote', "happy")}
    with pytest.raises(UserError, match="has no column 'title': there are"):
        found(f"{other}:title")


def test_parquet_has_columns_by_name_and_rows_that_are_no_utf8(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"ok\xff\xfe")]
    )
    pq.write_table(pa.table({"remark": bad, "label": [3, 4]}), tmp_path / "a.parquet")
    source = find_text(str(tmp_path / "a.parquet")).rows(None)
    assert found(tmp_path / "a.parquet") == {"a.parquet:1": ("ok",)}
    assert source.unlisted == {"a.parquet:2": "no valid UTF-8"}
    assert source.classes == ["3"]


def test_labels_stand_in_a_column_or_in_the_names_of_files(tmp_path: Path) -> None:
    table = write(tmp_path / "a.csv", "0,bad film\n1,good film\n")
    assert find_text(str(table)).rows(None).labels.tolist() == [0, 1]
    for name in ("train/pos.txt", "train/neg.txt", "test/pos.txt", "test/neg.txt"):
        write(tmp_path / "films" / name, f"a line of {name}\n")
    train, test = reference_and_query(str(tmp_path / "films"), find=find_text)
    assert train.classes == ["neg", "pos"]
    assert [(path, train.classes[label]) for path, label in zip(test.paths, test.labels.tolist())] == [
        ("test/neg.txt:1", "neg"),
        ("test/pos.txt:1", "pos"),
    ]


def test_splits_are_those_of_every_kind_of_data(tmp_path: Path) -> None:
    for name in ("x-train.csv", "x-dev.csv", "x-test.csv"):
        write(tmp_path / name, f"text\n{name}\nmore\n")
    splits = splits_of(str(tmp_path), find=find_text)
    assert {name: source.paths[0] for name, source in splits.items()} == {
        "train": "x-train.csv:2",
        "validation": "x-dev.csv:2",
        "test": "x-test.csv:2",
    }
    assert texts_of(splits["test"])(1) == ("more",)  # type: ignore[operator]
    assert len(open_source(str(tmp_path), "all", find=find_text)) == 6


def test_half_a_pair_is_no_row(tmp_path: Path) -> None:
    source = find_text(str(write(tmp_path / "a.csv", "question,answer\nwhy,because\nwho,\n")), True).rows(None)
    assert source.unlisted == {"a.csv:3": "one text of the pair is blank"}
    with pytest.raises(UserError, match="1 text where a pair is wanted"):
        find_text(str(write(tmp_path / "b.txt", "alone\n")), True)


def test_changed_text_is_noticed(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "one\ntwo\n")
    before = Rows(open_source(str(file), find=find_text), torch.tensor([0])).stamps()
    write(file, "one\ntoo\n")
    assert changes(before, open_source(str(file), find=find_text).stamps()).replaced == ["a.txt"]
    lines = find_text(["one", "two"]).rows(None)
    assert changes(lines.stamps(), find_text(["one", "too"]).rows(None).stamps()).replaced == ["#1"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "nothing", "no such file or folder"),
        (lambda folder: write(folder / "photo.jpg", b"x").parent, "no text among its 1 files"),
        (lambda folder: write(folder / "photo.jpg", b"x"), "no file of text"),
        (lambda folder: write(folder / "a.txt", "\n \n"), "no line of text in it"),
        (lambda folder: write(folder / "a.txt", b"\xff\n"), r"no line of text in it \(a.txt:1: no valid UTF-8\)"),
        (lambda folder: [1, 2], "a list is no text"),
    ],
)
def test_what_holds_no_text_is_said_in_one_line(tmp_path: Path, make: object, words: str) -> None:
    data = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(UserError, match=words) as refused:
        find_text(data if isinstance(data, list) else str(data))
    assert "\n" not in str(refused.value)


def test_numbers_of_lines_are_no_labels(tmp_path: Path) -> None:
    for name, text in (("a.tsv", "0\tone\n1\ttwo\n2\tthree\n"), ("b.csv", "label,text\n7,one\n8,two\n9,three\n")):
        source = find_text(str(write(tmp_path / name, text))).rows(None)
        assert (source.labels.tolist(), source.classes) == ([-1] * 3, [])
    shared = find_text(str(write(tmp_path / "c.tsv", "0\tone\n1\ttwo\n1\tthree\n"))).rows(None)
    assert shared.labels.tolist() == [0, 1, 1]


TABLE = 'text,label\none,01\n"two, or 2",1\n'


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", TABLE),
        ("a.csv", TABLE.replace("label", "Label").encode("utf-16")),
        ("a.csv", "sep=;\n" + TABLE.replace(",", ";").replace("; or", ", or")),
        ("a.csv", "note;text;label\n;one;01\nx;two, or 2;1\n"),
        ("a.csv", "text|label\none|01\ntwo, or 2|1\n"),
        ("a.tsv", "label\ttext\n01\tone\n1\ttwo, or 2\n"),
        ("a.jsonl", '{"text": "one", "label": "01", "x": {}}\n{"label": "1", "text": "two, or 2"}'),
    ],
)
def test_one_table_in_the_forms_that_tools_write(tmp_path: Path, name: str, data: str | bytes) -> None:
    source = find_text(str(write(tmp_path / name, data))).rows(None)
    assert [source.texts(row) for row in range(len(source))] == [("one",), ("two, or 2",)]
    assert [source.classes[label] for label in source.labels.tolist()] == ["01", "1"]


@pytest.mark.parametrize(
    "labels",
    [["a", "b"], pa.array(["a", "b"]).dictionary_encode(), pa.array([9.0, 1.0]), pa.array([7, 1]), [True, False]],
)
def test_labels_of_any_type_in_parquet_count(tmp_path: Path, labels: object) -> None:
    pq.write_table(pa.table({"text": ["one", "two"], "label": labels}), tmp_path / "a.parquet")
    source = find_text(str(tmp_path / "a.parquet")).rows(None)
    assert (len(source.classes), sorted(source.labels.tolist())) == (2, [0, 1])


def test_lines_that_are_no_objects_and_labels_that_are_no_classes(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"text": "one", "label": 0.37}\n[1]\n{"text"\n\n{"text": "two"}\n')
    source = find_text(str(file)).rows(None)
    assert (source.paths, source.classes, source.refused) == (["a.jsonl:1", "a.jsonl:5"], [], 2)
    assert source.unlisted == {
        "a.jsonl:2": "no JSON object",
        "a.jsonl:3": "no JSON object",
        "a.jsonl": "1 blank lines, which are no rows",
        "labels": "numbers such as 0.37 are no classes: there are no labels",
    }


def test_a_readme_and_the_names_of_classes_are_no_examples(tmp_path: Path) -> None:
    for name in ("pos.txt", "neg.txt", "README.txt", "license.txt", "classes.txt"):
        write(tmp_path / name, "words\n")
    source = find_text(str(tmp_path)).rows(None)
    assert (source.paths, source.classes) == (["neg.txt:1", "pos.txt:1"], ["neg", "pos"])
    assert sorted(source.unlisted) == ["README.txt", "classes.txt", "license.txt"]
    assert len(find_text(str(tmp_path / "README.txt")).rows(None)) == 1


def test_names_of_labels_in_parquet_are_the_same_in_all_parts(tmp_path: Path) -> None:
    for part, names in {"train": ["pos", "neg"], "test": ["pos", "neg", "so so"]}.items():
        meta = {"huggingface": json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}})}
        table = pa.table({"text": ["one", "two"], "label": [1, 0]}).replace_schema_metadata(meta)
        pq.write_table(table, tmp_path / f"{part}.parquet")
    source = find_text(str(tmp_path)).rows("test")
    assert (source.classes, source.labels.tolist()) == (["pos", "neg", "so so"], [1, 0])
    pq.write_table(
        table.replace_schema_metadata({"huggingface": meta["huggingface"].replace("pos", "x")}),
        tmp_path / "test.parquet",
    )
    with pytest.raises(UserError, match="its label 0 is pos, which is x in"):
        find_text(str(tmp_path))
