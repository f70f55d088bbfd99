"""Search: every row is compared, nearest first, by what a run encodes of pictures and sentences."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import lookalike
from lookalike.curate import search
from lookalike.train.embeddings import embed_data, read_embeddings, write_embeddings
from lookalike.train.trained import load
from tests.cli.test_cli import refused
from tests.conftest import Said
from tests.invariants.test_captions import album
from tests.invariants.test_captions import command as captioned
from tests.report.test_report import Checked

Say = Callable[..., Said]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 pictures of noise around a colour each."""
    folder, noise = tmp_path_factory.mktemp("search") / "photos", np.random.default_rng(0)
    for i in range(20):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        pixels = noise.normal(noise.uniform(40, 210, 3), 30, (16, 16, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[i % 2] / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def run(photos: Path) -> Path:
    """A run on them, and photos.parquet beside it."""
    out = photos.parent / "run"
    lookalike.pretrain(str(photos), out, recipe="tiny", steps=3, workers=0, quiet=True)
    return out


@pytest.fixture(scope="module")
def table(photos: Path, run: Path) -> Path:
    path = photos.parent / "photos.parquet"
    write_embeddings(embed_data(load(run), str(photos), workers=0), path)
    return path


def without_origin(table: Path, out: Path) -> Path:
    """The table as versions of before wrote it."""
    held = pq.read_table(table).drop_columns(["class"])
    pq.write_table(held.replace_schema_metadata({"lookalike.layer": "backbone"}), out)
    return out


def test_every_row_is_compared_and_a_query_is_not_its_own_hit(table: Path) -> None:
    held = read_embeddings(table)
    assert held.layer == "backbone"
    found = lookalike.search(table, held.path[:3], top=30)
    for row, hits in enumerate(found):
        cosines = held.vectors @ held.vectors[row]
        order = [place for place in np.argsort(-cosines, kind="stable") if place != row]
        assert [hit.path for hit in hits] == [held.path[place] for place in order]
        np.testing.assert_allclose([hit.cosine for hit in hits], cosines[order], atol=1e-6)
        assert all(hit.label == held.label[held.path.index(hit.path)] for hit in hits)


def test_a_picture_that_is_not_in_the_table_is_encoded_as_those_in_it_were(
    say: Say, photos: Path, run: Path, table: Path, tmp_path: Path
) -> None:
    shutil.copy(photos / "a" / "04.png", copy := tmp_path / "copy.png")
    code, out, _ = say("search", table, copy, "a/04.png", "--run", run, "--top", 3, "--json", tmp_path / "found.json")
    assert code == 0
    new, known = json.loads((tmp_path / "found.json").read_text())["found"]
    assert (new["hits"][0]["path"], len(new["hits"])) == ("a/04.png", 3)
    assert new["hits"][0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert [hit["path"] for hit in known["hits"][:2]] == [hit["path"] for hit in new["hits"][1:]]
    assert "  1.0000  a/04.png" in out
    again = lookalike.search(run, [str(copy)], top=3)[0]  # the run embeds its own data
    assert [hit.path for hit in again] == [hit["path"] for hit in new["hits"]]


def test_the_page_shows_what_was_found(say: Say, photos: Path, run: Path, table: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "a" / "04.png", copy := tmp_path / "<b>copy.png")
    (data := tmp_path / "photos").mkdir()
    shutil.copytree(photos, data, dirs_exist_ok=True)
    near = [hit.path for hit in lookalike.search(table, ["b/05.png"], 3)[0]]
    (data / near[1]).write_bytes(b"broken since then")
    command = ("search", table, "b/05.png", copy, "--top", 3, "--page", tmp_path / "found.html")
    assert say(*command, "--run", run, "--data", data)[0] == 0
    page = Checked((tmp_path / "found.html").read_text())
    shown = [value for name, value in page.attributes if name == "alt"]
    assert shown[:3] == ["b/05.png", near[0], near[2]]
    assert shown[3:5] == [str(copy), "a/04.png"]
    assert near[1] in " ".join(page.text)  # said, though it cannot be shown
    first = next(value for name, value in page.attributes if name == "src")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(first.removeprefix("data:image/jpeg;base64,")))))
    truth = np.asarray(Image.open(photos / "b" / "05.png"))
    np.testing.assert_allclose(pixels.mean((0, 1)), truth.mean((0, 1)), atol=8)  # JPEG
    assert say(*command, "--run", run)[0] == 0  # the run knows where its pictures were
    assert say(*command[:3], "--page", tmp_path / "found.html")[0] == 0  # so does the table
    bare = without_origin(table, tmp_path / "bare.parquet")
    page = ("--page", tmp_path / "found.html")
    refused(say("search", bare, "b/05.png", *page), 2, "--page needs the pictures", "--data")
    code, _, err = say(*command[:3], "--page", tmp_path / "found.html", "--data", tmp_path / "gone")
    assert (code, err.count("\n")) == (65, 1)
    assert "no page:" in err
    assert err.endswith("say with --data where the pictures are\n")


