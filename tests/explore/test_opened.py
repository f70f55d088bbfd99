"""The command: it prints an address, ends with Ctrl-C and says where the decisions are; a run that trains moves."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lookalike.core.errors import UserError
from lookalike.core.lock import Lock
from lookalike.core.progress import Progress
from lookalike.curate.table import Finding, Table, open_table
from lookalike.explore.decisions import Decisions
from lookalike.explore.live import Live, training
from lookalike.explore.opened import beside, listen
from lookalike.explore.queues import Queues
from lookalike.explore.session import Session
from tests.conftest import Said

PATIENCE = 120.0  # seconds


@contextmanager
def killed(process: subprocess.Popen[str]) -> Iterator[None]:
    """Whatever happens inside, it does not outlive it."""
    try:
        yield
    finally:
        process.kill()


def test_the_command_serves_until_it_is_interrupted(table: Path, tmp_path: Path) -> None:
    shutil.copy(table, own := tmp_path / "photos.parquet")
    command = [sys.executable, "-m", "lookalike", "explore", str(own), "--no-browser"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        killed(process),
    ):
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], PATIENCE)[0]
        line = process.stdout.readline()
        matched = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=[\w-]{43}\n", line)
        assert matched, line
        with urllib.request.urlopen(line.strip(), timeout=PATIENCE) as answer:
            assert b"lookalike explore" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="403") as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{matched[1]}/about", timeout=PATIENCE)
        refused.value.close()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode in (0, 130), err) == (True, "")
    assert out.endswith("no decisions were made\n")


def test_what_cannot_be_served_is_said_in_a_line(say: Callable[..., Said], table: Path, tmp_path: Path) -> None:
    assert say("explore", tmp_path / "none.parquet", "--no-browser")[0] == 65
    with listen(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match="leave out --port"):
            listen(port)
    shutil.copy(table, own := tmp_path / "photos.parquet")
    held = Decisions(beside(own, None)[1])
    code, _, err = say("explore", own, "--no-browser")
    held.close()
    assert (code, err.count("\n"), "in use by another explore" in err) == (75, 1, True)


def test_decisions_lie_beside_what_they_are_on(run: Path, tmp_path: Path) -> None:
    assert beside("a/photos.parquet", None) == (Path("a/photos.explore"), Path("a/photos.decisions.jsonl"))
    assert beside(run, None) == (run / "explore", run / "decisions.jsonl")
    assert beside("timm:resnet18", "b/photos") == (None, Path("photos.decisions.jsonl"))


def test_a_run_that_trains_moves(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, own := tmp_path / "run")
    assert not training(str(own))
    lock = Lock(own)
    assert training(str(own))
    live, decisions = Live(own), Decisions(tmp_path / "decisions.jsonl")
    session = Session(live.table(), decisions, Queues({}))
    session.draw()
    assert live.about()["training"]
    before, order = session.map, session.map.order.copy()
    live.step = 0  # as if the checkpoint that is there had come after what is shown
    session.ended.wait = lambda *_: len(steps) > 1 or bool(steps.append(0))  # type: ignore[method-assign,func-returns-value]
    steps: list[int] = []
    live.follow(session)
    assert session.map.number == before.number + 1
    np.testing.assert_array_equal(session.map.order, order)
    assert session.table.rows.vectors.shape == (25, live.table().rows.vectors.shape[1])
    assert session.live["shown"] == 3
    assert json.dumps(session.live)
    lock.release()
    decisions.close()
    assert os.path.exists(own / "recipe.json")


def test_the_queues_are_filled_by_what_cleans_tables(table: Path, tmp_path: Path) -> None:
    decisions = Decisions(tmp_path / "decisions.jsonl")
    session = Session(open_table(table), decisions, folder=table.with_suffix(".explore"))
    session.draw()
    decisions.close()
    assert {name: (queue.state, queue.words) for name, queue in session.queues.of.items()} == dict.fromkeys(
        ("leaks", "duplicates", "labels", "outliers"), ("found", "")
    )
    (leak, *_) = session.queues.of["leaks"].findings
    assert session.table.rows.path[leak.row] == "test/cats/copy.png"
    assert session.table.rows.path[leak.others[0]] == "train/cats/00.png"


def test_a_queue_that_fails_says_why_and_the_next_begins(table: Path, tmp_path: Path) -> None:
    def failing(table: Table, progress: Progress) -> list[Finding]:
        raise UserError("no labels")

    queues = Queues({"labels": failing, "outliers": lambda table, progress: [Finding(0, 1.0, "odd")]})
    queues.look(open_table(table), threading.Event())
    assert [(queue.state, queue.words) for queue in queues.of.values()] == [("failed", "no labels"), ("found", "")]
