"""``lookalike compare``: several starts, one recipe, repeated trials; each finished trial is a file and is kept."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lookalike.core.errors import UserError, meant
from lookalike.core.files import write_json
from lookalike.core.progress import Progress, silent
from lookalike.data.fingerprint import stamps_of_files
from lookalike.data.formats.disk import Local
from lookalike.data.formats.files import listed
from lookalike.evaluation.tasks import TASKS, Task
from lookalike.learn.labelled import CrossEntropy
from lookalike.metrics.fewshot import Interval, interval
from lookalike.recipes.serialize import flat, replaced, to_plain
from lookalike.train.run import read_recipe
from lookalike.train.trained import Trained, load


class Row(NamedTuple):
    """One start."""

    name: str
    values: Sequence[float]  # of the metric, by trial
    mean: Interval
    against: Interval | None  # the mean of the differences from the baseline, trial by trial; None for the baseline
    others: Mapping[str, Interval]  # of the other numbers

    def verdict(self) -> str:
        """Win, tie or loss: a tie is a difference whose interval holds 0."""
        if self.against is None:
            return "baseline"
        if math.isnan(self.against.half):
            return "one trial: no verdict"
        if abs(self.against.mean) <= self.against.half:
            return "tie"
        return "win" if self.against.mean > 0 else "loss"


class Comparison(NamedTuple):
    """All starts on one task."""

    task: str
    data: str
    metric: str
    rows: Sequence[Row]
    baseline: str
    supervised: bool  # whether the baseline was trained with labels; else it is the untrained network
    trials: int
    draws: str | None  # what a trial draws; None where nothing is drawn
    settings: Mapping[str, Any]

    def caption(self) -> str:
        """What the numbers are, so that they can be read without this program."""
        if self.draws is None:
            drawn = "one trial, since with these settings nothing is drawn: no interval, and no verdict"
        elif self.trials == 1:
            drawn = f"one trial, which draws {self.draws}: no interval, and no verdict"
        else:
            drawn = (
                f"mean and 95 % interval (Student's t) over {self.trials} trials, which draw {self.draws}; every start "
                "has the same draws and the same settings, and differences are taken trial by trial"
            )
        base = (
            f"Differences are from {self.baseline}, which labels trained."
            if self.supervised
            else "Supervised: missing, since none of the runs was made by lookalike supervised; "
            "differences are from the untrained network."
        )
        return (
            f"{self.metric} of {self.task} on {self.data}: {drawn}. {base} "
            "Each start is one network: intervals do not say how much another pretraining would differ."
        )

    def settings_line(self) -> str:
        """``k 200, share 0.5``."""
        return ", ".join(f"{name} {value}" for name, value in self.settings.items())

    def plain(self) -> dict[str, Any]:
        """All numbers, for JSON, which has no NaN."""
        return {
            **{name: getattr(self, name) for name in ("task", "data", "metric", "baseline", "supervised", "trials")},
            "settings": dict(self.settings),
            "starts": [
                {
                    "name": row.name,
                    "values": list(row.values),
                    "mean": row.mean.mean,
                    "interval": finite(row.mean.half),
                    "difference": None if row.against is None else row.against.mean,
                    "difference_interval": None if row.against is None else finite(row.against.half),
                    "verdict": row.verdict(),
                    "others": {name: [finite(cell.mean), finite(cell.half)] for name, cell in row.others.items()},
                }
                for row in self.rows
            ],
        }


def finite(value: float) -> float | None:
    """None for what JSON cannot say."""
    return value if math.isfinite(value) else None


class Start(NamedTuple):
    """Weights to begin from."""

    name: str
    run: str
    untrained: bool = False
    weights: str | None = None

    @property
    def supervised(self) -> bool:
        """Whether labels trained it, by this project."""
        own = not self.untrained and self.weights is None
        return own and isinstance(read_recipe(Path(self.run) / "recipe.json").objective, CrossEntropy)

    def load(self) -> Trained:
        """The network."""
        return load(self.run, self.untrained, self.weights)

    def title(self) -> str:
        """The name, and whether labels made it."""
        return f"{self.name} (supervised)" if self.supervised and "supervised" not in self.name else self.name


class Asked(NamedTuple):
    """A comparison; the first run gives the network of ``random`` and of ``weights``."""

    runs: Sequence[str]
    data: str
    task: str
    settings: Any
    metric: str  # of the task's numbers the one that starts are compared by
    trials: int = 5
    weights: Sequence[str] = ()
    out: Path = Path("compare")


def asked(
    runs: Sequence[str],
    data: str,
    task: str,
    overrides: Sequence[tuple[str, str]] = (),
    trials: int = 5,
    weights: Sequence[str] = (),
    out: Path = Path("compare"),
    metric: str | None = None,
) -> Asked:
    """What a person asks, checked; ``overrides`` are fields of the task's settings. Raises UserError."""
    if task not in TASKS:
        raise UserError(f"no task {task!r}; {meant(task, TASKS)}")
    settings = TASKS[task].settings
    for name, text in overrides:
        if name not in flat(settings):
            there = [f"--{path.replace('_', '-')}" for path in flat(settings)]
            raise UserError(f"{task} has no setting {name!r}; {meant('--' + name, there)}")
        settings = replaced(settings, name, text)
    trials = trials if TASKS[task].repeats(settings) else 1
    return Asked(runs, data, task, settings, metric or TASKS[task].metric, trials, weights, out)


