"""The one error that users see, and the limits of numbers, which stand at the fields of dataclasses."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from numbers import Real
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

P = ParamSpec("P")
Value = TypeVar("Value")

USAGE, BAD_DATA, IO, LOCKED = 2, 65, 74, 75

_ACTS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

PLATFORMS = "lookalike runs on Linux and macOS; on Windows, run it in WSL 2 (Linux inside Windows)"


class UserError(Exception):
    """What went wrong, where, and what to do next, in one line; ``code`` is the exit code of the command."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


def visible(text: str) -> str:
    """One line of text whose letters only show: what a terminal would obey, as names of files may hold, is escaped."""
    return _ACTS.sub(lambda letter: letter[0].encode("unicode_escape").decode(), text)


def of_timm(module: str) -> Any:
    """``huggingface_hub`` or ``yaml``: timm needs and brings them, and here they are needed for little.

    Raises UserError where it is missing.
    """
    try:
        return import_module(module)
    except ImportError:
        package = {"yaml": "pyyaml"}.get(module, module)
        raise UserError(f"this needs the package {package}, which timm brings: pip install {package}") from None


def meant(word: str, names: Iterable[str], otherwise: str | None = None) -> str:
    """The hint for somebody who wrote ``word``: the nearest of ``names``, else ``otherwise``, else all of them."""
    names = list(names)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else otherwise or f"there are {', '.join(names)}"


@cache
def naming(function: Callable[P, Value], name: str) -> Callable[P, Value]:
    """``function``, known as ``name``; an argument that it does not have is answered with the nearest that it has."""
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())

    @wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> Value:
        if wrong := [option for option in options if option not in parameters and not takes_any]:
            raise TypeError(f"{name}() has no argument {wrong[0]!r}; {meant(wrong[0], parameters)}")
        return function(*args, **options)

    return checked


def refuse_platform() -> None:
    """Raise UserError where processes cannot fork or lock files, as decoding workers and run folders do."""
    if not hasattr(os, "fork") or find_spec("fcntl") is None:
        raise UserError(PLATFORMS)


# ---- limits ----


MOST = 1_000_000_000


class Limit(NamedTuple):
    """Of a number, or of each number of a tuple: ``k: Annotated[int, Limit(1)] = 200``. None is always allowed."""

    low: float
    high: float = MOST
    above: bool = False  # whether ``low`` itself is too low

    def holds(self, value: float) -> bool:
        """Whether a number is within; NaN never is."""
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        low, high = (f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        return f"{'above' if self.above else 'at least'} {low}" + ("" if high == "inf" else f" and at most {high}")


SHARE = Limit(0, 1, above=True)
POSITIVE = Limit(0, above=True)
Probability = Annotated[float, Limit(0, 1)]  # or any share of which none and all make sense
Factor = Annotated[float, Limit(0, 1e38)]  # rates, decays, weights: what fp32 holds
Temperature = Annotated[float, Limit(1e-38, 1e38)]
Count = Annotated[int, Limit(1)]
PixelSide = Annotated[int, Limit(1, 16_384)]
Seed = Annotated[int, Limit(0, 2**32 - 1)]
Width = Annotated[int, Limit(1, 65_536)]


class Bounded:
    """A frozen dataclass whose numbers are within the limits at its fields, however it is made."""

    def __post_init__(self) -> None:
        kind: type = type(self)
        for name in limits(kind):
            check_limit(kind, name, getattr(self, name), f"{name} of {kind.__name__}")


@cache
def limits(kind: type) -> dict[str, tuple[Limit, ...]]:
    """Those of each field that has any, of its numbers alone, or one among other types, or in a tuple."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: found for name, hint in hints.items() if (found := tuple(_limits(hint)))}


def _limits(hint: Any) -> Iterator[Limit]:
    yield from (note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Limit))
    for part in get_args(hint):
        yield from _limits(part)


def check_limit(kind: type, name: str, value: Any, called: str) -> None:
    """Raise UserError, in which the field is ``called`` so, for a ``value`` outside its limits."""
    numbers = value if isinstance(value, tuple) else () if value is None else (value,)
    for limit in limits(kind).get(name, ()):
        if not all(isinstance(number, Real) for number in numbers) or not all(map(limit.holds, numbers)):
            raise UserError(f"{called} must be {limit}")


def check_limits(value: Any) -> None:
    """Raise UserError, naming the flag, for a field outside its limit or not among its choices."""
    for name, hint in get_type_hints(type(value), include_extras=True).items():
        if get_origin(hint) is Literal and getattr(value, name) not in get_args(hint):
            raise UserError(f"{_flag(name)} must be one of {', '.join(get_args(hint))}")
        check_limit(type(value), name, getattr(value, name, None), _flag(name))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
