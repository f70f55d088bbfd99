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

import pytest

from lookalike.core.errors import visible
from lookalike.data.formats.files import printable
from lookalike.evaluation.settings import EVALUATIONS
from tests.support.commands import NAMES, Argument, World, arguments, built, command_line, runs
from tests.support.forks import Ended, Forks
from tests.support.hostile import Given, contents, filesystem, place

pytestmark = [
    pytest.mark.any_precision,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc, and memory limits that hold"),
]

ALL = os.environ.get("LOOKALIKE_FAULTS") == "all"
ENDINGS = {0, 2, 65, 74, 75}
DEADLINE = 20.0
WRITTEN = ("out", "json", "page")
QUICK = 233  # a prime, so that arguments meet inputs of every kind
ELSEWHERE = ("a batch of", " be read, first ")  # of data that is well, too small, or all of it unreadable
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
        few = argument.metavar in NAMES or argument.name in WRITTEN or same in known
        known.add(same)
        found += [Case(argument, name, given) for name, given in (filesystem() if few else INPUTS).items()]
    return [case for case in found if not (case.argument.words == ("demo",) and case.given.new)]  # two minutes


def sample(every: list[Case]) -> list[Case]:
    """A minute's worth, the same each time, of those that are refused at once."""
    quick = [case for case in every if not (case.given.new and case.argument.name in WRITTEN)]
    return quick[::QUICK]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built(tmp_path_factory.mktemp("world"))


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
    a_path = case.argument.metavar not in NAMES and ":" not in given
    if ended.code != 0 and a_path and not any(name in ended.errors for name in (*named, *ELSEWHERE)):
        yield "the path is not named"


def attempt(case: Case, world: World, forks: Forks) -> tuple[list[str], Ended]:
    with tempfile.TemporaryDirectory(prefix="h") as made:
        root, here = Path(made), os.getcwd()
        (root / "given").mkdir()
        (root / "fresh").mkdir()
        try:
            given = place(case.given, root / "given")
            words = command_line(case.argument, given, world, root / "fresh")
            works = case.argument.name in WRITTEN  # over a file that is there, too
            ended = forks.run(words, deadline=DEADLINE * (6 if works else 1), folder=root / "fresh")
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
