"""One line, never a traceback or a hang, for what a person, or an attacker, may give to any argument of any verb.

All of it runs with LOOKALIKE_FAULTS=all; with every change a part of the pairs of an argument and an input.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from lookalike.cli.main import main
from lookalike.core.errors import visible
from lookalike.data.formats.files import printable
from lookalike.evaluation.settings import EVALUATIONS
from tests.support import scenery
from tests.support.forks import Ended, Forks
from tests.support.hostile import (
    NAMES,
    Argument,
    Given,
    World,
    arguments,
    command_line,
    contents,
    filesystem,
    place,
    runs,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc, and memory limits that hold")

ALL = os.environ.get("LOOKALIKE_FAULTS") == "all"
ENDINGS = {0, 2, 65, 74, 75}
DEADLINE = 20.0
INPUTS = {**filesystem(), **contents(), **runs()}


class Case(NamedTuple):
    argument: Argument
    name: str
    given: Given


def cases() -> list[Case]:
    """Each pair; but what is written, and what an earlier verb takes as well, meets what lies at a path alone."""
    found, known = [], set[tuple[object, ...]]()
    for argument in arguments():
        same = (argument.owner, argument.name, argument.wants() if argument.metavar == "DATA" else None)
        few = argument.metavar in NAMES or argument.name in ("out", "json", "page") or same in known
        known.add(same)
        found += [Case(argument, name, given) for name, given in (filesystem() if few else INPUTS).items()]
    return [case for case in found if not (case.argument.words == ("demo",) and case.given.new)]  # two minutes


def sample(every: list[Case]) -> list[Case]:
    """One input of each argument, and one argument of each input."""
    step = max(1, len(every) // 150)
    return every[::step]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Small things that are as they should be."""
    root, noise = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    for i in range(16):
        path = root / "pictures" / ("bright", "dark")[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((noise.integers(0, 100, (16, 16, 3)) + 150 * (i % 2)).astype(np.uint8)).save(path)
    scenery.made(root / "scenes")
    for i in range(6):
        for folder, low in (("images", 0), ("masks", 0)):
            (root / "masks" / folder).mkdir(parents=True, exist_ok=True)
            pixels = noise.integers(
                low, 3 if folder == "masks" else 255, (24, 24) if folder == "masks" else (24, 24, 3)
            )
            Image.fromarray(pixels.astype(np.uint8)).save(root / "masks" / folder / f"{i}.png")
    sentences = [f"a sentence of number {i}" for i in range(24)]
    (root / "pairs.csv").write_text(
        "sentence1,sentence2,score\n" + "".join(f"{a},{a} b,{len(a) % 5}\n" for a in sentences)
    )
    (root / "text.txt").write_text("\n".join(sentences) + "\n")
    (root / "captions").mkdir()
    lines = []
    for i, path in enumerate(sorted((root / "pictures").rglob("*.png"))):
        (root / "captions" / path.name).write_bytes(path.read_bytes())
        lines.append(f"{path.name},{sentences[i]}\n")
    (root / "captions" / "captions.csv").write_text("image,caption\n" + "".join(lines))
    light = ("--workers", "0", "--quiet", "--checkups", "0")
    done(
        "pretrain",
        root / "pictures",
        "--out",
        root / "run",
        "--recipe",
        "tiny",
        "--model.widths",
        "4,8",
        "--steps",
        2,
        *light,
    )
    text = ("--model.width=16", "--model.vocabulary=300", "--batch=8", "--whiten", "false")
    done("pretrain", root / "text.txt", "--out", root / "text_run", "--recipe", "simcse", "--steps", 2, *text, *light)
    towers = ("--batch=8", "--model.text.vocabulary=300", "--dictionary.size=16")
    done(
        "pretrain",
        root / "captions",
        "--out",
        root / "captions_run",
        "--recipe",
        "moco_captions",
        "--steps",
        2,
        *towers,
        *light,
    )
    done("embed", root / "run", root / "pictures", "--out", root / "table.parquet", "--workers", "0")
    data = (root / name for name in ("pictures", "scenes", "masks", "pairs.csv", "captions"))
    return World(*data, root / "run", root / "text_run", root / "captions_run", root / "table.parquet")


def done(*words: object) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == 0


def faults(case: Case, ended: Ended, given: str) -> Iterator[str]:
    """What is wrong with how it ended."""
    if ended.code not in ENDINGS:
        yield f"code {ended.code}"
    if "Traceback" in ended.errors:
        yield "a traceback"
    if ended.errors.count("\n") > 4:
        yield f"{ended.errors.count(chr(10))} lines"
    if any((letter < " " and letter != "\n") or "\x7f" <= letter < "\xa0" for letter in ended.errors):
        yield "raw control characters"
    named = (visible(Path(given).name)[:60], printable(Path(given).name)[:60])
    if ended.code != 0 and case.argument.metavar not in NAMES and not any(name in ended.errors for name in named):
        yield "the path is not named"


def attempt(case: Case, world: World, forks: Forks) -> tuple[list[str], Ended]:
    with tempfile.TemporaryDirectory(prefix="h") as made:
        root, here = Path(made), os.getcwd()
        (root / "given").mkdir()
        (root / "fresh").mkdir()
        try:
            given = place(case.given, root / "given")
            words = command_line(case.argument, given, world, root / "fresh")
            ended = forks.run(words, deadline=DEADLINE, folder=root / "fresh")
        finally:
            os.chdir(here)
            for folder, names, _ in os.walk(root):  # what is closed is opened, for its removal
                for name in names:
                    if not os.path.islink(path := os.path.join(folder, name)):
                        os.chmod(path, 0o700)
    return list(faults(case, ended, given)), ended


EVERY = cases()
CHOSEN = EVERY if ALL else sample(EVERY)


def test_the_matrix_holds_every_argument_and_every_input() -> None:
    assert {case.argument for case in EVERY} == set(arguments())
    assert {case.name for case in EVERY} == set(INPUTS)
    assert set(EVALUATIONS) <= {case.argument.words[-1] for case in EVERY}


@pytest.mark.parametrize("chunk", range(0, len(CHOSEN), 25))
def test_whatever_is_given_is_answered_in_a_line(chunk: int, world: World, forks: Forks) -> None:
    wrong = {}
    for case in CHOSEN[chunk : chunk + 25]:
        found, ended = attempt(case, world, forks)
        if found:
            wrong[f"{case.argument} ← {case.name}"] = (found, ended.errors[-600:])
    assert wrong == {}
