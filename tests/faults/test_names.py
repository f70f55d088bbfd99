"""Names are data: none of them moves a cursor, is computed by a spreadsheet, or is lost where letters are ASCII's."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lookalike.core.files import true_cell, write_csv
from lookalike.data.source import open_source
from lookalike.train.screen import Screen
from tests.support.forks import Ended, Forks

pytestmark = pytest.mark.any_precision

COMPUTED = "=+-@\t\r\n＝＋－＠"
NAMES = [
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "'quoted",
    "\x1b[2Jred\x07",
    "new\nline",
    "\u202egnp",
    "ключ",
    "日本 ±→▁",
]
RAW = os.fsdecode(b"caf\xe9")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}
TINY = ("--recipe", "tiny", "--steps=1", "--workers", "0", "--batch", "8", "--model.widths", "4,8")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, one with an escape sequence for a name, of pictures whose names are anything."""
    root, noise = tmp_path_factory.mktemp("names"), np.random.default_rng(0)
    for i, name in enumerate([*NAMES, RAW, *map(str, range(9))]):
        folder = root / ("ключ\x1b[31m", "=cmd")[i % 2]
        folder.mkdir(exist_ok=True)
        pixels = (noise.integers(0, 100, (16, 16, 3)) + 150 * (i % 2)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name.replace('/', '|')}.png")
    (root / "=cmd" / "broken\x1b[1m.png").write_bytes(b"<html>")
    return root


@pytest.fixture(scope="module", params=["ascii", *(["utf-8"] if os.environ.get("LOOKALIKE_FAULTS") == "all" else [])])
def server(request: pytest.FixtureRequest) -> Iterator[Forks]:
    """The command line under a locale of its own."""
    with Forks(**(ASCII if request.param == "ascii" else {"PYTHONIOENCODING": "utf-8"})) as forks:
        yield forks


def raw(text: str) -> list[str]:
    return [
        letter
        for letter in text
        if letter != "\n" and (letter < " " or "\x7f" <= letter < "\xa0" or letter in "\u202e")
    ]


def commands(pictures: Path, out: Path) -> dict[str, tuple[object, ...]]:
    """Each verb, with names that are data wherever it takes one."""
    run, table, odd = out / "рун\x1b[1m", out / "=t.parquet", out / "é\n→"
    query = pictures / "ключ\x1b[31m" / "=1+1.png"
    return {
        "pretrain": ("pretrain", pictures, "--out", run, "--max-bad", "0.5", *TINY),
        "supervised": ("supervised", pictures, "--out", out / "labelled", "--max-bad", "0.5", *TINY),
        "longer": (
            "pretrain",
            pictures,
            "--out",
            run,
            "--max-bad",
            "0.5",
            *TINY[:2],
            *TINY[3:],
            "--steps=2",
            "--extend",
        ),
        "knn": ("evaluate", "knn", run, pictures, "--json", odd / "a.json", "--workers", 0),
        "compare": ("compare", run, "--on", pictures, "--task", "knn", "--trials", 2, "--out", odd / "compare"),
        "embed": ("embed", run, pictures, "--out", table, "--workers", 0),
        "embed csv": ("embed", run, pictures, "--out", out / "=t.csv", "--workers", 0),
        "search": (
            "search",
            table,
            query,
            "--json",
            odd / "hits.json",
            "--page",
            odd / "hits.html",
            "--data",
            pictures,
        ),
        "export": ("export", run, "--to", "onnx", "--out", out / "ü"),
        "prepare": ("prepare", pictures, "--out", out / "кэш", "--workers", 0),
        "doctor": ("doctor", pictures, "--quick", "--out", odd / "doctor", "--workers", 0, "--json", odd / "d.json"),
        "doctor of a run": ("doctor", run, "--workers", 0),
        "preview": ("preview", pictures, "tiny", "--out", odd / "p.png", "--rows", 2),
    }


