"""How flags are shown in the help."""

from __future__ import annotations

from typing import Any

from tyro.conf import arg


def shown(metavar: str) -> Any:
    """How a value is named in the help; a default of None, which the text explains, is not repeated there."""
    return arg(metavar=metavar, help_behavior_hint="")
