"""The page in a real browser: it says nothing to the console, asks nobody else, and is worked by mouse and keyboard."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image

import lookalike
from lookalike.explore.opened import listen
from lookalike.explore.server import app
from lookalike.explore.session import Session
from lookalike.train.embeddings import read_embeddings
from tests.explore.conftest import HOSTILE
from tests.support.browser import Browser, Seen

READY = "document.body.dataset.ready === 'yes'"
DRAWN = "explore.map.wanted.length + explore.map.waiting.size === 0 && explore.map.pages.size > 0"
NO_GPU = "GPU stall due to ReadPixels"  # what Chromium says where it draws WebGL by a processor
PATIENCE = 120.0  # seconds


@pytest.fixture
def address(session: Session) -> Iterator[str]:
    """The printed one, of a server in a thread."""
    listening, token = listen(0), "t" * 43
    port = listening.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app(session, token, port), log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{port}/?token={token}"
    server.should_exit = True
    thread.join()


def wait(seen: Seen, script: str, argument: object = None) -> None:
    """Until an expression is true: playwright's own wait evaluates text in the page, which its policy forbids."""
    until = time.monotonic() + PATIENCE
    while not seen.evaluate(script, argument):
        assert time.monotonic() < until, (script, seen.messages)
        seen.page.wait_for_timeout(20)


def ready(seen: Seen) -> None:
    """The page has its table and its thumbnails."""
    wait(seen, READY)
    wait(seen, DRAWN)


def sound(seen: Seen) -> None:
    """Of messages there is none but the one on the absence of a GPU."""
    seen.messages = [message for message in seen.messages if NO_GPU not in message]
    seen.sound()


def hits(seen: Seen, page_words: str) -> list[int]:
    """The rows that are shown, once they are the answer that is titled so."""
    wait(
        seen,
        "words => document.getElementById('found').textContent.startsWith(words) && "
        "document.querySelectorAll('#hits button').length",
        page_words,
    )
    return [int(row) for row in str(seen.evaluate("document.getElementById('hits').dataset.rows")).split(",")]


# Paints what the map draws of rows on a line, 20 px apart, as points, and says which of them show their own colour.
SHOWN = """thin => {
  const map = explore.map, gl = map.gl, count = 1500, ratio = map.canvas.width / map.width, lit = [];
  Object.assign(map, { count, textures: false, centre: [0, 0], scale: 1, whole: 1, bias: 1 });
  map.places = new Float32Array(2 * count); map.tint = new Uint8Array(4 * count); map.shape = new Uint8Array(count);
  for (let i = 0; i < count; i++) {
    map.places.set([20 * (i % 50) - 500, 20 * Math.floor(i / 50) - 300], 2 * i);
    map.tint.set([i % 251, 90, 30, 128], 4 * i);
  }
  map.target = map.places; map.thinned = () => thin; map.upload(); map.draw();
  const pixel = new Uint8Array(4);
  for (let i = 0; i < count; i++) {
    const [x, y] = map.screen(i), up = map.canvas.height - 1 - Math.round(y * ratio);
    if (x < 5 || y < 5 || x > map.width - 5 || y > map.height - 5) continue;
    gl.readPixels(Math.round(x * ratio), up, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
    if (pixel[1] === 90) lit.push([i, pixel[0]]);
  }
  return lit;
}"""


@pytest.mark.parametrize("thin", [1, 4])
def test_each_row_is_drawn_in_its_place_and_colour(browser: Browser, address: str, thin: int) -> None:
    with browser.open(address) as seen:
        ready(seen)
        shown = dict(seen.evaluate(SHOWN, thin))
        assert shown == {row: row % 251 for row in shown}
        assert len(shown) > 600 // thin
        assert {row % thin for row in shown} == {0}  # of a map that moves slowly every so manieth row, evenly


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_is_sound(browser: Browser, address: str, width: int, dark: bool) -> None:
    with browser.open(address, width, dark=dark) as seen:
        ready(seen)
        assert seen.evaluate("location.href") == address.split("?")[0]  # no token that may be copied
        assert seen.evaluate("document.cookie") == ""
        ground = seen.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") is not dark
        unnamed = "[...document.querySelectorAll('button, input, select')].filter(e => !(e.textContent.trim() || "
        unnamed += "e.ariaLabel || e.labels?.length)).map(e => e.id)"
        assert seen.evaluate(unnamed) == []
        for tab in ("clean", "teach", "look"):
            seen.page.click(f"#tab-{tab}")
            assert seen.page.is_visible(f"#{tab}")
        sound(seen)


def test_a_click_and_a_dropped_picture_find_what_the_command_finds(
    browser: Browser, address: str, table: Path, photos: Path, tmp_path: Path
) -> None:
    paths = read_embeddings(table).path
    Image.open(photos / paths[7]).rotate(90).save(tmp_path / "new.png")
    (clicked,), (dropped,) = (
        lookalike.search(table, [query], top=60) for query in (paths[7], str(tmp_path / "new.png"))
    )
    with browser.open(address) as seen:
        ready(seen)
        x, y = seen.evaluate("explore.map.screen(explore.state.place[7])")
        box = seen.page.locator("#map").bounding_box()
        over = seen.evaluate("([x, y]) => explore.state.row[explore.map.pick(x, y)]", [x, y])
        assert over == 7
        seen.page.mouse.click(box["x"] + x, box["y"] + y)
        assert [paths[row] for row in hits(seen, "Near it")] == [hit.path for hit in clicked]
        data = list((tmp_path / "new.png").read_bytes())
        seen.evaluate(
            "data => { const held = new DataTransfer(); held.items.add(new File([new Uint8Array(data)], 'new.png'));"
            "const how = {dataTransfer: held, bubbles: true, cancelable: true};"
            "document.body.dispatchEvent(new DragEvent('drop', how)); }",
            data,
        )
        assert [paths[row] for row in hits(seen, "Near new.png")] == [hit.path for hit in dropped]
        sound(seen)


