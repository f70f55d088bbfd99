"""Parquet is read by row groups, of which those that were read lately are kept; a damaged file makes bad rows."""

from __future__ import annotations

import pickle
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.core.errors import UserError
from lookalike.data.decode import Unreadable
from lookalike.data.formats import tables
from lookalike.data.formats.disk import Local
from lookalike.data.formats.tables import ParquetFile, PictureColumns, RowGroups
from lookalike.data.source import open_source
from tests.support.packs import IMAGE, pictures

FLAT, NESTED = PictureColumns("image", False, False, None, None), PictureColumns("image", True, True, None, None)


@pytest.mark.parametrize("nested", [True, False])
def test_rows_in_any_order_are_those_that_were_written(tmp_path: Path, nested: bool) -> None:
    wanted = [None if row % 7 == 3 else bytes([row]) * row for row in range(50)]
    images = [{"bytes": data, "path": "p"} for data in wanted] if nested else wanted
    table = pa.table({"image": pa.array(images, IMAGE if nested else pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=12)
    columns, order = NESTED if nested else FLAT, random.Random(0).sample(range(50), 50)
    for keep in (1 << 20, 100):
        file = ParquetFile(Local(tmp_path), "a.parquet", RowGroups(keep))
        assert file.starts == [0, 12, 24, 36, 48, 50]
        for rows in (range(50), order):
            assert [file.picture(columns, row) for row in rows] == [wanted[row] for row in rows]


class Counted(Local):
    """A disk that counts how often a file is opened."""

    opened: list[str] = []  # noqa: RUF012

    def file(self, path: str) -> Any:
        self.opened.append(path)
        return super().file(path)


def test_groups_are_read_once_as_far_as_memory_allows(tmp_path: Path) -> None:
    noise = random.Random(0)
    wanted = [noise.randbytes(1000) for _ in range(60)]
    pq.write_table(pa.table({"image": wanted}), tmp_path / "a.parquet", row_group_size=10)
    for keep, reads in ((1 << 20, 6), (25_000, 12)):
        groups = RowGroups(keep)
        file = ParquetFile(Counted(tmp_path), "a.parquet", groups)
        Counted.opened.clear()
        for _ in range(2):
            assert [file.picture(FLAT, row) for row in range(60)] == wanted
        assert len(Counted.opened) == reads
        assert 0 < groups.nbytes <= keep
        assert pickle.loads(pickle.dumps(groups)).nbytes == 0  # a copy in another process begins empty


def test_large_row_groups_are_advised_against(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"image": [picture.data for picture in pictures(9, 8)]}), tmp_path / "a.parquet")
    open_source(tmp_path)  # all of it fits into memory: nothing is said, and a warning would be an error
    monkeypatch.setattr(tables, "_KEEP", 100)
    monkeypatch.setattr(tables, "_SLOW", 100)
    with pytest.warns(UserWarning, match="lookalike prepare"):
        open_source(tmp_path)


@given(st.integers(0, 2**32), st.integers(1, 40), st.sampled_from(["NONE", "SNAPPY", "ZSTD"]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_damage_makes_bad_rows(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, compression: str, dictionary: bool
) -> None:
    chance, path = random.Random(seed), tmp_path_factory.getbasetemp() / "damaged.parquet"
    table = pa.table({"image": [picture.data for picture in pictures(9, 8)]})
    pq.write_table(table, path, compression=compression, use_dictionary=dictionary, row_group_size=4)
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for _ in range(count):
        data[chance.randrange(4, footer)] = chance.randrange(256)  # what the footer says is read by pyarrow
    path.write_bytes(data)
    with suppress(UserError):
        source: Any = open_source(path)
        assert len(source) == 9  # the footer is whole
        for row in range(len(source)):
            with suppress(Unreadable):  # any other exception is a failure
                assert isinstance(source.read(row), bytes)