def starts(asked: Asked) -> list[Start]:
    """Random first, then weights of others, runs with labels, and the other runs."""
    named = names(asked.runs)
    runs = sorted((Start(name, run) for run, name in named.items()), key=lambda start: not start.supervised)
    first = asked.runs[0]
    others = [Start(name, first, weights=file) for file, name in names(asked.weights).items()]
    return [Start("random", first, untrained=True), *others, *runs]


def names(paths: Sequence[str]) -> dict[str, str]:
    """Each path once, by its last part where that tells it from the others."""
    last = [Path(path).name for path in dict.fromkeys(paths)]
    return {
        path: name if name not in ("", "random") and last.count(name) == 1 else path
        for path, name in zip(dict.fromkeys(paths), last)
    }


def compare(asked: Asked, progress: Progress = silent, say: Callable[[str], None] = lambda _: None) -> Comparison:
    """Every trial of every start, or what is there of it; the same call continues. Raises UserError."""
    task, there = TASKS[asked.task], starts(asked)
    asked.out.mkdir(parents=True, exist_ok=True)
    data = fingerprint_of_data(asked.data)
    found = {}
    for number, start in enumerate(there):
        trained = start.load()
        marks = {"start": fingerprint(trained), "data": data, "settings": to_plain(asked.settings), "task": asked.task}
        trials = []
        for seed in range(asked.trials):
            where = f"{start.name}, trial {seed + 1} of {asked.trials}"
            progress("trials", number * asked.trials + seed, len(there) * asked.trials)
            file = asked.out / "trials" / f"{asked.task}-{key(marks | {'seed': seed})}.json"
            held = kept(file, marks | {"seed": seed}, task.metric)
            numbers = held or task.measure(trained, asked.data, asked.settings, seed, named(progress, where))
            if held is None:
                keep(file, marks | {"seed": seed, "name": start.name}, numbers)
            if asked.metric not in numbers:
                raise UserError(f"{asked.task} gives no number {asked.metric!r}; {meant(asked.metric, numbers)}")
            say(f"{where}: {asked.metric} {numbers[asked.metric]:.2%}{' (kept from before)' if held else ''}")
            trials.append(numbers)
        found[start] = trials
    progress("trials", len(there) * asked.trials, len(there) * asked.trials)
    return judged(asked, task, found)


def named(progress: Progress, where: str) -> Progress:
    """Progress that says whose it is."""
    return lambda what, done, total: progress(f"{where}: {what}", done, total)


def judged(asked: Asked, task: Task, found: Mapping[Start, Sequence[Mapping[str, float]]]) -> Comparison:
    """The table: each start's mean, and its paired difference from the baseline in words."""
    labelled = [start for start in found if start.supervised]
    baseline = labelled[0] if labelled else next(iter(found))
    base = [trial[asked.metric] for trial in found[baseline]]
    rows = []
    for start, trials in found.items():
        values = [trial[asked.metric] for trial in trials]
        against = None if start == baseline else interval([a - b for a, b in zip(values, base)])
        others = {name: interval([trial[name] for trial in trials]) for name in common(trials) if name != asked.metric}
        rows.append(Row(start.title(), values, interval(values), against, others))
    return Comparison(
        asked.task,
        asked.data,
        asked.metric,
        rows,
        baseline.title(),
        bool(labelled),
        asked.trials,
        task.draws if task.repeats(asked.settings) else None,
        flat(asked.settings),
    )


def common(trials: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """The names that every trial has a number for."""
    return (name for name in trials[0] if all(name in trial for trial in trials))


def key(marks: Mapping[str, Any]) -> str:
    """A name that no other trial has."""
    return hashlib.sha256(json.dumps(marks, sort_keys=True).encode()).hexdigest()[:16]


def kept(file: Path, marks: Mapping[str, Any], metric: str) -> dict[str, float] | None:
    """The numbers of a finished trial; None where there are none, or the file is not whole."""
    try:
        held = json.loads(file.read_bytes())
        numbers = {str(name): float(value) for name, value in held["numbers"].items()}
        same = all(held[name] == value for name, value in json.loads(json.dumps(marks)).items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return numbers if same and math.isfinite(numbers.get(metric, math.nan)) else None


def keep(file: Path, marks: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
    """A finished trial, published by rename."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {**marks, "numbers": dict(numbers)})


def fingerprint(trained: Trained) -> str:
    """Of the weights, and of how pictures are shown to them."""
    digest = hashlib.sha256(json.dumps(to_plain(trained.recipe), sort_keys=True).encode())
    for name, part in trained.encoder.state_dict().items():
        digest.update(name.encode() + part.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def fingerprint_of_data(data: str) -> str:
    """Of every file of a folder, annotations too; of what is no place on this disk, its name."""
    root = Path(data)
    if data == "digits" or not root.exists():
        return hashlib.sha256(data.encode()).hexdigest()
    folder, files = (root, listed(root, ("",)).files) if root.is_dir() else (root.parent, [root.name])
    stamps = stamps_of_files(Local(folder).file, files)
    digest = hashlib.sha256("\n".join(stamps.names).encode())
    digest.update(stamps.sizes.astype(np.int64).tobytes() + stamps.tokens.tobytes())
    return digest.hexdigest()
