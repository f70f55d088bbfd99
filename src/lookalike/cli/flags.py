"""What all verbs take, and how flags are shown in the help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import arg


def shown(metavar: str) -> Any:
    """How a value is named in the help; a default of None, which the text explains, is not repeated there."""
    return arg(metavar=metavar, help_behavior_hint="")


@dataclass(frozen=True, kw_only=True)
class Verb:
    """What every verb takes."""

    device: Annotated[Literal["cpu", "cuda", "mps"] | None, shown("cpu|cuda|mps")] = None
    """Where to compute; by default a GPU where there is one. LOOKALIKE_DEVICE says it for all commands."""
    debug: bool = False
    """Show the traceback of an error."""
