"""When a run logs, checks up and saves, and how fast it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from lookalike.core.devices import device
from lookalike.types import Batch


class Due:
    """When to log, check up and save. The first two depend on the step alone, so that a resumed run logs the same."""

    def __init__(self, total_at: Callable[[int], int], checkups: int, save_every: int | None) -> None:
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
        began = time.perf_counter()
        save()
        now = time.perf_counter()
        self.next_save = now + max(60.0, 100 * (now - began))


Item = TypeVar("Item")


class Timed:
    """Passes on what an iterator gives, and adds up the seconds that it takes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, source: Iterator[Item]) -> Iterator[Item]:
        """What ``source`` gives."""
        while True:
            asked = time.perf_counter()
            item = next(source, None)
            self.seconds += time.perf_counter() - asked
            if item is None:
                return
            yield item


class Beside:
    """The batches; those of a GPU are made beside the step before, in a stream of their own.

    ``idle`` are the seconds in which the GPU had nothing to do between steps, None on a processor: what its host spends
    on data costs nothing while it is busy.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._on_gpu = device().type == "cuda"
        self.idle: float | None = 0.0 if self._on_gpu else None
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __iter__(self) -> Iterator[Batch]:
        return self._made_beside() if self._on_gpu else self._batches

    def _made_beside(self) -> Iterator[Batch]:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        while True:
            using = torch.cuda.current_stream()
            ended = using.record_event(_timed())
            with torch.cuda.stream(stream):
                batch = next(self._batches, None)
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
            ended, began = self._gaps.pop(0)
            self.idle = (self.idle or 0.0) + ended.elapsed_time(began) / 1e3


def _timed() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class Waiting:
    """Iterates batches and keeps how long the step waited: ``data`` is the part of it that is no making of views."""

    def __init__(self, source: Beside, data: Timed) -> None:
        self.beside, self.source, self.data = source, iter(source), data
        self.waited, self.count = 0.0, 0
        self.began = self.last = time.perf_counter()
        self.pace = 0.0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            asked = time.perf_counter()
            batch = next(self.source, None)
            now = time.perf_counter()
            self.waited += now - asked
            if batch is None:
                return
            if self.count:  # a running mean that forgets slowly, so that the rate is neither jumpy nor stale
                self.pace += (now - self.last - self.pace) / min(self.count, 50)
            self.count, self.last = self.count + 1, now
            yield batch

    def rate(self, batch: int) -> float:
        """Examples a second of late; 0 until two steps are done."""
        return batch / self.pace if self.pace else 0.0

    def share(self) -> float:
        """The share of the time since the start in which there was no data."""
        idle = self.data.seconds if self.beside.idle is None else min(self.data.seconds, self.beside.idle)
        return idle / max(1e-9, time.perf_counter() - self.began)

    def views(self) -> float:
        """The share of the time since the start in which views were made, and nothing else."""
        waited = self.waited if self.beside.idle is None else self.beside.idle
        return max(0.0, waited - self.data.seconds) / max(1e-9, time.perf_counter() - self.began)
