"""What a run folder holds for a report: its recipe, where it ran, and its curves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lookalike.core.errors import UserError
from lookalike.core.files import json_in
from lookalike.data.example import Source
from lookalike.data.source import Data
from lookalike.recipes.recipe import Recipe
from lookalike.train.pretrain import Request, open_data
from lookalike.train.run import read_environment, read_recipe

Point = tuple[float, float]
"""Step and value; the value may be NaN."""


class History(NamedTuple):
    """One run as it was recorded."""

    folder: Path
    recipe: Recipe
    environment: dict[str, Any]
    curves: dict[str, list[Point]]  # by the name of the metric

    def chance_loss(self) -> float:
        """The loss at chance level."""
        return self.recipe.chance_loss(self.examples())

    def after_filling(self, points: list[Point]) -> list[Point]:
        """The points from when no key is random any more, as they are at first; all, if that never was."""
        return [point for point in points if point[0] > self.filling()] or points

    def filling(self) -> int:
        """Steps that met random keys."""
        return self.recipe.filling(self.examples())

    def filled(self) -> bool:
        """Whether a step was logged that met no random key."""
        return self.steps() > self.filling()

    def last(self, name: str) -> float | None:
        """The newest finite value of a metric."""
        return next((value for _, value in reversed(self.curves.get(name, [])) if math.isfinite(value)), None)

    def steps(self) -> int:
        """The newest step that was logged."""
        return int(max((points[-1][0] for points in self.curves.values()), default=0))

    def examples(self) -> int:
        """How many examples the run learned from."""
        return int(self.about().get("examples", 0))

    def about(self) -> dict[str, Any]:
        """What environment.json says of the data."""
        about = self.environment.get("data")
        return about if isinstance(about, dict) else {}

    def source(self, data: Data | None = None) -> Source:
        """The data given, else what the run learned from if that is on this machine: the folder may be a stranger's.

        Raises UserError.
        """
        name, split = str(self.about().get("data") or ""), self.about().get("split")
        if data is None and not name:
            raise UserError("the run does not say what it learned from")
        if data is None and (name.startswith("hub:") or "://" in name):
            raise UserError(f"the run learned from {name}, which is not on this machine")
        supervised = data is None and self.recipe.name.startswith("supervised_")
        split = None if split is None else str(split)
        return open_data(
            Request(name if data is None else data, Path(), recipe=self.recipe, split=split, supervised=supervised)
        )


def collect(folder: Path) -> History:
    """Read a run folder; raises UserError where it is none. Runs that are still going may be read."""
    recipe = read_recipe(folder / "recipe.json")
    environment = read_environment(folder)
    curves: dict[str, list[Point]] = {}
    for step, name, value in logged(folder / "metrics.jsonl"):
        curves.setdefault(name, []).append((step, value))
    return History(folder, recipe, environment, curves)


def logged(path: Path) -> Iterator[tuple[float, str, float]]:
    """(step, metric, value) in the order of the file; what is no number, and a torn last line, are passed over."""
    lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
    for line in lines:
        try:
            values = json_in(line)
            step = float(values.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield step, str(name), float(value)
