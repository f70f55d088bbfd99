"""The one error that users see, and the limits of numbers, which stand at the fields of dataclasses."""

from __future__ import annotations

import difflib
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable
from functools import cache, wraps
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

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


class Limit(NamedTuple):
    """Of a number, or of each number of a tuple: ``k: Annotated[int, Limit(1)] = 200``. None is always allowed."""

    low: float
    high: float = math.inf
    above: bool = False  # whether ``low`` itself is too low

    def holds(self, value: float) -> bool:
        """Whether a number is within; NaN never is."""
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low:g}"
        return low if math.isinf(self.high) else f"{low} and at most {self.high:g}"


SHARE = Limit(0, 1, above=True)
POSITIVE = Limit(0, above=True)


def check_limits(value: Any) -> None:
    """Raise UserError, naming the flag, for a field outside its limit or not among its choices."""
    for name, hint in get_type_hints(type(value), include_extras=True).items():
        if get_origin(hint) is Literal and getattr(value, name) not in get_args(hint):
            raise UserError(f"{_flag(name)} must be one of {', '.join(get_args(hint))}")
        for limit in getattr(hint, "__metadata__", ()):
            if isinstance(limit, Limit):
                _check(name, getattr(value, name), limit)


def _check(name: str, value: Any, limit: Limit) -> None:
    numbers = value if isinstance(value, tuple) else () if value is None else (value,)
    if any(isinstance(number, str) or not limit.holds(number) for number in numbers):
        raise UserError(f"{_flag(name)} must be {limit}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
