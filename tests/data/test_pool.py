"""Work by forked processes comes back in order, whatever happens to them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest

from lookalike.core.errors import IO, UserError
from lookalike.data.pool import ordered, stopped


def doubled(task: int) -> int:
    time.sleep(0.002 * (task % 5))
    return 2 * task


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order(workers: int) -> None:
    assert list(ordered(doubled, range(40), workers)) == [(task, 2 * task) for task in range(40)]
    assert list(ordered(doubled, [], workers)) == []
    assert not multiprocessing.active_children()


def test_what_a_killed_worker_had_under_way_is_done_again(tmp_path: Path) -> None:
    def once_deadly(task: int) -> int:
        mark = tmp_path / str(task)
        if task % 7 == 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    assert [result for _, result in ordered(once_deadly, range(20), 2)] == list(range(20))
    assert len(list(tmp_path.iterdir())) == 3


def test_three_deaths_in_a_row_are_one_line() -> None:
    with pytest.raises(UserError, match="more memory") as caught:
        list(ordered(lambda task: os.kill(os.getpid(), signal.SIGKILL), range(3), 1))
    assert caught.value.code == IO


def test_an_error_comes_through_and_no_worker_is_left() -> None:
    with pytest.raises(ZeroDivisionError):
        list(ordered(lambda task: 1 // (5 - task), range(9), 2))
    assert not multiprocessing.active_children()


def test_leaving_early_stops_work_that_looks(tmp_path: Path) -> None:
    def endless(task: int) -> int:
        while task and not stopped():
            time.sleep(0.005)
        return task

    began = time.monotonic()
    with closing(ordered(endless, range(4), 2)) as results:
        assert next(results) == (0, 0)
    assert time.monotonic() - began < 20
    assert not multiprocessing.active_children()
    assert not stopped()