def test_no_name_is_obeyed_and_no_letter_is_too_much(server: Forks, pictures: Path, tmp_path: Path) -> None:
    ended = {name: server.run(words) for name, words in commands(pictures, tmp_path).items()}
    assert {name: (end.code, end.errors) for name, end in ended.items() if end.code != 0} == {}
    assert {name: raw(end.printed + end.errors) for name, end in ended.items() if raw(end.printed + end.errors)} == {}
    logs = [path.read_text("utf-8", "surrogateescape") for path in tmp_path.rglob("train.log")]
    assert logs
    assert [log for log in logs if raw(log)] == []
    tables = list(tmp_path.rglob("*.csv"))
    assert {path.name for path in tables} >= {"bad_files.csv", "=t.csv"}
    for path in tables:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            for row in csv.reader(file):
                assert [cell for cell in row if cell.startswith(tuple(COMPUTED)) and not is_number(cell)] == []


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_refusals_in_ascii(pictures: Path, tmp_path: Path, server: Forks) -> None:
    for words in (
        ("pretrain", tmp_path / "нет\x1b[1m", "--out", tmp_path / "a"),
        ("evaluate", "knn", "timm:й", pictures),
        ("pretrain", pictures, "--out", tmp_path / "b", "--recipe", "й\x1b[1m"),
        ("pretrain", pictures, "--out", tmp_path / "b", "--й", "1"),
        ("embed", tmp_path, pictures, "--out", "a", "--layer", "\x1b[2Jй"),
        ("--help",),
    ):
        ended: Ended = server.run(words)
        assert ended.code == (0 if words == ("--help",) else ended.code)
        assert ended.code in (0, 2, 65)
        assert raw(ended.errors + ended.printed) == []
        assert ended.errors.count("\n") == (words != ("--help",))


def test_our_own_table_gives_the_true_names_back(pictures: Path, tmp_path: Path, server: Forks) -> None:
    assert server.run(("pretrain", pictures, "--out", tmp_path / "run", "--max-bad", "0.5", *TINY)).code == 0
    for suffix in ("csv", "parquet"):
        words = ("embed", tmp_path / "run", pictures, "--out", tmp_path / f"t.{suffix}", "--workers", 0)
        assert server.run(words).code == 0
    known = pq.read_table(tmp_path / "t.parquet")["path"].to_pylist()
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [true_cell(row["path"]) for row in rows] == known
    assert all(is_number(row["embedding_0"]) for row in rows)


def test_a_list_that_we_wrote_opens_the_same_files(tmp_path: Path) -> None:
    names = [f"{name}.png" for name in ("=1+1", "-2", "@x", "'quoted", "''x", "+y", "plain")]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    write_csv(tmp_path / "list.csv", ("path", "label"), [(name, f"={i % 2}") for i, name in enumerate(names)])
    source = open_source(tmp_path / "list.csv")
    assert list(source.paths) == names
    assert list(source.classes) == ["=0", "=1"]


@given(st.text(st.characters(codec="utf-8")))
def test_a_cell_is_never_computed_and_never_lost(tmp_path_factory: pytest.TempPathFactory, word: str) -> None:
    path = tmp_path_factory.getbasetemp() / "cells.csv"
    write_csv(path, ("path", "number"), [(word, -1.5)])
    with path.open(encoding="utf-8", newline="") as file:
        _, (cell, number) = csv.reader(file)
    assert not cell.startswith(tuple(COMPUTED))
    assert true_cell(cell) == word
    assert number == "-1.5"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_the_live_line_shows_names_and_obeys_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with Screen("title") as screen:
        screen.work("model \x1b]0;owned\x07: embedding", 1, 2)
        screen.say("said \x1b[2J\x9b31m")
    written = terminal.getvalue()
    assert "\x1b]0;" not in written
    assert "\x07" not in written
    assert "\x1b[2J" not in written
    assert "\x9b" not in written
    assert "said \\x1b[2J\\x9b31m" in written
