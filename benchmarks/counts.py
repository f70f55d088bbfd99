"""What one step asks of a processor, counted and not timed: operators, new memory and how often it is asked for.

    python -m benchmarks.counts [RECIPE] [--batch 128] [--precision fp32] [--by-operator]

The step is one of ``loop.train`` itself, on random canvases, the third, since the first ones make what is made once.
``bytes`` are those of results that lie in no memory which the operator was given: what a step writes beside its state.
What operators ask for within themselves, such as a convolution's scratch memory, is not seen.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from benchmarks.launches import Shapes
from benchmarks.parts import PARTS, marked
from lookalike.core.seeding import uniforms
from lookalike.data.loader import Loaded
from lookalike.recipes import recipe_named
from lookalike.recipes.recipe import Length, Recipe
from lookalike.train import loop
from lookalike.train.run import Run
from lookalike.types import Canvases

EXAMPLES = 50_000


@dataclass
class Work:
    """What a step asked for, by part."""

    operators: Counter[str] = field(default_factory=Counter)
    allocations: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    names: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def table(self) -> str:
        """As text."""
        rows = [f"{'part':<10} {'operators':>9} {'allocations':>11} {'MiB':>8}"]
        for part in PARTS:
            numbers = self.operators[part], self.allocations[part], self.bytes[part] / 2**20
            rows.append("{:<10} {:>9} {:>11} {:>8.2f}".format(part, *numbers))
        whole = self.operators.total(), self.allocations.total(), self.bytes.total() / 2**20
        return "\n".join([*rows, "{:<10} {:>9} {:>11} {:>8.2f}".format("step", *whole)])


class Watching(TorchDispatchMode):
    """Runs everything, and counts it."""

    def __init__(self) -> None:
        super().__init__()
        self.work, self.part = Work(), "loop"

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_place(part) for part in tree_flatten((args, kwargs))[0] if isinstance(part, Tensor)}
        result = func(*args, **(kwargs or {}))
        made = {_place(part): part for part in tree_flatten(result)[0] if isinstance(part, Tensor)}
        new = [part.untyped_storage().nbytes() for place, part in made.items() if place not in given]
        # The profiler marks a step twice where another run was in the process before.
        if not func.is_view and func.namespace != "profiler":
            self.work.operators[self.part] += 1
            self.work.names[self.part][str(func)] += 1
            self.work.allocations[self.part] += sum(size > 0 for size in new)
            self.work.bytes[self.part] += sum(new)
        return result


def _place(part: Tensor) -> int:
    return part.untyped_storage()._cdata


class Canvased(Shapes):
    """Random canvases, the same each step."""

    def batches(self, rows_of_steps: Any) -> Any:
        drawn = Canvases(torch.empty(0), torch.empty(0))
        for loaded in super().batches(rows_of_steps):
            count, side = len(loaded.rows), self.side
            if not len(drawn.sizes):
                numbers = uniforms(0, 0, torch.arange(count), 1, 3 * side * side).view(count, 3, side, side)
                drawn = Canvases((numbers * 255).to(torch.uint8), torch.full((count, 2), side))
            yield Loaded(loaded.rows, drawn)


def count(recipe: Recipe, precision: str = "fp32") -> Work:
    """What the third step of ``loop.train`` asks for, by part."""
    mode, found = Watching(), list[Work]()

    def asked() -> None:
        found.append(mode.work)
        mode.work = Work()

    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, {"LOOKALIKE_DEVICE": "cpu", "LOOKALIKE_PRECISION": precision}))
        run = stack.enter_context(Run(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"))
        loader = Canvased(EXAMPLES, recipe.canvas, 4, asked)
        for context in (mode, marked(mode.within)):
            stack.enter_context(context)
        loop.train(replace(recipe, checkups=0, length=Length(steps=2000)), run, loader, save_every=1 << 40)  # type: ignore[arg-type]
    return found[3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="small")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--by-operator", action="store_true", help="which operators they are")
    asked = parser.parse_args()
    recipe = recipe_named(asked.recipe, EXAMPLES, 32)
    work = count(recipe if asked.batch is None else replace(recipe, batch=asked.batch), asked.precision)
    print(f"{recipe.name}, batch {asked.batch or recipe.batch}, {asked.precision}, one step\n{work.table()}")
    if asked.by_operator:
        for part in PARTS:
            for name, many in work.names[part].most_common():
                print(f"{part:<10} {many:>6} {name}")


if __name__ == "__main__":
    main()
