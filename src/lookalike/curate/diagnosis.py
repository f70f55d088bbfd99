"""``lookalike doctor`` for a run (is it finished, did it learn, how to continue it), and for the machine at hand."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lookalike.core.devices import accelerator, device, processor, resolved
from lookalike.core.errors import UserError, visible
from lookalike.core.files import read_json
from lookalike.core.lock import holder
from lookalike.curate.survey import random_rows
from lookalike.data.example import Source
from lookalike.data.fingerprint import changes, from_table
from lookalike.data.loader import GIB
from lookalike.data.pool import cores
from lookalike.learn.labelled import Labelled
from lookalike.metrics.unlabelled import uniformity
from lookalike.models.encoder import embed, raw, unit, width
from lookalike.train import checkpoint
from lookalike.train.embeddings import preprocessing
from lookalike.train.history import History, Point, collect
from lookalike.train.run import BAD_STEP, Run
from lookalike.train.trained import VERDICT, Trained, load

_MOST = 500  # pictures whose features are looked at
_FLAT = 0.01  # of the loss, or of a share: less is no change
_EXTRAS = {"tensorboard": "log", "fsspec": "remote", "tokenizers": "text", "av": "video"}


class Spread(NamedTuple):
    """How features of different pictures differ: 1 where they fill the sphere evenly, 0 where all are one."""

    embedding: float  # the deviation of the head's output over that of even rows
    uniformity: float  # of the same (arXiv 2005.10242): 0 where all are one, in many dimensions -4 where even
    rank: float  # of the backbone's features: as many directions as equally strong ones would be
    width: int  # of the backbone's features

    @property
    def collapsed(self) -> bool:
        """Whether nearly everything looks the same to it."""
        return self.embedding < 0.1

    @property
    def narrow(self) -> bool:
        """Whether very few dimensions are in use."""
        return self.rank < max(2.0, 0.02 * self.width)

    def __str__(self) -> str:
        numbers = (
            f"standard deviation {self.embedding:.2f} (1 is uniform, 0 a single point), "
            f"{self.rank:.0f} of {self.width} dimensions in use"
        )
        if self.collapsed:
            return f"collapsed, all pictures look the same to it: {numbers}; start again with a lower learning rate"
        if self.narrow:
            return f"nearly collapsed to a few dimensions: {numbers}"
        return f"well spread: {numbers}"


class Diagnosis(NamedTuple):
    """The state of a run."""

    history: History
    total: int | None  # steps of the whole run
    busy: str | None  # the process that is training here
    checkpoints: list[tuple[int, str | None]]  # steps, newest first, and what is damaged
    changed: str | None  # what happened to the data since the run began; empty where nothing did
    spread: Spread | None
    unseen: str | None  # why data and features were not looked at
    bad: int  # examples that stand in bad_files.csv

    @property
    def whole(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return next((step for step, reason in self.checkpoints if reason is None), None)

    @property
    def ended(self) -> bool:
        """Whether the last step is saved."""
        return self.total is not None and self.whole is not None and self.whole >= self.total

    def lines(self) -> Iterator[str]:
        """The report for people."""
        recipe, about = self.history.recipe, self.history.about()
        yield (
            f"{self.history.folder}: recipe {recipe.name} ({type(recipe.model).__name__}), trained "
            f"{'with' if recipe.objective.supervised else 'without'} labels on {self.history.examples():,} examples "
            f"of {about.get('data', 'unknown data')}, in batches of {recipe.batch}"
        )
        if isinstance(begun := about.get("start"), dict):
            yield self.begun(str(begun.get("model") or begun.get("run")))
        yield self._state()
        yield from (f"checkpoint of step {step:,}: {reason or 'intact'}" for step, reason in self.checkpoints)
        yield f"loss: {describe_loss(self.history)}"
        if not recipe.objective.supervised:  # where labels teach, neighbours with labels measure nothing
            yield f"kNN accuracy: {describe_knn(self.history.curves.get('knn', []))}"
        yield f"features: {self.spread or f'not examined: {self.unseen}'}"
        changed = f"changed since the run began: {self.changed}" if self.changed else "unchanged since the run began"
        yield f"data: {f'not examined: {self.unseen}' if self.changed is None else changed}"
        if self.bad:
            yield f"unreadable or left out: {self.bad:,}, with the reasons in {self.history.folder / 'bad_files.csv'}"
        yield f"next: {self.next_step()}"

    def begun(self, start: str) -> str:
        """What came of a model that it began with."""
        came = f"kept: {self.kept}" if self.kept else "the end has not been compared with it"
        return visible(f"began as {start}; {came}")

    @property
    def kept(self) -> str | None:
        """What was kept at the end of a run that began with a model, and how it and the start compared."""
        file = self.history.folder / VERDICT
        verdict = read_json(file) if file.is_file() else None
        if not isinstance(verdict, dict):
            return None
        name, scores = str(verdict.get("kept")), verdict.get("scores")
        if not isinstance(scores, dict) or not isinstance(scores.get(name), float):
            return name
        told = {one: float(scores[one]) for one in (next(iter(scores)), name)}  # the start is the first
        return f"{name} ({', '.join(f'{one} {value:.1%}' for one, value in told.items())}; {verdict.get('by')})"

    def _state(self) -> str:
        of, logged = "" if self.total is None else f" of {self.total:,}", self.history.steps()
        if self.busy:
            return f"running now ({self.busy}): step {logged:,}{of} is logged"
        if self.ended:
            return f"finished: step {self.whole:,}{of} is saved"
        if self.whole is None:
            return f"unfinished, without an intact checkpoint: the last logged step is {logged:,}{of}"
        return f"unfinished: step {self.whole:,}{of} is saved, the last logged step is {logged:,}"

    def next_step(self) -> str:
        """What to do now."""
        folder, command = shlex.quote(str(self.history.folder)), original_command(self.history)
        if self.busy:
            return "nothing to do, it is still running"
        if self.ended:
            return (
                f"measure it with lookalike evaluate knn {folder} DATA, or start another run with --init-from {folder}"
            )
        if self.checkpoints and self.whole is None:
            return f"start again, because no checkpoint is intact: {command} --overwrite"
        command += " --allow-data-change" if self.changed else ""
        return f"{self._went_wrong() or 'continue with'} {command}"

    def _went_wrong(self) -> str:
        """What is known of a step after all that is saved, which the same command may meet again."""
        file = self.history.folder / f"{BAD_STEP}.json"
        record = read_json(file) if file.is_file() else None
        if not isinstance(record, dict) or not isinstance(step := record.get("step"), int) or step <= (self.whole or 0):
            return ""
        passing = ", or, to pass over such steps, with --skip-bad-steps 10" if record.get("rows") else ""
        return visible(f"{record.get('what')}: give it with a lower --optimizer.lr and --overwrite{passing}:")

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        fields = self._asdict()
        history: History = fields.pop("history")
        return fields | {
            "run": str(history.folder),
            "recipe": history.recipe.name,
            "step": self.whole,
            "logged": history.steps(),
            "ended": self.ended,
            "checkpoints": {step: reason or "whole" for step, reason in self.checkpoints},
            "guess": history.chance_loss(),
            "spread": self.spread._asdict() if self.spread else None,
            "words": list(self.lines()),
            **{name: history.last(name) for name in ("loss", "top1", "pixels", "knn")},
        }


def diagnose(folder: Path, workers: int | None = None, features: bool = True) -> Diagnosis:
    """Look at a run folder, and at the ``features`` of its network, and write nothing. Raises UserError where it is
    none.
    """
    history, run = collect(folder), Run(folder)
    examples = int(run.data()["examples"])
    states = [(checkpoint.step_of(path), state_of(path)) for path in checkpoint.published(run.checkpoints)]
    changed, spread, unseen = None, None, None
    try:
        source = history.source()
        change = changes(from_table(run.data_table), source.stamps())
        changed = str(change) if change else ""
        spread = spread_of(load(folder), source, workers) if features else None
    except UserError as error:
        unseen = str(error)
    total = history.recipe.length.total(max(1, examples // history.recipe.batch))
    return Diagnosis(history, total, holder(folder), states, changed, spread, unseen, bad_files(folder))


def state_of(path: Path) -> str | None:
    """What is wrong with a checkpoint, or why nobody can tell here; None if nothing is."""
    try:
        return checkpoint.damage(path)
    except UserError as error:
        return str(error)


def spread_of(trained: Trained, source: Source, workers: int | None) -> Spread:
    """Of some examples, whole; of a network whose head is not trained by contrast, the backbone's features count."""
    rows = random_rows(len(source), _MOST)
    loader = trained.loader(source, workers, budget=0)  # so few rows need no cache
    features = raw(trained.encoder, trained.views(loader, rows)).cpu()
    contrasts = trained.recipe.keys.directions and not isinstance(trained.recipe.keys, Labelled)
    head = embed(trained.encoder, trained.views(loader, rows), "head") if contrasts else unit(features)
    good = torch.tensor([row not in loader.bad_rows for row in rows.tolist()])
    return Spread(deviation(head[good]), uniformity(head[good]), rank(features[good]), features.shape[1])


