"""An evaluation: one frozen value with its settings, what it is given beside a model and data, and what it gives back.

Nothing here imports torch: ``Evaluation.run`` is the one door to the code that measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from lookalike.core.errors import check_limits
from lookalike.core.progress import Progress, counted, silent

if TYPE_CHECKING:
    from lookalike.data.source import Data
    from lookalike.metrics.accuracy import Evidence
    from lookalike.train.trained import Trained


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

    def beside(self, name: str) -> Resources:
        """For something measured beside what was asked for, which progress names, and which says nothing."""
        progress: Progress = lambda what, done, total: self.progress(f"{name}: {what}", done, total)  # noqa: E731
        return replace(self, progress=progress, say=lambda _: None)

    def counter(self, what: str, total: int) -> Callable[[int], None]:
        """Progress for work that reports how many more are done."""
        return counted(self.progress, what, total)


class Result(NamedTuple):
    """What was measured."""

    settings: Mapping[str, Any]  # of the evaluation
    numbers: Mapping[str, float]
    metric: str  # the name of the number that models are compared by
    facts: Mapping[str, Any]  # how much was measured: counts, the step of the model
    lines: list[str]  # the same in words
    detail: Any = None  # what a page is drawn from
    scores: Mapping[str, Evidence] = MappingProxyType({})  # what numbers are means of, in the order of the lines

    @property
    def value(self) -> float:
        """The number that models are compared by."""
        return self.numbers[self.metric]

    def record(self) -> dict[str, Any]:
        """Settings, facts and numbers, as JSON."""
        record: dict[str, Any] = plain({**self.settings, **self.facts, **self.numbers})
        return record

    def __repr__(self) -> str:
        return "\n".join(self.lines)


def plain(value: Any) -> Any:
    """As JSON has it, which knows neither NaN (None) nor infinity ("inf")."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A way to measure a model."""

    NAME: ClassVar[str]
    METRIC: ClassVar[str]  # the number that models are compared by
    RUNNER: ClassVar[str]
    DRAWS: ClassVar[str | None] = None  # what the seed decides, in words
    TRIALS: ClassVar[Mapping[str, Any]] = MappingProxyType({})  # other defaults for repeated trials
    FITS: ClassVar[bool] = False  # whether a network is trained, which can be saved and continued
    PAGE: ClassVar[bool] = False  # whether there are pictures to show on a page

    def __post_init__(self) -> None:
        check_limits(self)

    @property
    def metric(self) -> str:
        """The number that models are compared by, with these settings."""
        return self.METRIC

    @property
    def repeats(self) -> bool:
        """Whether another seed can give another number."""
        return self.DRAWS is not None

    @property
    def runner(self) -> str:
        """Module and function, in this package, that measure."""
        return self.RUNNER

    def settings(self) -> dict[str, Any]:
        """Every field; those that follow from others as what they come to."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def run(self, model: Trained, data: Data, resources: Resources | None = None) -> Result:
        """Measure ``model`` on ``data``; no numbers in a process of torchrun that only embeds. Raises UserError."""
        module, function = self.runner.split(":")
        measure = getattr(import_module(f"lookalike.evaluation.{module}"), function)
        result: Result = measure(self, model, data, resources or Resources())
        return result

    def result(
        self,
        numbers: Mapping[str, float],
        facts: Mapping[str, Any],
        *lines: str,
        detail: Any = None,
        scores: Mapping[str, Evidence] = MappingProxyType({}),
    ) -> Result:
        """What was measured with these settings."""
        return Result(self.settings(), numbers, self.metric, facts, list(lines), detail, scores)
