"""``lookalike compare``: several models, one evaluation, repeated trials; each finished trial is a file and is kept."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lookalike.core import dist
from lookalike.core.devices import isolated
from lookalike.core.errors import UserError, meant
from lookalike.core.files import json_in, whole, write_json
from lookalike.core.progress import Progress, silent
from lookalike.data.fingerprint import stamps_of_files
from lookalike.data.formats.disk import Local
from lookalike.data.formats.files import listed
from lookalike.data.source import DIGITS
from lookalike.evaluation.evaluation import Evaluation, Resources, Result, plain
from lookalike.evaluation.frozen import neighbours
from lookalike.evaluation.settings import Judged, configured
from lookalike.learn.labelled import CrossEntropy
from lookalike.metrics.accuracy import Bounds
from lookalike.metrics.fewshot import Interval, interval
from lookalike.recipes.serialize import to_plain
from lookalike.train.fit import weights_digest
from lookalike.train.run import is_run, read_recipe
from lookalike.train.trained import Trained, load

Numbers = Mapping[str, float]


class ModelScores(NamedTuple):
    """Of one model."""

    name: str
    values: Sequence[float]  # of the metric, by trial
    mean: Interval
    against: Interval | None  # the mean of the differences from the baseline, trial by trial; None for the baseline
    others: Mapping[str, Interval]  # of the other numbers
    bounds: Bounds | None = None  # of a single trial, over its queries

    def verdict(self) -> str:
        """Win, tie or loss: a tie is a difference whose interval holds 0."""
        if self.against is None:
            return "baseline"
        if math.isnan(self.against.half):
            return "one trial: no verdict"
        if abs(self.against.mean) <= self.against.half:
            return "tie"
        return "win" if self.against.mean > 0 else "loss"

    def record(self) -> dict[str, Any]:
        """All numbers, as JSON."""
        mean, half = self.against or (None, None)
        numbers = {
            "name": self.name,
            "values": tuple(self.values),
            "mean": self.mean.mean,
            "interval": self.mean.half,
            "bounds": self.bounds,
            "difference": mean,
            "difference_interval": half,
            "verdict": self.verdict(),
            "others": self.others,
        }
        return {name: plain(value) for name, value in numbers.items()}


class Comparison(NamedTuple):
    """All models on one task."""

    task: str
    data: str
    metric: str
    rows: Sequence[ModelScores]
    baseline: str
    supervised: bool  # whether the baseline was trained with labels; else it is the untrained network
    trials: int
    draws: str | None  # what a trial draws; None where nothing is drawn
    settings: Mapping[str, Any]
    chance: float | None = None  # what guessing gives

    def __repr__(self) -> str:
        rows = [f"{row.name}: {row.mean.mean:.2%} ± {row.mean.half:.2%}, {row.verdict()}" for row in self.rows]
        return "\n".join([f"{self.metric} of {self.task} on {self.data}, trials: {self.trials}", *rows])

    def caption(self) -> str:
        """What the numbers are, so that they can be read without this program."""
        if self.draws is None:
            drawn = "one trial, since with these settings nothing is drawn: no interval, and no verdict"
        elif self.trials == 1:
            drawn = f"one trial, which draws {self.draws}: no interval, and no verdict"
        else:
            drawn = (
                f"mean and 95 % interval (Student's t) over {self.trials} trials, which draw {self.draws}; every model "
                "has the same draws and the same settings, and differences are taken trial by trial"
            )
        base = (
            f"Differences are from {self.baseline}, which was trained with labels."
            if self.supervised
            else "None of the runs was made by lookalike supervised: differences are from the untrained network."
        )
        return (
            f"{self.metric} of {self.task} on {self.data}: {drawn}. {base} "
            "Each row is one network: intervals do not say how much another pretraining would differ."
        )

    def record(self) -> dict[str, Any]:
        """All numbers, as JSON."""
        about = {name: value for name, value in self._asdict().items() if name not in ("rows", "draws")}
        return about | {"settings": plain(self.settings), "models": [row.record() for row in self.rows]}


class Start(NamedTuple):
    """A model that is compared: the network of a run, with the run's weights or others, or a public one."""

    name: str
    run: str
    untrained: bool = False
    weights: str | None = None

    def loaded(self, model: str | None, download: bool, say: Callable[[str], None]) -> Trained:
        """The model; ``model`` says which network files of weights are of."""
        network = model if Path(self.run).is_file() else None
        return load(self.run, self.untrained, self.weights, model=network, download=download, say=say)

    @property
    def supervised(self) -> bool:
        """Whether it was trained with labels, by this project."""
        own = not self.untrained and self.weights is None
        return (
            own and is_run(self.run) and isinstance(read_recipe(Path(self.run) / "recipe.json").objective, CrossEntropy)
        )

    def title(self) -> str:
        """The name, and whether labels were used."""
        return f"{self.name} (supervised)" if self.supervised and "supervised" not in self.name else self.name


