"""A run folder: its recipe (recipe.json), where it ran (environment.json), what happened (metrics.jsonl)."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

import torch
import torchvision
from torch import nn

from lookalike.core import dist
from lookalike.core.devices import accelerator, processor
from lookalike.core.errors import BAD_DATA, LOCKED, USAGE, UserError, visible
from lookalike.core.errors import IO as IO_ERROR
from lookalike.core.files import (
    UNFINISHED,
    json_in,
    read_json,
    refuse_unwritable,
    write_atomically,
    write_csv,
    write_json,
)
from lookalike.recipes.modality import TOKENIZER
from lookalike.recipes.recipe import Recipe
from lookalike.recipes.serialize import differences, from_plain, to_plain
from lookalike.train import checkpoint
from lookalike.train.tensorboard import Board

_locks: set[IO[str]] = set()

BAD_FILES = "bad_files.csv"
OURS = {"run.lock", BAD_FILES, "train.log", "data.parquet", "environment.json", TOKENIZER, "start.safetensors"}
"""What may stand in a run folder before its recipe.json does, which comes last when a run begins."""
_BEGUN = {"result.json", "result.safetensors", "recipe.json", "fit.json", "metrics.jsonl", "tb", "checkpoints"}


@cache
def _workers_let_go() -> None:
    """A worker that outlives this process for a moment would else keep its lock: a flock belongs to all its heirs."""
    os.register_at_fork(after_in_child=lambda: [lock.close() for lock in _locks])


class Run:
    """An open run folder, locked against a second writer; a context manager.

    A run that is refused before a step of it is saved leaves nothing: no folder stands in the way of the right command.
    Of several ranks the first writes and the others read: there ``writes`` is False, and nothing is logged or noted.
    """

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.folder, self.writes = folder, writes
        self.checkpoints = folder / "checkpoints"
        self.metrics = folder / "metrics.jsonl"  # one JSON object a line, in the order of steps
        self.data_table = folder / "data.parquet"  # which files the data was: see data/fingerprint.py
        self._environment = folder / "environment.json"
        self.tell: Callable[[str], None] = lambda _: None
        self._lock: IO[str] | None = None
        self._new: list[Path] = []  # the folder and those above it, as far as they were made for this run
        self._held: set[str] = set()  # what the folder held before
        self._metrics: IO[str] | None = None
        self._board: Board | None = None

    def __enter__(self) -> Run:
        refuse_unwritable(self.folder, folder=True)
        self._new = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._held = set(os.listdir(self.folder))
            self._lock = (self.folder / "run.lock").open("a+", encoding="utf-8")
        except OSError as error:
            reason = f"cannot write to {self.folder} ({error.strerror}): choose another --out"
            raise UserError(reason, IO_ERROR) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock.close()
            reason = f"{self.folder} is in use by {holder}: wait for it, or choose another --out"
            raise UserError(reason, LOCKED) from None
        _locks.add(self._lock)
        _workers_let_go()
        for left in [*self.folder.glob(f".*{UNFINISHED}"), *self.checkpoints.glob(f".*{UNFINISHED}")]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()  # by a run that was killed in a write
        self._lock.truncate(0)
        self._lock.write(f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        self._lock.flush()
        return self

    def __exit__(self, _: object = None, error: BaseException | None = None, *__: object) -> None:
        self._close_logs()
        if self._lock is None:
            return
        if error is not None and not self.saved():
            self._undo(str(error))
        _locks.discard(self._lock)
        self._lock.truncate(0)
        self._lock.close()

    def saved(self) -> bool:
        """Whether a step has been saved: before that there is nothing to lose."""
        return any(checkpoint.step_of(path) > 0 for path in checkpoint.published(self.checkpoints))

    def _undo(self, reason: str) -> None:
        """Take away what a run that was not there before has written, but for the list that ``reason`` may speak of."""
        new = set(os.listdir(self.folder)) - self._held
        if self._held & _BEGUN or any(name not in OURS | _BEGUN and not name.endswith(UNFINISHED) for name in new):
            return  # a run that was begun earlier, or no run: lookalike prepare keeps its shards
        for path in (self.folder / name for name in new if name != BAD_FILES or name not in reason):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with suppress(OSError):  # one of them holds something
            for path in self._new:
                path.rmdir()

    def recipe(self) -> Recipe | None:
        """The recipe that this folder holds, if any."""
        path = self.folder / "recipe.json"
        return read_recipe(path) if path.exists() else None

    def data(self) -> dict[str, Any]:
        """What was recorded of the data when the run began."""
        data = self._recorded().get("data")
        if not isinstance(data, dict) or not isinstance(data.get("examples"), int):
            raise UserError(f"{self._environment} does not say what the data was", BAD_DATA)
        return data

    def accept(self, data: dict[str, Any], table: bytes) -> None:
        """Record what the data is: the table last, which decides whether it has changed."""
        write_json(self._environment, environment() | {"data": data, "earlier": self._recorded().get("earlier", [])})
        write_atomically(self.data_table, table)

    def go_on(self, recipe: Recipe) -> None:
        """Record under what the run goes on, and say what has changed: equal bytes are promised for equal ones only."""
        if not self.writes:
            return
        old, now, before = self._recorded(), environment(), self.recipe()
        known = [name for name in DECIDES if name in old]  # older versions recorded fewer
        changed = [f"{name} {now[name]} ({old[name]} before)" for name in known if old[name] != now[name]]
        if before is not None and before.precision != recipe.precision:
            if before.precision != "auto":  # what older versions recorded
                changed.append(f"precision {recipe.precision} ({before.precision} before)")
            self.write_recipe(recipe)
        if changed:
            self.note(f"goes on under other conditions, so its bytes are its own: {', '.join(changed)}")
            earlier = {name: old.get(name) for name in ("command", *DECIDES)}
            write_json(self._environment, old | now | {"earlier": [*old.get("earlier", []), earlier]})

    def _recorded(self) -> dict[str, Any]:
        """What environment.json holds, if it is there; raises UserError where it is damaged."""
        recorded = read_json(self._environment) if self._environment.exists() else {}
        if not isinstance(recorded, dict):
            raise UserError(f"{self._environment} holds no record of a run", BAD_DATA)
        return recorded

    def begin(self, recipe: Recipe, data: dict[str, Any], table: bytes) -> None:
        """Record a new run: its recipe, where it runs, and on what."""
        self.accept(data, table)
        self.write_recipe(recipe)

    def write_recipe(self, recipe: Recipe) -> None:
        """Publish what the run is: from here on it is begun, or of another length."""
        write_json(self.folder / "recipe.json", to_plain(recipe))

    def resume(self, learner: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Restore the newest whole checkpoint, if there is one, and its logs; the steps that are done."""
        name = dist.on_first_rank(self._newest)
        step = checkpoint.load(self.checkpoints / name, learner, optimizer) if name else 0
        self.rewind(step)
        return step

    def _newest(self) -> str | None:
        path, damaged = checkpoint.newest(self.checkpoints)
        for reason in damaged:
            self.note(f"passed over a damaged checkpoint: {reason}")
        return path.name if path else None

    def save(self, step: int, learner: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Publish a checkpoint, after what was logged up to it is on the disk."""
        if self._metrics is not None:
            os.fsync(self._metrics.fileno())
        if self._board is not None:
            self._board.sync()
        checkpoint.save(self.checkpoints, step, learner, optimizer)

    def rewind(self, step: int) -> None:
        """Drop what was logged after ``step``: a resumed run logs those steps again, with equal values."""
        if not self.writes:
            return
        self._close_logs()  # which belong to the file that is replaced
        lines = self.metrics.read_bytes().splitlines(keepends=True) if self.metrics.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        write_atomically(self.metrics, b"".join(kept))
        self._board = Board.open(self.folder / "tb", step)

    def log(self, step: int, hidden: Collection[str] = (), /, **values: float) -> None:
        """Append one line to metrics.jsonl, and all but ``hidden`` to TensorBoard's file where that is installed."""
        if not self.writes:
            return
        if self._metrics is None:
            self._metrics = self.metrics.open("a", encoding="utf-8")
        self._metrics.write(json.dumps({"step": step, **values}) + "\n")
        self._metrics.flush()
        shown = {name: value for name, value in values.items() if name not in hidden}
        self._show(step, "train" if "loss" in values else "val", shown)

    def pace(self, step: int, **values: float) -> None:
        """What depends on the machine and the hour, for TensorBoard alone: metrics.jsonl repeats exactly."""
        self._show(step, "perf", values)

    def _show(self, step: int, group: str, values: Mapping[str, float]) -> None:
        if self._board is not None:
            self._board.add(step, {f"{group}/{name}": value for name, value in values.items()})

    def _close_logs(self) -> None:
        for log in (self._metrics, self._board):
            if log is not None:
                log.close()
        self._metrics = self._board = None

    def note(self, text: str) -> None:
        """Append a line, with the time, to train.log, and tell it to whoever watches."""
        if not self.writes:
            return
        self.tell(text)
        text = visible(text)
        with (self.folder / "train.log").open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def note_bad_files(self, bad: Mapping[str, str]) -> None:
        """bad_files.csv: each picture that could not be read, once, with the reason."""
        if not bad or not self.writes:
            return
        write_csv(self.folder / BAD_FILES, ("path", "reason"), sorted(bad.items()))


@contextmanager
def open_run(folder: Path) -> Iterator[Run]:
    """The run folder, locked and written by the first rank for all."""
    run = Run(folder, writes=dist.first())
    dist.on_first_rank(lambda: run.__enter__() and None)
    try:
        yield run
    except BaseException as error:
        run.__exit__(None, error)
        raise
    run.__exit__()


def _step_of(line: bytes) -> float:
    """The step of a line of metrics; a torn last line counts as after everything."""
    try:
        return float(json_in(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def is_run(path: str | Path) -> bool:
    """Whether a path is the folder of a run."""
    return os.path.isfile(os.path.join(path, "recipe.json"))


def read_recipe(path: Path) -> Recipe:
    """The recipe of a recipe.json."""
    try:
        recipe = from_plain(read_json(path))
    except UserError as error:
        raise UserError(f"{path}: {error}", error.code) from None
    if not isinstance(recipe, Recipe):
        raise UserError(f"{path} holds no recipe", BAD_DATA)
    return recipe


def check_same(folder: Path, recorded: Recipe, recipe: Recipe) -> None:
    """Refuse to continue a run under other settings."""
    if changed := differences(recorded, recipe):
        longer = ", --extend to make it longer" if all(line.startswith("length.") for line in changed) else ""
        raise UserError(
            f"{folder} holds a run of other settings ({'; '.join(changed)}): choose another --out{longer}, "
            "or --overwrite",
            USAGE,
        )


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder whose old run stands under a free name beside it; it comes back where no new one has saved a step."""
    folder = folder.absolute()  # "." is another folder when that has another name
    aside = dist.on_first_rank(lambda: move_aside(folder))
    try:
        yield folder
    except BaseException:
        if aside is not None and dist.first() and not Run(folder).saved():
            (folder / BAD_FILES).unlink(missing_ok=True)
            with suppress(OSError):  # somebody has put something there
                Path(aside).rename(folder)
        raise


def move_aside(folder: Path) -> str | None:
    """Rename an old run, if there is one; its new name. Raises UserError while a process trains it."""
    folder, number = folder.absolute(), 1  # "." has no name
    if not (folder / "recipe.json").exists():
        return None
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    with Run(folder):
        folder.rename(aside)
    return str(aside)


DECIDES = ("torch", "machine", "processor", "accelerator", "threads", "processes")
"""The entries of ``environment`` of which any other value gives other bytes."""


def environment() -> dict[str, Any]:
    """What a byte-equal repetition of a run depends on."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": platform.machine(),
        "processor": processor(),
        "accelerator": accelerator(),
        "threads": torch.get_num_threads(),
        "processes": dist.world(),
    }
