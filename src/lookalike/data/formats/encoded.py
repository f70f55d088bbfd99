"""Pictures as files in some store, as a source: a row's bytes are fetched and decoded when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lookalike.data.example import Example, broken, whole
from lookalike.data.fingerprint import Stamps
from lookalike.data.image.decode import Unreadable, decode, header

Value = int | str  # what a label is before it is numbered


class Store(Protocol):
    """Where the encoded pictures of N rows lie, and what is known of them before any is read."""

    paths: list[str]  # (N,) unique, valid Unicode
    labels: list[int]  # (N,) -1 where there is none
    classes: list[str]
    unlisted: dict[str, str]

    @property
    def starts(self) -> Sequence[int] | None:
        """(M + 1,) the first row of each of M shards, and N; None for rows that lie in no shards."""

    def read(self, row: int) -> bytes:
        """The bytes of one picture; raises Unreadable, or UserError where a remote disk cannot be reached."""


@runtime_checkable
class Sized(Protocol):
    """A store that knows how large its pictures are."""

    def size(self, row: int) -> tuple[int, int]:
        """Upright (height, width) in pixels; raises Unreadable."""


class Encoded:
    """The rows of a store."""

    texts = None

    def __init__(self, store: Store, stamps: Callable[[], Stamps]) -> None:
        """``stamps`` are those of the files that hold the store."""
        self.store, self.stamps = store, stamps
        self.starts = store.starts
        self.paths, self.classes, self.unlisted = store.paths, store.classes, store.unlisted
        self.labels: Tensor = torch.tensor(store.labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def example(self, row: int, side: int) -> Example:
        """One picture on a canvas of ``side`` pixels."""
        label, path = self.store.labels[row], self.paths[row]
        try:
            return whole(decode(self.store.read(row), side), label, path)
        except Unreadable as unreadable:
            return broken(side, label, path, unreadable.reason)

    def size(self, row: int) -> tuple[int, int]:
        """Upright (height, width) in pixels, without decoding where that can be; raises Unreadable."""
        if isinstance(self.store, Sized):
            return self.store.size(row)
        found = header(self.store.read(row))
        return found.height, found.width

    def read(self, row: int) -> bytes:
        """The bytes of one picture; raises Unreadable."""
        return self.store.read(row)


def numbered(values: Sequence[Value | None], names: Sequence[str] | None = None) -> tuple[list[int], list[str]]:
    """(N,) labels and their classes; None and negative numbers are no label.

    Numbers that index the stated ``names`` stay as they are; all else is numbered in its sorted order.
    """
    found = sorted({v for v in values if _is_label(v)}, key=lambda v: (isinstance(v, str), v))
    if names is not None and all(isinstance(v, int) and v < len(names) for v in found):
        return [v if isinstance(v, int) and v >= 0 else -1 for v in values], list(names)
    number: dict[Value | None, int] = {v: i for i, v in enumerate(found)}
    return [number.get(v, -1) for v in values], [str(v) for v in found]


def _is_label(value: Value | None) -> bool:
    return value is not None and not (isinstance(value, int) and value < 0)