def test_what_cannot_be_searched_is_refused_in_a_line(
    say: Say, photos: Path, run: Path, table: Path, tmp_path: Path
) -> None:
    picture = photos / "a" / "04.png"
    (tmp_path / "text.txt").write_text("no picture")
    bare = without_origin(table, tmp_path / "bare.parquet")
    refused(say("search", bare, picture), 2, "is no path of", "--run")
    refused(say("search", table, tmp_path / "text.txt", "--run", run), 65, "text.txt: neither a path of the table nor")
    refused(say("search", table, tmp_path / "nobody.png", "--run", run), 65, "No such file")
    refused(say("duplicates", tmp_path), 65, f"lookalike embed MODEL {tmp_path} --out TABLE.parquet makes one")
    refused(say("search", tmp_path / "text.txt", picture), 65, "neither a run nor a table")
    refused(say("search", table), 2, "name at least one query")
    refused(say("search", table, "a/04.png", "--top", 0), 2, "--top")
    shutil.copytree(run, moved := tmp_path / "moved")
    about = json.loads((moved / "environment.json").read_text())
    about["data"]["data"] = "nowhere"
    (moved / "environment.json").write_text(json.dumps(about))
    (moved / "hashes.json").unlink()
    refused(say("search", moved, picture), 65, "moved was trained on nowhere: nowhere: no such file", "lookalike embed")
    head = tmp_path / "head.parquet"
    assert say("embed", run, photos, "--out", head, "--layer", "head", "--workers", 0)[0] == 0
    assert read_embeddings(head).layer == "head"
    assert lookalike.search(head, [str(picture)], 1, run)[0][0].path == "a/04.png"


def test_a_table_is_searched_by_the_run_that_made_it_and_by_no_other(
    say: Say, photos: Path, run: Path, table: Path, tmp_path: Path
) -> None:
    picture = str(photos / "a" / "04.png")
    lookalike.pretrain(
        str(photos), other := tmp_path / "other", recipe="tiny", steps=3, workers=0, quiet=True, settings={"seed": 1}
    )
    for query in (picture, "a/04.png"):
        refused(say("search", table, query, "--run", other), 2, str(run), str(other), "(step 3, weights ")
    shutil.copytree(run, longer := tmp_path / "longer")
    by_moved = lookalike.search(table, [picture], 3, longer)
    lookalike.pretrain(str(photos), longer, recipe="tiny", steps=4, extend=True, workers=0, quiet=True)
    refused(say("search", table, picture, "--run", longer), 2, f"{run} (step 3, ", f"{longer} (step 4, ")
    assert lookalike.search(table, [picture], 3) == by_moved  # the table names the run
    refused(say("search", run, picture, "--run", other), 2, "leave out --run")


def test_the_run_that_a_table_names_must_be_there_and_as_it_was(
    say: Say, photos: Path, run: Path, tmp_path: Path
) -> None:
    picture = photos / "a" / "04.png"
    shutil.copytree(run, copy := tmp_path / "copy")
    for layer in ("backbone", "head"):
        table = tmp_path / f"{layer}.parquet"
        assert say("embed", copy, photos, "--out", table, "--layer", layer, "--workers", 0)[0] == 0
        assert "  1.0000  a/04.png" in say("search", table, picture)[1]
    lookalike.pretrain(str(photos), copy, recipe="tiny", steps=4, extend=True, workers=0, quiet=True)
    refused(say("search", table, picture), 2, f"{copy} (step 3, ", f"{copy} (step 4, ", "lookalike embed")
    shutil.rmtree(copy)
    refused(say("search", table, picture), 2, f"({copy}, which is no longer there)", "--run")
    assert say("search", table, picture, "--run", run)[0] == 0
    assert say("search", table, "a/04.png")[0] == 0


def test_a_table_of_an_older_version_is_searched_with_a_warning(
    photos: Path, run: Path, table: Path, tmp_path: Path
) -> None:
    old, picture = without_origin(table, tmp_path / "old.parquet"), str(photos / "a" / "04.png")
    with pytest.warns(UserWarning, match=r"old\.parquet: an older version wrote it"):
        found = lookalike.search(old, [picture], 3, run)
    assert found == lookalike.search(table, [picture], 3, run)
    assert lookalike.search(old, ["a/04.png"], 3) == lookalike.search(table, ["a/04.png"], 3)  # asks no run


