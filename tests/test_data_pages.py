"""Pages of parquet are read one by one and hold what pyarrow reads, however the file was written."""

from __future__ import annotations

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
from lookalike.data.formats.columns import Columns
from lookalike.data.formats.disk import Local
from lookalike.data.formats.parquet import ParquetFile, Recent
from lookalike.data.image.decode import Unreadable
from lookalike.data.source import open_source
from tests.packs import IMAGE, pictures

FLAT, NESTED = Columns("image", False, False, None, None), Columns("image", True, True, None, None)
WAYS = st.fixed_dictionaries(
    {
        "compression": st.sampled_from(["NONE", "SNAPPY", "GZIP", "ZSTD", "BROTLI", "LZ4"]),
        "use_dictionary": st.booleans(),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "data_page_size": st.sampled_from([1, 200, 4000, 1 << 20]),
        "dictionary_pagesize_limit": st.sampled_from([1, 300, 1 << 20]),
        "write_batch_size": st.sampled_from([1, 3, 1024]),
        "row_group_size": st.integers(1, 60),
    }
)


def read(path: Path, columns: Columns, recent: Recent) -> list[bytes | None]:
    file = ParquetFile(Local(path.parent), path.name, recent)
    return [file.picture(columns, row) for row in reversed(range(file.rows))][::-1]


@given(st.lists(st.none() | st.binary(max_size=90), min_size=1, max_size=70), st.booleans(), st.booleans(), WAYS)
@settings(max_examples=150, deadline=None)
def test_as_pyarrow_reads_it(
    tmp_path_factory: pytest.TempPathFactory, given: list[Any], nested: bool, encoded: bool, ways: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "pages.parquet"
    if encoded and not ways["use_dictionary"]:
        ways["column_encoding"] = {"image.bytes" if nested else "image": "DELTA_LENGTH_BYTE_ARRAY"}
    images = [None if data == b"none" else {"bytes": data, "path": "p"} for data in given] if nested else given
    pq.write_table(pa.table({"image": pa.array(images, IMAGE if nested else pa.binary())}), path, **ways)
    assert read(path, NESTED if nested else FLAT, Recent()) == given
    assert read(path, NESTED if nested else FLAT, Recent(keep=100)) == given


def test_values_that_are_always_there(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("image", pa.binary(), nullable=False)])
    given = [bytes([i]) * i for i in range(50)]
    for version in ("1.0", "2.0"):
        pq.write_table(pa.table({"image": given}, schema), tmp_path / "a.parquet", data_page_version=version)
        assert read(tmp_path / "a.parquet", FLAT, Recent()) == given


class Counted(Local):
    """A disk that counts the bytes of pages."""

    spans: list[int] = []  # noqa: RUF012

    def span(self, path: str, start: int, length: int) -> bytes:
        self.spans.append(length)
        return super().span(path, start, length)


@pytest.mark.parametrize("dictionary", [True, False])
def test_memory_and_reading_do_not_grow_with_the_row_group(tmp_path: Path, dictionary: bool) -> None:
    noise = random.Random(0)
    given = [noise.randbytes(2000) for _ in range(6000)]
    pq.write_table(pa.table({"image": given}), tmp_path / "a.parquet", use_dictionary=dictionary)  # one group: 12 MB
    page = 1024 * 2100  # pyarrow looks at the size of a page every 1,024 rows
    recent = Recent(keep=2 * page)
    file = ParquetFile(Counted(tmp_path), "a.parquet", recent)
    for row in (4500, 3, 2700, 5999, 0, 4500):
        Counted.spans.clear()
        assert file.picture(FLAT, row) == given[row]
        assert sum(Counted.spans) < 2 * page  # one, and the dictionary
        assert 0 < recent.held <= 2 * page


def test_a_large_page_that_its_codec_made_larger(tmp_path: Path) -> None:
    given = [random.Random(i).randbytes(32_000) for i in range(1030)]
    pq.write_table(pa.table({"image": given}), tmp_path / "a.parquet", compression="SNAPPY")
    file = ParquetFile(Local(tmp_path), "a.parquet", Recent())
    assert [file.picture(FLAT, row) == given[row] for row in (0, 1023, 1024, 1029)] == [True] * 4


@given(st.integers(0, 2**32), st.integers(1, 40), WAYS)
@settings(max_examples=80, deadline=None)
def test_damage_makes_bad_rows(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, ways: dict[str, Any]
) -> None:
    chance, path = random.Random(seed), tmp_path_factory.getbasetemp() / "damaged.parquet"
    pq.write_table(pa.table({"image": [picture.data for picture in pictures(9, 8)]}), path, **ways)
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for _ in range(count):
        data[chance.randrange(4, footer)] = chance.randrange(256)  # what the footer says is read by pyarrow
    path.write_bytes(data)
    with suppress(UserError):
        store: Any = open_source(path)
        assert len(store) == 9  # the footer is whole
        for row in range(len(store)):
            with suppress(Unreadable):  # any other exception is a failure
                assert isinstance(store.store.read(row), bytes)
