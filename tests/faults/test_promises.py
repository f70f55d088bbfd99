"""RELIABILITY.md names tests that exist, and speaks of every promise."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "RELIABILITY.md").read_text("utf-8")


def test_every_test_that_is_named_exists() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT))
    assert len(named) > 50
    defined = {
        (file, node.name)
        for file in {file for file, _ in named}
        if (ROOT / file).is_file()
        for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert named - defined == set()


def test_every_promise_has_its_row() -> None:
    assert sorted(map(int, re.findall(r"^\| G(\d+) \|", TEXT, re.MULTILINE))) == list(range(1, 43))
