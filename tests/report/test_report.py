"""The report: it tells what was logged, it loads nothing, and nobody's names become markup."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.core.errors import UserError
from lookalike.data.annotations.record import Annotated
from lookalike.metrics.fewshot import Interval
from lookalike.recipes.images import tiny
from lookalike.recipes.recipe import Length
from lookalike.report import charts
from lookalike.report.account import account
from lookalike.report.charts import Chart, svg, ticks
from lookalike.report.page import Accuracies, accuracies, bar, percent
from lookalike.report.pictures import _COLOURS as COLOURS
from lookalike.report.pictures import draw_body, drawing
from lookalike.report.run import report, write_account
from lookalike.report.sample import agreement, flattened, free_places
from lookalike.train.history import collect
from lookalike.train.pretrain import pretrain

HOSTILE = "<script>alert('1')</script>\"><img src=x onerror=1>"
VOID = {"meta", "img"}


class Checked(HTMLParser):
    """Collects tags and attributes, and refuses a page whose tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def pictures(folder: Path, classes: list[str], each: int = 8) -> Path:
    random = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(random.integers(0, 255, (12, 20, 3), np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps on two classes, one of which is named to break out of the page."""
    folder = tmp_path_factory.mktemp("report")
    data = pictures(folder / "data", [HOSTILE.replace("/", "∕"), "b&b"])
    recipe = replace(tiny.fitted(16), name=HOSTILE, batch=8, length=Length(steps=6))
    pretrain(str(data), folder / "run <b>", recipe=recipe, workers=0, quiet=True)
    return folder / "run <b>"


def page_of(run: Path, **options: object) -> str:
    return report(run, run.parent / "report.html", **options).read_text()


def test_a_page_loads_nothing_runs_nothing_and_has_everything(hostile_run: Path) -> None:
    table = Accuracies(HOSTILE, [HOSTILE, "b"], {HOSTILE: [Interval(0.5, 0.1), Interval(0.7, math.nan)]}, HOSTILE)
    write_account(hostile_run.parent / "page.html", account(hostile_run), [table], HOSTILE)
    text = (hostile_run.parent / "page.html").read_text()
    page = Checked(text)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form", "b"}
    assert "<script" not in text
    assert not re.search("https?://", text)
    assert all(re.match("data:image/(png|jpeg);base64,", value) for name, value in page.attributes if name == "src")
    assert not any(name.startswith("on") or name in {"href", "style"} for name, _ in page.attributes)
    assert any(HOSTILE in part for part in page.text)
    assert {"b&b", "Two views of each picture", "Nearest neighbours", "Map"} <= set(page.text)
    policy = next(value for name, value in page.attributes if name == "content" and value and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_style_sheet_is_the_one_that_the_policy_allows(hostile_run: Path) -> None:
    import base64
    import hashlib

    text = page_of(hostile_run)
    style = re.search(r"<style>(.*?)</style>", text, re.S)
    assert style
    assert base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode() in text


def test_the_same_run_gives_the_same_page(hostile_run: Path) -> None:
    assert page_of(hostile_run) == page_of(hostile_run)


def test_a_report_touches_nothing_of_its_run(hostile_run: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in hostile_run.rglob("*") if path.is_file()}
    page_of(hostile_run)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in hostile_run.rglob("*") if path.is_file()}
    assert after == before


def test_data_that_is_gone_costs_the_pictures_only(hostile_run: Path) -> None:
    text = page_of(hostile_run, data=str(hostile_run / "nowhere"))
    assert "None are shown" in text
    assert "Training curves" in text
    assert "data:image/" not in text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        page_of(tmp_path / "none")


def test_what_is_torn_or_no_number_is_passed_over(hostile_run: Path, tmp_path: Path) -> None:
    for name in ("recipe.json", "environment.json"):
        (tmp_path / name).write_bytes((hostile_run / name).read_bytes())
    lines = ['{"step": 1, "loss": 2.0, "top1": NaN}', "[1]", '{"step": 9, "loss": "x", "knn": 0.5}', '{"step": 12, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    history = collect(tmp_path)
    assert history.curves["loss"] == [(1.0, 2.0)]
    assert math.isnan(history.curves["top1"][0][1])
    assert history.last("top1") is None
    assert history.steps() == 9
    assert history.chance_loss() == pytest.approx(math.log(history.recipe.dictionary.size + 1))
    text = page_of(tmp_path)  # it has no checkpoint either
    Checked(text)
    assert not re.search(r">\s*(nan|inf)\s*<", text, re.I)


def drawn_points(picture: str, name: str) -> list[list[tuple[float, float]]]:
    found = re.findall(rf'<path class="{name}" d="M([^"]*)"', picture)
    return [[tuple(map(float, pair.split(","))) for pair in line.split("L")] for line in found]


@pytest.mark.parametrize("count", [12, 200])
def test_lines_stand_where_the_data_is(count: int) -> None:
    points = [(float(i), math.sin(i) + 3) for i in range(1, count + 1)]
    chart = Chart("a", points, ("chance", 5.0))
    x_axis, y_axis, _, marks = charts.axes(chart, points)
    (line,) = drawn_points(svg(chart), "line" if count < 60 else "faint")
    assert marks[0] <= 2
    assert marks[-1] >= 5
    for (x, y), (left, top) in zip(points, line, strict=True):
        share = (y - marks[0]) / (marks[-1] - marks[0])
        assert top == pytest.approx(y_axis.start + share * (y_axis.stop - y_axis.start), abs=0.01)
        assert left == pytest.approx(x_axis.start + x / count * (x_axis.stop - x_axis.start), abs=0.01)


def test_a_gap_stays_a_gap() -> None:
    points = [(1.0, 1.0), (2.0, 2.0), (3.0, math.nan), (4.0, math.inf), (5.0, 1.5), (6.0, 1.2)]
    picture = svg(Chart("a", points))
    assert [len(line) for line in drawn_points(picture, "line")] == [2, 2]
    assert "nan" not in picture
    assert "inf" not in picture


@pytest.mark.parametrize("points", [[], [(1.0, math.nan)], [(1.0, 0.0)], [(0.0, 7.0)], [(1.0, -2.0), (2.0, -2.0)]])
@pytest.mark.parametrize("percent", [False, True])
def test_little_or_level_data_can_be_drawn(points: list[tuple[float, float]], percent: bool) -> None:
    picture = svg(Chart("<b>", points, None, percent))
    Checked(picture)
    assert "nan" not in picture
    assert "<b>" not in picture


@pytest.mark.parametrize(("low", "high"), [(0, 1), (4.61, 6.8), (0.031, 0.032), (0, 12345), (-3e-9, 2e-9)])
def test_ticks_are_round_and_enclose_the_data(low: float, high: float) -> None:
    found = ticks(low, high)
    step = found[1] - found[0]
    assert found[0] <= low + 1e-9 * step
    assert found[-1] >= high - 1e-9 * step
    assert 2 <= len(found) <= 8
    assert f"{step:.0e}"[0] in "125"


def test_tables_show_means_with_and_without_an_interval() -> None:
    assert percent(Interval(0.712, 0.013)) == "71.2 ± 1.3 %"
    assert percent(Interval(0.712, math.nan)) == "71.2 %"
    assert percent(Interval(math.nan, math.nan)) == "–"
    assert bar(Interval(math.nan, math.nan), True) == ""
    text = accuracies(Accuracies("t", ["one"], {"a": [Interval(0.2, 0.0)], "b": [Interval(0.9, 0.3)]}, "c"))
    Checked(text)
    assert "<strong>90.0 ± 30.0 %</strong>" in text
    assert "<strong>20.0" not in text
    assert 'x="60.00" y="2" width="40.00"' in text  # the whisker ends where the scale ends


def test_agreement_leaves_unlabelled_queries_out() -> None:
    nearest = torch.tensor([[1], [0], [3], [2]])
    assert agreement(torch.tensor([0, 0, 1, 2]), nearest) == 0.5
    assert agreement(torch.tensor([0, 0, -1, 2]), nearest) == pytest.approx(2 / 3)
    assert agreement(torch.tensor([-1, -1, -1, -1]), nearest) is None


def test_a_map_puts_together_what_is_alike_and_is_always_the_same() -> None:
    noise = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(3, 16, generator=noise), dim=1)
    owner = torch.arange(60) % 3
    rows = torch.nn.functional.normalize(centres[owner] + 0.05 * torch.randn(60, 16, generator=noise), dim=1)
    points = flattened(rows)
    assert np.array_equal(points, flattened(rows))
    apart = np.linalg.norm(points[:, None] - points, axis=2) + np.diag(np.full(60, np.inf))
    assert (owner[apart.argmin(1)] == owner).all()
    places, across = free_places(points)
    assert len({tuple(place) for place in places.tolist()}) == 60
    assert places.min() >= 0
    assert places.max() < across
    squeezed, _ = free_places(np.zeros((5, 2)))
    assert len({tuple(place) for place in squeezed.tolist()}) == 5


def test_objects_are_drawn_where_they_are() -> None:
    photo = Image.new("RGB", (60, 40), (100, 100, 100))
    mask = np.zeros((2, 40, 60), np.bool_)
    mask[1, 30:, 50:] = True
    boxes, labels = np.array([[2.2, 3.0, 40.0, 30.0], [45.0, 20.0, 59.0, 39.0]]), np.array([0, 8])
    image = drawing(photo, boxes, labels, ["a", "b"], mask)
    assert [image.getpixel(place) for place in ((20, 30), (2, 20), (45, 30))] == [COLOURS[0], COLOURS[0], COLOURS[1]]
    assert image.getpixel((55, 36)) == pytest.approx(tuple(100 + 0.45 * (c - 100) for c in COLOURS[1]), abs=1)
    assert image.getpixel((43, 35)) == (100, 100, 100)
    assert drawing(photo, np.zeros((0, 4)), np.zeros(0, np.int64), [], None).tobytes() == photo.tobytes()
    body = Annotated(Path(), (), (), ("left hand", "right hand"), ((0, 1),), {}, ())
    draw_body(photo, np.array([[10.0, 10.0, 1.0], [50.0, 10.0, 1.0]]), body)
    draw_body(photo, np.array([[10.0, 30.0, 1.0], [50.0, 30.0, 0.0]]), body)
    left, bone, right = (photo.getpixel((x, 10)) for x in (10, 30, 50))
    assert left != right == bone
    assert photo.getpixel((30, 30)) == photo.getpixel((50, 30)) == (100, 100, 100)
