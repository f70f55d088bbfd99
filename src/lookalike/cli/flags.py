"""What all verbs take, and how flags are shown in the help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from tyro.conf import arg, subcommand

from lookalike.core.errors import Limit, check_limits


def shown(metavar: str) -> Any:
    """How a value is named in the help; a default of None, which the text explains, is not repeated there."""
    return arg(metavar=metavar, help_behavior_hint="")


Workers = Annotated[int | None, Limit(0), shown("N")]


@dataclass(frozen=True, kw_only=True)
class Verb:
    """What every verb takes."""

    device: Annotated[Literal["cpu", "cuda", "mps"] | None, shown("cpu|cuda|mps")] = None
    """Where to compute; by default a GPU if there is one. The environment variable LOOKALIKE_DEVICE sets it for all
    commands."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        check_limits(self)


def one_of(verbs: Mapping[str, tuple[Callable[[], Any], Any]], chosen: str | None, whole: bool = False) -> Any:
    """Subcommands as one type, from name to (what makes its flags, what has its docstring).

    Only the one that is ``chosen`` has flags and all of its description, unless the ``whole`` is needed: a list shows
    the first lines, and reading all flags would take as long as everything else.
    """
    kinds = []
    for name, (flags, about) in verbs.items():
        full = whole or name == chosen
        text = inspect.getdoc(about) or ""
        note = subcommand(name, description=text if full else text.splitlines()[0])
        kinds.append(Annotated[flags() if full else Verb, note])
    return Union[tuple(kinds)]  # noqa: UP007  (a type that is built at run time)
