"""What a person, a scheduler or a terminal that closes sends: saved where it asks, left at once where it insists."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import lookalike.cli.verbs
from tests.invariants.test_torchrun import pictures, steps_done
from tests.support.launched import Processes, alive, gone, launched, lookalike

pytestmark = [
    pytest.mark.any_precision,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc"),
]

AT_ONCE = 20.0
"""Seconds; the promise is 2, of a machine that does nothing else. What hangs here would hang for 300."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"))


def run(data: Path, out: Path, *more: object) -> Callable[[], None]:
    """A run of a minute, which saves at its end alone."""
    small = ("--recipe", "tiny", "--group", 8, "--model.widths", "4,8", "--checkups", 0, "--steps", 5000)
    return lookalike("pretrain", data, "--out", out, *small, "--workers", 0, "--save-every", 10**6, *more)


def begun(processes: Processes, out: Path) -> None:
    processes.until(lambda: steps_done(out) > 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_it_saves_and_leaves(number: int, data: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "run", signal.signal(number, signal.SIG_DFL)  # these tests may run under nohup themselves
    try:
        with launched(run(data, out)) as processes:
            begun(processes, out)
            processes.send(0, number)
            assert processes.ended()[0].code == 128 + number
    finally:
        signal.signal(number, before)
    assert len(list((out / "checkpoints").iterdir())) == 1


def test_a_signal_to_one_rank_stops_all(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with launched(*[run(data, out)] * 2) as processes:
        begun(processes, out)
        processes.send(1, signal.SIGUSR1)
        assert {ended.code for ended in processes.ended()} == {128 + signal.SIGUSR1}
    assert len(list((out / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGUSR1])
def test_a_second_one_of_a_scheduler_changes_nothing(second: int, data: Path, tmp_path: Path) -> None:
    """It sends them to torchrun and to its ranks, and torchrun to its ranks."""
    out = tmp_path / "run"
    with launched(run(data, out, "--workers", 2, "--memory", 0)) as processes:
        begun(processes, out)
        (worker, other) = processes.workers(0)
        for pid in (worker, other):
            os.kill(pid, signal.SIGSTOP)  # so that no step ends between the two
        processes.send(0, signal.SIGTERM)
        processes.send(0, second)
        for pid in (worker, other):
            os.kill(pid, signal.SIGCONT)
        assert processes.ended()[0].code == 143
    assert len(list((out / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_is_ignored_stays_ignored(number: int, data: Path, tmp_path: Path) -> None:
    """As SIGHUP under nohup, and SIGINT of what a shell has in the background."""
    out = tmp_path / "run"

    def deaf() -> None:
        signal.signal(number, signal.SIG_IGN)
        run(data, out, "--steps", 50)()

    with launched(deaf) as processes:
        begun(processes, out)
        os.kill(processes.pids[0], number)
        assert processes.ended()[0].code == 0


def interrupt(processes: Processes) -> None:
    """Ctrl-C twice to the first process, which leaves at once."""
    processes.send(0, signal.SIGINT)
    began = time.monotonic()
    os.kill(processes.pids[0], signal.SIGINT)
    processes.until(lambda: not alive(processes.pids[0]))
    assert time.monotonic() - began < AT_ONCE


def test_a_second_interrupt_leaves_a_worker_that_hangs(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with launched(run(data, out, "--workers", 2, "--memory", 0)) as processes:
        begun(processes, out)
        workers = processes.workers(0)
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        interrupt(processes)
        assert processes.ended()[0].code == 130
        gone(workers)


def test_a_second_interrupt_leaves_a_collective_that_hangs(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with launched(*[run(data, out)] * 2) as processes:
        begun(processes, out)
        os.kill(processes.pids[1], signal.SIGSTOP)
        interrupt(processes)
        os.kill(processes.pids[1], signal.SIGCONT)
        first, second = processes.ended()
    assert first.code == 130
    assert second.code == 74
    assert "rank 0" in second.line
