"""A run keeps the table of its own data; what is searched is what was asked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lookalike
from lookalike.core.errors import UserError
from lookalike.core.files import as_json, publish
from lookalike.curate import table as tables
from lookalike.curate.table import KEPT, open_table
from lookalike.recipes.modality import crop_of
from lookalike.train.embeddings import read_embeddings
from tests.conftest import Said
from tests.support.forks import Forks
from tests.support.runs import done, noise

Say = Callable[..., Said]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise(tmp_path_factory.mktemp("table") / "photos", 20)


@pytest.fixture(scope="module")
def made(photos: Path) -> Path:
    out = photos.parent / "run"
    lookalike.pretrain(str(photos), out, recipe="tiny", steps=1, workers=0, quiet=True)
    return out


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(photos, tmp_path / "photos"))


@pytest.fixture
def run(made: Path, data: Path, tmp_path: Path) -> Path:
    """A copy whose data is the copy."""
    out = Path(shutil.copytree(made, tmp_path / "run"))
    about = json.loads((out / "environment.json").read_text())
    about["data"]["data"] = str(data)
    publish(out, {"environment.json": as_json(about)})
    return out


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the ways to embed were taken."""
    ways: list[str] = []
    for name in ("embed_to", "embed_data"):
        whole = getattr(tables, name)

        def way(*arguments: object, name: str = name, whole: Callable[..., object] = whole, **how: object) -> object:
            ways.append(name)
            return whole(*arguments, **how)

        monkeypatch.setattr(tables, name, way)
    return ways


def test_a_run_embeds_its_data_once(run: Path, data: Path, counted: list[str]) -> None:
    said: list[str] = []
    first = lookalike.search(run, ["a/00.png"], 5, say=said.append)
    assert said == [f"embedding {data} once, into {run / KEPT}"]
    assert lookalike.search(run, ["a/00.png"], 5, say=said.append) == first
    opened = open_table(run, say=said.append)
    assert (len(said), counted) == (1, ["embed_to"])
    assert opened.rows.path == read_embeddings(run / KEPT).path
    assert opened.pictures is not None
    assert list(opened.pictures.paths) == opened.rows.path
    assert opened.trained is not None
    assert first == lookalike.search(run / KEPT, ["a/00.png"], 5)


def test_it_embeds_again_where_weights_or_data_have_changed(run: Path, data: Path, counted: list[str]) -> None:
    said: list[str] = []
    open_table(run, workers=0)
    Image.new("RGB", (9, 9)).save(data / "a" / "new.png")
    assert len(open_table(run, workers=0, say=said.append)) == 21
    assert "is of other data" in said[0]
    (data / "a" / "new.png").unlink()
    open_table(run, workers=0)
    lookalike.pretrain(str(data), run, recipe="tiny", steps=2, workers=0, quiet=True, extend=True)
    said.clear()
    again = open_table(run, workers=0, say=said.append)
    assert "is of other weights" in said[0]
    assert again.rows.origin is not None
    assert again.rows.origin.step == 2
    (run / KEPT).write_bytes(b"damaged")
    said.clear()
    assert len(open_table(run, workers=0, say=said.append)) == 20
    assert "made anew" in said[0]
    assert set(counted) == {"embed_to"}


def test_data_elsewhere_is_the_same_data_and_other_data_is_not_kept(
    run: Path, data: Path, tmp_path: Path, counted: list[str]
) -> None:
    data.rename(tmp_path / "moved")
    open_table(run, str(tmp_path / "moved"), workers=0)
    before = (run / KEPT).read_bytes()
    open_table(run, str(tmp_path / "moved"), workers=0)
    assert counted == ["embed_to"]
    assert len(open_table(run, str(noise(tmp_path / "few", 4)), workers=0)) == 4
    assert counted == ["embed_to", "embed_data"]
    assert (run / KEPT).read_bytes() == before


