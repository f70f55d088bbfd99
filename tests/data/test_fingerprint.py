"""What changed in the data since a run began is told by name, and nothing is told where nothing changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.fingerprint import (
    UNREAD,
    Change,
    Stamps,
    changes,
    from_table,
    stamps_of_files,
    to_table,
    token_of,
)
from lookalike.data.formats.disk import Local
from lookalike.data.source import open_source
from tests.data.test_sources import Listed, picture, plant, table

NAMES = [f"{i:02}.png" for i in range(20)]


def stamps(files: dict[str, int]) -> Stamps:
    """Files by name, each of a content by number."""
    sizes = np.array([100 + content % 3 for content in files.values()], np.int64)
    tokens = np.array([token_of(bytes([content])) for content in files.values()], np.uint64)
    return Stamps(list(files), sizes, tokens)


@given(
    before=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 255), min_size=1),
    now=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 255), min_size=1),
)
@settings(max_examples=200, deadline=None)
def test_every_file_is_kept_or_told_once(before: dict[str, int], now: dict[str, int]) -> None:
    found = changes(stamps(before), stamps(now))
    both = before.keys() & now.keys()
    assert set(found.replaced) == {name for name in both if before[name] != now[name]}
    gone, come = [one for one, _ in found.renamed], [other for _, other in found.renamed]
    assert sorted([*found.removed, *gone]) == sorted(before.keys() - now.keys())
    assert sorted([*found.added, *come]) == sorted(now.keys() - before.keys())
    assert all(before[one] == now[other] for one, other in found.renamed)
    assert not {before[name] for name in found.removed} & {now[name] for name in found.added}
    places = [list(now).index(name) for name in before if name in now]
    assert found.reordered == (places != sorted(places))
    assert bool(found) == (list(before.items()) != list(now.items()))


def test_it_says_the_first_few_of_each_kind() -> None:
    assert str(Change(list("abcd"), ["e"], [("f", "g")], [], False)) == (
        "4 added (a, b, c, ...), 1 removed (e), 1 renamed (f -> g)"
    )
    assert str(Change([], [], [], ["a"], True)) == "1 replaced (a)"
    assert str(Change([], [], [], [], True)) == "the same files in another order"
    assert not Change([], [], [], [], False)


def test_a_copy_is_the_same_and_a_file_of_the_same_size_is_another(tmp_path: Path) -> None:
    root = plant(tmp_path / "a", *[f"{c}/{i}.png" for c in "ab" for i in range(5)])
    (root / "a" / "big.jpg").write_bytes(os.urandom(100_000))
    before = open_source(root).stamps()
    shutil.copytree(root, tmp_path / "b", copy_function=shutil.copyfile)  # with new times
    assert not changes(before, open_source(tmp_path / "b").stamps())
    for path, place in (("a/big.jpg", 50_000), ("a/big.jpg", -1), ("b/3.png", -20)):
        content = bytearray((root / path).read_bytes())
        times = os.stat(root / path)
        content[place] ^= 1
        (root / path).write_bytes(content)
        os.utime(root / path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert changes(before, open_source(root).stamps()).replaced == ["a/big.jpg", "b/3.png"]


def test_of_very_many_files_some_are_looked_into_and_always_the_same(tmp_path: Path) -> None:
    root = plant(tmp_path, *NAMES)
    found = stamps_of_files(Local(root).file, NAMES, most=5)
    assert (found.tokens != UNREAD).sum() == 5
    assert (found.sizes > 0).all()
    fewer = stamps_of_files(Local(root).file, NAMES[:-1], most=5)
    assert not changes(found, stamps_of_files(Local(root).file, NAMES, most=5))
    assert len(changes(found, fewer).removed) == 1
    assert not changes(found, fewer).replaced
    assert not changes(
        found, stamps_of_files(Local(root).file, NAMES)
    ).replaced  # what was not looked at then is not compared


def test_files_that_cannot_be_read_are_part_of_what_the_data_was(tmp_path: Path) -> None:
    root = plant(tmp_path, "a.png", "b.png", "c.png")
    source = open_source(root)
    (root / "a.png").unlink()
    (root / "b.png").unlink()
    os.mkfifo(root / "b.png")
    found = source.stamps()
    assert found.sizes.tolist()[:2] == [-1, -1]
    assert found.tokens.tolist()[:2] == [UNREAD, UNREAD]


def test_every_kind_of_source(tmp_path: Path) -> None:
    table(tmp_path / "t.parquet", [picture(i) for i in range(8)])
    before = open_source(tmp_path / "t.parquet").stamps()
    assert before.names == ["t.parquet"]
    table(tmp_path / "t.parquet", [picture(i + (i == 4)) for i in range(8)])
    assert changes(before, open_source(tmp_path / "t.parquet").stamps()).replaced == ["t.parquet"]
    images = torch.zeros(5, 8, 8, dtype=torch.uint8)
    before = open_source(images).stamps()
    images[3, 2, 1] = 7
    assert changes(before, open_source(images).stamps()).replaced == ["#3"]
    two, three = (open_source(Listed([images[0]] * count)).stamps() for count in (2, 3))
    assert changes(two, three).added == ["#2"]


def test_to_a_table_and_back(tmp_path: Path) -> None:
    written = stamps({name: i for i, name in enumerate(["ü", "a\nb", "\\xff", *NAMES])})
    (tmp_path / "data.parquet").write_bytes(to_table(written))
    assert not changes(written, from_table(tmp_path / "data.parquet"))
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    for path in ("data.parquet", "missing.parquet"):
        with pytest.raises(UserError) as caught:
            from_table(tmp_path / path)
        assert caught.value.code == BAD_DATA
