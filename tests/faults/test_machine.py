"""Saves, kills, damage, resumes and new starts in any order: there is always a checkpoint whose every byte is as it was
written, unless all were damaged; nothing damaged is loaded, and what is passed over is said.

A kill is an exception that nothing in the package catches, raised where Python touches the run folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from torch import nn

from lookalike.core.errors import BAD_DATA, IO, LOCKED, UserError
from lookalike.train import checkpoint
from lookalike.train.run import OURS, Run
from tests.faults.conftest import ALL
from tests.support.damage import DAMAGE, Damage, swap

_TOUCHES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "shutil.rmtree"}
RECIPE = "recipe.json"
FILES = {name: damage for name, damage in DAMAGE.items() if name != "another step under its name"}


class Killed(BaseException):
    """The process is gone."""


class Fault:
    """The next touch but ``left`` of a path below ``folder`` raises ``error``."""

    folder, left, error = "", 0, BaseException()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if Fault.left and event in _TOUCHES and str(arguments[0]).startswith(Fault.folder):
        Fault.left -= 1
        if not Fault.left:
            raise Fault.error


@pytest.fixture(scope="module", autouse=True)
def listens() -> None:
    sys.addaudithook(_hook)  # stays, as all audit hooks do; counts nothing where nothing is asked


def hashed(learner: nn.Module) -> str:
    state = b"".join(part.numpy().tobytes() for part in learner.state_dict().values())
    return hashlib.sha256(state).hexdigest()


class Checkpoints(RuleBasedStateMachine):
    """A run folder, a process that trains in it or none, and what was done to the files."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="machine"))
        self.run: Run | None = None
        self.saved: dict[str, str] = {}  # the hash of what was published, by its name
        self.harmed: set[str] = set()  # checkpoints that this machine has damaged or taken away
        self.aside: dict[Path, tuple[dict[str, str], set[str]]] = {}  # runs that were moved, as they were then
        self.learner, self.step = nn.Linear(3, 2), 0
        self.optimizer = torch.optim.SGD(self.learner.parameters(), lr=0.1)

    def teardown(self) -> None:
        self.gone()
        for folder in (self.folder, *self.aside):
            shutil.rmtree(folder, ignore_errors=True)

    def gone(self) -> None:
        """The process is no more: the system closes its files."""
        Fault.left = 0
        if self.run is not None and self.run._lock is not None:
            self.run._close_logs()
            self.run._lock._file.close()
        self.run = None

    @property
    def names(self) -> list[str]:
        return [path.name for path in checkpoint.published(self.folder / "checkpoints")]

    @property
    def left(self) -> list[str]:
        """What is published and was not damaged, newest first."""
        return [name for name in self.names if name not in self.harmed]

    # ---- a process ----

    @precondition(lambda self: self.run is None)
    @rule()
    def resumes(self) -> None:
        """The newest whole checkpoint, and what was logged up to it; others are named."""
        self.run = run = Run(self.folder)
        run.__enter__()
        self.begins()
        if self.names and not self.left:
            with pytest.raises(UserError, match="no whole checkpoint is left") as refused:
                run.resume(self.learner, self.optimizer)
            assert refused.value.code == BAD_DATA
            self.gone()
            return
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            self.step = run.resume(self.learner, self.optimizer)
        passed = self.names[: self.names.index(self.left[0])] if self.left else []
        assert all(any(name in str(line.message) for line in told) for name in passed)
        if self.left:
            assert self.step == checkpoint.step_of(Path(self.left[0]))
            assert hashed(self.learner) == self.saved[self.left[0]]
        logged = [json.loads(line)["step"] for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        assert logged == list(range(1, self.step + 1))

    def begins(self) -> None:
        (self.folder / RECIPE).touch()  # which makes the folder one of a run
        self.learner, self.step = nn.Linear(3, 2), 0
        self.optimizer = torch.optim.SGD(self.learner.parameters(), lr=0.1)

    @precondition(lambda self: self.run is None)
    @rule(touch=st.integers(0, 12))
    def starts_over(self, touch: int) -> None:
        """``--overwrite``: the run that is there is moved aside, whole; killed at some touch, it is there or here."""
        was_run = (self.folder / RECIPE).is_file()
        self.run = Run(self.folder, overwrite=True)
        self.fault(touch, Killed(), self.folder)
        try:
            self.run.__enter__()
            Fault.left = 0
            self.moved(was_run)
            self.begins()
            self.run.rewind(0)
        except Killed:
            self.moved(was_run)
            self.gone()

    def moved(self, was_run: bool) -> None:
        """Note where the run went that was there, if it did."""
        number = len(self.aside) + 1
        if (place := self.folder.with_name(f"{self.folder.name}.old-{number}")).exists():
            assert was_run
            self.aside[place] = self.saved, self.harmed
            self.saved, self.harmed = {}, set()
        elif was_run and self.run is not None:
            assert (self.folder / RECIPE).is_file()  # killed before it was moved

    @precondition(lambda self: self.run is not None)
    @rule(touch=st.integers(0, 12))
    def ends_with_an_error(self, touch: int) -> None:
        """Before a step is saved it takes away its own, and what it has moved aside comes back; or it is killed."""
        assert self.run is not None
        place, begun = self.run._aside, self.run.saved()
        self.fault(touch, Killed(), self.folder)
        with suppress(Killed):
            self.run.__exit__(None, UserError("no", BAD_DATA))
            Fault.left = 0
            assert place is None or begun or not place.exists()
        if place is not None and not place.exists():
            self.saved, self.harmed = self.aside.pop(place)
        self.gone()
        if not begun and self.folder.exists():  # the same command is not refused
            assert (self.folder / RECIPE).is_file() or set(os.listdir(self.folder)) <= OURS

    @precondition(lambda self: self.run is not None)
    @rule()
    def second_process_is_refused(self) -> None:
        with pytest.raises(UserError, match=rf"is in use by pid {os.getpid()} on ") as refused:
            Run(self.folder).__enter__()
        assert refused.value.code == LOCKED

    def trains(self, steps: int) -> None:
        assert self.run is not None
        for _ in range(steps):
            self.step += 1
            with torch.no_grad():
                self.learner.weight.add_(self.step)
            self.run.log(self.step, loss=1 / self.step)

    @precondition(lambda self: self.run is not None)
    @rule(steps=st.integers(1, 3))
    def saves(self, steps: int) -> None:
        self.trains(steps)
        assert self.run is not None
        self.run.save(self.step, self.learner, self.optimizer)
        self.published()
        assert len(self.names) == min(2, len(self.saved))
        assert self.names[0] == self.named

    @property
    def named(self) -> str:
        return f"step-{self.step:09}"

    def published(self) -> None:
        """What a save leaves behind it."""
        if self.named in self.names and checkpoint.damage(self.folder / "checkpoints" / self.named) is None:
            self.saved[self.named] = hashed(self.learner)
            self.harmed.discard(self.named)
        self.saved = {name: kept for name, kept in self.saved.items() if name in self.names}

    @precondition(lambda self: self.run is not None)
    @rule(steps=st.integers(1, 3), touch=st.integers(1, 30))
    def is_killed_in_a_save(self, steps: int, touch: int) -> None:
        self.trains(steps)
        self.fault(touch, Killed())
        with pytest.raises(Killed):
            self.save_and_end()
        self.gone()
        self.published()

    @precondition(lambda self: self.run is not None)
    @rule(steps=st.integers(1, 3), touch=st.integers(1, 30), number=st.sampled_from([errno.ENOSPC, errno.EIO]))
    def disk_refuses_a_save(self, steps: int, touch: int, number: int) -> None:
        self.trains(steps)
        before = self.left
        self.fault(touch, OSError(number, os.strerror(number)))
        with pytest.raises((UserError, OSError, Killed)) as ended:
            self.save_and_end()
        self.gone()
        self.published()
        if isinstance(ended.value, UserError):
            assert ended.value.code == IO
            assert self.left == before or self.named in self.names  # published, but the folder could not be synced

    def fault(self, touch: int, error: BaseException, below: Path | None = None) -> None:
        Fault.folder, Fault.left, Fault.error = str(below or self.folder / "checkpoints"), touch, error

    def save_and_end(self) -> None:
        assert self.run is not None
        self.run.save(self.step, self.learner, self.optimizer)
        Fault.left = 0
        raise Killed

    @precondition(lambda self: self.run is not None)
    @rule()
    def is_killed(self) -> None:
        self.gone()

    # ---- what happens to files while no process looks ----

    @precondition(lambda self: self.run is None and self.names)
    @rule(name=st.sampled_from(sorted(FILES)), newest=st.booleans())
    def is_damaged(self, name: str, newest: bool) -> None:
        target = self.names[0 if newest else -1]
        if target not in self.harmed:
            self.harm(target, FILES[name])

    @precondition(lambda self: self.run is None and self.names)
    @rule(newest=st.booleans())
    def is_deleted(self, newest: bool) -> None:
        path = self.folder / "checkpoints" / self.names[0 if newest else -1]
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.saved.pop(path.name, None)
        self.harmed.discard(path.name)

    @precondition(lambda self: self.run is None and len(self.left) == 2)
    @rule(name=st.sampled_from(["learner.safetensors", "state.json"]))
    def files_are_swapped(self, name: str) -> None:
        newer, older = (self.folder / "checkpoints" / name for name in self.left)
        swap(newer / name, older / name)
        self.harmed |= {newer.name, older.name}

    @precondition(lambda self: self.run is None and self.left)
    @rule()
    def is_made_unreadable(self) -> None:
        file = self.folder / "checkpoints" / self.left[0] / "learner.safetensors"
        file.chmod(0)
        if not os.access(file, os.R_OK):  # root reads everything
            self.harmed.add(file.parent.name)

    def harm(self, name: str, damage: Damage) -> None:
        damage(self.folder / "checkpoints" / name)
        self.harmed.add(name)

    # ---- what always holds ----

    @invariant()
    def what_is_whole_is_what_was_not_damaged(self) -> None:
        folder = self.folder / "checkpoints"
        assert [name for name in self.names if checkpoint.damage(folder / name) is None] == self.left

    @invariant()
    def what_was_moved_aside_is_as_it_was(self) -> None:
        for place, (saved, harmed) in self.aside.items():
            found = checkpoint.published(place / "checkpoints")
            assert {path.name for path in found} >= set(saved)
            assert all(path.name in harmed or checkpoint.damage(path) is None for path in found)

    @invariant()
    def one_is_left(self) -> None:
        assert self.left or not set(self.saved) - self.harmed


def test_there_is_always_a_whole_checkpoint() -> None:
    run_state_machine_as_test(
        Checkpoints,
        settings=settings(
            max_examples=400 if ALL else 15,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=not ALL,
            phases=[Phase.generate, Phase.shrink] if ALL else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
