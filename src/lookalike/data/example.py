"""What a source is: rows that can be asked for in any order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from lookalike.data.image.decode import Canvas


class Example(NamedTuple):
    """One row: the whole picture squashed to ``pixels`` uint8 (3, S, S), black where ``bad`` says why."""

    pixels: Tensor
    height: int
    width: int
    label: int  # -1 where there is none
    path: str
    bad: str | None = None


class Source(Protocol):
    """N rows, in an order that depends on the data alone; a bad row is an example that says so, never an exception."""

    side: int  # S, of every canvas
    unlisted: dict[str, str]  # folders that could not be looked into: path and reason

    @property
    def paths(self) -> Sequence[str]:
        """(N,) unique, valid Unicode."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64, -1 where there is none."""

    @property
    def classes(self) -> list[str]:
        """The names of the labels, the same in every split."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Example: ...

    def size(self, row: int) -> tuple[int, int]:
        """Upright (height, width) in pixels, from the header where there is one; raises Unreadable."""

    def at(self, side: int) -> Self:
        """The same rows on canvases of another side; nothing is listed again."""


@runtime_checkable
class Ready(Protocol):
    """A source that may have its canvases at hand, so that nothing is gained by keeping them in memory."""

    bad: Mapping[int, str]  # every row that cannot be read

    @property
    def ready(self) -> bool:
        """Whether ``take`` can be called."""

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Canvases uint8 (B, 3, S, S) and sizes int64 (B, 2) of ``rows`` (B,)."""


def whole(canvas: Canvas, label: int, path: str) -> Example:
    """An example that could be read."""
    return Example(canvas.pixels, canvas.height, canvas.width, label, path)


def broken(side: int, label: int, path: str, reason: str) -> Example:
    """An example that could not be read: a black canvas of one pixel's size."""
    return Example(torch.zeros(3, side, side, dtype=torch.uint8), 1, 1, label, path, reason)