def starts(runs: Sequence[str], weights: Sequence[str] = ()) -> list[Start]:
    """The untrained network of the first run, that network with ``weights`` of others, supervised runs, other runs."""
    own = sorted((Start(name, run) for run, name in names(runs).items()), key=lambda start: not start.supervised)
    others = [Start(name, runs[0], weights=file) for file, name in names(weights).items()]
    return [Start("random", runs[0], untrained=True), *others, *own]


def names(paths: Sequence[str]) -> dict[str, str]:
    """Each path once, by its last part where that tells it from the others."""
    last = {path: Path(path).name for path in paths}
    counts = Counter(last.values())
    return {path: name if name not in ("", "random") and counts[name] == 1 else path for path, name in last.items()}


@isolated()
def compare(
    models: Sequence[str | Path],
    data: str | Path,
    task: str | Evaluation = "knn",
    *,
    trials: int = 5,
    weights: Sequence[str] = (),
    metric: str | None = None,
    out: str | Path | None = None,
    workers: int | None = None,
    model: str | None = None,
    download: bool = False,
    cache: dict[Any, Any] | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> Comparison:
    """Evaluate models in trials, which draw alike for each: ``compare(["runs/a", "runs/b"], "photos", "knn")``.

    ``task`` and ``settings`` are those of ``evaluate``, with the value's own defaults for trials (``TRIALS``). Compared
    are the untrained network of the first, that network with ``weights`` of others, and the models. Finished trials are
    kept in ``out``, and the same call goes on. ``model`` and ``download`` are those of ``load``. Calls of other tasks
    on the same models and data that get one ``cache``, a dict that is empty at first, embed once, and keep the frozen
    features in it. Raises UserError.
    """
    spec = configured(task, settings, trials=True) if isinstance(task, str) else replace(task, **settings)
    if isinstance(spec, Judged):
        spec = replace(spec, baselines="none")  # the untrained network has a row of its own
    if not models:
        raise UserError("name at least one model: lookalike compare MODEL... --on DATA --task knn")
    if trials < 1:
        raise UserError("--trials must be at least 1")
    if dist.started() > 1:
        raise UserError("compare runs in one process: leave out torchrun")
    say_defaults(spec, say)
    every = starts([str(model) for model in models], weights)
    count, folder = trials if spec.repeats else 1, Path(out) if out else None
    plan = TrialPlan(spec, str(data), count, metric or spec.metric, folder, cache)
    mark, done, total = fingerprint_of_data(plan.data), dict[Start, list[Trial]](), len(every) * plan.trials
    for start in every:
        trained = start.loaded(model, download, say)
        done[start] = plan.measured(start, trained, mark, Resources(progress, say, workers), len(done), len(every))
    progress("trials", total, total)
    return judged(plan, done)


def say_defaults(spec: Evaluation, say: Callable[[str], None]) -> None:
    """Say what differs from the defaults of ``evaluate``, so that trials differ, or are short."""
    others = [name for name, value in spec.TRIALS.items() if getattr(spec, name) == value]
    if others:
        words = (f"{name} {plain(getattr(spec, name))} (not {plain(getattr(type(spec), name))})" for name in others)
        say(f"defaults for trials, other than those of lookalike evaluate {spec.NAME}: {', '.join(words)}")


class Trial(NamedTuple):
    """What one trial gave."""

    numbers: Numbers
    facts: Mapping[str, Any]  # none in files of older versions
    k: int | None = None  # the setting, where neighbours vote
    kept: bool = False  # from an earlier call

    @classmethod
    def of(cls, result: Result) -> Trial:
        """Of an evaluation that has just been made."""
        return cls(result.numbers, result.facts, result.settings.get("k"))

    def words(self) -> str:
        """What the number means, after it."""
        voted = neighbours(self.k, self.facts["k_used"]) if "k_used" in self.facts else ""
        return (
            (f", chance {self.facts['chance']:.2%}" if "chance" in self.facts else "")
            + (f", {voted}" if "in place of" in voted else "")
            + (" (kept from before)" if self.kept else "")
        )


class TrialPlan(NamedTuple):
    """What is measured of each model."""

    spec: Evaluation
    data: str
    trials: int
    metric: str
    out: Path | None
    cache: dict[Any, Any] | None = None  # by model and data, what trials share; None: they share it and drop it

    def measured(
        self, start: Start, model: Trained, data: str, resources: Resources, number: int, count: int
    ) -> list[Trial]:
        """Every trial of a model, the ``number``-th of ``count``, kept from before or measured now."""
        marks = {"start": fingerprint(model), "data": data, "task": self.spec.NAME}
        trials, shared = list[Trial](), dict[Any, Any]()
        if self.cache is not None:
            shared = self.cache.setdefault((marks["start"], data), shared)
        for trial in range(self.trials):
            resources.progress("trials", number * self.trials + trial, count * self.trials)
            where = f"{start.name}, trial {trial + 1} of {self.trials}"
            mine = replace(resources.beside(where), cache=shared)
            spec = replace(self.spec, seed=self.spec.seed + trial) if self.spec.repeats else self.spec  # type: ignore[attr-defined, call-arg]
            done = self.trial(spec, model, {**marks, "settings": spec.settings()}, start.name, mine)
            resources.say(f"{where}: {self.metric} {done.numbers[self.metric]:.2%}{done.words()}")
            trials.append(done)
        return trials

    def trial(
        self, spec: Evaluation, model: Trained, marks: Mapping[str, Any], name: str, resources: Resources
    ) -> Trial:
        """Measured now, or kept from before."""
        key = hashlib.sha256(json.dumps(marks, sort_keys=True).encode()).hexdigest()[:16]
        file = self.out / "trials" / f"{spec.NAME}-{key}.json" if self.out else None
        before = kept(file, marks, spec.metric) if file else None
        done = before or Trial.of(spec.run(model, self.data, resources))
        if file and before is None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {**marks, "name": name, "numbers": dict(done.numbers), "facts": plain(done.facts)})
        if self.metric not in done.numbers:
            raise UserError(f"{spec.NAME} gives no number {self.metric!r}; {meant(self.metric, done.numbers)}")
        return done


