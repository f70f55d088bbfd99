"""The one error that users see."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Iterable
from functools import cache, wraps
from importlib.util import find_spec
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Value = TypeVar("Value")

USAGE, BAD_DATA, IO, LOCKED = 2, 65, 74, 75

PLATFORMS = "lookalike runs on Linux and macOS; on Windows, run it in WSL 2 (Linux inside Windows)"


class UserError(Exception):
    """What went wrong, where, and what to do next, in one line; ``code`` is the exit code of the command."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


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
