"""Fine-tuning the whole network with all or few labels: each fit is a run of its own, so that it can be continued."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.progress import Progress, silent
from lookalike.data.example import Rows
from lookalike.data.fingerprint import to_table
from lookalike.data.loader import Loaded, Loader
from lookalike.data.source import Data
from lookalike.evaluation import settings
from lookalike.evaluation.lines import half, intervals, named, say_missing
from lookalike.evaluation.paper import loader_of
from lookalike.evaluation.result import Resources, Result
from lookalike.learn.learner import Learner
from lookalike.learn.optim import AdamW, Cosine
from lookalike.metrics.fewshot import Interval, drawn, interval
from lookalike.metrics.probe import LinearClassifier, LinearProbe, folds
from lookalike.models.features import embed, raw
from lookalike.pretext.image import OneView
from lookalike.recipes.modality import only_pictures
from lookalike.recipes.recipe import Length, Recipe
from lookalike.train import checkpoint
from lookalike.train.loop import train
from lookalike.train.run import Run, check_same
from lookalike.train.stops import leave
from lookalike.train.trained import Trained, labelled_parts, readable
from lookalike.types import Canvases


class Tuned(NamedTuple):
    """With one share of the labels: accuracy of a probe on the frozen features, and after fine-tuning; the rate."""

    frozen: Interval
    tuned: Interval
    rate: float
    labels: int


class Some(Loader):
    """Some rows of a loader: nothing is decoded twice."""

    def __init__(self, loader: Loader, rows: Tensor) -> None:
        self.source, self._loader, self._rows = Rows(loader.source, rows), loader, rows
        self.bad, self.bad_rows = loader.bad, {}

    def batches(self, rows_of_steps: Iterable[Tensor]) -> Generator[Loaded[Canvases], None, None]:
        """The pixels of each step's rows (B,), which count among these."""
        steps = list(rows_of_steps)
        for rows, loaded in zip(steps, self._loader.batches(self._rows[rows] for rows in steps)):
            yield Loaded(rows, loaded.material)


def finetune(spec: settings.Finetune, model: Trained, data: Data, resources: Resources) -> Result:
    """Accuracy for each share of the labels, beside a linear probe with the same labels.

    The head starts as the linear probe of the frozen features (arXiv 2202.10054), then everything learns. The rate is
    the one that predicts best a fifth of the labels that the fit did not see, in the first draw of a share.
    """
    only_pictures(model.recipe, "fine-tuning")
    reference, query = labelled_parts(model, data)
    say_missing(reference.labels, query.labels, resources)
    loaders = loader_of(reference, model, resources.workers), loader_of(query, model, resources.workers)
    kept = nullcontext(resources.folder) if resources.folder else TemporaryDirectory(prefix="lookalike-")
    with kept as folder:
        tuned = tune(spec, model, *loaders, Path(folder), resources.progress)
    lines = [
        f"{share:.0%} of the labels ({one.labels}): accuracy {one.tuned.mean:.2%}{half(one.tuned, '.2%')} fine-tuned "
        f"(rate {one.rate:g}), {one.frozen.mean:.2%}{half(one.frozen, '.2%')} frozen (n = {spec.draws} draws)"
        for share, one in tuned.items()
    ]
    numbers = intervals({f"interval_{named(share)}": one.tuned for share, one in tuned.items()})
    for share, one in reversed(tuned.items()):  # the last ones are those of the first share
        values = {"accuracy": one.tuned.mean, "frozen": one.frozen.mean, "rate": one.rate}
        numbers |= {f"{name}_{named(share)}": value for name, value in values.items()} | values
    return spec.result(numbers, {"step": model.step, "queries": len(query)}, lines)


def tune(
    spec: settings.Finetune, model: Trained, reference: Loader, query: Loader, folder: Path, progress: Progress = silent
) -> dict[float, Tuned]:
    """For each share, from the labelled pictures of ``reference`` to those of ``query``; fits go below ``folder``.

    The same call again continues what was interrupted.
    """
    features = raw(model.encoder, model.views(reference, torch.arange(len(reference)))).cpu()
    queries = raw(model.encoder, model.views(query, torch.arange(len(query)))).cpu()
    good, right = torch.tensor(readable(reference)), torch.tensor(readable(query))
    test = Queries(Some(query, right), queries[right], query.source.labels[right])
    tuning = Tuning(spec, model, reference, features, folder, progress)
    return {share: tuning.share(share, good, test) for share in spec.shares}


