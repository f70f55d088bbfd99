"""Many processes start in one folder at once: one wins, the others say who it is and leave; a kill frees the folder."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.forks import Ended, Forks, digest
from tests.support.runs import command, done, unfinished

LOCKED = 75


def raced(forks: Forks, words: list[object], count: int) -> list[Ended]:
    """So many of one long command: the losers, of whom each names the winner, which is killed."""
    ended = forks.race([words] * count)
    winners = [one for one in ended if one.code == -signal.SIGKILL]
    losers = [one for one in ended if one not in winners]
    assert len(winners) == 1, ended
    assert {one.code for one in losers} == {LOCKED}, losers
    for loser in losers:
        assert f"pid {winners[0].pid} on " in loser.errors
        assert loser.errors.count("\n") == 1
        assert loser.cpu < 2
    return losers


@pytest.mark.parametrize("overwrites", [False, True], ids=["begin", "overwrite"])
def test_one_of_many_starts_wins_and_a_kill_frees_the_folder(
    forks: Forks, pictures: Path, tmp_path: Path, thorough: Callable[[int, int], int], overwrites: bool
) -> None:
    reference, at_once = tmp_path / "reference", thorough(8, 20)
    done(forks.run(command(pictures, reference, "--checkups", 0, steps=2, save=1)))
    slowest = 0.0
    for number in range(thorough(1, 10)):
        out = tmp_path / f"run {number}"
        if overwrites:
            done(forks.run(command(pictures, out, "--checkups", 0, steps=2, save=1)))
        flag = ["--overwrite"] if overwrites else []
        losers = raced(forks, command(pictures, out, *flag, steps=1_000_000, save=100_000), at_once)
        slowest = max(slowest, *(loser.cpu for loser in losers))
        if overwrites:  # nobody moved the new run aside, or the old one twice
            assert [path.name for path in out.parent.glob(f"{out.name}.old-*")] == [f"{out.name}.old-1"]
            assert digest(out.with_name(f"{out.name}.old-1")) == digest(reference)
        done(forks.run(command(pictures, out, "--checkups", 0, "--overwrite", steps=2, save=1)))
        assert digest(out) == digest(reference)
        assert unfinished(out) == []
    print(f"{thorough(1, 10)} times {at_once} starts: one winner each; a loser takes {slowest:.2f} s of a core at most")
