"""In a real browser: every page, wide and narrow, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from lookalike.report.page import write
from tests.support.browser import Browser


@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_a_page(browser: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    write(tmp_path / "page.html", "<script>alert(1)</script>", "a", [])
    with browser.open(tmp_path / "page.html", width, dark=dark) as seen:
        assert seen.evaluate("document.title") == "<script>alert(1)</script>"
        seen.sound()
