"""The index of a table: bound to it, disposable, goes on where it was killed, and exact in what it returns."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import lookalike
from lookalike.core.errors import UserError
from lookalike.core.progress import silent
from lookalike.curate import index as indexing
from lookalike.curate.index import Centres, Codes, index_of
from lookalike.curate.on_disk import OnDisk
from lookalike.curate.search import exact
from lookalike.train.embeddings import identity_of, read_embeddings, write_embeddings
from lookalike.types import Embeddings

ROWS, WIDTH = 5000, 16


def clustered(seed: int, rows: int = ROWS) -> np.ndarray:
    """Unit rows around 100 centres."""
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(100, WIDTH))
    noisy = centres[chance.integers(0, 100, rows)] + 0.5 * chance.normal(size=(rows, WIDTH))
    return (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)


def made(path: Path, seed: int = 1) -> Path:
    vectors = clustered(seed)
    names = [f"{i:05}.png" for i in range(len(vectors))]
    split = ["train" if i % 50 else "test" for i in range(len(vectors))]
    write_embeddings(Embeddings(names, split, np.arange(len(vectors)) % 7, vectors, tuple("abcdefg")), path)
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = made(tmp_path_factory.mktemp("index") / "a.parquet")
    lookalike.search(path, ["00000.png"], 1, index=True)
    return path


@pytest.fixture
def copied(table: Path, tmp_path: Path) -> Path:
    shutil.copytree(table.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "a.parquet"


def test_it_finds_what_a_comparison_with_every_row_finds(table: Path) -> None:
    held, queries = read_embeddings(table), [f"{i:05}.png" for i in range(0, ROWS, 50)]
    by_index = lookalike.search(table, queries, 10, index=True)
    by_all = lookalike.search(table, queries, 10, index=False)
    assert by_all == lookalike.search(table, queries, 10)  # so few rows need none
    found = [len({hit.path for hit in one} & {hit.path for hit in all_}) / 10 for one, all_ in zip(by_index, by_all)]
    assert np.mean(found) >= 0.93
    rows = {path: row for row, path in enumerate(held.path)}
    for query, hits in zip(queries, by_index):
        cosines = held.vectors[[rows[hit.path] for hit in hits]] @ held.vectors[rows[query]]
        np.testing.assert_allclose([hit.cosine for hit in hits], cosines, atol=1e-6)  # exact, and in their order
        assert sorted(hits, key=lambda hit: -hit.cosine) == hits
        assert query not in {hit.path for hit in hits}
    about = json.loads((table.parent / "a.parquet.index" / "index.json").read_text())
    assert about["recall"] >= 0.95


def test_a_condition_selects_before_the_index_is_asked(table: Path) -> None:
    for condition in ("split = 'test'", "split = 'train' and class in ('a', 'b')"):
        hits = lookalike.search(table, ["00001.png"], 20, index=True, where=condition)[0]
        every = lookalike.search(table, ["00001.png"], 20, index=False, where=condition)[0]
        assert len(hits) == len(every) == 20
        assert len({hit.path for hit in hits} & {hit.path for hit in every}) >= 18
        assert {hit.split for hit in hits} == {hit.split for hit in every}


def test_it_says_its_recall_and_is_built_once_for_a_table(copied: Path, tmp_path: Path) -> None:
    said: list[str] = []
    index_of(copied, silent, said.append)
    assert said == []
    before = identity_of(copied)
    made(copied, seed=2)
    assert identity_of(copied) != before
    index_of(copied, silent, said.append)
    assert said[0] == f"{copied}.index is of another table: built anew"
    assert "recall@10" in said[1]
    assert "against exact search on 200 queries" in said[1]
    (copied.parent / "a.parquet.index" / "codes.npy").write_bytes(b"no")
    with pytest.raises(UserError, match="remove it, and it is built again"):
        index_of(copied, silent, said.append)
    shutil.rmtree(copied.parent / "a.parquet.index")
    index_of(copied, silent, said.append)
    assert len(said) == 3


def test_it_goes_on_where_it_was(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "_BLOCK", 2000)
    folder = copied.parent / "a.parquet.index"

    def files() -> dict[str, bytes]:
        return {name: (folder / name).read_bytes() for name in os.listdir(folder) if name != "run.lock"}

    shutil.rmtree(folder)
    index_of(copied, silent, print)
    whole = files()
    for what, done in (("centres", 20000), ("lists", 4000), ("codes", 4000), ("recall", 2000)):
        shutil.rmtree(folder)
        with pytest.raises(KeyboardInterrupt):
            index_of(copied, interrupts(what, done), print)
        began: list[str] = []
        index_of(copied, lambda word, *_: began.append(word), print)  # noqa: B023
        assert what == "centres" or "centres" not in began
        assert files() == whole


def test_a_row_is_in_the_list_of_its_nearest_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(500, WIDTH, generator=chance), dim=1)
    leaves = torch.nn.functional.normalize(torch.randn(7, 5, WIDTH, generator=chance), dim=2)
    centres = Centres(torch.nn.functional.normalize(leaves.mean(1), dim=1), leaves)
    monkeypatch.setattr(indexing, "_TRIED", 7)  # in all groups
    every = (rows @ leaves.flatten(0, 1).T).argmax(1)
    assert torch.equal(centres.nearest(rows), every)
    monkeypatch.setattr(indexing, "_TRIED", 1)
    alone = centres.nearest(rows) // 5
    assert torch.equal(alone, (rows @ centres.tops.T).argmax(1))


@pytest.mark.parametrize("right", [None, False])
def test_eight_bits_keep_products_to_a_few_hundredths(right: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whole numbers, and by floats where a processor's whole numbers overflow."""
    if right is not None:
        monkeypatch.setattr(indexing, "_eight_bits_are_right", lambda: right)
    rows, query = clustered(1, 300), clustered(2, 1)
    coded = torch.from_numpy(Codes.of(query).values.T.copy())
    spans = [slice(10, 12), slice(200, 300)]
    kept = np.concatenate([rows[span] for span in spans]) @ query[0]
    scores = Codes.of(rows).scores(coded, spans) * Codes.of(query).scales
    # Half a step of at most 1/127 at each of 16 places of a unit row, on both sides.
    np.testing.assert_allclose(scores, kept, atol=2 * 16**0.5 / 254)


