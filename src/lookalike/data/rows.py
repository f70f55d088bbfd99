"""Some rows of a source."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from lookalike.data.example import Example, PictureSource, Source, TextSource
from lookalike.data.fingerprint import Stamps


class Rows:
    """Some rows of a source, as a source of the same kind."""

    def __init__(self, source: Source, rows: Tensor) -> None:
        self._source, self._rows = source, rows
        self.classes, self.unlisted = source.classes, source.unlisted
        self.paths = [source.paths[row] for row in rows.tolist()]

    @property
    def labels(self) -> Tensor:
        """(N,) int64, -1 where there is none."""
        return self._source.labels[self._rows]

    @property
    def starts(self) -> list[int] | None:
        """The first row of each shard, where the source has shards and the rows are sorted."""
        if self._source.starts is None or not bool((self._rows.diff() > 0).all()):
            return None
        return sorted(set(torch.searchsorted(self._rows, torch.tensor(self._source.starts)).tolist()))

    @property
    def texts(self) -> Callable[[int], tuple[str, ...]] | None:
        """The texts of one row, where the source has texts."""
        texts = self._source.texts
        return None if texts is None else lambda row: texts(int(self._rows[row]))

    @property
    def read(self) -> Callable[[int], bytes] | None:
        """The file of one row, where the source has files; raises Unreadable."""
        read = self._pictures.read
        return None if read is None else lambda row: read(int(self._rows[row]))

    @property
    def scores(self) -> Tensor:
        """(N,) of pairs of texts."""
        return self._texts.scores[self._rows]

    @property
    def refused(self) -> int:
        """Lines of the whole source that are no text."""
        return self._texts.refused

    def stamps(self) -> Stamps:
        """Those of the whole source: rows are chosen by what its files hold."""
        return self._source.stamps()

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, row: int, side: int) -> Example:
        """One picture on a canvas of ``side`` pixels."""
        return self._pictures.example(int(self._rows[row]), side)

    def size(self, row: int) -> tuple[int, int]:
        """Upright (height, width) in pixels; raises Unreadable."""
        return self._pictures.size(int(self._rows[row]))

    @property
    def _pictures(self) -> PictureSource:
        return cast(PictureSource, self._source)

    @property
    def _texts(self) -> TextSource:
        return cast(TextSource, self._source)
