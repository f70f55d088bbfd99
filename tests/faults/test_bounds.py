"""Settings that make no sense are refused where they are given, by limits that stand at the fields."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import pytest

from lookalike.cli import flags
from lookalike.core.errors import Bounded, Limit, UserError, limits
from lookalike.evaluation.settings import EVALUATIONS
from lookalike.recipes import RECIPES
from lookalike.recipes.parts import PARTS
from lookalike.recipes.recipe import Recipe
from lookalike.recipes.serialize import KINDS, from_plain, override, to_plain
from lookalike.train.pretrain import Request
from tests.conftest import Said

PACKAGE = {name: kind for name, kind in (KINDS | PARTS).items() if kind.__module__.startswith("lookalike.")}


class Number(NamedTuple):
    """A field that holds a number, or several."""

    kind: type
    name: str

    def __str__(self) -> str:
        return f"{self.kind.__name__}.{self.name}"

    @property
    def hint(self) -> Any:
        return typing.get_type_hints(self.kind)[self.name]

    def held(self, number: float) -> Any:
        """``number`` as the field holds it: for a tuple as often as it wants."""
        hint = next((part for part in get_args(self.hint) if get_origin(part) is tuple), self.hint)
        if get_origin(hint) is not tuple:
            return number
        return (number,) * (1 if ... in get_args(hint) else len(get_args(hint)))

    def outside(self) -> Iterator[float]:
        """Numbers beyond each end of each limit, and such as are no numbers."""
        (limit,) = limits(self.kind)[self.name]
        ends = (limit.low if limit.above else limit.low - 1, limit.high + 1)
        yield from (value for value in (*ends, -5, 10**12, math.nan, math.inf, -math.inf) if not limit.holds(value))


def numbers_in(hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return False
    return hint in (int, float) or any(map(numbers_in, get_args(hint)))


def numbers(kinds: typing.Iterable[type]) -> list[Number]:
    return [Number(kind, field) for kind in kinds for field in fields_of(kind) if numbers_in(Number(kind, field).hint)]


def fields_of(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


OF_RECIPES = numbers(PACKAGE.values())
OF_COMMANDS = numbers([*flags.VERBS.values(), flags.EvaluateScenes, *EVALUATIONS.values(), Request])
LENGTHS = {"minutes", "epochs", "steps"}  # of a command; those of its request have the limits
SETTINGS = {"batch"}  # of a request, which is one of the recipe's


def made(kind: type, **given: Any) -> Any:
    """One of that kind: what has no default is as small as it may be."""
    needed = {
        field.name: least(kind, field.name)
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.name not in given
    }
    return kind(**needed, **given)


def least(kind: type, name: str) -> Any:
    hint = typing.get_type_hints(kind)[name]
    if found := limits(kind).get(name):
        return found[0].low
    choice = next((part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)), None)
    return "x" if choice is None else made(choice)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", OF_RECIPES, ids=str)
def test_every_number_of_a_recipe_has_both_bounds(number: Number) -> None:
    assert issubclass(number.kind, Bounded)
    (limit,) = limits(number.kind)[number.name]
    assert math.isfinite(limit.low)
    assert math.isfinite(limit.high)


@pytest.mark.parametrize("number", [n for n in OF_COMMANDS if n.name not in LENGTHS | SETTINGS], ids=str)
def test_every_number_of_a_command_has_a_bound(number: Number) -> None:
    assert limits(number.kind).get(number.name)


@pytest.mark.parametrize("number", OF_RECIPES, ids=str)
def test_a_number_outside_is_refused_by_one_line_that_names_field_and_bound(number: Number) -> None:
    (limit,) = limits(number.kind)[number.name]
    for value in number.outside():
        with pytest.raises(UserError) as refused:
            made(number.kind, **{number.name: number.held(value)})
        assert str(refused.value) == f"{number.name} of {number.kind.__name__} must be {limit}"


@pytest.mark.parametrize("number", OF_RECIPES, ids=str)
def test_both_ends_of_a_limit_are_within(number: Number) -> None:
    (limit,) = limits(number.kind)[number.name]
    for value in (*(() if limit.above else (limit.low,)), limit.high):
        assert getattr(made(number.kind, **{number.name: number.held(value)}), number.name) == number.held(value)


def paths(value: Any, prefix: str = "") -> Iterator[tuple[str, Number]]:
    """Each field of a recipe that holds numbers, by its path."""
    for name in fields_of(type(value)):
        inner = getattr(value, name)
        if dataclasses.is_dataclass(inner):
            yield from paths(inner, f"{prefix}{name}.")
        elif numbers_in(Number(type(value), name).hint):
            yield prefix + name, Number(type(value), name)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_each_way_to_set_a_field_of_a_recipe_refuses(recipe: Recipe) -> None:
    recipe = recipe.fitted(10_000, 64)
    for path, number in paths(recipe):
        value = number.held(next(number.outside()))
        text = ",".join(map(str, value)) + "," if isinstance(value, tuple) else str(value)
        for given in (value, text):
            with pytest.raises(UserError, match=rf"^--{path} (must be (at least|above) [^\n]*|cannot be [^\n]*)$"):
                override(recipe, path, given)
        plain = part = to_plain(recipe)
        *parents, name = path.split(".")
        for parent in parents:
            part = part[parent]
        part[name] = list(value) if isinstance(value, tuple) else value
        with pytest.raises(UserError, match=r"^[^\n]* in a recipe file$") as refused:
            from_plain(json.loads(json.dumps(plain)))
        assert refused.value.code == 65


@pytest.mark.parametrize(
    ("path", "value", "bound"),
    [
        ("optimizer.lr", -1, "at least 0"),
        ("optimizer.lr", "nan", "at least 0"),
        ("optimizer.lr", "inf", "at most 1e+38"),
        ("objective.temperature", 0, "at least 1e-38"),
        ("objective.temperature", -1, "at least 1e-38"),
        ("keys.momentum", 2, "at most 1"),
        ("batch", 0, "at least 2"),
        ("batch", 10**12, "at most 1,000,000,000"),
        ("dictionary.size", 0, "at least 1"),
        ("head.widths", 0, "at least 1"),
        ("head.widths", 10**12, "at most 65,536"),
        ("seed", -1, "at least 0"),
        ("steps", -1, "above 0"),
        ("minutes", -1, "above 0"),
        ("minutes", "inf", "at most 1,000,000,000"),
    ],
)
def test_the_command_line_refuses_it_in_one_line(
    say: Callable[..., Said], tmp_path: Path, path: str, value: object, bound: str
) -> None:
    code, _, errors = say("pretrain", "digits", "--recipe", "small", "--out", tmp_path / "run", f"--{path}={value}")
    assert (code, errors.count("\n")) == (2, 1)
    assert errors.startswith(f"lookalike: --{path} must be ")
    assert bound in errors
    assert not (tmp_path / "run").exists()


def test_a_limit_says_both_ends() -> None:
    assert str(Limit(1)) == "at least 1 and at most 1,000,000,000"
    assert str(Limit(0, 0.5, above=True)) == "above 0 and at most 0.5"
    assert str(Limit(1e-3, math.inf)) == "at least 0.001"
