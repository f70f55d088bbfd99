"""Very many rows: what is kept of each, and how a few of them are chosen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lookalike.core.devices import refuse_unheld
from lookalike.core.errors import UserError
from lookalike.core.seeding import uniforms
from lookalike.curate import survey
from lookalike.curate.doctor import examine
from lookalike.data import order
from lookalike.data.example import Rows, in_sequence, joined
from lookalike.data.formats import tables
from lookalike.data.formats.files import Chosen, Numbered
from lookalike.data.order import some_rows
from lookalike.data.source import open_source, splits_of

ROWS, GROUP = 1_000_000, 50_000
MEASURE = """
import resource, sys
from lookalike.data.source import open_source
few, *many = sys.argv[1:]
open_source(few)  # imports and whatever else the first table needs
kept = []
for file in many:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept.append(open_source(file))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / len(kept[-1]), kept[-1].paths[-1])
"""


def table(path: Path, rows: int, **more: np.ndarray) -> None:
    """Rows of the same few bytes, in row groups; ``more`` are the other columns of one group."""
    images = pa.array([b"one", b"two"], pa.binary()).take(pa.array(np.arange(min(GROUP, rows)) % 2))
    group = pa.table({"image": images, **{name: values[: len(images)] for name, values in more.items()}})
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, group.schema) as file:
        for _ in range(0, rows, GROUP):
            file.write_table(group)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is counted in KB on Linux")
def test_a_row_of_a_table_takes_a_few_bytes_of_memory(tmp_path: Path) -> None:
    table(tmp_path / "few.parquet", 10)
    table(tmp_path / "many.parquet", ROWS)
    table(tmp_path / "labelled.parquet", ROWS, label=np.arange(GROUP) % 10)
    files = [str(tmp_path / f"{name}.parquet") for name in ("few", "many", "labelled")]
    done = subprocess.run([sys.executable, "-c", MEASURE, *files], capture_output=True, text=True, check=True)
    for name, line in zip(("many", "labelled"), done.stdout.splitlines(), strict=True):
        grown, last = line.split()
        assert float(grown) < 40
        assert last == f"{name}.parquet#{ROWS - 1}"


def test_the_rows_of_a_split_that_follow_each_other_are_a_range(tmp_path: Path) -> None:
    for name, rows in (("train-0", 3), ("train-1", 4), ("test-0", 2)):
        table(tmp_path / f"{name}.parquet", rows, label=np.arange(9) % 2)
    parts = splits_of(tmp_path)
    assert {name: type(part._numbers) for name, part in parts.items()} == {"train": range, "test": range}
    assert parts["train"].paths == [f"train-{file}.parquet#{row}" for file, n in ((0, 3), (1, 4)) for row in range(n)]
    assert parts["train"].labels.tolist() == [0, 1, 0, 0, 1, 0, 1]
    assert [list(part.starts) for part in parts.values()] == [[0, 3, 7], [0, 2]]
    assert open_source(tmp_path, "all").labels.tolist() == [0, 1, 0, 1, 0, 0, 1, 0, 1]


@pytest.mark.parametrize("rows", [range(2, 9), range(0), range(12)])
def test_a_range_of_rows_is_the_same_as_their_numbers(tmp_path: Path, rows: range) -> None:
    for name in "abc":
        table(tmp_path / f"{name}.parquet", 4, label=np.arange(4))
    source = open_source(tmp_path)
    one, other = Rows(source, rows), Rows(source, torch.tensor(list(rows), dtype=torch.int64))
    apart = Rows(source, [row for row in range(12) if row in rows or row == 11])
    assert list(one.paths) == list(other.paths) == [source.paths[row] for row in rows]
    assert one.labels.tolist() == other.labels.tolist() == [source.labels[row] for row in rows]
    assert one.starts == other.starts
    assert len(one) == len(rows)
    assert apart.labels.tolist() == [int(source.labels[row]) for row in range(12) if row in rows or row == 11]


def test_rows_are_joined_in_order() -> None:
    assert joined([range(5, 7), range(2, 5), range(3, 3)]) == range(2, 7)
    assert list(joined([range(5, 7), range(1, 3)])) == [1, 2, 5, 6]
    assert list(joined([in_sequence([4, 1]), range(2, 3)])) == [1, 2, 4]
    assert joined([]) == range(0)


def test_paths_that_are_computed_are_a_sequence() -> None:
    paths = Numbered(["a", "b", "c"], [2, 0, 1])
    assert paths == ["a#0", "a#1", "c#0"] == list(paths)
    assert paths[-1] == "c#0"
    assert paths[1:] == ["a#1", "c#0"]
    assert Chosen(paths, [2, 0]) == ["c#0", "a#0"]
    with pytest.raises(IndexError):
        paths[3]


def test_stored_paths_are_left_where_there_are_very_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"bytes": b"", "path": f"{number}.png"} for number in range(6)]
    pq.write_table(pa.table({"image": rows, "label": range(6)}), tmp_path / "a.parquet")
    assert open_source(tmp_path).paths[5] == "5.png"
    monkeypatch.setattr(tables, "_MOST", 5)
    source = open_source(tmp_path)
    assert source.paths[5] == "a.parquet#5"
    assert source.labels.tolist() == [-1] * 6
    assert "more than 5 different values of label are no classes" in source.unlisted["a.parquet"]


def test_some_rows_are_those_of_a_draw_of_each_up_to_a_million() -> None:
    for draw in (2, 3, 4, 5):
        rows = torch.arange(5000)
        assert torch.equal(some_rows(5000, 70, draw), rows[uniforms(0, 0, rows, draw, 1)[:, 0].argsort()][:70])


def test_some_rows_of_more_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 10**15  # of which nothing could be made for each
    few, other = some_rows(most, 5000, 2), some_rows(most, 5000, 3)
    assert len(set(few.tolist())) == 5000
    assert 0 <= int(few.min()) <= int(few.max()) < most
    assert abs(float(few.double().mean()) / most - 0.5) < 0.02
    assert not torch.equal(few, other)
    assert torch.equal(some_rows(most, 10, 2), few[:10])
    monkeypatch.setattr(order, "_MANY", 10)
    assert some_rows(100, 200, 2).sort().values.tolist() == list(range(100))


def test_what_memory_cannot_hold_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_unheld("a few bytes", 1000, "")
    table(tmp_path / "a.parquet", 9)
    monkeypatch.setattr(survey, "_ROW", 1 << 60)
    with pytest.raises(UserError, match=r"the looks of 9 pictures take .* GB of memory: name some of the files"):
        examine(tmp_path, None, 0)
