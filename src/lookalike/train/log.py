"""What a run tells of its steps: in its folder, and to whoever watches."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from lookalike.core import dist
from lookalike.learn.learner import Outcome
from lookalike.recipes.recipe import Recipe
from lookalike.train.meter import Meter
from lookalike.train.run import Run


class StepReport(NamedTuple):
    """One step of a run, for whoever shows it."""

    step: int
    total: int
    loss: float
    chance_loss: float  # of scoring all entries alike: log(K + 1) for InfoNCE
    measures: dict[str, float]  # the pretext accuracy ``top1``, the error of ``pixels``: those that the recipe has
    examples_per_second: float
    seconds_per_step: float
    metrics: dict[str, float]  # of the last check-up


class Log:
    """Writes the numbers of steps and check-ups into the run folder, and hands each step's to ``watch``."""

    def __init__(
        self, run: Run, watch: Callable[[StepReport], None], meter: Meter, recipe: Recipe, examples: int, total: int
    ) -> None:
        self._run, self._watch, self._meter = run, watch, meter
        self._batch, self._total, self._chance = recipe.batch, total, recipe.chance_loss(examples)
        self._metrics: dict[str, float] = {}

    def step(self, step: int, outcome: Outcome, lr: float) -> None:
        """After a step and before ``advance``: metrics.jsonl gets what repeats exactly, TensorBoard the pace too."""
        report = self._report(step, outcome)
        self._run.log(step, loss=report.loss, **report.measures, lr=lr)
        self._run.pace(step, examples_per_s=report.examples_per_second, data_wait=self._meter.data_share())
        self._watch(report)

    def checkup(self, step: int, metrics: dict[str, float]) -> None:
        """The metrics of a check-up, if it has any."""
        if metrics:
            self._metrics = metrics
            self._run.log(step, **metrics)

    def _report(self, step: int, outcome: Outcome) -> StepReport:
        """With means over ranks."""
        parts = {"loss": outcome.loss.detach(), **outcome.measures()}
        stacked = torch.stack([part.to(outcome.loss.dtype) for part in parts.values()])
        means = dict(zip(parts, dist.mean(stacked).tolist()))
        rate, pace = self._meter.rate(self._batch), self._meter.pace
        return StepReport(step, self._total, means.pop("loss"), self._chance, means, rate, pace, self._metrics)
