"""A run folder: its recipe (recipe.json), where it ran (environment.json), what happened (metrics.jsonl)."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from lookalike.core import dist
from lookalike.core.devices import accelerator, processor
from lookalike.core.errors import BAD_DATA, USAGE, UserError, visible
from lookalike.core.errors import IO as IO_ERROR
from lookalike.core.files import (
    HASHES,
    UNFINISHED,
    as_json,
    cannot_write,
    json_in,
    publish,
    read_json,
    refuse_unwritable,
    sync_folder,
    write_atomically,
    write_csv,
)
from lookalike.core.lock import LOCK, Lock
from lookalike.data.fingerprint import from_table
from lookalike.recipes.modality import TOKENIZER
from lookalike.recipes.recipe import Recipe
from lookalike.recipes.serialize import differences, from_plain, to_plain
from lookalike.train import checkpoint
from lookalike.train.tensorboard import Board

BAD_FILES, BAD_STEP = "bad_files.csv", "bad_step"
OURS = {
    LOCK,
    HASHES,
    BAD_FILES,
    f"{BAD_STEP}.json",
    f"{BAD_STEP}.safetensors",
    "train.log",
    "data.parquet",
    "environment.json",
    TOKENIZER,
    "start.safetensors",
}
"""What may stand in a run folder before its recipe.json does, which comes last when a run begins."""
_BEGUN = {"result.json", "result.safetensors", "recipe.json", "fit.json", "metrics.jsonl", "tb", "checkpoints"}


class Run:
    """An open run folder, locked against a second writer; a context manager, after which torch has its threads again.

    A run that is refused before a step of it is saved leaves nothing: no folder stands in the way of the right command.
    Of several ranks the first writes and the others read: there ``writes`` is False, and nothing is logged or noted.
    ``overwrite`` moves a run that is there aside; it comes back where the new one ends before a step of it is saved.
    """

    def __init__(self, folder: Path, writes: bool = True, overwrite: bool = False) -> None:
        folder = folder.absolute() if overwrite else folder  # "." is another folder when that has another name
        self.folder, self.writes, self._overwrites = folder, writes, overwrite
        self.checkpoints = folder / "checkpoints"
        self.metrics = folder / "metrics.jsonl"  # one JSON object a line, in the order of steps
        self.data_table = folder / "data.parquet"  # which files the data was: see data/fingerprint.py
        self._environment = folder / "environment.json"
        self.tell: Callable[[str], None] = lambda _: None
        self.threads = torch.get_num_threads()  # that the caller allows: a run in minutes may be faster on fewer
        self._lock: Lock | None = None
        self._aside: Path | None = None  # where the run is that was there before
        self._new: list[Path] = []  # the folder and those above it, as far as they were made for this run
        self._held: set[str] = set()  # what the folder held before
        self._metrics: IO[str] | None = None
        self._board: Board | None = None

    def __enter__(self) -> Run:
        refuse_unwritable(self.folder, folder=True)
        self._new = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            self._lock = Lock(self.folder)
            if self._overwrites and is_run(self.folder):
                self._lock = self._move_aside(self._lock)
            self._held = set(os.listdir(self.folder)) - ({LOCK} if self._lock.fresh else set())
            for path in self._new:  # a power cut takes no folder that holds something that is synced
                sync_folder(path.parent)
        except OSError as error:
            reason = f"cannot write to {self.folder} ({error.strerror}): choose another --out"
            raise UserError(reason, IO_ERROR) from None
        for left in [*self.folder.glob(f".*{UNFINISHED}"), *self.checkpoints.glob(f".*{UNFINISHED}")]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()  # by a run that was killed in a write
        return self

    def _move_aside(self, old: Lock) -> Lock:
        """Rename the run that is there, and hold its lock until the new folder has one: nobody gets between."""
        number = 1
        while (aside := self.folder.with_name(f"{self.folder.name}.old-{number}")).exists():
            number += 1
        self.folder.rename(aside)
        try:
            lock = Lock(self.folder)
        except UserError as error:
            raise UserError(f"{error}; the run that was there is {aside} now", error.code) from None
        finally:
            old.release()
        self._aside = aside
        return lock

    def __exit__(self, _: object = None, error: BaseException | None = None, *__: object) -> None:
        self._close_logs()
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        if self._lock is None:
            return
        if error is not None and self._lock.holds() and not self.saved():
            self._undo(str(error))
            self._put_back()
        self._lock.release()

    def saved(self) -> bool:
        """Whether a step has been saved: before that there is nothing to lose."""
        return any(checkpoint.step_of(path) > 0 for path in checkpoint.published(self.checkpoints))

    def _undo(self, reason: str) -> None:
        """Take away what a run that was not there before has written, but for the list that ``reason`` may speak of."""
        new = set(os.listdir(self.folder)) - self._held
        if self._held & _BEGUN or any(name not in OURS | _BEGUN and not name.endswith(UNFINISHED) for name in new):
            return  # a run that was begun earlier, or no run: lookalike prepare keeps its shards
        spoken_of = {BAD_FILES} if BAD_FILES in reason and self._aside is None else set()
        spoken_of |= {name for name in new if name.startswith(BAD_STEP)} if BAD_STEP in reason else set()
        # What says that a run is here comes before what it needs: killed in between, the same command is not refused.
        for name in sorted(new - spoken_of, key=lambda name: (name in OURS, name == "recipe.json")):
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with suppress(OSError):  # one of them holds something
            for path in self._new:
                path.rmdir()

    def _put_back(self) -> None:
        """The run that was moved aside, with what an error speaks of."""
        if self._aside is not None:
            for file in self.folder.glob(f"{BAD_STEP}.*"):
                file.replace(self._aside / file.name)
            with suppress(OSError):  # somebody has put something there
                self._aside.rename(self.folder)

    def refuse_moved(self) -> None:
        """Raise UserError where the folder is no longer the one that was opened."""
        if self._lock is not None and not self._lock.holds():
            reason = f"{self.folder} was moved or deleted while it was in use, so nothing more is saved"
            raise UserError(f"{reason}: move it back, and the same command goes on", IO_ERROR)

    def recipe(self) -> Recipe | None:
        """The recipe that this folder holds, if any."""
        path = self.folder / "recipe.json"
        return read_recipe(path) if path.exists() else None

    def data(self) -> dict[str, Any]:
        """What was recorded of the data when the run began."""
        data = self._recorded().get("data")
        if isinstance(data, dict) and isinstance(data.get("examples"), int):
            return data
        return {
            "examples": len(from_table(self.data_table).names)
        }  # without which whole checkpoints would be of no use

    def accept(self, data: dict[str, Any], table: bytes, recipe: Recipe | None = None) -> None:
        """Record what the data is: the table last, which decides whether it has changed; then a new run's recipe."""
        about = environment() | {"threads_allowed": self.threads, "data": data}
        about["earlier"] = self._recorded().get("earlier", [])
        files = {self._environment.name: as_json(about), self.data_table.name: table}
        publish(self.folder, files | ({} if recipe is None else {"recipe.json": as_json(to_plain(recipe))}))

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
            about = old | now | {"threads_allowed": self.threads, "earlier": [*old.get("earlier", []), earlier]}
            publish(self.folder, {self._environment.name: as_json(about)})

    def restore_threads(self) -> None:
        """Go on with the threads that were fastest when it began, where as many are allowed as then."""
        recorded = self._recorded()
        if recorded.get("threads_allowed") == self.threads and recorded.get("threads") in range(1, self.threads):
            torch.set_num_threads(int(recorded["threads"]))

    def _recorded(self) -> dict[str, Any]:
        """What environment.json holds, if it is there."""
        return read_environment(self.folder) if self._environment.exists() else {}

    def begin(self, recipe: Recipe, data: dict[str, Any], table: bytes) -> None:
        """Record a new run: its recipe, where it runs, and on what."""
        self.accept(data, table, recipe)

    def write_recipe(self, recipe: Recipe) -> None:
        """Publish what the run is: from here on it is begun, or of another length."""
        publish(self.folder, {"recipe.json": as_json(to_plain(recipe))})

    def resume(self, learner: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Restore the newest whole checkpoint, if there is one, and its logs; the steps that are done."""
        name = dist.on_first_rank(self._newest)
        step = checkpoint.load(self.checkpoints / name, learner, optimizer) if name else 0
        self.rewind(step)
        return step

    def _newest(self) -> str | None:
        path = checkpoint.newest_said(self.checkpoints, self._warn)
        return path.name if path else None

    def save(self, step: int, learner: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Publish a checkpoint, after what was logged up to it is on the disk. Raises UserError."""
        dist.on_first_rank(self.refuse_moved)
        if self._metrics is not None:
            os.fsync(self._metrics.fileno())
        self._show_board(Board.sync)
        checkpoint.save(self.checkpoints, step, learner, optimizer)

    def rewind(self, step: int) -> None:
        """Drop what was logged after ``step``: a resumed run logs those steps again, with equal values."""
        if not self.writes:
            return
        self._close_logs()  # which belong to the file that is replaced
        kept = [line for line in self._lines() if _step_of(line) <= step]
        if later := [done for line in self._lines() if step < (done := _step_of(line)) < float("inf")]:
            self.note(f"goes on from step {step}, the newest that is saved: steps up to {max(later):g} are made again")
        write_atomically(self.metrics, b"".join(line + b"\n" for line in kept))
        self._board = Board.open(self.folder / "tb", step)

    def log(self, step: int, hidden: Collection[str] = (), /, **values: float) -> None:
        """Append one line to metrics.jsonl, and all but ``hidden`` to TensorBoard's file where that is installed."""
        if not self.writes:
            return
        try:
            if self._metrics is None:
                self._metrics = self.metrics.open("a", encoding="utf-8")
            self._metrics.write(json.dumps({"step": step, **values}) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise UserError(f"{cannot_write(self.metrics, error)}; the checkpoints are whole", IO_ERROR) from None
        shown = {name: value for name, value in values.items() if name not in hidden}
        self._show(step, "train" if "loss" in values else "val", shown)

    def note_missing(self, due: Sequence[int]) -> None:
        """Say which of the steps that were logged metrics.jsonl no longer has: curves have a gap there."""
        missing = sorted(set(due) - set(map(_step_of, self._lines()))) if self.writes and due else []
        if missing:
            what = f"{len(missing)} of {len(due)} lines, the first of step {missing[0]}"
            self.note(f"{self.metrics} has lost {what}: curves have a gap there, the weights do not")

    def pace(self, step: int, **values: float) -> None:
        """What depends on the machine and the hour, for TensorBoard alone: metrics.jsonl repeats exactly."""
        self._show(step, "perf", values)

    def _show(self, step: int, group: str, values: Mapping[str, float]) -> None:
        self._show_board(lambda board: board.add(step, {f"{group}/{name}": value for name, value in values.items()}))

    def _show_board(self, work: Callable[[Board], None]) -> None:
        """For people to look at: whatever goes wrong there, in another library too, ends no run."""
        if self._board is None:
            return
        try:
            work(self._board)
        except Exception as error:
            with suppress(Exception):
                self._board.close()
            self._board = None
            self.note(f"TensorBoard's file cannot be written ({error}): the run goes on without it")

    def _close_logs(self) -> None:
        self._show_board(Board.close)
        if self._metrics is not None:
            with suppress(OSError):  # what it holds was flushed line by line
                self._metrics.close()
        self._metrics = self._board = None

    def note(self, text: str) -> None:
        """Append a line, with the time, to train.log, and tell it to whoever watches."""
        if self.writes:
            self.tell(text)
            self._record(text)

    def _warn(self, text: str) -> None:
        """A line for train.log that is said even where nobody watches."""
        if self.writes:
            self._record(text)
        warnings.warn(text, stacklevel=2)

    def _record(self, text: str) -> None:
        log, text = self.folder / "train.log", visible(text)
        with suppress(OSError), log.open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def logged(self, name: str) -> int:
        """How many lines of metrics.jsonl hold a value of that name."""
        return sum(f'"{name}": '.encode() in line for line in self._lines())

    def _lines(self) -> list[bytes]:
        """Those of metrics.jsonl."""
        return self.metrics.read_bytes().splitlines() if self.metrics.exists() else []

    def note_bad_files(self, bad: Mapping[str, str]) -> None:
        """bad_files.csv: each picture that could not be read, once, with the reason."""
        if not bad or not self.writes:
            return
        write_csv(self.folder / BAD_FILES, ("path", "reason"), sorted(bad.items()))


@contextmanager
def open_run(folder: Path, overwrite: bool = False) -> Iterator[Run]:
    """The run folder, locked and written by the first rank for all."""
    run = Run(folder, dist.first(), overwrite)
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


def read_environment(folder: Path) -> dict[str, Any]:
    """What environment.json of a run says; a damaged one says nothing, with a warning. Raises UserError."""
    path = folder / "environment.json"
    try:
        recorded = read_json(path)
        if isinstance(recorded, dict):
            return recorded
    except UserError as error:
        if error.code != BAD_DATA:
            raise
    warnings.warn(f"{path} is damaged: where the run was made is not known, its checkpoints are", stacklevel=2)
    return {}


def check_same(folder: Path, recorded: Recipe, recipe: Recipe) -> None:
    """Refuse to continue a run under other settings."""
    if changed := differences(recorded, recipe):
        longer = ", --extend to make it longer" if all(line.startswith("length.") for line in changed) else ""
        raise UserError(
            f"{folder} holds a run of other settings ({'; '.join(changed)}): choose another --out{longer}, "
            "or --overwrite",
            USAGE,
        )


_LIBRARIES = ("lookalike", "torch", "torchvision", "pillow", "simplejpeg", "numpy")
"""Of which another version may give other bytes; simplejpeg may be missing."""

DECIDES = ("python", *_LIBRARIES, "machine", "processor", "accelerator", "threads", "processes")
"""The entries of ``environment`` of which any other value gives other bytes."""


def environment() -> dict[str, Any]:
    """What a byte-equal repetition of a run depends on."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        **{name: version_of(name) for name in _LIBRARIES},
        "torch": torch.__version__,  # with the kind of its build
        "machine": platform.machine(),
        "processor": processor(),
        "accelerator": accelerator(),
        "threads": torch.get_num_threads(),
        "processes": dist.world(),
    }


def version_of(library: str) -> str | None:
    """The version that is installed, None if none is."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None
