"""How results and progress are put in words."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lookalike.evaluation.result import Resources
from lookalike.metrics.fewshot import Interval


def say_missing(reference: Tensor, query: Tensor, resources: Resources, unit: str = "pictures") -> None:
    """Say which classes of the queries the reference does not have."""
    unknown = ~torch.isin(query, reference)
    if bool(unknown.any()):
        count, classes = int(unknown.sum()), len(torch.unique(query[unknown]))
        resources.say(f"{classes} classes of the queries are not in the reference: their {count} {unit} count as wrong")


def named(amount: float) -> str:
    """``5`` for five labels a class, ``1%`` for a share."""
    return f"{amount:.10g}" if isinstance(amount, int) else f"{100 * amount:g}%"


def intervals(named: dict[str, Interval]) -> dict[str, float]:
    """The half-widths of those that have one, which takes two draws."""
    return {name: interval.half for name, interval in named.items() if not math.isnan(interval.half)}


def half(interval: Interval, form: str) -> str:
    """`` ± 1.20%``, where there are draws enough for an interval."""
    return "" if math.isnan(interval.half) else f" ± {interval.half:{form}}"


def counting(resources: Resources, what: str, total: int) -> Callable[[int], None]:
    """Progress that is told how many more are done."""
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        resources.progress(what, done, total)

    return more