def test_no_name_of_a_file_reaches_the_terminal_as_it_is(say: Say, run: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    names = ("\x1b[31mred.png", "new\nline.png", "=1+1.png", "\u202egnp.png", "plain.png")
    for number, name in enumerate(names):
        shutil.copy(photos / "a" / f"{2 * number:02}.png", tmp_path / "data" / name)
    for suffix in ("parquet", "csv"):
        assert say("embed", run, tmp_path / "data", "--out", tmp_path / f"a.{suffix}", "--workers", 0)[0] == 0
    code, out, _ = say("search", tmp_path / "a.parquet", names[0], "--json", tmp_path / "a.json")
    assert code == 0
    assert len(out.splitlines()) == len(names)
    assert not set("\x1b\u202e") & set(out)
    assert r"\x1b[31mred.png" in out
    (found,) = json.loads((tmp_path / "a.json").read_text())["found"]
    assert sorted([found["query"], *(hit["path"] for hit in found["hits"])]) == sorted(names)
    refused(say("search", tmp_path / "a.parquet", "\x1b[31mno.png"), 65, r"\x1b[31mno.png: neither a path")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert "'=1+1.png" in [row["path"] for row in rows]


def test_a_sentence_finds_lines(say: Say, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    lines = [
        f"{who} {does}" for who in ("a man", "two dogs", "the sea") for does in ("runs", "sleeps", "sings", "falls")
    ]
    (tmp_path / "lines.txt").write_text("\n".join(lines * 2 + ["a song"]))
    arguments = ("--steps", 2, "--batch", 8, "--checkups", 0, "--model.vocabulary", 300, "--model.width", 16)
    arguments += ("--model.depth", 1, "--model.heads", 2, "--quiet", "--recipe", "simcse")
    assert say("pretrain", tmp_path / "lines.txt", "--out", tmp_path / "run", *arguments)[0] == 0
    code, out, _ = say("search", tmp_path / "run", "a song", "--top", 2)
    assert code == 0
    assert "  1.0000  lines.txt:25  a song" in out
    (long := tmp_path / "long.txt").write_text("\n".join([f"{'so ' * 200}on", "a \x1b[31msong", *lines]))
    table = tmp_path / "long.parquet"
    assert say("embed", tmp_path / "run", long, "--out", table)[0] == 0
    assert pq.read_table(table)["text"].to_pylist() == long.read_text().splitlines()
    code, out, _ = say("search", table, "a man sings", "--top", 50, "--json", tmp_path / "found.json")
    assert code == 0
    assert f"  long.txt:1  {'so ' * 33}…" in out
    assert r"long.txt:2  a \x1b[31msong" in out
    hits = json.loads((tmp_path / "found.json").read_text())["found"][0]["hits"]
    assert {hit["text"] for hit in hits} == set(long.read_text().splitlines())
    refused(say("search", tmp_path / "run", " "), 2, "an empty query")
    (tmp_path / "labelled.tsv").write_text(
        "label\ttext\n" + "\n".join(f"{i % 2}\t{line}" for i, line in enumerate(lines))
    )
    assert "sentences against" in say("evaluate", "knn", tmp_path / "run", tmp_path / "labelled.tsv", "--k", 2)[1]


def test_a_sentence_finds_pictures_in_the_output_of_the_head(say: Say, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    data, run = album(tmp_path / "album"), tmp_path / "run"
    assert say(*captioned(data, run))[0] == 0
    by_words = lookalike.search(run, ["a wall all red"], top=4)[0]
    assert len(by_words) == 4
    picture = str(data / "train" / "00.png")
    assert lookalike.search(run, [picture], top=1)[0][0].path == "train/00.png"
    backbone = tmp_path / "backbone.parquet"
    assert say("embed", run, data, "--out", backbone, "--workers", 0)[0] == 0
    refused(say("search", backbone, "a wall all red", "--run", run), 2, "embed --layer head")


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_many_queries_at_once_find_what_each_finds_alone(data: st.DataObject) -> None:
    count, queries = data.draw(st.integers(1, 70)), data.draw(st.integers(4, 9))
    seed, top = data.draw(st.integers(0, 2**31)), data.draw(st.integers(1, 12))
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randint(-2, 3, (count, 3), generator=draw).float()  # of which many are equal
    if data.draw(st.booleans()):  # each nearer than the one before, so that every block has new ones
        vectors = vectors[(vectors @ torch.ones(3)).argsort(stable=True)]
    asked = torch.randint(-2, 3, (queries, 3), generator=draw).float()
    seen = torch.rand(count, generator=draw) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    own = [[int(row) for row in torch.randint(count, (2,), generator=draw)] for _ in range(queries)]
    with patch.object(search, "_BLOCK", 16), patch.object(search, "_GROUP", 4):
        found = list(search.exact(vectors, asked, own, top, seen))
    for query, mine, (values, rows) in zip(asked, own, found):
        cosines = (vectors @ query).masked_fill(~seen, -torch.inf)
        cosines[mine] = -torch.inf
        best = [row for row in cosines.argsort(descending=True, stable=True).tolist() if cosines[row] > -torch.inf]
        assert rows.tolist() == best[:top]
        assert values.tolist() == cosines[best[:top]].tolist()
