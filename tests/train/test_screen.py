"""What is said where there is no terminal."""

from __future__ import annotations

import pytest

from lookalike.train.screen import Screen
from lookalike.train.watch import StepReport


def test_long_work_says_where_it_is_and_short_work_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen("detect") as screen:
        screen.work("fitting", 1, 9)
        assert capsys.readouterr().out == ""
        screen.next_work = 0.0  # a minute later
        screen.work("random, trial 1 of 3: fitting", 3, 9)
        screen.work("random, trial 1 of 3: fitting", 4, 9)
    assert capsys.readouterr().out == "random, trial 1 of 3: fitting 3/9\n"


def test_quiet_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen("prepare", quiet=True) as screen:
        screen.next_work = 0.0
        screen.work("decoding", 3, 9)
    assert capsys.readouterr().out == ""


def test_speed_is_told_in_what_the_rows_are_called(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen("simcse", rows="sentences") as screen:
        screen.step(StepReport(3, 9, 1.5, 2.0, {}, 70.4, 0.1, {}))
    assert capsys.readouterr().out == "step 3/9  70 sentences/s  loss 1.500 (chance 2.000)  0.0 min left\n"
