"""Nothing waits for ever: what does not answer any more is named within ``--timeout``, and everybody leaves."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import lookalike.cli.verbs
from lookalike.core import dist
from lookalike.core.errors import IO, UserError
from lookalike.core.waiting import TIMEOUT, end_where_it_hangs
from lookalike.data.pool import ordered, stopped
from tests.invariants.test_torchrun import Start, pictures, ranks_of, start, steps_done  # noqa: F401  (a fixture)
from tests.invariants.test_torchrun import command as under_torchrun
from tests.support.launched import gone, launched, lookalike

pytestmark = [
    pytest.mark.any_precision,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc"),
]

SECONDS, SOON = 4, 40.0
"""What processes are waited for, and in what time they are all gone on a machine with other work: far below a minute,
which is the least that they would wait otherwise."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return pictures(tmp_path / "pictures")


def endless(data: Path, out: Path, *more: object) -> Callable[[], None]:
    """A run that ends only if something ends it."""
    small = ("--recipe", "tiny", "--group", 8, "--model.widths", "4,8", "--steps", 5000, "--checkups", 0)
    how = ("--timeout", SECONDS, "--save-every", 5, "--workers", 0)
    return lookalike("pretrain", data, "--out", out, *small, *how, *more)


@pytest.mark.parametrize("number", [0, 1])
def test_a_stopped_rank_is_named_with_its_step_and_all_leave(number: int, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with launched(*[endless(data, out)] * 2) as processes:
        processes.until(lambda: steps_done(out) > 2)
        pid, began = processes.pids[number], time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        ended = processes.ended()
        assert time.monotonic() - began < SOON
    assert ended[number].code == -signal.SIGKILL
    assert ended[1 - number].code == IO
    assert f"rank {number} (process {pid} on " in ended[1 - number].line
    assert f"has not answered for {SECONDS} s, last at step " in ended[1 - number].line
    assert any((out / "checkpoints").iterdir())


def test_a_stopped_rank_under_torchrun_leaves_nobody_behind(start: Start, data: Path, tmp_path: Path) -> None:  # noqa: F811
    agent = start([*under_torchrun(data, tmp_path / "run"), "--timeout", str(SECONDS), "--steps", "5000"])
    while agent.poll() is None and not steps_done(tmp_path / "run") > 1:
        time.sleep(0.01)
    ranks, began = ranks_of(agent.pid), time.monotonic()
    os.kill(ranks[1], signal.SIGSTOP)
    said, _ = agent.communicate(timeout=SOON)
    assert time.monotonic() - began < SOON
    assert agent.returncode == 1
    assert f"(process {ranks[1]} on " in said
    gone(ranks)


def test_ranks_wait_for_the_first_as_long_as_it_works(tmp_path: Path) -> None:
    def rank() -> None:
        os.environ[TIMEOUT] = "2"
        with dist.together():
            assert dist.on_first_rank(lambda: time.sleep(5) or 7) == 7  # type: ignore[func-returns-value]
            assert dist.agree(dist.rank(), 1) == 1

    with launched(rank, rank) as processes:
        assert [ended.code for ended in processes.ended()] == [0, 0]


def test_a_rank_may_leave_before_the_others(tmp_path: Path) -> None:
    def rank() -> None:
        os.environ[TIMEOUT] = "2"
        with dist.together():
            if dist.rank() != 1:
                time.sleep(4)

    with launched(rank, rank, rank) as processes:
        assert [ended.code for ended in processes.ended()] == [0, 0, 0]


def test_a_rank_that_is_killed_is_named(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with launched(*[endless(data, out, "--batch", 24)] * 3) as processes:
        processes.until(lambda: steps_done(out) > 1)
        os.kill(processes.pids[2], signal.SIGKILL)
        first, second, _ = processes.ended()
    assert first.code == second.code == IO
    assert f"rank 2 (process {processes.pids[2]} on " in first.line
    assert "rank 2" in second.line


@pytest.mark.parametrize("number", [0, 1])
def test_an_error_of_one_rank_is_that_of_all(number: int, data: Path, tmp_path: Path) -> None:
    places = [data, data]
    places[number] = tmp_path / "nowhere"
    began = time.monotonic()
    with launched(*(endless(place, tmp_path / "run") for place in places)) as processes:
        ended = processes.ended()
    assert time.monotonic() - began < SOON
    assert ended[0].code == ended[1].code != 0
    assert all("nowhere" in one.line for one in ended)
    assert ended[1 - number].line.startswith(f"lookalike: rank {number} on ")
    assert not (tmp_path / "run").exists()


# ---- workers ----


@pytest.mark.parametrize("ranks", [1, 2])
def test_stopped_workers_are_named_and_all_leave(ranks: int, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with launched(*[endless(data, out, "--workers", 2, "--memory", 0)] * ranks) as processes:
        processes.until(lambda: steps_done(out) > 1)
        workers = [processes.workers(rank) for rank in range(ranks)]
        began = time.monotonic()
        for worker in workers[-1]:  # were it one that has nothing to do, the other would do all
            os.kill(worker, signal.SIGSTOP)
        ended = processes.ended()
        assert time.monotonic() - began < SOON
    assert {one.code for one in ended} == {IO}
    assert all("worker " in one.line and f"{workers[-1][-1]} on " in one.line for one in ended)
    gone([worker for some in workers for worker in some])


def test_a_worker_that_hangs_in_a_read_is_named_with_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIMEOUT, "0.5")
    os.mkfifo(tmp_path / "never")  # as a file on a disk that does not answer: opening it does not return

    def read(names: list[str]) -> int:
        return sum(len((tmp_path / name).read_bytes()) for name in names if not stopped())

    (tmp_path / "some").write_bytes(b"123")
    tasks = [["some"], ["some", "some", "never"], ["some"]]
    results = ordered(read, tasks, 2, part=lambda names, number: names[number])
    assert next(results) == (["some"], 3)
    with pytest.raises(UserError, match=r"worker \d+ on .* at never: .*--timeout") as caught:
        list(results)
    assert caught.value.code == IO
    named = re.search(r"worker (\d+)", str(caught.value))
    assert named
    with pytest.raises(ProcessLookupError):  # it is gone
        os.kill(int(named[1]), 0)


def reads_what_never_comes(folder: Path) -> None:
    """Without workers."""
    tasks = [["some"], ["some", "some", "never"], ["some"]]

    def read(names: list[str]) -> int:
        return sum(len((folder / name).read_bytes()) for name in names if not stopped())

    list(ordered(read, tasks, 0, part=lambda names, number: f"{names[number]} at {number}"))


@pytest.fixture
def never(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "never")  # as a file on a disk that does not answer: opening it does not return
    (tmp_path / "some").write_bytes(b"123")
    return tmp_path


@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_that_hangs_in_a_read_without_workers_is_named_with_what_it_reads(number: int, never: Path) -> None:
    def rank() -> None:
        os.environ[TIMEOUT] = "1"
        with dist.together():
            if dist.rank() == number:
                reads_what_never_comes(never)
            dist.agree(1, number)

    began = time.monotonic()
    with launched(*[lambda: refusing(rank)] * 2) as processes:
        ended = processes.ended()
    assert time.monotonic() - began < SOON
    assert [one.code for one in ended] == [IO, IO]
    words = f"rank {number} (process {processes.pids[number]} on "
    assert all(words in one.line and "has not answered for 1 s, at never at 2: look" in one.line for one in ended)


def refusing(work: Callable[[], None]) -> None:
    """As the command line does."""
    try:
        work()
    except UserError as error:
        print(f"lookalike: {error}", file=sys.stderr)
        sys.exit(error.code)


def test_a_command_that_hangs_in_a_read_without_workers_ends(never: Path) -> None:
    def alone() -> None:
        os.environ[TIMEOUT] = "0.5"
        end_where_it_hangs()
        reads_what_never_comes(never)

    with launched(alone) as processes:
        (ended,) = processes.ended()
    assert ended.code == IO
    assert f"process {processes.pids[0]} on " in ended.line
    assert "has not answered for 0.5 s, at never at 2: look whether its disk does" in ended.line


def test_who_was_stopped_together_with_his_watch_does_not_hang(never: Path) -> None:
    def alone() -> None:
        os.environ[TIMEOUT] = "1"
        end_where_it_hangs()
        (never / "ready").touch()
        list(ordered(lambda _: time.sleep(0.4), range(6), 0))

    with launched(alone) as processes:
        processes.until((never / "ready").exists)
        os.kill(processes.pids[0], signal.SIGSTOP)
        time.sleep(2)
        os.kill(processes.pids[0], signal.SIGCONT)
        assert processes.ended()[0].code == 0


def test_work_that_goes_on_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT, "2")

    def slow(parts: int) -> int:
        for _ in range(parts):
            stopped()
            time.sleep(0.1)
        return parts

    assert list(ordered(slow, [40], 1)) == [(40, 40)]


def test_no_worker_outlives_its_parent(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with launched(endless(data, out, "--workers", 2, "--memory", 0)) as processes:
        processes.until(lambda: steps_done(out) > 1)
        workers = processes.workers(0)
        os.kill(workers[0], signal.SIGSTOP)
        os.kill(processes.pids[0], signal.SIGKILL)
        processes.ended()
        gone(workers)
