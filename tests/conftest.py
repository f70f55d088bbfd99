"""Fixtures and options that every test may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.cli.main import main
from tests.support.browser import Browser, started
from tests.support.forks import Forks

# Also where there is a GPU: many tests fork, and no process that uses one survives that.
os.environ.setdefault("LOOKALIKE_DEVICE", "cpu")

Said = tuple[int, str, str]

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that are marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: runs with --slow"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; a test that wants it is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """The command line in processes of their own: one server for all tests, since importing torch costs seconds."""
    with Forks() as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium, for the tests of one module."""
    with started() as chromium:
        yield chromium


@pytest.fixture
def smooth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smooth activation for ReLU, in processes that fork from here too: where the last bit of a sum differs, a value
    beside ReLU's kink turns a gradient on or off, which no tolerance for rounding covers.
    """

    def softplus(x: Tensor, inplace: bool = False) -> Tensor:
        return F.softplus(x)

    monkeypatch.setattr(F, "relu", softplus)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs a command line; its exit code, and what it printed on either stream."""

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, printed.out, printed.err

    return run


@pytest.fixture
def threads_come_back() -> Iterator[None]:
    """As many threads of torch after a test as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
