"""The loop of everything that is fitted and is no pretraining: the same shape as ``loop.train``."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from lookalike.core.devices import exact, full_precision
from lookalike.core.errors import USAGE, UserError
from lookalike.core.files import read_json, write_json
from lookalike.core.seeding import reseed
from lookalike.learn import optim
from lookalike.train.guard import Guard
from lookalike.train.run import Run
from lookalike.train.watch import Due, Signals, leave

Item = TypeVar("Item")


@dataclass(frozen=True)
class Fit(Generic[Item]):
    """A network, and how it learns; ``batches(done)`` are those of the steps that follow the first ``done``."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: optim.Schedule
    steps: int
    seed: int
    batches: Callable[[int], Iterator[Item]]
    loss: Callable[[Item], Tensor]
    steepest: float = math.inf  # the norm to which a larger gradient is cut

    def run(
        self,
        progress: Callable[[int, int], None],
        folder: Path | None = None,
        settings: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        """Take all steps. With ``folder`` they are saved there, and the same call goes on where it was stopped.

        ``settings`` are all that the fit depends on, as JSON; a folder of others is refused. Raises UserError; after
        Ctrl-C or SIGTERM the step is finished, saved, and the process exits. On a GPU the same bytes come twice, but
        for kernels of which torch warns that they have no such form, such as those of RoIAlign.
        """
        model, optimizer = self.model, self.optimizer
        due, guard = Due(lambda _: self.steps), Guard(model, optimizer, "lower the learning rate, --lr")
        with _record(folder, settings) as (run, signals), exact(), full_precision():
            step = run.resume(model, optimizer) if run is not None else 0
            for step, batch in enumerate(self.batches(step), step + 1):  # noqa: B020  (on from the checkpoint)
                reseed(self.seed, step)
                optim.apply(self.schedule, optimizer, (step - 1) / self.steps)
                optimizer.zero_grad()
                loss = self.loss(batch)
                loss.backward()  # type: ignore[no-untyped-call]
                guard.check(loss, step)
                nn.utils.clip_grad_norm_(model.parameters(), self.steepest)
                optimizer.step()
                progress(step, self.steps)
                if run is not None and due.log(step):
                    run.log(step, loss=float(loss.detach()))
                if run is not None and (due.save(step) or signals.received):
                    guard.check_state(step)
                    due.saved(partial(run.save, step, model, optimizer))
                if signals.received:
                    leave(signals.received)
            guard.check_state(step)


@contextmanager
def _record(folder: Path | None, settings: Mapping[str, object]) -> Iterator[tuple[Run | None, Signals]]:
    """Where the fit is kept, and what asks it to stop; without a folder that is nothing, and signals act at once."""
    if folder is None:
        yield None, Signals()
        return
    with Run(folder) as run, Signals() as signals:
        _refuse_other(folder, settings)
        yield run, signals


def _refuse_other(folder: Path, settings: Mapping[str, object]) -> None:
    file, plain = folder / "fit.json", json.loads(json.dumps(dict(settings)))
    if not file.exists():
        write_json(file, plain)
    elif (recorded := read_json(file)) != plain:
        names = [name for name in plain if not isinstance(recorded, dict) or recorded.get(name) != plain[name]]
        raise UserError(f"{folder} holds a fit of another {', '.join(names)}: choose another --out", USAGE)


def weights_digest(module: nn.Module) -> str:
    """A hash of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, part in module.state_dict().items():
        digest.update(name.encode() + part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
