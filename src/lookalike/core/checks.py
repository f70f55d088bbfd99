"""Limits of numbers, which stand at the fields of dataclasses and are checked in one place."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, get_type_hints

from lookalike.core.errors import UserError


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
    """Raise UserError, naming the flag, for the first field of a dataclass that is outside its limit."""
    for name, hint in get_type_hints(type(value), include_extras=True).items():
        for limit in getattr(hint, "__metadata__", ()):
            if isinstance(limit, Limit):
                _check(name, getattr(value, name), limit)


def _check(name: str, value: Any, limit: Limit) -> None:
    numbers = value if isinstance(value, tuple) else () if value is None else (value,)
    if any(isinstance(number, str) or not limit.holds(number) for number in numbers):
        raise UserError(f"--{name.replace('_', '-')} must be {limit}")
