"""In a real browser: every page, wide and narrow, light and dark, by keyboard, and printed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.curate.search import Hit
from lookalike.data.annotations.open import open_annotated
from lookalike.data.example import Example
from lookalike.data.source import open_source
from lookalike.evaluation.compare import Comparison, ModelScores
from lookalike.evaluation.detector import Detections
from lookalike.evaluation.segment import MaskClasses, Prediction, Scores, Segmented
from lookalike.metrics.fewshot import Interval
from lookalike.recipes.images import tiny
from lookalike.report.account import account
from lookalike.report.comparison import comparison_page
from lookalike.report.hits import Answer, write_hits
from lookalike.report.page import Accuracies
from lookalike.report.pictures import write_detections, write_segmentation
from lookalike.report.run import report, write_account
from lookalike.train.pretrain import pretrain
from tests.support import scenery
from tests.support.browser import Browser

pytestmark = pytest.mark.any_precision

HOSTILE = "<script>document.title='broken'</script>\"'&"
LONG = "a_name_without_any_place_to_break_it_" * 4

CONTRAST = """() => {
    const lights = text => {
        const [r, g, b, a] = text.match(/[\\d.]+/g).map(Number);
        const one = value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        return [0.2126 * one(r) + 0.7152 * one(g) + 0.0722 * one(b), a === undefined ? 1 : a];
    };
    const faint = [];
    for (const e of document.querySelectorAll('body *')) {
        const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
        if (!own || e.tagName === 'title' || e.tagName === 'TITLE' || !e.getClientRects().length) continue;
        const svg = e.namespaceURI.endsWith('svg');
        let up = e;
        while (up && lights(getComputedStyle(up).backgroundColor)[1] === 0) up = up.parentElement;
        const ground = lights(up ? getComputedStyle(up).backgroundColor : 'rgb(255, 255, 255)')[0];
        const ink = lights(getComputedStyle(e)[svg ? 'fill' : 'color'])[0];
        const ratio = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
        if (ratio < 4.5) faint.push(`${e.tagName} ${ratio.toFixed(2)} ${e.textContent.slice(0, 30)}`);
    }
    return faint;
}"""
"""What has less contrast than 4.5, as WCAG 2 counts it."""

NARROW = """[...document.querySelectorAll('th, td, dt, dd, figcaption, p, li')].filter(
    e => e.textContent.trim().length > 6 && e.getBoundingClientRect().width < 60
).map(e => e.textContent.slice(0, 30))"""
"""Words that stand a few letters a line."""

HEADINGS = "[...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(e => Number(e.tagName[1]))"
BLIND = """[...document.querySelectorAll('img')].filter(e => !e.alt).length
    + [...document.querySelectorAll('svg')].filter(e => !e.ariaHidden && !e.ariaLabel).length
    + [...document.querySelectorAll('th')].filter(e => !e.scope).length"""


@pytest.fixture(scope="module")
def pages(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind, with names that try to break out and names that do not break."""
    folder = tmp_path_factory.mktemp("pages")
    data = pictures(folder / "data", [HOSTILE.replace("/", "∕"), LONG[:120]])
    light = {"workers": 0, "quiet": True, "settings": {"model.widths": "4,8", "head.widths": "16"}}
    for name in ("run", "other"):
        pretrain(str(data), folder / name, recipe=replace(tiny, name=HOSTILE), steps=6, save_every=3, **light)
    lines = folder / "lines.txt"
    lines.write_text("".join(f"{HOSTILE} {i} {LONG if i % 9 == 0 else ''}\n" for i in range(40)))
    small = {"model.width": "16", "model.vocabulary": "300", "whiten": "false"}
    pretrain(str(lines), folder / "text", recipe="simcse", batch=8, steps=4, settings=small, workers=0, quiet=True)
    few = Accuracies(HOSTILE, ["1 label a class", "5 labels a class", LONG], {LONG: [Interval(0.5, 0.1)] * 3}, HOSTILE)
    write_account(folder / "demo.html", account(folder / "run"), [few], HOSTILE)
    report(folder / "text", folder / "text.html")
    report([folder / "run", folder / "other"], folder / "several.html")
    detections(folder / "detect.html", folder / "scenes")
    segmentation(folder / "segment.html")
    source = open_source(str(data))
    hits = [Hit(0.9, path, "train", 0, None) for path in source.paths[:6]]
    write_hits(folder / "hits.html", f"{HOSTILE}.parquet", [source], [Answer(HOSTILE, [source.paths[7]], hits)])
    mean, others = Interval(0.55, 0.05), {LONG: Interval(0.1, 0.0)}
    rows = [ModelScores(name, [0.5, 0.6], mean, mean, others) for name in (LONG, HOSTILE)]
    compared = Comparison("knn", HOSTILE, "accuracy", rows, LONG, False, 2, LONG, {"k": 3, LONG: LONG}, 0.1)
    (folder / "compare.html").write_text(comparison_page(compared), "utf-8")
    return {path.stem: path for path in folder.glob("*.html")}


