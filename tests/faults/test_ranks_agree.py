"""Ranks compare what they work on before they begin: the one that differs is named, in one line, and all leave."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import lookalike.cli.verbs
from lookalike.core.errors import BAD_DATA, USAGE
from tests.invariants.test_torchrun import pictures
from tests.support.launched import Ended, launched, lookalike

pytestmark = pytest.mark.any_precision

SMALL = ("--recipe", "tiny", "--group", 8, "--model.widths", "4,8", "--steps", 3, "--workers", 0, "--timeout", 30)
Command = Callable[[], None]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    with launched(lookalike("pretrain", data, "--out", out, *SMALL)) as processes:
        assert processes.ended()[0].code == 0
    return out


@pytest.fixture
def other(data: Path, tmp_path: Path) -> Path:
    """The same pictures on another machine."""
    return Path(shutil.copytree(data, tmp_path / "other"))


def pretrain(data: Path, out: Path, *more: object) -> Command:
    return lookalike("pretrain", data, "--out", out, *SMALL, *more)


def refused(ended: list[Ended], rank: int, code: int, *words: str) -> None:
    """All have left with the same line, which names the rank, and has these words."""
    assert {one.code for one in ended} == {code}
    (line,) = {one.line for one in ended}
    assert line.startswith(f"lookalike: rank {rank} on {socket.gethostname()} differs in ")
    assert all(word in line for word in words), line


def fewer(folder: Path) -> str:
    (folder / "a" / "04.png").unlink()
    return "47 there, 48 for rank 0"


def renamed(folder: Path) -> str:
    (folder / "a" / "04.png").rename(folder / "a" / "05.png")
    return "their names"


def replaced(folder: Path) -> str:
    shutil.copy(folder / "a" / "02.png", folder / "a" / "04.png")
    return "their files"


def unreadable(folder: Path) -> str:
    (folder / "a" / "04.png").write_bytes(b"")
    return "their files"


VERBS: dict[str, Callable[[Path, Path, Path], Command]] = {
    "pretrain": lambda run, data, out: pretrain(data, out),
    "supervised": lambda run, data, out: lookalike("supervised", data, "--out", out, *SMALL),
    "knn": lambda run, data, out: lookalike("evaluate", "knn", run, data, "--timeout", 30),
    "embed": lambda run, data, out: lookalike("embed", run, data, "--out", out / "table.parquet", "--timeout", 30),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("change", [None, fewer, replaced])
def test_other_pictures(
    verb: str, change: Callable[[Path], str] | None, data: Path, other: Path, trained: Path, tmp_path: Path
) -> None:
    """On a rank of its own disk; the same pictures elsewhere are the same."""
    words = "" if change is None else change(other)
    (out := tmp_path / "out").mkdir()
    with launched(*(VERBS[verb](trained, place, out) for place in (data, other))) as processes:
        ended = processes.ended()
    if change is None:
        assert [one.code for one in ended] == [0, 0], ended
    elif change is fewer and verb in ("supervised", "knn"):
        refused(ended, 1, BAD_DATA)  # an example fewer in one of two parts
    else:
        refused(ended, 1, BAD_DATA, words)
        assert not os.listdir(out)


@pytest.mark.parametrize("change", [renamed, unreadable])
def test_other_names_or_content(change: Callable[[Path], str], data: Path, other: Path, tmp_path: Path) -> None:
    words = change(other)
    with launched(*(pretrain(place, tmp_path / "run") for place in (data, other))) as processes:
        refused(processes.ended(), 1, BAD_DATA, words)


def test_pictures_that_one_rank_cannot_decode(other: Path, tmp_path: Path) -> None:
    """Its files are the same, what it read of them is not: as where a plugin for a format is missing."""
    Image.open(other / "a" / "04.png").save(other / "a" / "05.webp")
    command = pretrain(other, tmp_path / "run", "--max-bad", 1)

    def without() -> None:
        Image.OPEN.pop("WEBP")
        Image.init = lambda: True  # which would look for it again
        command()

    with launched(command, without) as processes:
        refused(processes.ended(), 1, BAD_DATA, "unreadable")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"LOOKALIKE_PRECISION": "bf16"}, ("--precision", "bf16 there, fp32 for rank 0")),
        ({"THREADS": "2"}, ("threads", "2 there, 1 for rank 0")),
    ],
)
def test_another_precision_or_number_of_threads(
    environment: dict[str, str], words: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    first = {"LOOKALIKE_PRECISION": "fp32", "THREADS": "1"}
    commands = [pretrain(data, tmp_path / "run")] * 2
    with launched(*commands, environments=[first, first | environment]) as processes:
        refused(processes.ended(), 1, USAGE, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [("--optimizer.lr", 0.5), ("--seed", 3), ("--steps", 4), ("--save-every", 7)])
def test_other_settings(flags: tuple[object, ...], data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with launched(pretrain(data, run), pretrain(data, run, *flags)) as processes:
        refused(processes.ended(), 1, USAGE, str(flags[1]))


def test_another_version(data: Path, tmp_path: Path) -> None:
    def older() -> None:
        torch.__version__ = "2.0.1"
        pretrain(data, tmp_path / "run")()

    with launched(pretrain(data, tmp_path / "run"), older) as processes:
        refused(processes.ended(), 1, USAGE, "torch: 2.0.1 there, ", torch.__version__)


def test_of_three_the_one_is_named_that_differs_from_two(data: Path, tmp_path: Path) -> None:
    commands = [pretrain(data, tmp_path / "run", "--batch", 24, "--seed", seed) for seed in (5, 4, 4)]
    with launched(*commands) as processes:
        refused(processes.ended(), 0, USAGE, "--seed: 5 there, 4 for rank 1")


@pytest.mark.parametrize("verb", ["doctor", "demo"])
def test_verbs_of_one_process_say_so(verb: str, tmp_path: Path) -> None:
    with launched(*[lookalike(verb, "--out", tmp_path / "out")] * 2) as processes:
        ended = processes.ended()
    assert {one.code for one in ended} == {USAGE}
    assert all("leave out torchrun" in one.line for one in ended)