def test_a_run_that_cannot_be_written_embeds_into_memory(forks: Forks, run: Path, data: Path) -> None:
    paths = [run, *run.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    ended = forks.run(["search", run, "a/00.png", "--top", 2])  # where modes bind root, too
    for path in paths:
        path.chmod(0o755)
    done(ended)
    assert "embedding into memory, as at each call until then: cannot write" in ended.printed + ended.errors
    assert not (run / KEPT).exists()
    assert [name for name in os.listdir(run) if name.endswith(".parts")] == []


# What is asked


def test_a_part_of_a_picture_is_a_query(say: Say, run: Path, data: Path, tmp_path: Path) -> None:
    large = Image.new("RGB", (64, 48), "white")
    with Image.open(data / "a" / "04.png") as small:
        large.paste(small, (30, 20))
    large.save(tmp_path / "large.png")
    hit = lookalike.search(run, [f"{tmp_path / 'large.png'}@30,20,16,16"], 1)[0][0]
    assert (hit.path, round(hit.cosine, 4)) == ("a/04.png", 1)
    assert lookalike.search(run, [f"{data}/a/04.png@0,0,16,16"], 1)[0][0].path == "a/04.png"
    assert lookalike.search(run / KEPT, ["a/04.png@0,0,16,16"], 1)[0][0].path == "a/04.png"  # by its path in the data
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(data / "a" / "04.png") as small:  # lies on its side, and says so
        small.rotate(90, expand=True).save(tmp_path / "turned.png", exif=turned)
    hit = lookalike.search(run, [f"{tmp_path}/turned.png@0,0,16,16"], 1)[0][0]
    assert (hit.path, round(hit.cosine, 4)) == ("a/04.png", 1)
    for outside in ("50,40,16,16", "0,0,0,5"):
        with pytest.raises(UserError, match="it is 64x48, and the part is not inside"):
            lookalike.search(run, [f"{tmp_path / 'large.png'}@{outside}"])
    page = tmp_path / "hits.html"
    assert say("search", run, f"{tmp_path / 'large.png'}@30,20,16,16", "--page", page)[0] == 0
    assert "large.png@30,20,16,16</figcaption>" in page.read_text()


def test_a_file_of_that_very_name_is_that_file(run: Path, data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "b" / "05.png", odd := tmp_path / "x@1,2,3,4")
    assert crop_of(str(odd)) is None
    assert lookalike.search(run, [str(odd)], 1)[0][0].path == "b/05.png"
    for query in ("a dog @ the sea", "x@1,2,3", "x@1,2,3,-4", "x@1,2,3,4,5", "x@1,2,3,4.5", "x@١,2,3,4", "1,2,3,4"):
        assert crop_of(query) is None
    assert crop_of("a@b@1,2,3,4") == ("a@b", (1, 2, 3, 4))


def test_several_pictures_are_one_query_less_others(say: Say, run: Path, data: Path, tmp_path: Path) -> None:
    open_table(run, workers=0)
    held = read_embeddings(run / KEPT)
    rows = dict(zip(held.path, held.vectors))
    for minus in ((), ("b/07.png", "b/09.png")):
        (hits,) = lookalike.search(run / KEPT, ["a/00.png", "a/02.png"], 30, together=True, minus=minus)
        query = (rows["a/00.png"] + rows["a/02.png"]) / 2
        if minus:
            query = query - (rows["b/07.png"] + rows["b/09.png"]) / 2
        query /= np.linalg.norm(query)
        others = [path for path in held.path if path not in ("a/00.png", "a/02.png", *minus)]
        assert {hit.path for hit in hits} == set(others)
        np.testing.assert_allclose([hit.cosine for hit in hits], [rows[hit.path] @ query for hit in hits], atol=1e-5)
        assert sorted(hits, key=lambda hit: -hit.cosine) == hits
    command = ("search", run / KEPT, "a/00.png", "a/02.png", "--together", "--minus", "b/07.png", "--minus", "b/09.png")
    code, out, _ = say(*command, "--json", tmp_path / "found.json", "--top", 30, "--page", tmp_path / "found.html")
    assert code == 0
    assert out.splitlines()[0] == "a/00.png + a/02.png - b/07.png - b/09.png"
    (found,) = json.loads((tmp_path / "found.json").read_text())["found"]
    assert [hit["path"] for hit in found["hits"]] == [hit.path for hit in hits]
    with pytest.raises(UserError, match="nothing is left"):
        lookalike.search(run / KEPT, ["a/00.png"], minus=["a/00.png"])


def test_a_condition_selects_rows_first(say: Say, run: Path) -> None:
    open_table(run, workers=0)
    for where in (run, run / KEPT):
        hits = lookalike.search(where, ["a/00.png"], 30, where="class = 'b' and path != 'b/01.png'")[0]
        assert len(hits) == 9
        assert {hit.path.split("/")[0] for hit in hits} == {"b"}
    code, _, err = say("search", run / KEPT, "a/00.png", "--where", "class = b")
    assert (code, err.count("\n")) == (2, 1)
    assert "--where at 'b', letter 9: text in single quotes is expected" in err
    code, _, err = say("search", run / KEPT, "a/00.png", "--where", "class = 'dress'")
    assert (code, err.count("\n")) == (2, 1)


def test_the_page_marks_hits_of_the_same_class(say: Say, run: Path, tmp_path: Path) -> None:
    assert say("search", run, "a/00.png", "--top", 30, "--page", tmp_path / "found.html")[0] == 0
    page = (tmp_path / "found.html").read_text()
    assert page.count('title="same class"') == 9
    assert page.count('title="other class"') == 10
    assert page.count('class="open"') == 20
    for number in range(19):
        assert f'href="#q0h{number}"' in page
        assert f'id="q0h{number}"' in page
    assert "<script" not in page
