"""What a source is: rows, which can be read in any order."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.fingerprint import Stamps


class Example(NamedTuple):
    """One row: the whole picture squashed to ``pixels`` uint8 (3, S, S), black where ``bad`` says why."""

    pixels: Tensor
    height: int
    width: int
    label: int  # -1 where there is none
    path: str
    bad: str | None = None


class Source(Protocol):
    """N rows in an order that depends on the data alone, whatever they hold; a power that one lacks is None."""

    unlisted: dict[str, str]  # what could not be looked into or is no row: path and reason

    @property
    def paths(self) -> Sequence[str]:
        """(N,) unique, valid Unicode."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64, -1 where there is none."""

    @property
    def classes(self) -> list[str]:
        """The names of the labels, the same in every split."""

    @property
    def starts(self) -> Sequence[int] | None:
        """(M + 1,) the first row of each of M shards, and N; None for rows that lie in no shards."""

    @property
    def texts(self) -> Callable[[int], tuple[str, ...]] | None:
        """The texts of a row: its captions, one sentence, or the two of a pair; None for rows without any."""

    def stamps(self) -> Stamps:
        """The files that rows come from, as they are now."""

    def __len__(self) -> int: ...


class PictureSource(Source, Protocol):
    """Rows that are pictures; a bad row is an example that says so, never an exception."""

    @property
    def read(self) -> Callable[[int], bytes] | None:
        """The file of a row, which raises Unreadable; None for pictures that are no files."""

    def example(self, row: int, side: int) -> Example:
        """One row on a canvas of ``side`` pixels; raises UserError where the source has fewer pixels for all rows."""

    def size(self, row: int) -> tuple[int, int]:
        """Upright (height, width) in pixels, from the header where there is one; raises Unreadable."""


@runtime_checkable
class _Pictured(Protocol):
    def example(self, row: int, side: int) -> Example: ...


def as_pictures(source: Source) -> PictureSource:
    """The same rows as pictures; raises UserError where they are texts."""
    if not isinstance(source, _Pictured):
        raise UserError("this data is text, and pictures are wanted; name a folder of pictures", BAD_DATA)
    return cast(PictureSource, source)


class TextSource(Source, Protocol):
    """Rows that are texts, or pairs of them."""

    @property
    def scores(self) -> Tensor:
        """(N,) how alike the two texts of each pair are, NaN where nobody says."""

    @property
    def refused(self) -> int:
        """Lines of the whole data that are no text."""


def broken(side: int, label: int, path: str, reason: str) -> Example:
    """An example that could not be read: a black canvas of one pixel's size."""
    return Example(torch.zeros(3, side, side, dtype=torch.uint8), 1, 1, label, path, reason)


class Rows:
    """Some rows of a source, as a source of the same kind."""

    def __init__(self, source: Source, rows: Tensor) -> None:
        self._source, self._rows = source, rows
        self._pictures, self._texts = cast(PictureSource, source), cast(TextSource, source)  # whichever it is
        self.classes, self.unlisted = source.classes, source.unlisted
        self._numbers = array("q", rows.tolist())  # an element of a tensor takes ten times as long
        self.paths = [source.paths[row] for row in self._numbers]

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
        return None if texts is None else lambda row: texts(self._numbers[row])

    @property
    def read(self) -> Callable[[int], bytes] | None:
        """The file of one row, where the source has files; raises Unreadable."""
        read = self._pictures.read
        return None if read is None else lambda row: read(self._numbers[row])

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
        return self._pictures.example(self._numbers[row], side)

    def size(self, row: int) -> tuple[int, int]:
        """Upright (height, width) in pixels; raises Unreadable."""
        return self._pictures.size(self._numbers[row])