def test_names_stay_text(browser: Browser, address: str, session: Session) -> None:
    (row,) = [row for row, path in enumerate(session.table.rows.path) if path.endswith(HOSTILE)]
    with browser.open(address) as seen:
        ready(seen)
        seen.evaluate("row => explore.look(row)", row)
        hits(seen, "Near it")
        assert HOSTILE in str(seen.evaluate("document.getElementById('words').textContent"))
        assert seen.evaluate("document.querySelectorAll('img[src=x]').length") == 0
        sound(seen)


def test_what_is_drawn_around_is_exported(browser: Browser, address: str, session: Session) -> None:
    with browser.open(address) as seen:
        ready(seen)
        seen.page.click("#draw")
        box = seen.page.locator("#map").bounding_box()
        left, top, right, bottom = (
            box["x"] + 2,
            box["y"] + 60,
            box["x"] + box["width"] - 2,
            box["y"] + box["height"] - 2,
        )
        seen.page.mouse.move(left, top)
        seen.page.mouse.down()
        for x, y in ((right, top), (right, bottom), (left, bottom), (left, top)):
            seen.page.mouse.move(x, y, steps=3)
        seen.page.mouse.up()
        count = int(seen.evaluate("explore.state.selection.size"))
        assert 20 <= count <= len(session.table)
        with seen.page.expect_download() as waiting:
            seen.page.click("#as-csv")
        lines = Path(waiting.value.path()).read_text("utf-8").splitlines()
        assert len(lines) == count + 1
        sound(seen)


def test_a_queue_is_worked_through_by_keyboard(browser: Browser, address: str, session: Session) -> None:
    with browser.open(address) as seen:
        ready(seen)
        page = seen.page

        def where(words: str) -> None:
            wait(seen, "words => document.getElementById('where').textContent.startsWith(words)", words)

        page.focus("#tab-look")
        page.keyboard.press("ArrowRight")
        page.locator("#queues button", has_text="outliers").press("Enter")
        where("1 of 3 · 0 decided")
        for key, words in (("d", "2 of 3 · 1 decided"), ("k", "3 of 3 · 2 decided"), ("u", "2 of 3 · 1 decided")):
            page.keyboard.press(key)
            where(words)
        page.keyboard.press("r")
        page.keyboard.type("kitten")
        page.keyboard.press("Enter")
        where("3 of 3 · 2 decided")
        wait(seen, "document.activeElement.id === 'keep'")
        sound(seen)
    lines = [json.loads(line) for line in session.decisions.path.read_text("utf-8").splitlines()]
    assert [line.get("decision", "undo") for line in lines] == ["drop", "keep", "undo", "relabel"]
    assert lines[-1]["label"] == "kitten"


def test_a_few_names_colour_the_map(browser: Browser, address: str, session: Session) -> None:
    with browser.open(address) as seen:
        ready(seen)
        for row, name in ((0, "first"), (7, "second")):
            seen.page.click("#tab-look")
            seen.evaluate("row => explore.look(row)", row)
            hits(seen, "Near it")
            seen.page.click("#tab-teach")
            seen.page.fill("#kind", name)
            seen.page.click("#naming button")
        wait(seen, "explore.state.kinds && explore.state.kindNames.length === 2")
        kinds = np.asarray(seen.evaluate("[...explore.state.kinds]"))
        np.testing.assert_array_equal(kinds, session.guess({"first": [0], "second": [7]}).kinds)
        sound(seen)


def test_a_run_that_trains_says_which_step_is_shown(browser: Browser, address: str, session: Session) -> None:
    with browser.open(address) as seen:
        ready(seen)
        session.live = {"training": True, "shown": 1234, "metrics": {"loss": 0.5}}
        wait(seen, "document.getElementById('facts').textContent.endsWith(', step 1,234')")
        assert str(seen.evaluate("document.getElementById('facts').textContent")).count("step") == 1
        assert "0.5" in str(seen.evaluate("document.getElementById('numbers').textContent"))
        sound(seen)


def test_pages_of_others_get_nothing(browser: Browser, address: str, tmp_path: Path) -> None:
    """From a page elsewhere, in the same browser that holds the cookie."""
    (tmp_path / "evil.html").write_text("<!doctype html><title>evil</title>")
    home = address.split("?")[0]
    asks = (
        "async home => { try { const answer = await fetch(home + 'about', {credentials: 'include', mode: 'no-cors'});"
    )
    asks += "return answer.type + (await answer.text()); } catch (error) { return 'refused'; } }"
    with browser.open(address) as seen:
        ready(seen)
        other = seen.page.context.new_page()
        other.goto((tmp_path / "evil.html").as_uri())
        assert other.evaluate(asks, home) in ("opaque", "refused")
        shown = "home => new Promise(done => { const one = new Image(); one.onload = () => done('shown');"
        shown += "one.onerror = () => done('refused'); one.src = home + 'picture/128/0'; })"
        assert other.evaluate(shown, home) == "refused"
        assert other.goto(home).status in (200, 403)  # typed by the person, it may open; it answers no page