def classifier(spec: settings.Finetune, recipe: Recipe, classes: int, examples: int, rate: float, seed: int) -> Recipe:
    """One fit: the model of ``recipe`` as a classifier, by AdamW on the first view's crops and mirror images."""
    batch = max(2, min(spec.batch, examples))
    return replace(
        recipe.with_labels(classes),
        name=f"finetuned_{recipe.name}",
        pretext=OneView(recipe.crops()),
        whiten=False,
        optimizer=AdamW(rate * 256 / batch, spec.decay),
        schedule=Cosine(warmup=0.1),
        length=Length(steps=spec.steps),
        batch=batch,
        window=None,
        group=max(2, min(recipe.group, batch // 2)),
        slices=1,
        checkups=0,
        seed=seed,
    ).fitted(examples)


class Queries(NamedTuple):
    """What is predicted: pictures, their features (Q, F), and their labels (Q,)."""

    loader: Loader
    features: Tensor
    labels: Tensor


class Tuning(NamedTuple):
    """What every fit starts from."""

    spec: settings.Finetune
    model: Trained
    loader: Loader
    features: Tensor  # (N, F) of the pictures of ``loader``, as the backbone gives them
    folder: Path
    progress: Progress

    def share(self, share: float, good: Tensor, test: Queries) -> Tuned:
        """With a share of the labels of the rows ``good``."""
        spec, labels = self.spec, self.loader.source.labels
        draws = [good[drawn(labels[good], share, spec.seed + draw)] for draw in range(spec.draws)]
        rate = self.rate(share, draws[0])
        before, after = [], []
        for draw, rows in enumerate(draws):
            probe = LinearProbe().fit(self.features[rows], labels[rows])
            learner = self.fit(probe, rows, rate, draw, f"{share:g} of the labels, draw {draw + 1}")
            before.append(probe.accuracy(test.features, test.labels))
            after.append(self.accuracy(learner, test.loader, probe.classes, test.labels))
        return Tuned(interval(before), interval(after), rate, len(draws[0]))

    def rate(self, share: float, rows: Tensor) -> float:
        """The best on a held-out fifth; where that would be nothing, the lowest."""
        rates, labels = self.spec.rates, self.loader.source.labels[rows]
        held_out = folds(labels, self.spec.seed) == 0
        if len(rates) == 1 or not bool(held_out.any()) or bool(held_out.all()):
            return min(rates)
        fit, others = rows[~held_out], Some(self.loader, rows[held_out])
        probe = LinearProbe().fit(self.features[fit], labels[~held_out])
        accuracy = {}
        for rate in sorted(rates):
            learner = self.fit(probe, fit, rate, 0, f"{share:g} of the labels, choosing the rate, {rate:g}")
            accuracy[rate] = self.accuracy(learner, others, probe.classes, labels[held_out])
        return max(accuracy, key=lambda rate: accuracy[rate])

    def fit(self, probe: LinearClassifier, rows: Tensor, rate: float, draw: int, what: str) -> Learner:
        """The network tuned to the pictures at ``rows``, from the backbone and ``probe`` on."""
        loader, seed = Some(self.loader, rows), self.spec.seed + draw
        recipe = classifier(self.spec, self.model.recipe, len(probe.classes), len(rows), rate, seed)
        folder = self.folder / what.replace(" ", "-").replace(",", "")
        with opened_fit(folder, recipe, loader, self._start(probe)) as run:
            done = train(recipe, run, loader, watch=lambda report: self.progress(what, report.step, report.total))
        if done.signal:
            leave(done.signal)
        return done.learner

    def accuracy(self, learner: Learner, query: Loader, classes: Tensor, truth: Tensor) -> float:
        """The share of pictures whose label the whole network predicts."""
        views = self.model.views(query, torch.arange(len(query)))
        logits = embed(learner.encoder, views, "head")  # of unit norm, which moves no maximum
        return float((classes[logits.argmax(1)] == truth).double().mean())

    def _start(self, probe: LinearClassifier) -> dict[str, Tensor]:
        """The weights to begin with."""
        backbone = {f"backbone.{name}": part for name, part in self.model.encoder.backbone.state_dict().items()}
        return {**backbone, "head.0.weight": probe.weight.float(), "head.0.bias": probe.bias.float()}


@contextmanager
def opened_fit(folder: Path, recipe: Recipe, loader: Loader, weights: dict[str, Tensor]) -> Iterator[Run]:
    """The open run of a fit, new with a checkpoint at step 0 or as it was left; other settings are refused."""
    start = hashlib.sha256("\n".join(loader.source.paths).encode("utf-8", "surrogatepass"))
    for name, part in weights.items():
        if name.startswith("backbone."):  # the head follows from it
            start.update(part.cpu().numpy().tobytes())
    about = {"examples": len(loader), "start": start.hexdigest()}
    with Run(folder) as run:
        recorded = run.recipe()
        if recorded is None:
            learner = recipe.build(len(loader))
            learner.encoder.load_state_dict(weights)
            checkpoint.save(run.checkpoints, 0, learner, recipe.optimizer.build(learner, recipe.batch))
            run.begin(recipe, about, to_table(loader.source.stamps()))
        else:
            check_same(folder, recorded, recipe)
            if {name: run.data().get(name) for name in about} != about:
                raise UserError(f"{folder} began from other weights or labels: choose another --out", BAD_DATA)
        yield run
