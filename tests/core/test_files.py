"""Files that are asked for: what cannot be written is refused without a trace, and names do no harm."""

from __future__ import annotations

import csv
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lookalike.core import files
from lookalike.core.errors import BAD_DATA, IO, UserError, visible
from lookalike.core.files import cell, known, publish, refuse_unwritable, write_atomically, write_csv


def test_a_file_is_known_by_its_hash_whenever_its_writer_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"

    def only_hashes(path: Path, data: bytes) -> None:
        if path.name != files.HASHES:
            raise OSError("killed")
        write_atomically(path, data)

    publish(tmp_path, {"a": b"1", "b": b"2"})
    for content in (b"3", b"4"):  # the second one must not forget what is still there
        with monkeypatch.context() as killed:
            killed.setattr(files, "write_atomically", only_hashes)
            with pytest.raises(OSError, match="killed"):
                publish(tmp_path, {"a": content})
        assert known(path) == b"1"
    publish(tmp_path, {"a": b"5"})
    assert known(path) == b"5"
    assert known(tmp_path / "b") == b"2"
    path.write_bytes(b"4")
    with pytest.raises(UserError, match=r"a is not as it was written: bring it back, or") as refused:
        known(path)
    assert refused.value.code == BAD_DATA
    (tmp_path / "hashes.json").unlink()
    assert known(path) == b"4"


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=300)
LONG = [pytest.param("n" * 256, id="ascii"), pytest.param("é" * 128, id="two bytes a letter")]


def refusal(path: Path, **how: object) -> str | None:
    try:
        refuse_unwritable(path, **how)  # type: ignore[arg-type]
    except UserError as error:
        return str(error) if error.code == IO else None
    return None


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3))
@example(parts=["n" * 255])
@example(parts=["n" * 256])
@example(parts=["n" * 256, "a"])
@example(parts=["é" * 127])
@example(parts=["n" * 255] * 20)
def test_it_says_no_where_writing_would_fail_and_leaves_nothing(parts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, *parts)
        no = refusal(path)
        assert os.listdir(folder) == []
        try:
            path.parent.mkdir(parents=True)
        except FileExistsError:
            pass
        except OSError:
            assert no is not None
            return
        try:
            write_atomically(path, b"whole")
        except OSError:
            assert no is not None
        else:
            assert no is None
            assert path.read_bytes() == b"whole"
            assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("name", LONG)
def test_a_name_that_is_too_long(tmp_path: Path, name: str) -> None:
    assert "File name too long" in str(refusal(tmp_path / name))
    assert "File name too long" in str(refusal(tmp_path / "new" / name))
    assert "choose another --out" in str(refusal(tmp_path / name / "run", folder=True))
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_decides(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("precious")
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    assert "it is a folder" in str(refusal(tmp_path / "folder"))
    assert "it is no ordinary file" in str(refusal(tmp_path / "pipe"))
    assert "it is no ordinary file" in str(refusal(Path("/dev/null")))
    assert "Not a directory" in str(refusal(tmp_path / "file" / "a" / "b"))
    assert "Not a directory" in str(refusal(tmp_path / "file", folder=True))
    assert refusal(tmp_path / "link" / "a") is not None
    assert refusal(tmp_path / "file") is None
    assert refusal(tmp_path / "folder", folder=True) is None
    assert refusal(tmp_path / "new" / "folder", folder=True) is None
    assert (tmp_path / "file").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 4


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a", size=1) is None
    assert "needs 1e+09 GB and its disk has" in str(refusal(tmp_path / "a", size=10**18))


@settings(max_examples=100, deadline=None)
@given(words=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), max_size=4))
@example(words=["=1+2", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'", "'=1", "a=1", ""])
def test_words_are_data_in_a_spreadsheet_and_come_back_whole(words: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_csv(path := Path(folder) / "a.csv", ("word", "number"), [(word, -1) for word in words])
        with path.open(newline="", encoding="utf-8") as file:
            _, *rows = csv.reader(file)
    assert [row[0].removeprefix("'") if row[0].startswith("'") else row[0] for row in rows] == words
    assert not any(row[0].startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows)
    assert all(row[1] == "-1" for row in rows)  # a number that is written as one
    assert cell(-1.5) == -1.5


@given(text=st.text())
@example(text="a\x1b[31mb\x07\x9b2J\u2028\u202ec\ud800\n")
def test_no_letter_reaches_a_terminal_that_it_would_obey(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert len(shown.splitlines()) <= 1
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in shown)
    assert visible(shown) == shown
    assert visible("日本\u3000語 é 👩\u200d🚀") == "日本\u3000語 é 👩\u200d🚀"
