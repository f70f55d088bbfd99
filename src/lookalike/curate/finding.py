"""What a look at data finds: rows that a person should see, the surest first."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """A row of a table, why it should be looked at, and beside which rows."""

    row: int
    score: float  # 0 to 1: how sure the finding is, or how odd the row; comparable within one list
    reason: str  # in words, such as "equal bytes" or "its neighbours are dresses"
    others: tuple[int, ...] = ()  # the row that is kept in its place, or its nearest
