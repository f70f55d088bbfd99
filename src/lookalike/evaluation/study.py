"""``lookalike study``: the runs of a study one after the other, each kept, and what they say of a paper's findings."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lookalike.core import dist
from lookalike.core.devices import accelerator, device, isolated, processor, resolved
from lookalike.core.errors import BAD_DATA, UserError, meant
from lookalike.core.files import json_in, whole, write_json
from lookalike.core.progress import Progress, silent
from lookalike.data.example import Rows
from lookalike.data.order import some_rows
from lookalike.data.source import Data, open_source
from lookalike.evaluation.compare import fingerprint_of_data
from lookalike.evaluation.evaluation import Resources
from lookalike.evaluation.settings import EVALUATIONS, configured
from lookalike.evaluation.studies import STUDIES, Cell, Claim, Experiment
from lookalike.metrics.fewshot import Interval, interval
from lookalike.recipes.serialize import to_plain
from lookalike.train.guard import Diverged
from lookalike.train.pretrain import pretrain
from lookalike.train.trained import load

UNTRAINED = "untrained"


class Row(NamedTuple):
    """What came of one cell with one seed."""

    cell: str
    seed: int
    steps: int
    numbers: Mapping[str, float]  # by evaluation; empty where the run failed
    minutes: float = 0.0  # of training
    failed: str = ""  # why, in words
    machine: str = ""  # that trained it, in words


class StudyResult(NamedTuple):
    """A study as far as it is done."""

    study: Experiment
    data: str
    steps: int
    tasks: Sequence[str]
    rows: Sequence[Row]

    def machines(self) -> dict[str, list[int]]:
        """What the minutes are of, and the seeds of each: a study may go on elsewhere."""
        found: dict[str, set[int]] = {}
        for row in self.rows:
            found.setdefault(row.machine, set()).add(row.seed)
        return {name: sorted(seeds) for name, seeds in found.items()}

    def values(self, cell: str, task: str) -> dict[int, float]:
        """By seed."""
        return {row.seed: row.numbers[task] for row in self.rows if row.cell == cell and task in row.numbers}

    def mean(self, cell: str, task: str) -> Interval | None:
        """Over the seeds that are done."""
        values = list(self.values(cell, task).values())
        return interval(values) if values else None

    def failures(self, cell: str) -> list[Row]:
        """Seeds whose run ended early."""
        return [row for row in self.rows if row.cell == cell and row.failed]

    def verdict(self, claim: Claim, task: str) -> str:
        """Whether a finding held, by differences of runs of one seed, in a sentence."""
        better, worse = self.values(claim.better, task), self.values(claim.worse, task)
        if not better or not worse:
            ended = [cell for cell in (claim.better, claim.worse) if self.failures(cell)]
            return f"{claim.words}: " + (f"{' and '.join(ended)} failed to train" if ended else "not measured yet")
        difference = interval([better[seed] - worse[seed] for seed in better if seed in worse])
        count = sum(seed in worse for seed in better)
        word = _judged(difference)
        size = f"{100 * difference.mean:+.1f}" + (f" ± {100 * difference.half:.1f}" if count > 1 else "")
        return f"{claim.words}: {word} ({size} points of {task}, n = {count})"

    def sentences(self) -> Iterator[str]:
        """One for each finding and evaluation."""
        for task in self.tasks:
            yield from (self.verdict(claim, task) for claim in self.study.claims)

    def record(self) -> dict[str, Any]:
        """All numbers, as JSON."""
        about = {"study": self.study.name, "data": self.data, "steps": self.steps, "tasks": list(self.tasks)}
        rows = [row._asdict() | {"numbers": dict(row.numbers)} for row in self.rows]
        return about | {"rows": rows, "findings": list(self.sentences())}


def _judged(difference: Interval) -> str:
    if math.isnan(difference.half):  # of a single seed
        return "undecided by one seed"
    if abs(difference.mean) <= difference.half:
        return "undecided"
    return "held" if difference.mean > 0 else "the opposite"


@isolated()
def conducted(
    name: str,
    data: str,
    out: Path,
    steps: int | None = None,
    seeds: int = 3,
    tasks: Sequence[str] = ("knn",),
    workers: int | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda _: None,
    done: Callable[[StudyResult], None] = lambda _: None,
) -> StudyResult:
    """Train and measure what is not kept in ``out`` yet, seed by seed; ``done`` hears of each. Raises UserError.

    A signal that stops a run ends the process once that is saved, with 128 and the signal's number.
    """
    if name not in STUDIES:
        raise UserError(f"unknown study {name!r}; {meant(name, STUDIES)}")
    if unknown := [task for task in tasks if task not in EVALUATIONS]:
        raise UserError(f"unknown evaluation {unknown[0]!r}; {meant(unknown[0], EVALUATIONS)}")
    if dist.started() > 1:
        raise UserError("study runs in one process: leave out torchrun")
    study = STUDIES[name]
    bench = Bench(out, data, fingerprint_of_data(data), tuple(tasks), steps or study.steps, workers, progress, say)
    outcome = StudyResult(study, data, bench.steps, tasks, [])
    for seed in range(seeds):
        for number, cell in enumerate(study.cells):
            progress("runs", seed * len(study.cells) + number, seeds * len(study.cells))
            rows = bench.measured(study, cell, seed)
            outcome = outcome._replace(rows=[*outcome.rows, *rows])
            done(outcome)
    return outcome


class Bench(NamedTuple):
    """What all runs of a study have in common, and where they are kept."""

    out: Path
    data: str
    mark: str  # of the data
    tasks: tuple[str, ...]
    steps: int
    workers: int | None
    progress: Progress
    say: Callable[[str], None]

    def measured(self, study: Experiment, cell: Cell, seed: int) -> list[Row]:
        """The row of a cell, and before the first one of a seed that of the untrained network."""
        first = cell == study.cells[0]
        rows = [self.row(UNTRAINED, cell, seed)] if first else []
        return [*rows, self.row(cell.name, cell, seed)]

    def row(self, name: str, cell: Cell, seed: int) -> Row:
        """Kept from before, or trained and measured now."""
        steps = max(1, round(self.steps * cell.share))
        marks = {"cell": name, "recipe": to_plain(cell.recipe), "settings": dict(cell.settings), "steps": steps}
        marks |= {"seed": seed, "data": self.mark, "tasks": list(self.tasks)}
        marks |= {"pictures": cell.pictures} if cell.pictures < 1 else {}
        key = hashlib.sha256(json.dumps(marks, sort_keys=True).encode()).hexdigest()[:16]
        file = self.out / "rows" / f"{key}.json"
        before = _kept(file)
        row = before or self.made(name, cell, seed, steps, self.out / "runs" / key)
        if before is None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, row._asdict() | {"numbers": dict(row.numbers)})
        found = ", ".join(f"{task} {value:.2%}" for task, value in row.numbers.items()) or row.failed
        self.say(f"{name}, seed {seed}: {found}{' (kept from before)' if before else ''}")
        return row

    def made(self, name: str, cell: Cell, seed: int, steps: int, run: Path) -> Row:
        """Trained, and measured by its last step. A run that cannot be trained is a result, too."""
        untrained, began = name == UNTRAINED, time.perf_counter()
        recipe = replace(cell.recipe, seed=seed, checkups=0)
        try:
            same: dict[str, Any] = {"recipe": recipe, "settings": cell.settings, "quiet": True, "workers": self.workers}
            done = pretrain(self.learned_from(cell, seed), run, steps=1 if untrained else steps, **same)
        except Diverged as error:
            return Row(name, seed, steps, {}, (time.perf_counter() - began) / 60, str(error), machine())
        if done.signal:  # saved, and no result yet: the same call continues it
            raise SystemExit(128 + done.signal)
        minutes = (time.perf_counter() - began) / 60
        model = load(run, untrained=untrained)
        resources = Resources(self.progress, workers=self.workers)
        values = {}
        for task in self.tasks:
            plain = {"baselines": "none"} if hasattr(EVALUATIONS[task], "baselines") else {}
            values[task] = configured(task, plain).run(model, self.data, resources).value
        return Row(name, seed, 0 if untrained else steps, values, 0.0 if untrained else minutes, machine=machine())

    def learned_from(self, cell: Cell, seed: int) -> Data:
        """The data, or a draw of its training pictures."""
        if cell.pictures == 1:
            return self.data
        source = open_source(self.data)
        count, batch = round(cell.pictures * len(source)), cell.settings.get("batch", cell.recipe.batch)
        if count < batch:
            least = math.ceil(batch / cell.pictures)
            reason = f"{cell.pictures:.0%} of {len(source):,} pictures do not fill a batch of {batch}"
            raise UserError(f"{reason}: this study needs {least:,} pictures", BAD_DATA)
        return Rows(source, some_rows(len(source), count, draw=seed + 1))


def _kept(file: Path) -> Row | None:
    """A finished row; None where there is none, or the file is not whole."""
    try:
        record = json_in(whole(file))
        numbers = {str(task): float(value) for task, value in record["numbers"].items()}
        return Row(**{**record, "numbers": numbers})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def machine() -> str:
    """This one, in words."""
    many = torch.get_num_threads()
    threads = f"{many} thread{'s' * (many > 1)}" if device().type == "cpu" else str(accelerator())
    return f"{processor()}, {threads}, torch {torch.__version__}, computes in {resolved('auto')}"
