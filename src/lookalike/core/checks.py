"""What is refused before the work begins."""

from __future__ import annotations

from lookalike.core.errors import UserError


def at_least(command: object, **limits: float) -> None:
    """Refuse numbers below their limit."""
    for name, limit in limits.items():
        given = getattr(command, name)
        if any(not value >= limit for value in (given if isinstance(given, tuple) else [given]) if value is not None):
            raise UserError(f"--{name.replace('_', '-')} must be at least {limit:g}")
