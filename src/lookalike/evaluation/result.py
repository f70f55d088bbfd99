"""What an evaluation is given beside a model and data, and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lookalike.core.progress import Progress, silent


@dataclass(frozen=True)
class Resources:
    """How the work is done, which changes no number."""

    progress: Progress = silent
    say: Callable[[str], None] = lambda _: None  # for a line about the data
    workers: int | None = None  # processes that decode; by default as suits the device
    folder: Path | None = None  # where a fit is saved, so that the same call continues it
    cache: dict[Any, Any] = field(default_factory=dict)  # what trials on one model share

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` gave when it was first called for ``key``."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]


class Result(NamedTuple):
    """What was measured."""

    settings: Mapping[str, Any]  # of the evaluation
    numbers: Mapping[str, float]
    metric: str  # the name of the number that models are compared by
    facts: Mapping[str, Any]  # how much was measured: counts, the step of the model
    lines: list[str]  # the same in words
    detail: Any = None  # what a page is drawn from

    @property
    def value(self) -> float:
        """The number that models are compared by."""
        return self.numbers[self.metric]

    def record(self) -> dict[str, Any]:
        """Settings, facts and numbers, as JSON."""
        return {name: plain(value) for name, value in {**self.settings, **self.facts, **self.numbers}.items()}

    def __repr__(self) -> str:
        return "\n".join(self.lines)


def plain(value: Any) -> Any:
    """As JSON has it, which knows neither NaN (None) nor infinity ("inf")."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