def judged(plan: TrialPlan, measured: Mapping[Start, Sequence[Trial]]) -> Comparison:
    """The table: each model's mean, and its paired difference from the baseline in words."""
    labelled = [start for start in measured if start.supervised]
    baseline = labelled[0] if labelled else next(iter(measured))
    base = [trial.numbers[plan.metric] for trial in measured[baseline]]
    rows = []
    for start, done in measured.items():
        trials = [trial.numbers for trial in done]
        values = [trial[plan.metric] for trial in trials]
        against = None if start == baseline else interval([a - b for a, b in zip(values, base)])
        common = [name for name in trials[0] if name != plan.metric and all(name in trial for trial in trials)]
        others = {name: interval([trial[name] for trial in trials]) for name in common}
        ends: list[Any] = [done[0].facts.get(f"{plan.metric}_{end}") for end in ("low", "high")]
        bounds = Bounds(*ends) if len(done) == 1 and None not in ends else None
        rows.append(ModelScores(start.title(), values, interval(values), against, others, bounds))
    draws = plan.spec.DRAWS if plan.spec.repeats else None
    about = (baseline.title(), bool(labelled), plan.trials, draws, plan.spec.settings())
    guess = measured[baseline][0].facts.get("chance" if plan.metric == plan.spec.metric else f"chance_{plan.metric}")
    return Comparison(plan.spec.NAME, plan.data, plan.metric, rows, *about, guess)


def kept(file: Path, marks: Mapping[str, Any], metric: str) -> Trial | None:
    """A finished trial; None where there are none, or the file is not whole."""
    try:
        record = json_in(whole(file))
        numbers = {str(name): float(value) for name, value in record["numbers"].items()}
        same = all(record[name] == value for name, value in json.loads(json.dumps(marks)).items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not same or not math.isfinite(numbers.get(metric, math.nan)):
        return None
    return Trial(numbers, record.get("facts") or {}, marks["settings"].get("k"), kept=True)


def fingerprint(model: Trained) -> str:
    """Of the weights, and of how pictures are shown to them."""
    recipe = json.dumps(to_plain(model.recipe), sort_keys=True)
    return hashlib.sha256(f"{recipe} {weights_digest(model.encoder)}".encode()).hexdigest()


def fingerprint_of_data(data: str) -> str:
    """Of every file of a folder, annotations too; of what is no place on this disk, its name."""
    root = Path(data)
    if data == DIGITS or not root.exists():
        return hashlib.sha256(data.encode()).hexdigest()
    folder, files = (root, listed(root, ("",)).files) if root.is_dir() else (root.parent, [root.name])
    return stamps_of_files(Local(folder).file, files).digest()
