"""Fine-tuning the whole network with all or few labels: each fit is a run of its own, so that it can be continued."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.progress import Progress, silent
from lookalike.data.fingerprint import to_table
from lookalike.data.loader import Loaded, Loader
from lookalike.data.rows import Rows
from lookalike.learn.learner import Learner
from lookalike.learn.optim import AdamW, Cosine
from lookalike.metrics.fewshot import Interval, drawn, interval
from lookalike.metrics.probe import Linear, LinearProbe, folds
from lookalike.models.features import embed, raw
from lookalike.pretext.image import OneView
from lookalike.recipes.labelled import with_labels
from lookalike.recipes.recipe import Length, Recipe
from lookalike.train import checkpoint
from lookalike.train.loop import Finished, train
from lookalike.train.run import Run, check_same
from lookalike.train.trained import Trained, readable
from lookalike.types import Canvases


class Tuned(NamedTuple):
    """With one share of the labels: accuracy before, by a probe on frozen features, and after; the rate chosen."""

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
        asked = list(rows_of_steps)
        for mine, found in zip(asked, self._loader.batches(self._rows[rows] for rows in asked)):
            yield Loaded(mine, found.material)


@dataclass(frozen=True)
class Finetune:
    """The head starts as the linear probe of the frozen features (arXiv 2202.10054), then everything learns.

    AdamW with a cosine schedule, on the first view's crops and mirror images. The rate is the one of ``rates`` that
    predicts a fifth of the labels best which the fit did not see, in the first of ``draws`` draws of a share.
    """

    shares: tuple[float, ...] = (1.0, 0.1, 0.01)
    rates: tuple[float, ...] = (1e-4, 1e-3)
    steps: int = 200
    batch: int = 64
    draws: int = 3
    decay: float = 0.05
    seed: int = 0

    def recipe(self, recipe: Recipe, classes: int, examples: int, rate: float, seed: int) -> Recipe:
        """What one fit is: the model of ``recipe`` as a classifier."""
        batch = max(2, min(self.batch, examples))
        return replace(
            with_labels(recipe, classes),
            name=f"finetuned_{recipe.name}",
            pretext=OneView(recipe.pictures.crops()),
            whiten=False,
            optimizer=AdamW(rate * 256 / batch, self.decay),
            schedule=Cosine(warmup=0.1),
            length=Length(steps=self.steps),
            batch=batch,
            window=None,
            group=max(2, min(recipe.group, batch // 2)),
            slices=1,
            checkups=0,
            seed=seed,
        ).fitted(examples)

    def measured(
        self, trained: Trained, reference: Loader, query: Loader, folder: Path, progress: Progress = silent
    ) -> dict[float, Tuned]:
        """For each share, from the labelled pictures of ``reference`` to those of ``query``; fits go below ``folder``.

        The same call again continues what was interrupted.
        """
        features = raw(trained.encoder, trained.views(reference, torch.arange(len(reference)))).cpu()
        asked = raw(trained.encoder, trained.views(query, torch.arange(len(query)))).cpu()
        good, right = torch.tensor(readable(reference)), torch.tensor(readable(query))
        task = _Task(self, trained, reference, features, folder, progress)
        ask = (Some(query, right), asked[right], query.source.labels[right])
        return {share: self._share(share, task, good, ask) for share in self.shares}

    def _share(self, share: float, task: _Task, good: Tensor, ask: tuple[Loader, Tensor, Tensor]) -> Tuned:
        query, asked, truth = ask
        labels = task.loader.source.labels
        draws = [good[drawn(labels[good], share, self.seed + draw)] for draw in range(self.draws)]
        rate = self._rate(share, task, draws[0])
        before, after = [], []
        for draw, rows in enumerate(draws):
            probe = LinearProbe().fit(task.features[rows], labels[rows])
            learner = task.fitted(probe, rows, rate, draw, f"{share:g} of the labels, draw {draw + 1}")
            before.append(probe.accuracy(asked, truth))
            after.append(task.accuracy(learner, query, probe.classes, truth))
        return Tuned(interval(before), interval(after), rate, len(draws[0]))

    def _rate(self, share: float, task: _Task, rows: Tensor) -> float:
        """The best on a held-out fifth; where that would be nothing, the lowest."""
        labels = task.loader.source.labels[rows]
        held = folds(labels, self.seed) == 0
        if len(self.rates) == 1 or not bool(held.any()) or bool(held.all()):
            return min(self.rates)
        fit, others = rows[~held], Some(task.loader, rows[held])
        probe = LinearProbe().fit(task.features[fit], labels[~held])
        found = {}
        for rate in sorted(self.rates):
            learner = task.fitted(probe, fit, rate, 0, f"{share:g} of the labels, choosing the rate, {rate:g}")
            found[rate] = task.accuracy(learner, others, probe.classes, labels[held])
        return max(found, key=lambda rate: found[rate])


class _Task(NamedTuple):
    """What every fit starts from."""

    spec: Finetune
    trained: Trained
    loader: Loader
    features: Tensor  # (N, F) of the pictures of ``loader``, as the backbone gives them
    folder: Path
    progress: Progress

    def fitted(self, probe: Linear, rows: Tensor, rate: float, draw: int, what: str) -> Learner:
        """The network tuned to the pictures at ``rows``, from the backbone and ``probe`` on."""
        loader = Some(self.loader, rows)
        recipe = self.spec.recipe(self.trained.recipe, len(probe.classes), len(rows), rate, self.spec.seed + draw)
        with begun(self.folder / what.replace(" ", "-").replace(",", ""), recipe, loader, self._start(probe)) as run:
            done: Finished = train(
                recipe, run, loader, watch=lambda pulse: self.progress(what, pulse.step, pulse.total)
            )
        if done.signal:
            print("stopped and saved; the same command with the same --out continues", file=sys.stderr)
            sys.exit(128 + done.signal)
        return done.learner

    def accuracy(self, learner: Learner, query: Loader, classes: Tensor, truth: Tensor) -> float:
        """The share of pictures whose label the whole network predicts."""
        views = self.trained.views(query, torch.arange(len(query)))
        logits = embed(learner.encoder, views, "head")  # of unit norm, which moves no maximum
        return float((classes[logits.argmax(1)] == truth).double().mean())

    def _start(self, probe: Linear) -> dict[str, Tensor]:
        """The weights to begin with."""
        backbone = {f"backbone.{name}": part for name, part in self.trained.encoder.backbone.state_dict().items()}
        return {**backbone, "head.0.weight": probe.weight.float(), "head.0.bias": probe.bias.float()}


@contextmanager
def begun(folder: Path, recipe: Recipe, loader: Loader, weights: dict[str, Tensor]) -> Iterator[Run]:
    """The open run of a fit, new with a checkpoint at step 0 or as it was left; other settings are refused."""
    start = hashlib.sha256("\n".join(loader.source.paths).encode("utf-8", "surrogatepass"))
    for name, part in weights.items():
        if name.startswith("backbone."):  # the head follows from it
            start.update(part.cpu().numpy().tobytes())
    about = {"examples": len(loader), "start": start.hexdigest()}
    with Run(folder) as run:
        held = run.recipe()
        if held is None:
            learner = recipe.build(len(loader))
            learner.encoder.load_state_dict(weights)
            checkpoint.save(run.checkpoints, 0, learner, recipe.optimizer.build(learner, recipe.batch))
            run.begin(recipe, about, to_table(loader.source.stamps()))
        else:
            check_same(folder, held, recipe)
            if {name: run.data().get(name) for name in about} != about:
                raise UserError(f"{folder} began from other weights or labels: choose another --out", BAD_DATA)
        yield run
