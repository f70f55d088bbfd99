"""``lookalike demo``, with a training of a few steps."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

import lookalike.cli.demo
from lookalike.cli.demo import DRAWS, compared, demo, pixels
from lookalike.data.source import open_source
from lookalike.models.image import SmallResNet
from lookalike.recipes import recipe_named
from lookalike.recipes.images import digits
from lookalike.recipes.recipe import Length, Recipe
from lookalike.train.loop import Finished

pytestmark = pytest.mark.any_precision


def short() -> Recipe:
    model = SmallResNet(widths=(8, 16), blocks=(1, 1), kernel=4, stride=2)
    return replace(digits, model=model, batch=32, length=Length(steps=12), checkups=2)


def test_demo_prints_the_table_and_writes_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(tmp_path / "demo", recipe=short()) == 0
    said = capsys.readouterr().out
    text = (tmp_path / "demo" / "report.html").read_text()
    for wanted in ("raw pixels", "untrained network", "pretrained network", "1 label a class", "10 labels a class"):
        assert wanted in said
        assert wanted in text
    assert f"{DRAWS} draws" in " ".join(said.split())
    assert "report.html" in said
    rows = compared(tmp_path / "demo").rows
    assert list(rows) == ["raw pixels", "untrained network", "pretrained network"]
    assert 0.6 < rows["raw pixels"][0].mean < 0.7
    assert demo(tmp_path / "demo", recipe=short()) == 0  # again: it goes on where it ended
    assert (tmp_path / "demo" / "report.html").read_text() == text


def test_pixels_are_the_pictures_as_they_are() -> None:
    found = pixels(open_source("digits"))
    assert found.shape == (1797, 64)
    assert found.norm(dim=1).allclose(found.new_ones(1797))


def test_a_signal_stops_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = Finished(3, 9, None, 0.0, 0.0, signal.SIGINT)  # type: ignore[arg-type]
    monkeypatch.setattr(lookalike.cli.demo, "carry_out", lambda _: stopped)
    assert demo(tmp_path) == 130
    assert not (tmp_path / "report.html").exists()


def test_the_recipe_has_a_fixed_length_and_a_name() -> None:
    recipe = recipe_named("digits", 1797, 8)
    assert recipe == digits.fitted(1797)
    assert recipe.length.minutes is None
