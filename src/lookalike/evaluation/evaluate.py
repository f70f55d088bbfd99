"""One evaluation of one model: the function behind ``lookalike evaluate``."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lookalike.core import dist
from lookalike.core.devices import Precision, isolated
from lookalike.core.errors import UserError
from lookalike.core.progress import Progress, silent
from lookalike.data.source import Data
from lookalike.evaluation.evaluation import Evaluation, Resources, Result
from lookalike.evaluation.settings import configured
from lookalike.train.trained import Trained, load


@isolated()
def evaluate(
    model: str | Path | Trained,
    data: Data,
    task: str | Evaluation = "knn",
    *,
    untrained: bool = False,
    weights: str | None = None,
    precision: Precision = "fp32",
    out: str | Path | None = None,
    workers: int | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> Result:
    """Measure ``model``, a name or what ``load`` gave, on ``data``: ``evaluate("runs/first", "photos", k=20)``.

    ``task`` is the name of an evaluation, and ``settings`` are its fields (see ``settings.EVALUATIONS``); or it is
    the value itself. ``untrained``, ``weights`` and ``precision`` are those of ``load``. A fit is saved in ``out``, and
    the same call continues it. Under torchrun, processes but the first give no numbers. Raises UserError.
    """
    spec = configured(task, settings) if isinstance(task, str) else replace(task, **settings)
    resources = Resources(progress, say, workers, Path(out) if out else None)
    with processes(spec):
        trained = model if isinstance(model, Trained) else load(model, untrained, weights, precision)
        result = spec.run(trained, data, resources)
    if spec.runner.startswith(("frozen:", "pairs:")) or not trained.run:
        return result
    # A baseline would take as long as the whole evaluation.
    words = shlex.join(["lookalike", "compare", trained.run, "--on", str(data), "--task", spec.NAME])
    return result._replace(lines=[*result.lines, f"beside the untrained network, in repeated trials: {words}"])


@contextmanager
def processes(spec: Evaluation) -> Iterator[None]:
    """With those that torchrun started, if it did; raises UserError for what they cannot share."""
    if dist.started() > 1 and not spec.runner.startswith("frozen:"):
        raise UserError("this evaluation runs in one process: leave out torchrun")
    with dist.together():
        yield
