"""Two tiers: a minute and a half on every change, and all of it where LOOKALIKE_FAULTS=all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.faults.kit import Tracer, needs_strace
from tests.support.forks import Forks
from tests.support.runs import noise

Number = TypeVar("Number", int, float)
ALL = os.environ.get("LOOKALIKE_FAULTS") == "all"


@pytest.fixture(scope="session")
def thorough() -> Callable[[Number, Number], Number]:
    """The second number in the long tier, else the first."""
    return lambda quick, long: long if ALL else quick


@pytest.fixture
def long_tier() -> None:
    """Of tests that belong to the long tier alone."""
    if not ALL:
        pytest.skip("long: runs with LOOKALIKE_FAULTS=all")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pictures of noise in two classes."""
    return noise(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def tracer(forks: Forks, tmp_path: Path) -> Tracer:
    """Commands whose system calls fail; skips where that cannot be."""
    needs_strace()
    return Tracer(forks, tmp_path / "calls")
