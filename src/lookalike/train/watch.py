"""What stands beside the steps of a run: when it logs, checks up and saves, how fast it goes, what ends it early."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch

from lookalike.core import dist
from lookalike.core.devices import device
from lookalike.learn.learner import Outcome
from lookalike.recipes.recipe import Recipe
from lookalike.train.run import Run
from lookalike.types import Batch

Item = TypeVar("Item")


class Due:
    """When to log, check up and save. The first two depend on the step alone, so that a resumed run logs the same."""

    def __init__(self, total_at: Callable[[int], int], checkups: int = 0, save_every: int | None = None) -> None:
        """``total_at`` is how many steps the run has, as it counts for a step."""
        self.total_at, self.checkups, self.save_every = total_at, checkups, save_every
        self.next_save = time.perf_counter() + 60

    def log(self, step: int) -> bool:
        """About 500 times a run, first and last step included."""
        total = self.total_at(step)
        return step % max(1, total // 500) == 0 or step in (1, total)

    def checkup(self, step: int) -> bool:
        """Evenly over the run, and at its end."""
        total = self.total_at(step)
        return step == total or any(step == round(total * (i + 1) / self.checkups) for i in range(self.checkups))

    def save(self, step: int) -> bool:
        """Every ``save_every`` steps if given, else every minute or so; always at the end."""
        if step == self.total_at(step):
            return True
        return step % self.save_every == 0 if self.save_every else time.perf_counter() >= self.next_save

    def saved(self, save: Callable[[], object]) -> None:
        """Save, and leave a hundred times as long as it took before the next: at most 1 % of the time."""
        start = time.perf_counter()
        save()
        now = time.perf_counter()
        self.next_save = now + max(60.0, 100 * (now - start))


class Meter:
    """Iterates the batches of a run, and measures the pace of its steps and what they wait for, in seconds.

    On a GPU batches are made beside the step before, in a stream of their own; ``idle`` is the time in which it had
    nothing to do between steps (None on a processor): what its host spends on data costs nothing while it is busy.
    """

    def __init__(self) -> None:
        self.start = self._last = time.perf_counter()
        self.pace = 0.0  # seconds a step, of late
        self.reading = 0.0  # until material was read
        self.waiting = 0.0  # until batches were made: reading, and making views
        self.idle: float | None = 0.0 if device().type == "cuda" else None
        self._count = 0
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def reads(self, material: Iterator[Item]) -> Iterator[Item]:
        """The items of ``material``, whose time counts as ``reading``."""
        while True:
            start = time.perf_counter()
            item = next(material, None)
            self.reading += time.perf_counter() - start
            if item is None:
                return
            yield item

    def over(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, one a step."""
        source = batches if self.idle is None else self._beside(batches)
        while True:
            start = time.perf_counter()
            batch = next(source, None)
            now = time.perf_counter()
            self.waiting += now - start
            if batch is None:
                return
            if self._count:  # a running mean that forgets slowly, so that the rate is neither jumpy nor stale
                self.pace += (now - self._last - self.pace) / min(self._count, 50)
            self._count, self._last = self._count + 1, now
            yield batch

    def rate(self, batch: int) -> float:
        """Examples a second of late; 0 until two steps are done."""
        return batch / self.pace if self.pace else 0.0

    def data_share(self) -> float:
        """The share of the time since the start in which there was no data."""
        return self._share(self.reading if self.idle is None else min(self.reading, self.idle))

    def views_share(self) -> float:
        """The share of the time since the start in which views were made, and nothing else."""
        return self._share(max(0.0, (self.waiting if self.idle is None else self.idle) - self.reading))

    def _share(self, seconds: float) -> float:
        return seconds / max(1e-9, time.perf_counter() - self.start)

    def _beside(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        while True:
            using = torch.cuda.current_stream()
            ended = using.record_event(_timed())
            with torch.cuda.stream(stream):
                batch = next(batches, None)
            if batch is None:
                return
            using.wait_stream(stream)
            for part in (batch.index, *batch.first.values(), *batch.second.values()):
                if part.is_cuda:  # or the stream would write the next views over those that are still read
                    part.record_stream(using)
            self._gaps.append((ended, using.record_event(_timed())))
            self._add_up()
            yield batch

    def _add_up(self) -> None:
        """The gaps that have passed."""
        while self._gaps and self._gaps[0][1].query():  # type: ignore[no-untyped-call]
            ended, resumed = self._gaps.pop(0)
            self.idle = (self.idle or 0.0) + ended.elapsed_time(resumed) / 1e3


def _timed() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


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
    filling: bool = False  # whether some keys are still random, beside which loss and ``top1`` mean little


class Log:
    """Writes the numbers of steps and check-ups into the run folder, and hands each step's to ``watch``."""

    def __init__(
        self, run: Run, watch: Callable[[StepReport], None], meter: Meter, recipe: Recipe, examples: int, total: int
    ) -> None:
        self._run, self._watch, self._meter = run, watch, meter
        self._batch, self._total, self._chance = recipe.batch, total, recipe.chance_loss(examples)
        self._filling = recipe.filling(examples)
        self._metrics: dict[str, float] = {}

    def step(self, step: int, outcome: Outcome, lr: float) -> None:
        """After a step and before ``advance``: metrics.jsonl gets what repeats exactly, TensorBoard the pace too."""
        parts = {"loss": outcome.loss.detach(), **outcome.measures()}
        stacked = torch.stack([part.to(outcome.loss.dtype) for part in parts.values()])
        means = dict(zip(parts, dist.mean(stacked).tolist()))  # over ranks
        rate, pace = self._meter.rate(self._batch), self._meter.pace
        numbers = (means.pop("loss"), self._chance, means, rate, pace, self._metrics)
        report = StepReport(step, self._total, *numbers, step <= self._filling)
        self._run.log(step, {"top1"} if report.filling else (), loss=report.loss, **report.measures, lr=lr)
        self._run.pace(step, examples_per_s=report.examples_per_second, data_wait=self._meter.data_share())
        self._watch(report)

    def checkup(self, step: int, metrics: dict[str, float]) -> None:
        """The metrics of a check-up, if it has any."""
        if metrics:
            self._metrics = metrics
            self._run.log(step, **metrics)


_ASK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # Slurm may send any of the last three


class Signals:
    """While open, what asks to stop is only noted in ``received``; a second Ctrl-C acts at once.

    The others may come twice: a scheduler sends them to torchrun and to its ranks, and torchrun to its ranks. What is
    ignored stays ignored, as SIGHUP under nohup, and what a caller handles by means of its own stays handled so.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids handlers
            usual = (signal.SIG_DFL, signal.default_int_handler)
            found = {number: signal.getsignal(number) for number in _ASK}
            self._before = {number: handler for number, handler in found.items() if handler in usual}
            for number in self._before:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number


def leave(number: int) -> NoReturn:
    """End the process by what a signal asked for, once everything is saved."""
    print("stopped and saved; the same command with the same --out continues", file=sys.stderr)
    sys.exit(128 + number)
