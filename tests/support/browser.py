"""A headless Chromium that looks at pages as people do: narrow or wide, light or dark; what it asked for and said.

    def test_a_page(browser: Browser, tmp_path: Path) -> None:
        with browser.open(tmp_path / "page.html", width=400, dark=True) as seen:
            assert seen.evaluate("document.title") == "digits"
            seen.sound()  # no message, no request but its own, nothing beside the window

The fixture ``browser`` lasts for a module: playwright's event loop stands in the way of other tests' own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OWN = ("data", "blob", "about")
"""Schemes of addresses that are asked of nobody."""


class Seen:
    """An open page; ``page`` is playwright's, for all that is not here."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.messages: list[str] = []  # warnings and errors of the console, and exceptions
        self.requests: list[str] = []  # addresses, in order
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.messages.append(message.text)

    def evaluate(self, script: str, argument: object = None) -> Any:
        """The value of an expression, or of a function ``argument => …``, in the page."""
        return self.page.evaluate(script, argument)

    def screenshot(self, path: Path, whole: bool = True) -> Path:
        """A PNG of the whole page, or of what the window shows of it."""
        self.page.screenshot(path=str(path), full_page=whole)
        return path

    def foreign(self) -> list[str]:
        """Addresses that were asked for of anyone but where the page came from."""
        home = urlsplit(self.address)
        asked = ((address, urlsplit(address)) for address in self.requests)
        if home.scheme == "file":
            return [address for address, parts in asked if parts.scheme not in OWN and address != self.address]
        return [a for a, parts in asked if parts.scheme not in OWN and parts[:2] != home[:2]]

    def beside(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(self.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def sound(self) -> None:
        """Refuse messages, requests to others, a page that scrolls sideways, and one without a title."""
        assert self.messages == []
        assert self.foreign() == []
        assert self.beside() <= 0, self.widest()
        assert str(self.evaluate("document.title")).strip()

    def widest(self) -> list[str]:
        """What reaches out of the window, to be named where a test fails."""
        script = (
            "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
            ".map(e => `${e.tagName}.${e.getAttribute('class')} ${Math.round(e.getBoundingClientRect().right)}`)"
        )
        return list(self.evaluate(script))[:10]


class Browser:
    """Chromium, once started."""

    def __init__(self, chromium: Any) -> None:
        self.chromium = chromium

    @contextmanager
    def open(
        self, address: Path | str, width: int = 1200, height: int = 900, dark: bool = False, **options: Any
    ) -> Iterator[Seen]:
        """A file or an address in a window of its own, loaded; ``options`` are those of playwright's new_context."""
        where = address.resolve().as_uri() if isinstance(address, Path) else address
        size = {"width": width, "height": height}
        context = self.chromium.new_context(viewport=size, color_scheme="dark" if dark else "light", **options)
        try:
            seen = Seen(context.new_page(), where)
            seen.page.goto(where, wait_until="load")
            yield seen
        finally:
            context.close()


@contextmanager
def started() -> Iterator[Browser]:
    """Chromium as a process; a test that wants it is skipped where there is none, or no playwright."""
    program = os.environ.get("LOOKALIKE_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser is here: none of {', '.join(NAMES)}")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("no browser can be driven: pip install playwright")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield Browser(chromium)
        finally:
            chromium.close()
