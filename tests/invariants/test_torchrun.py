"""The command under torchrun: two processes make one run, and a rank that dies costs nothing but time."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.forks import digest

pytestmark = pytest.mark.any_precision

STEPS, PATIENCE = 60, 180
Start = Callable[[list[str]], subprocess.Popen[str]]


def pictures(folder: Path) -> Path:
    """48 pictures of noise in two classes."""
    noise = np.random.default_rng(0)
    for i in range(48):
        path = folder / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return folder


def command(data: Path, out: Path, restarts: int = 0) -> list[str]:
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--max-restarts={restarts}"),
        *("--standalone", "-m", "lookalike", "pretrain", str(data), "--out", str(out), "--recipe", "tiny"),
        *("--steps", str(STEPS), "--save-every", "3", "--workers", "0", "--group", "8", "--model.widths", "4,8"),
    ]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a command; nothing that it started outlives the test, whatever became of it."""
    started: list[subprocess.Popen[str]] = []

    def run(arguments: list[str]) -> subprocess.Popen[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        started.append(
            subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.terminate()  # the agent ends its ranks, which are sessions of their own
            process.communicate(timeout=PATIENCE)


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output


def steps_done(out: Path) -> int:
    metrics = out / "metrics.jsonl"
    return len(metrics.read_bytes().splitlines()) if metrics.exists() else 0


def ranks_of(agent: int) -> list[int]:
    """The processes that torchrun's agent has started and that are alive."""
    try:
        children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    except OSError:
        return []
    return [pid for pid in map(int, children) if b"RANK=" in environment_of(pid)]


def environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def kill_one_after(agent: subprocess.Popen[str], out: Path, steps: int, chance: random.Random) -> bool:
    """SIGKILL to a rank once the run has logged so many lines; whether there was still one."""
    limit = time.monotonic() + PATIENCE
    while agent.poll() is None and time.monotonic() < limit:
        if steps_done(out) >= steps and (alive := ranks_of(agent.pid)):
            os.kill(chance.choice(alive), signal.SIGKILL)
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_a_rank_that_is_killed_costs_only_time(kills: int, start: Start, tmp_path: Path) -> None:
    data, chance = pictures(tmp_path / "pictures"), random.Random(kills)
    said = finished(start(command(data, tmp_path / "undisturbed")))
    assert said.count(f"step {STEPS} of {STEPS}: done") == 1  # the first rank alone speaks
    assert "on 2 processes" in said

    out, killed = tmp_path / "disturbed", 0
    while killed < kills:  # three restarts are torchrun's; then a person types the command again
        agent = start(command(data, out, restarts=3))
        for _ in range(min(kills - killed, 4)):
            killed += kill_one_after(agent, out, steps_done(out) + chance.randint(1, 8), chance)
        agent.communicate(timeout=PATIENCE)
    if agent.returncode:
        finished(start(command(data, out, restarts=3)))
    assert digest(out) == digest(tmp_path / "undisturbed")
