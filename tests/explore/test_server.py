"""The page's server: what it answers, that it answers nobody else, and that search finds what the command finds."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import lookalike
from lookalike.curate.table import Table
from lookalike.explore.layout import FIRST, NAME
from lookalike.explore.queues import Queues
from lookalike.explore.server import MOST_ASKED, MOST_UPLOADED, POLICY, app
from lookalike.explore.session import Session
from lookalike.train.embeddings import read_embeddings
from lookalike.types import Embeddings
from tests.explore.conftest import HOSTILE

TOKEN, HOME = "t" * 43, "http://127.0.0.1:8000"
OURS = {"origin": HOME}


def client(session: Session, token: str | None = TOKEN) -> TestClient:
    """A browser that has opened the printed address, or with another token, or with none."""
    asking = TestClient(app(session, TOKEN, 8000), base_url=HOME, headers=OURS)
    if token is not None:
        asking.cookies.set("lookalike-8000", token)
    return asking


# ---- who may ask ----


def test_the_printed_address_gives_the_page_and_a_cookie_that_opens_the_rest(session: Session) -> None:
    asking = client(session, None)
    assert asking.get("/about").status_code == 403
    page = asking.get(f"/?token={TOKEN}")
    assert page.status_code == 200
    assert "<title>lookalike explore</title>" in page.text
    cookie = page.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert asking.get("/about").json()["rows"] == 25
    assert asking.get("/").status_code == 200


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "t"])
def test_without_the_token_nothing_is_answered(session: Session, token: str | None) -> None:
    for path in ("/", "/about", "/state", "/points", "/static/main.js", "/picture/128/0", "/nothing"):
        assert client(session, token).get(path).status_code == 403
        assert client(session, None).get(path, params={"token": token or ""}).status_code == 403
        assert client(session, None).get(path, params={"token": "\u00e9" * 43}).status_code == 403


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1",
        "127.0.0.1:8001",
        "127.0.0.1:8000.evil.example",
        "[::1]:8000",
        "",
    ],
)
def test_another_name_of_this_machine_is_refused(session: Session, host: str) -> None:
    answer = client(session).get("/about", headers={"host": host})
    assert answer.status_code == 403
    assert client(session, None).get(f"/?token={TOKEN}", headers={"host": host}).status_code == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1:8001", "https://127.0.0.1:8000", "null", ""]
)
def test_pages_of_others_change_nothing(session: Session, origin: str) -> None:
    asking = client(session)
    about = {"queue": "outliers", "row": 0, "decision": "drop"}
    assert asking.post("/decide", json=about, headers={"origin": origin}).status_code == 403
    assert asking.get("/about", headers={"origin": origin}).status_code == 403
    assert asking.get("/about", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert asking.get("/about", headers={"sec-fetch-site": "same-site"}).status_code == 403
    del asking.headers["origin"]
    assert asking.post("/decide", json=about).status_code == 403
    assert list(session.decisions.standing()) == []


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/static/../server.py",
            "/static/..%2fserver.py",
            "/static/%2e%2e/server.py",
            "/static//etc/passwd",
            "/static/page.html%00",
        ),
        *(
            "/static/..%5cserver.py",
            "/../../etc/passwd",
            "/etc/passwd",
            "/picture/128/../../x",
            "/picture/128/-1",
            "/picture/128/25",
        ),
        *(
            "/picture/127/0",
            "/pages/32/1",
            "/pages/33/0",
            "/pages/32/-1",
            "/picture/128/0x1",
            "/queue/nothing",
            "/names?rows=25",
        ),
    ],
)
def test_no_address_is_a_path(session: Session, path: str) -> None:
    assert client(session).get(path).status_code == 404


def test_every_answer_forbids_what_the_page_does_not_need(session: Session) -> None:
    for path in ("/", "/about", "/static/page.css", "/picture/640/3", "/nothing"):
        headers = client(session).get(path).headers
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert not any(name.startswith("access-control") for name in headers)
    assert client(session, None).get("/about").headers["content-security-policy"] == POLICY
    assert POLICY.startswith("default-src 'none'; script-src 'self';")


def test_bodies_are_bounded_and_what_means_nothing_is_refused(session: Session) -> None:
    asking = client(session)
    assert asking.post("/dropped", content=b"x" * (MOST_UPLOADED + 1)).status_code == 413
    assert asking.post("/near", content=b"[" * (MOST_ASKED + 1)).status_code == 413
    assert asking.post("/near", content=b"[" * 100_000).status_code == 400
    for asked in (
        {"rows": []},
        {"rows": ["0"]},
        {"rows": [True]},
        {"rows": "012"},
        [],
        1,
        {"rows": [0.5]},
        {"rows": [0] * 26},
    ):
        assert asking.post("/near", json=asked).status_code in (400, 404)
    assert asking.post("/near", json={"rows": [25]}).status_code == 404
    answer = asking.post("/dropped", content=b"no picture")
    assert answer.status_code == 400
    assert "picture" in answer.json()["error"]
    assert asking.post("/near", json={"text": "/etc/passwd"}).status_code == 400
    for about in (
        {"decision": "burn"},
        {"decision": "relabel"},
        {"decision": "keep", "label": "x"},
        {"decision": None},
    ):
        assert asking.post("/decide", json={"queue": "outliers", "row": 0, **about}).status_code == 400
    assert asking.get("/decide").status_code == 405


# ---- what is answered ----


def test_the_points_are_those_of_the_table(session: Session, table: Path) -> None:
    rows, asking = read_embeddings(table), client(session)
    about, data = asking.get("/about").json(), asking.get("/points").content
    n = about["rows"]
    places, order = np.frombuffer(data, "<f4", 2 * n).reshape(n, 2), np.frombuffer(data, "<u4", n, 8 * n)
    assert sorted(order.tolist()) == list(range(n))
    np.testing.assert_array_equal(places, session.map.places[order])
    np.testing.assert_array_equal(np.frombuffer(data, "<i4", n, 12 * n), rows.label[order])
    assert [about["splits"][i] for i in data[16 * n :]] == [rows.split[row] for row in order]
    named = asking.get("/names?rows=3,0").json()["names"]
    assert named == [[rows.path[3], None], [rows.path[0], None]]
    assert (about["classes"], about["pictures"], about["sentences"]) == (["cats", "dogs"], True, False)


def test_thumbnails_are_the_pictures_in_the_order_of_the_map(session: Session) -> None:
    asking, order = client(session), session.map.order.tolist()
    data = asking.get("/pages/32/0").content
    shapes, sheet = data[: len(order)], Image.open(io.BytesIO(data[len(order) :]))
    assert sheet.size == (1024, 32)
    pictures = session.table.pictures
    assert pictures is not None
    for place, row in enumerate(order):
        example = pictures.example(row, 32)
        assert abs(shapes[place] - 128 - 32 * np.log2(example.width / example.height)) <= 0.5
        shown = np.asarray(sheet)[:, 32 * place : 32 * place + 32].mean((0, 1))
        np.testing.assert_allclose(shown, example.pixels.float().mean((1, 2)), atol=6)
    large = Image.open(io.BytesIO(asking.get(f"/picture/640/{order[0]}").content))
    assert max(large.size) == 640
    assert large.format == "JPEG"


def test_search_finds_what_the_command_finds(
    session: Session, table: Path, run: Path, photos: Path, tmp_path: Path
) -> None:
    asking, paths = client(session), read_embeddings(table).path
    (clicked,) = lookalike.search(table, [paths[7]], top=60)
    answer = asking.post("/near", json={"rows": [7]}).json()
    assert [paths[row] for row, _ in answer["hits"]] == [hit.path for hit in clicked]
    np.testing.assert_allclose([cosine for _, cosine in answer["hits"]], [hit.cosine for hit in clicked], atol=1e-6)
    new = Image.open(photos / paths[7]).rotate(90)
    new.save(tmp_path / "new.png")
    (dropped,) = lookalike.search(table, [str(tmp_path / "new.png")], top=60)
    answer = asking.post("/dropped", content=(tmp_path / "new.png").read_bytes()).json()
    assert [paths[row] for row, _ in answer["hits"]] == [hit.path for hit in dropped]
    np.testing.assert_allclose([cosine for _, cosine in answer["hits"]], [hit.cosine for hit in dropped], atol=1e-6)
    assert len(np.frombuffer(base64.b64decode(answer["cosines"]), "<f4")) == len(paths)


def test_a_few_names_decide_what_the_others_are(session: Session) -> None:
    rows, asking = session.table.rows, client(session)
    answer = asking.post("/named", json={"named": {"a": [0, 1], "b": [9]}}).json()
    kinds = np.frombuffer(base64.b64decode(answer["kinds"]), np.uint8)
    means = np.stack([rows.vectors[[0, 1]].mean(0), rows.vectors[9]])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_array_equal(kinds, (rows.vectors @ means.T).argmax(1))
    assert answer["names"] == ["a", "b"]
    assert asking.post("/named", json={"named": {}}).status_code == 400


def test_a_selection_is_exported(session: Session, tmp_path: Path) -> None:
    asking, rows = client(session), session.table.rows
    asking.post("/decide", json={"queue": "outliers", "row": 2, "decision": "relabel", "label": "=cmd"})
    lines = list(csv.reader(io.StringIO(asking.post("/export", json={"kind": "csv", "rows": [2, 4]}).text)))
    assert lines[0] == ["path", "split", "class", "decision", "new class"]
    assert lines[1] == [rows.path[2], rows.split[2], rows.classes[rows.label[2]], "relabel", "'=cmd"]
    (tmp_path / "some.parquet").write_bytes(asking.post("/export", json={"kind": "parquet", "rows": [2, 4]}).content)
    some = read_embeddings(tmp_path / "some.parquet")
    assert some.path == [rows.path[2], rows.path[4]]
    np.testing.assert_array_equal(some.vectors, rows.vectors[[2, 4]])
    assert some.origin == rows.origin


def test_the_map_is_kept_beside_the_table_and_bound_to_its_rows(session: Session, tmp_path: Path) -> None:
    folder = tmp_path / "photos.explore"
    first = Session(session.table, session.decisions, Queues({}), folder)
    assert (first.map.name, first.atlas) == (FIRST, None)
    first.draw()
    assert first.map.name == NAME
    (kept,) = folder.glob("map-*.npy")
    again = Session(session.table, session.decisions, Queues({}), folder)
    np.testing.assert_array_equal(again.map.places, first.map.places)
    other = Session(Table("other", _changed(session)), session.decisions, Queues({}), folder)
    assert other.map.name == FIRST
    kept.write_bytes(kept.read_bytes()[:-8])
    assert Session(session.table, session.decisions, Queues({}), folder).map.name == FIRST


def _changed(session: Session) -> Embeddings:
    rows = session.table.rows
    return Embeddings(rows.path, rows.split, rows.label, rows.vectors[::-1].copy(), rows.classes)


# ---- decisions ----


def test_queues_are_worked_through_and_go_on_at_the_next_start(reopen: Callable[[], Session], photos: Path) -> None:
    before = sorted(path.read_bytes() for path in photos.rglob("*.png"))
    asking = client(reopen())
    state = asking.get("/state").json()
    assert [(queue["name"], queue["state"], queue["count"]) for queue in state["queues"]] == [
        ("duplicates", "found", 1),
        ("outliers", "found", 3),
    ]
    (item,) = asking.get("/queue/duplicates").json()["items"]
    assert item["reason"] == "equal bytes"
    for row, about in (
        (0, {"decision": "drop"}),
        (1, {"decision": "keep"}),
        (2, {"decision": "relabel", "label": HOSTILE}),
    ):
        state = asking.post("/decide", json={"queue": "outliers", "row": row, **about}).json()
    assert state["decided"] == [
        [0, "outliers", "drop", None],
        [1, "outliers", "keep", None],
        [2, "outliers", "relabel", HOSTILE],
    ]
    assert asking.post("/undo", json={}).json()["undone"] == ["outliers", 2]
    asking = client(again := reopen())
    assert asking.get("/state").json()["decided"] == state["decided"][:2]
    for expected in (["outliers", 1], ["outliers", 0], None):
        assert asking.post("/undo", json={}).json()["undone"] == expected
    lines = [json.loads(line) for line in again.decisions.path.read_text("utf-8").splitlines()]
    assert [line.get("decision", line.get("undo")) for line in lines] == ["drop", "keep", "relabel", 3, 2, 1]
    assert sorted(path.read_bytes() for path in photos.rglob("*.png")) == before