def interrupts(what: str, count: int) -> Callable[[str, int, int], None]:
    def told(now: str, done: int, total: int) -> None:
        if now == what and done >= count:
            raise KeyboardInterrupt

    return told


def test_rows_are_read_where_they_lie_or_decoded_where_they_do_not_lie_plainly(table: Path, tmp_path: Path) -> None:
    vectors, numbers = read_embeddings(table).vectors, np.array([4999, 0, 2000, 1999, 2000])
    plain = OnDisk(table)
    assert plain.plain
    assert sum(len(rows) for _, rows in plain.groups()) == ROWS
    assert plain.plain  # the groups are the same as decoded
    np.testing.assert_array_equal(plain.rows(numbers), vectors[numbers])
    held = pq.read_table(table)
    lists = held.set_column(4, "embedding", held["embedding"].cast(pa.list_(pa.float64())))
    small_pages = {"data_page_size": 5000, "compression": "none", "use_dictionary": False}
    for other, how in ((held, {"compression": "zstd"}), (lists, {}), (held, small_pages)):
        pq.write_table(other, tmp_path / "b.parquet", row_group_size=700, **how)
        mapped = OnDisk(tmp_path / "b.parquet")
        for start, rows in mapped.groups():
            np.testing.assert_array_equal(rows, vectors[start : start + len(rows)])
        assert not mapped.plain
        np.testing.assert_array_equal(mapped.rows(numbers), vectors[numbers])


def test_a_table_that_others_wrote_is_told_by_all_its_bytes(table: Path, tmp_path: Path) -> None:
    pq.write_table(pq.read_table(table).replace_schema_metadata(None), tmp_path / "b.parquet")
    before = identity_of(tmp_path / "b.parquet")
    data = bytearray((tmp_path / "b.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "b.parquet").write_bytes(data)
    assert identity_of(tmp_path / "b.parquet") != before


def test_of_equal_rows_the_earlier_leads() -> None:
    vectors = torch.eye(4).repeat(5000, 1)
    for count in (1, 9):  # one by one, and in blocks
        for values, rows in exact(vectors, torch.eye(4)[:1].repeat(count, 1), [[8]] * count, 10):
            assert rows.tolist() == [0, 4, *range(12, 44, 4)]
            assert set(values.tolist()) == {1.0}
        for _, rows in exact(vectors, torch.eye(4)[:1].repeat(count, 1), [[0]] * count, 10, torch.arange(20000) < 6):
            assert rows.tolist() == [4, 1, 2, 3, 5]


def test_blocks_find_what_a_sort_of_all_finds() -> None:
    vectors = torch.from_numpy(clustered(3, 20_000))
    queries, own = vectors[:50], [[row, row + 9000] for row in range(50)]
    mask = torch.arange(len(vectors)) % 3 > 0
    for top in (1, 10, 9000, 30_000):
        for some, chosen in ((queries, None), (queries, mask), (queries[:2], mask)):
            for number, (values, rows) in enumerate(exact(vectors, some, own, top, chosen)):
                cosines = vectors @ some[number]
                cosines[own[number]] = -torch.inf
                cosines = cosines if chosen is None else cosines.masked_fill(~chosen, -torch.inf)
                truth = cosines.sort(descending=True).values[:top]
                truth = truth[truth > -torch.inf]
                torch.testing.assert_close(values, truth, atol=1e-6, rtol=0)
                torch.testing.assert_close(cosines[rows], truth, atol=1e-6, rtol=0)
                assert len(set(rows.tolist())) == len(truth)
