"""Tables of embeddings: as files, whatever the names, and what they say of where they come from."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import lookalike
from lookalike.core.errors import BAD_DATA, USAGE, UserError
from lookalike.data.source import open_source
from lookalike.train.embeddings import embed_data, files_of, place_for, read_embeddings, size_of, write_embeddings
from lookalike.train.fit import weights_digest
from lookalike.train.trained import load
from lookalike.types import Embeddings, Origin

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
ORIGIN = Origin("runs/a", 3, "ab" * 32, "fp32", {"side": 24, "mean": [0.5, 0.4, 0.1]}, "photos", "cd" * 32)


def table_of(paths: list[str], classes: list[str], text: list[str] | None = None, width: int = 3) -> Embeddings:
    noise = np.random.default_rng(0)
    label = noise.integers(-1, max(1, len(classes)), len(paths))
    vectors = noise.normal(size=(len(paths), width)).astype(np.float32)
    return Embeddings(paths, ["all"] * len(paths), label, vectors, tuple(classes), text, "head", ORIGIN)


def same(one: Embeddings, other: Embeddings) -> bool:
    first, second = (
        asdict(table) | {"label": table.label.tolist(), "vectors": table.vectors.tolist()} for table in (one, other)
    )
    return first == second


@settings(max_examples=60, deadline=None)
@given(
    paths=st.lists(WORDS, min_size=1, max_size=5),
    classes=st.lists(WORDS, max_size=3),
    text=st.none() | st.lists(WORDS, min_size=5, max_size=5),
)
@example(paths=["=1+1.png", "-a", "+b", "@c", "\t\n\r\x1b[31m"], classes=["=cmd|' /C calc'!A0", "'"], text=None)
@example(paths=["é", "e\u0301", "\u202egnp.exe", "日本.png", ""], classes=[], text=["", '"', ",", "\n", "= 1"])
def test_names_come_back_from_parquet_and_csv(paths: list[str], classes: list[str], text: list[str] | None) -> None:
    table = table_of(paths, classes, None if text is None else text[: len(paths)])
    named = [table.classes[i] if 0 <= i < len(table.classes) else "" for i in table.label.tolist()]
    with tempfile.TemporaryDirectory() as folder:
        write_embeddings(table, Path(folder) / "a.parquet")
        assert same(read_embeddings(Path(folder) / "a.parquet"), table)
        write_embeddings(table, Path(folder) / "a.csv")
        with (Path(folder) / "a.csv").open(newline="", encoding="utf-8") as file:
            head, *rows = csv.reader(file)
    text_too = ["text"] if text is not None else []
    assert head == ["path", "split", "label", "class", *text_too, *(f"embedding_{i}" for i in range(3))]
    said = [[word.removeprefix("'") if word.startswith("'") else word for word in row] for row in rows]
    assert [row[0] for row in said] == paths
    assert [row[3] for row in said] == named
    assert text is None or [row[4] for row in said] == text[: len(paths)]
    assert not any(row[i].startswith(("=", "+", "-", "@")) for row in rows for i in (0, 3))
    np.testing.assert_array_equal(np.array([row[-3:] for row in rows], np.float32), table.vectors)


def test_half_a_letter_is_an_escape_and_no_crash(tmp_path: Path) -> None:
    table = table_of(["\ud800.png"], ["\udcff"], ["\udfff"])
    write_embeddings(replace(table, label=np.zeros(1, np.int64)), tmp_path / "a.parquet")
    (row,) = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert (row["path"], row["class"], row["text"]) == ("\\ud800.png", "\\udcff", "\\udfff")


def test_npy_holds_the_embeddings_and_the_rows_stand_beside_it(tmp_path: Path) -> None:
    table = table_of(["a", "b", "c"], ["x"], width=5)
    (tmp_path / "a.csv").write_text("precious")
    write_embeddings(table, tmp_path / "new" / "a.NPY")
    vectors = np.load(tmp_path / "new" / "a.NPY", allow_pickle=False)
    np.testing.assert_array_equal(vectors, table.vectors)
    assert vectors.dtype == np.float32
    rows = list(csv.DictReader(io.StringIO((tmp_path / "new" / "a.rows.csv").read_text())))
    assert [row["path"] for row in rows] == table.path
    assert rows[0].keys() == {"path", "split", "label", "class"}
    assert len(list((tmp_path / "new").iterdir())) == 2


@pytest.mark.parametrize("name", ["a.txt", "a", "a.parquet.gz", "a.pkl", ".parquet", "a.csv ", "a.npz"])
def test_another_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"written as \.parquet, \.csv or \.npy") as refused:
        files_of(tmp_path / name)
    assert refused.value.code == USAGE


def test_a_table_of_nothing(tmp_path: Path) -> None:
    empty = table_of([], ["x"], width=4)
    write_embeddings(empty, tmp_path / "a.parquet")
    assert len(read_embeddings(tmp_path / "a.parquet")) == 0


def rewritten(table: Path, **changed: Any) -> pa.Table:
    """The rows of a table with other metadata."""
    held = pq.read_table(table)
    about = json.loads(held.schema.metadata[b"lookalike"])
    return held.replace_schema_metadata({"lookalike": json.dumps(about | changed)})


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 3}, {"version": None}, {"layer": "neck"}, {"classes": 3}, {"origin": 5}, {"origin": {}},
        {"origin": {**asdict(ORIGIN), "step": "many"}}, {"origin": {**asdict(ORIGIN), "preprocessing": 3}},
    ],
)  # fmt: skip
def test_metadata_that_anybody_may_have_written_is_refused_in_a_line(tmp_path: Path, changed: dict[str, Any]) -> None:
    write_embeddings(table_of(["a"], ["x"]), tmp_path / "a.parquet")
    pq.write_table(rewritten(tmp_path / "a.parquet", **changed), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet: neither a run nor a table") as refused:
        read_embeddings(tmp_path / "b.parquet")
    assert refused.value.code == BAD_DATA
    assert "\n" not in str(refused.value)


def test_a_table_that_other_programs_have_written_again(tmp_path: Path) -> None:
    table = table_of(["a", "b"], ["x"])
    write_embeddings(table, tmp_path / "a.parquet")
    held = pq.read_table(tmp_path / "a.parquet")
    lists = held.set_column(4, "embedding", held["embedding"].cast(pa.list_(pa.float64())))
    words = lists.set_column(0, "path", lists["path"].cast(pa.large_string()))
    pq.write_table(words.set_column(1, "split", words["split"].dictionary_encode()), tmp_path / "b.parquet")
    assert same(read_embeddings(tmp_path / "b.parquet"), table)
    for lengths in ([[1.0], [1.0, 2.0]], [[1.0], None]):
        ragged = held.set_column(4, "embedding", pa.array(lengths, pa.list_(pa.float32())))
        pq.write_table(ragged, tmp_path / "c.parquet")
        with pytest.raises(UserError, match="neither a run nor a table"):
            read_embeddings(tmp_path / "c.parquet")


def test_pandas_opens_it_as_it_is(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    write_embeddings(table_of(["a", "b"], ["x"], ["one", "two"]), tmp_path / "a.parquet")
    frame = pandas.read_parquet(tmp_path / "a.parquet")
    assert list(frame.columns) == ["path", "split", "label", "class", "text", "embedding"]
    assert np.stack(frame["embedding"]).shape == (2, 3)
    frame.to_parquet(tmp_path / "b.parquet")
    assert read_embeddings(tmp_path / "b.parquet").text == ["one", "two"]


# Where it comes from


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embeddings") / "run"
    lookalike.pretrain("digits", out, recipe="tiny", steps=1, workers=0, quiet=True, settings={"whiten": True})
    return out


def test_a_table_knows_which_weights_made_it_of_which_data(run: Path, tmp_path: Path) -> None:
    trained = load(run)
    table = lookalike.embed(run, "digits", workers=0)
    assert table.origin is not None
    assert (table.origin.run, table.origin.step, table.origin.precision) == (str(run), 1, "fp32")
    assert table.origin.weights == weights_digest(trained.encoder)
    assert table.origin.data == "digits"
    assert table.origin.data_digest == open_source("digits").stamps().digest()
    view = trained.recipe.pictures.first
    shown = table.origin.preprocessing
    assert (shown["side"], shown["mean"], shown["std"]) == (view.size, list(view.mean), list(view.std))
    assert table.classes == tuple(open_source("digits").classes)
    write_embeddings(table, tmp_path / "a.parquet")
    again = read_embeddings(tmp_path / "a.parquet")
    assert again.origin == table.origin
    assert pq.read_table(tmp_path / "a.parquet")["class"].to_pylist() == [table.classes[i] for i in table.label]


def test_another_whitening_is_another_identity_and_other_data_another_digest(run: Path) -> None:
    trained, pictures = load(run), torch.rand(8, 3, 8, 8)
    first = embed_data(trained, pictures, workers=0).origin
    assert trained.encoder.whitening is not None
    trained.encoder.whitening.mean += 1
    pictures[0] = 0
    second = embed_data(trained, pictures, workers=0).origin
    assert first is not None
    assert second is not None
    assert not first.compares_with(second)
    assert first.data_digest != second.data_digest
    assert first.compares_with(replace(first, run="elsewhere", data="others", step=7))
    assert not first.compares_with(replace(first, preprocessing=first.preprocessing | {"side": 1}))


def test_the_size_is_known_before(run: Path) -> None:
    trained = load(run)
    place = place_for(trained, "digits")
    for layer in ("backbone", "head"):
        vectors = embed_data(trained, "digits", layer, workers=0).vectors  # type: ignore[arg-type]
        assert size_of(trained, place, Path("a.parquet"), layer) == vectors.nbytes  # type: ignore[arg-type]
