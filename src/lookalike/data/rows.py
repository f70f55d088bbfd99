"""Some rows of a source."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from lookalike.data.example import Example, Source
from lookalike.data.fingerprint import Stamps, stamps_of


class Rows:
    """Some rows of a source, as a source."""

    def __init__(self, source: Source, rows: Tensor) -> None:
        self._source, self._rows = source, rows
        self.side, self.classes, self.unlisted = source.side, source.classes, source.unlisted
        self.paths = [source.paths[row] for row in rows.tolist()]

    @property
    def labels(self) -> Tensor:
        """(N,) int64, -1 where there is none."""
        return self._source.labels[self._rows]

    @property
    def starts(self) -> list[int] | None:
        """The first row of each shard, where the source has shards and the rows are sorted."""
        every: Sequence[int] | None = getattr(self._source, "starts", None)
        if every is None or not bool((self._rows.diff() > 0).all()):
            return None
        return sorted(set(torch.searchsorted(self._rows, torch.tensor(every)).tolist()))

    @property
    def read(self) -> Callable[[int], bytes] | None:
        """The bytes of one picture, where the source has bytes; raises Unreadable."""
        inner: Callable[[int], bytes] | None = getattr(self._source, "read", None)
        return None if inner is None else lambda row: inner(int(self._rows[row]))

    @property
    def texts(self) -> Callable[[int], tuple[str, ...]] | None:
        """The texts of one row, where the source has texts."""
        inner: Callable[[int], tuple[str, ...]] | None = getattr(self._source, "texts", None)
        return None if inner is None else lambda row: inner(int(self._rows[row]))

    @property
    def scores(self) -> Tensor | None:
        """(N,) how alike the texts of each pair are, where the source has pairs of texts."""
        every: Tensor | None = getattr(self._source, "scores", None)
        return None if every is None else every[self._rows]

    @property
    def refused(self) -> int:
        """Lines of the whole source that are no text."""
        return int(getattr(self._source, "refused", 0))

    def stamps(self) -> Stamps:
        """Those of the whole source: rows are chosen by what its files hold."""
        return stamps_of(self._source)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Example:
        return self._source[int(self._rows[row])]

    def size(self, row: int) -> tuple[int, int]:
        """Upright (height, width) in pixels; raises Unreadable."""
        return self._source.size(int(self._rows[row]))

    def at(self, side: int) -> Self:
        """The same rows on canvases of another side."""
        other = copy.copy(self)
        other._source, other.side = self._source.at(side), side
        return other
