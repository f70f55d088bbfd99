"""What could not be used, counted by kind: it is said, never raised."""

from __future__ import annotations

from lookalike.data.formats.files import printable


class Dropped:
    """Kinds of things that were left out, how many, and where the first one is."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, what: str, where: str, count: int = 1) -> None:
        """``count`` more of a kind, in words."""
        if count:
            self.counts[what] = self.counts.get(what, 0) + count
            self._first.setdefault(what, printable(where))

    def notes(self) -> tuple[str, ...]:
        """One line a kind."""
        return tuple(f"{count} {what}, first {self._first[what]}" for what, count in sorted(self.counts.items()))
