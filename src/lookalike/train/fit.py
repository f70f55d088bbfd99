"""A fit that can be kept in a folder and goes on where it was stopped: what detectors and segmenters share."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from lookalike.core.errors import USAGE, UserError
from lookalike.core.files import read_json, write_json
from lookalike.train import checkpoint
from lookalike.train.meter import Due
from lookalike.train.run import Run
from lookalike.train.signals import Signals


class Fit(NamedTuple):
    """A network, its optimizer, and ``losses(done)``: each next one is a step that was taken, from ``done`` on."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int
    losses: Callable[[int], Iterator[float]]


def carried_out(
    fit: Fit, folder: Path | None, marks: Mapping[str, object], progress: Callable[[int, int], None]
) -> None:
    """Take all steps. With ``folder`` they are saved there, and the same call goes on where it was stopped.

    ``marks`` are all that the fit depends on, as JSON; other folders are refused. Raises UserError; after Ctrl-C or
    SIGTERM the step is finished, saved, and the process exits.
    """
    with ExitStack() as stack:
        run = signals = None
        if folder is not None:
            run, signals = stack.enter_context(Run(folder)), stack.enter_context(Signals())
            _refuse_other(folder, marks)
        done, due = _resume(fit, run), Due(lambda _: fit.steps, 1, None)
        for step, loss in enumerate(fit.losses(done), done + 1):
            progress(step, fit.steps)
            received = signals.received if signals is not None else None
            if run is not None:
                run.log(step, loss=loss)
                if received or due.save(step):
                    run.sync()
                    due.saved(lambda: checkpoint.save(run.checkpoints, step, fit.model, fit.optimizer))  # noqa: B023
            if received:
                print("stopped and saved; the same command with the same --out continues", file=sys.stderr)
                sys.exit(128 + received)


def _resume(fit: Fit, run: Run | None) -> int:
    """The steps that are done."""
    newest = checkpoint.newest(run.checkpoints)[0] if run is not None else None
    done = checkpoint.load(newest, fit.model, fit.optimizer) if newest is not None else 0
    if run is not None:
        run.rewind(done)
    return done


def _refuse_other(folder: Path, marks: Mapping[str, object]) -> None:
    file, asked = folder / "fit.json", json.loads(json.dumps(marks))
    if not file.exists():
        write_json(file, asked)
    elif (held := read_json(file)) != asked:
        names = [name for name in asked if not isinstance(held, dict) or held.get(name) != asked[name]]
        raise UserError(f"{folder} holds a fit of another {', '.join(names)}: choose another --out", USAGE)


def weights_of(module: nn.Module) -> str:
    """A hash of all parameters and buffers."""
    found = hashlib.sha256()
    for name, part in module.state_dict().items():
        found.update(name.encode() + part.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