def pictures(folder: Path, classes: list[str], each: int = 12) -> Path:
    noise = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(noise.integers(0, 255, (30, 20, 3), np.uint8)).save(folder / name / f"{i}.png")
    return folder


def detections(page: Path, scenes: Path) -> None:
    truth = open_annotated(scenery.made(scenes))
    one = Detections(np.array([[4.0, 6.0, 30.0, 36.0]]), np.array([0]), np.array([0.9]))
    write_detections(page, HOSTILE, HOSTILE, truth, [one] * len(truth.scenes), {LONG: HOSTILE, "size": LONG})


def segmentation(page: Path) -> None:
    classes = MaskClasses([3, 1], torch.full((256,), -1))
    masks = torch.ones(24, 24, dtype=torch.long), torch.zeros(24, 24, dtype=torch.long)
    photo = Example(torch.full((3, 40, 40), 99, dtype=torch.uint8), 40, 60, -1, HOSTILE + LONG)
    shown = [(Prediction(i, *masks, iou), photo) for i, iou in enumerate((0.1, 0.7, float("nan")))]
    found = Segmented(Scores(0.4, 0.5, {3: 0.2, 1: 0.6}), classes, 8, 5, [], (), shown)
    write_segmentation(page, HOSTILE, HOSTILE, found, {LONG: HOSTILE, "size": LONG})


KINDS = ("demo", "text", "several", "detect", "segment", "hits", "compare")


@pytest.mark.parametrize("kind", KINDS)
def test_pages_fit_and_load_nothing(browser: Browser, pages: dict[str, Path], kind: str) -> None:
    for width in (1200, 400):
        for dark in (False, True):
            with browser.open(pages[kind], width, dark=dark) as seen:
                seen.sound()
                assert seen.evaluate("document.title") != "broken"
                assert seen.evaluate("document.scripts.length") == 0
                assert seen.requests[0] == pages[kind].as_uri()
                assert seen.evaluate(CONTRAST) == []
                assert seen.evaluate(NARROW) == []


COLUMNS = """name => [...document.querySelectorAll(name)].filter(
    e => e.getBoundingClientRect().top < document.querySelector(name).getBoundingClientRect().top + 5).length"""


@pytest.mark.parametrize(("kind", "part"), [("detect", ".pairs > *"), ("segment", ".pairs > *"), ("hits", ".hits > *")])
def test_pictures_stand_side_by_side_where_there_is_room(
    browser: Browser, pages: dict[str, Path], kind: str, part: str
) -> None:
    counts = []
    for width in (1200, 400):
        with browser.open(pages[kind], width) as seen:
            counts.append(seen.evaluate(COLUMNS, part))
    assert counts[0] >= 2
    assert counts[1] < counts[0]


@pytest.mark.parametrize("kind", KINDS)
def test_pages_are_read_without_eyes_or_mouse(browser: Browser, pages: dict[str, Path], kind: str) -> None:
    with browser.open(pages[kind], 400) as seen:
        levels = seen.evaluate(HEADINGS)
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert seen.evaluate(BLIND) == 0
        assert seen.evaluate("document.querySelectorAll('header, main').length") == 2
        for _ in range(seen.evaluate("document.querySelectorAll('[tabindex]').length")):
            seen.page.keyboard.press("Tab")
            assert seen.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            assert seen.evaluate("document.activeElement.ariaLabel")


@pytest.mark.parametrize("kind", KINDS)
def test_pages_are_printed_on_white(browser: Browser, pages: dict[str, Path], kind: str) -> None:
    with browser.open(pages[kind], 800, dark=True) as seen:
        seen.page.emulate_media(media="print", color_scheme="dark")
        assert seen.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert seen.evaluate(CONTRAST) == []


def test_what_a_page_must_not_do_is_seen(browser: Browser, tmp_path: Path) -> None:
    """The looks themselves: a page that asks, speaks, and is too wide."""
    page = tmp_path / "bad.html"
    page.write_text(
        '<title>t</title><div style="width:2000px">a</div><img src="http://localhost:9/x.png">'
        "<script>console.error('said')</script>"
    )
    with browser.open(page, 400) as seen:
        assert seen.foreign() == ["http://localhost:9/x.png"]
        assert "said" in seen.messages
        assert seen.beside() > 1000
        with pytest.raises(AssertionError):
            seen.sound()
