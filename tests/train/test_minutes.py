"""How long a run in minutes takes, on machines whose speed is known: no real clock is asked."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lookalike.core.errors import USAGE, UserError
from lookalike.train.length import LEAST, Budget, Clock, expected, fastest, pace, timed_enough
from lookalike.train.watch import Due

Slowness = Callable[[float], float]
"""How many times as long as on an idle machine work takes, at a share of the minutes; beyond 1 they are over."""


class Machine:
    """Time that passes with work: a step takes ``step`` seconds, more or less by a twentieth, times the slowness."""

    def __init__(self, slowness: Slowness, step: float, minutes: float, seed: int) -> None:
        self.time, self.slowness, self.step, self.whole = 0.0, slowness, step, 60 * minutes
        self.chance = random.Random(seed)

    def work(self, seconds: float) -> float:
        self.time += seconds * self.slowness(self.time / self.whole) * self.chance.lognormvariate(0, 0.05)
        return self.time

    def train(self, checkups: int = 10, corrects: bool = True) -> float:
        """Measure and run as ``lookalike pretrain --minutes`` does; the share of the minutes that is too much."""
        before, checkup = self.work(0.01 * self.whole), 0.005 * self.whole
        marks = [before, self.work(5 * self.step)]  # the first step is slow
        while len(marks) < 49 and not timed_enough(marks, 0.1 * self.whole):
            marks.append(self.work(self.step))
        each = pace([after - before for before, after in pairwise(marks)])
        budget = Budget(self.whole, self.time, checkup, checkups, each).enough()
        clock, step = Clock(budget, budget.steps, now=lambda: self.time), 0
        checked = clock.timed(lambda _: {"at": self.work(checkup)})
        while step < clock.total:
            self.work(self.step)
            step += 1
            if Due(lambda _: clock.total, checkups, None).checkup(step):
                checked(None)  # type: ignore[arg-type]
            if corrects and clock.off(step):
                self.work(0.001 * self.whole)  # a checkpoint is written and read
        return self.time / self.whole - 1


def each_minute(seed: int) -> Slowness:
    """Another slowness in every tenth of the time, up to a half more."""
    tenths = random.Random(seed)
    speeds = [1 + tenths.random() / 2 for _ in range(30)]
    return lambda share: speeds[int(10 * share)]


# What a machine does, and the least and most by which a run then misses its minutes.
CASES: dict[str, tuple[Callable[[int], Slowness], float, float]] = {
    "idle": (lambda _: lambda _: 1.0, -0.05, 0.05),
    "busy all the time": (lambda _: lambda _: 3.0, -0.05, 0.05),
    "busy while measured, then idle": (lambda _: lambda share: 1.8 if share < 0.15 else 1.0, -0.05, 0.05),
    "busy for half of the measuring": (lambda _: lambda share: 1.8 if share < 0.04 else 1.0, -0.05, 0.05),
    "idle while measured, then busy": (lambda _: lambda share: 1.0 if share < 0.15 else 1.4, -0.05, 0.05),
    "then half as fast": (lambda _: lambda share: 1.0 if share < 0.15 else 2.0, -0.05, 0.05),
    "busy until the half": (lambda _: lambda share: 2.0 if share < 0.5 else 1.0, -0.05, 0.05),
    "busy from the half on": (lambda _: lambda share: 1.0 if share < 0.5 else 2.0, -0.05, 0.05),
    "slower by up to a half, by turns": (each_minute, -0.05, 0.05),
    # What happens at the end cannot all be made good.
    "half as fast at the end": (lambda _: lambda share: 1.0 if share < 0.9 else 2.0, -0.05, 0.1),
    "twice as fast at the end": (lambda _: lambda share: 2.0 if share < 0.9 else 1.0, -0.1, 0.05),
}
SIZES = [(0.03, 0.5), (0.2, 3), (0.3, 10), (1.5, 10), (10.0, 30)]  # seconds a step, minutes


@pytest.mark.parametrize("name", CASES)
def test_a_run_takes_its_minutes(name: str) -> None:
    slowness, least, most = CASES[name]
    misses = [Machine(slowness(seed), step, minutes, seed).train() for step, minutes in SIZES for seed in range(3)]
    assert least <= min(misses)
    assert max(misses) <= most


def test_without_corrections_a_machine_that_turns_busy_takes_a_third_longer() -> None:
    slowness = CASES["idle while measured, then busy"][0](0)
    assert Machine(slowness, 0.15, 10, 0).train(corrects=False) > 0.25


@given(st.floats(0.01, 10), st.lists(st.floats(1, 20), min_size=12, max_size=40), st.randoms())
def test_a_disturbance_of_most_of_the_measuring_changes_nothing(
    step: float, slow: list[float], chance: random.Random
) -> None:
    """By whole windows of four: the fastest three of twelve decide."""
    windows = [[step] * 4] * 3 + [[step * times] * 4 for times in slow[:9]]
    chance.shuffle(windows)
    durations = [100 * step, *(duration for window in windows for duration in window)][:49]
    assert pace(durations) == pytest.approx(step)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=48))
def test_the_pace_lies_among_the_steps(durations: list[float]) -> None:
    steady = durations[1:] or durations
    assert min(steady) * (1 - 1e-9) <= pace(durations) <= max(steady) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({8: 1.0, 4: 1.5}, 8),
        ({8: 1.0, 4: 0.96}, 8),  # what is measured varies by as much
        ({8: 1.0, 4: 0.8, 2: 0.9}, 4),
        ({8: 1.0, 4: 0.8, 2: 0.7, 1: 0.5}, 1),
        ({6: 1.0, 3: 0.8, 1: 0.5}, 1),
        ({2: 2.0, 1: 1.0}, 1),
        ({1: 1.0}, 1),
    ],
)
@pytest.mark.usefixtures("threads_come_back")
def test_a_run_in_minutes_takes_the_threads_that_are_fastest(seconds: dict[int, float], chosen: int) -> None:
    assert fastest(lambda _: seconds[torch.get_num_threads()], max(seconds)) == seconds[chosen]
    assert torch.get_num_threads() == chosen


def test_data_that_comes_in_bursts_is_no_fast_step() -> None:
    assert pace([5.0, *[0.1, 0.1, 0.1, 0.9] * 12]) == pytest.approx(0.3)


def test_measuring_ends_with_its_share_but_not_before_three_steps() -> None:
    assert not timed_enough([0, 50], 6)
    assert not timed_enough([0, 50, 51], 6)
    assert timed_enough([0, 50, 51, 52], 6)
    assert not timed_enough([0, 1, 2, 3, 4, 5], 6)
    assert timed_enough([0, 1, 2, 3, 4, 5, 6], 6)


@given(st.floats(1, 36000), st.floats(0, 4000), st.floats(0, 100), st.integers(1, 20), st.floats(0.001, 100))
def test_too_few_steps_are_refused_with_minutes_that_are_enough(
    whole: float, before: float, checkup: float, checkups: int, step: float
) -> None:
    budget = Budget(whole, before, checkup, checkups, step)
    if budget.steps >= LEAST:
        assert budget.enough() == budget
        return
    with pytest.raises(UserError, match=f"minutes are {budget.steps} steps here: .* --minutes") as refused:
        budget.enough()
    assert refused.value.code == USAGE
    need = float(str(refused.value).split("--minutes ")[1].split(",")[0])
    assert budget._replace(whole=60 * need).steps >= LEAST


@pytest.mark.parametrize(("done", "at", "total"), [(100, 10_000.0, 100 + 450), (300, 63.0, 300 + 1400)])
def test_a_correction_leaves_between_half_and_twice_of_what_was_to_come(done: int, at: float, total: int) -> None:
    seconds = iter([0.0, 0.0, at])
    clock = Clock(Budget(1000.0, 0.0, 0.0, 1, 1.0), 1000, now=lambda: next(seconds))
    assert not clock.off(0)
    assert clock.off(done)
    assert clock.total == total


def test_what_is_expected_is_said_with_two_digits() -> None:
    assert expected(600) == "9 to 11 minutes"
    assert expected(45) == "0.68 to 0.83 minutes"
    assert expected(6000) == "90 to 110 minutes"