def deviation(rows: Tensor) -> float:
    """Of unit rows (N, D): the root of their mean variance, times √D."""
    return float(rows.double().var(0, correction=0).sum().sqrt())


def rank(rows: Tensor) -> float:
    """exp of the entropy of the spectrum of centred rows (N, F) (Roy & Vetterli 2007), 0 where all are equal."""
    values = torch.linalg.svdvals((rows - rows.mean(0)).double())
    if not bool(values.max() > 1e-9 * rows.abs().max().clamp_min(1e-30)):
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def losses(history: History) -> tuple[list[float], int]:
    """Those that are finite, from when no key is random any more, and how many are a tenth of them."""
    points = history.after_filling(history.curves.get("loss", []))
    values = [value for _, value in points if math.isfinite(value)]
    return values, max(1, len(values) // 10)


def describe_loss(history: History) -> str:
    """The last loss, the loss at chance level, and the trend."""
    (values, tenth), chance = losses(history), history.chance_loss()
    if not values:
        return "nothing was logged"
    last = fmean(values[-tenth:])
    words = f"{fmean(values[:tenth]):.3f} at first, {last:.3f} at the end, {chance:.3f} at chance level"
    if not history.filled():
        return f"{last:.3f} at the end, too early to tell: some keys are still the random ones that a run starts with"
    points = history.after_filling(history.curves.get("loss", []))
    if len(values) < len(points):
        words += f"; {len(points) - len(values)} logged values are not finite"
    return f"{words}; {'nothing learned so far' if last >= (1 - _FLAT) * chance else trend(values, tenth)}"


def trend(values: Sequence[float], tenth: int) -> str:
    """How the mean of the last ``tenth`` values compares with that of as many before them."""
    if len(values) < 20:
        return "too few values for a trend"
    last, before = fmean(values[-tenth:]), fmean(values[-2 * tenth : -tenth])
    if last < before * (1 - _FLAT):
        return "still falling"
    return "rising" if last > before * (1 + _FLAT) else "no improvement in the last tenth"


def describe_knn(points: Sequence[Point]) -> str:
    """The first and last accuracy, or the best where the last is lower."""
    good = [(step, value) for step, value in points if math.isfinite(value)]
    if not good:
        return "not measured: there are no labels, too few pictures, or it is too early"
    (_, first), (step, last) = good[0], good[-1]
    best_step, best = max(good, key=lambda point: point[1])
    if len(good) == 1:
        return f"{last:.1%} at step {step:,.0f}, measured once"
    if best - last > _FLAT:
        return f"{last:.1%} at the end, down from {best:.1%} at step {best_step:,.0f}"
    change = (
        f"up from {first:.1%} to {last:.1%}"
        if last - first > _FLAT
        else f"no improvement, {first:.1%} at first and {last:.1%} at the end"
    )
    return f"{change}, measured {len(good)} times on held-out training pictures"


def bad_files(folder: Path) -> int:
    """How many pictures are listed in bad_files.csv."""
    with suppress(OSError):
        return max(0, len((folder / "bad_files.csv").read_bytes().splitlines()) - 1)
    return 0


def original_command(history: History) -> str:
    """The command that began the run, for where it lies now."""
    command = history.environment.get("command")
    if not isinstance(command, list) or len(command) < 2 or command[1] not in ("pretrain", "supervised"):
        return "the same call"
    said = [str(word) for word in command[1:] if word != "--overwrite" and not str(word).startswith("--out=")]
    if "--out" in said:
        at = said.index("--out")
        del said[at : at + 2]
    return shlex.join(["lookalike", *said, "--out", str(history.folder)])


def about_machine() -> dict[str, str]:
    """Versions and hardware by name, for a report without data."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return {
        "lookalike": version("lookalike"),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "processor": f"{cores()} cores, {processor()}",
        "device": f"{accelerator() or device()}, computes in {resolved('auto')}",
        "memory": f"{memory:.1f} GiB",
        "extras": ", ".join(f"{name} {_version_of(name, extra)}" for name, extra in _EXTRAS.items()),
    }


def about_model(trained: Trained) -> dict[str, str]:
    """What a public model is: its size, how it sees what it encodes, whose it is, and the file of its weights."""
    named, backbone = trained.named, trained.encoder.backbone
    assert named is not None
    seen, shown = trained.recipe.preprocessing, preprocessing(trained)
    return {
        "model": f"{trained.recipe.name}, {sum(part.numel() for part in backbone.parameters()) / 1e6:.2f} M parameters",
        "features": f"{width(trained.encoder, seen.size)}" if seen else "of the first token",
        "sees": ", ".join(f"{name} {value}" for name, value in shown.items()),
        "licence": named.licence or "not stated: ask whoever trained it",
        "weights": f"{', '.join(map(str, named.files))}, sha256 {named.digest()}",
    }


def _version_of(name: str, extra: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return f"missing (pip install 'lookalike[{extra}]')"
