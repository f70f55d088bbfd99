"""Archives of pictures, one or many, as a store: members are found by an index in memory and read where they lie."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Protocol

from lookalike.data.formats.encoded import Value, numbered
from lookalike.data.formats.files import by_split, folder_split, table_split


class Archive(Protocol):
    """One archive: its pictures by their names inside, in its own order."""

    path: str
    names: list[str]  # unique
    values: list[Value | None]  # what is known of each label
    unlisted: dict[str, str]  # members that are not read, and why

    def read(self, index: int) -> bytes:
        """The bytes of one picture; raises Unreadable."""


class Archives:
    """The pictures of all archives. A picture without a label of its own has its class folder's, as in a folder."""

    def __init__(self, archives: Sequence[Archive]) -> None:
        self._archives = archives
        self.starts = list(accumulate((len(archive.names) for archive in archives), initial=0))
        self._names = list(chain.from_iterable(archive.names for archive in archives))
        self.paths = [f"{archive.path}/{name}" for archive in archives for name in archive.names]
        self.unlisted = {path: reason for archive in archives for path, reason in archive.unlisted.items()}
        self.splits, below = self._divided()
        values = list(chain.from_iterable(archive.values for archive in archives))
        if all(value is None for value in values):
            values = class_folders(self._names, below)
        self.labels, self.classes = numbered(values)

    def read(self, row: int) -> bytes:
        """The bytes of one picture; raises Unreadable."""
        archive = bisect.bisect_right(self.starts, row) - 1
        return self._archives[archive].read(row - self.starts[archive])

    def _divided(self) -> tuple[dict[str, list[int]], int]:
        """The rows of each split, by the archives' names, else by the first folder inside; and how deep classes lie."""
        by_archive = by_split([archive.path for archive in self._archives], table_split)
        if by_archive:
            numbers = {archive.path: i for i, archive in enumerate(self._archives)}
            rows = {
                name: [row for path in paths for row in range(*self.starts[numbers[path] :][:2])]
                for name, paths in by_archive.items()
            }
            return rows, 0
        rows = rows_by_folder(self._names)
        return rows, 1 if rows else 0


def rows_by_folder(names: Sequence[str]) -> dict[str, list[int]]:
    """The rows of each split by the first folder of their names; {} where these are not divided."""
    splits = {name: split for split, found in by_split(names, folder_split).items() for name in found}
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name in splits:
            rows.setdefault(splits[name], []).append(row)
    return rows


def class_folders(names: Sequence[str], below: int) -> list[Value | None]:
    """The folder that names each picture's class; none at all unless every picture lies in one of two or more."""
    found: list[Value | None] = [class_folder(name, below) for name in names]
    return found if None not in found and len(set(found)) > 1 else [None] * len(names)


def class_folder(path: str, below: int) -> str | None:
    """The folder ``below`` others that holds a picture; None where it lies outside of any."""
    parts = path.split("/", below + 1)
    return parts[below] if len(parts) > below + 1 else None


def plain(name: str) -> tuple[str | None, str | None]:
    """A member's name without ``./``, or None and why it is refused; both None for what a folder would hide."""
    parts = name.split("/")
    while parts[:1] == ["."]:
        parts.pop(0)
    if name.startswith("/") or ".." in parts or "\0" in name:
        return None, "its name leads out of the archive"
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return None, None
    return "/".join(parts), None
