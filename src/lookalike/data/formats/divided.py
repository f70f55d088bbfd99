"""A store of pictures as a place: its rows by split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch

from lookalike.data.example import PictureSource
from lookalike.data.fingerprint import Stamps
from lookalike.data.formats.encoded import Encoded, Store
from lookalike.data.formats.files import TEST, TRAIN, VALIDATION
from lookalike.data.rows import Rows


class Divided:
    """A store whose rows belong to splits; those that belong to none are left out where any do."""

    def __init__(self, store: Store, splits: Mapping[str, Sequence[int]], stamps: Callable[[], Stamps]) -> None:
        """``stamps`` are those of the files that hold the store."""
        self._source = Encoded(store, stamps)
        self.splits = [name for name in (TRAIN, VALIDATION, TEST) if name in splits]
        self._splits = {name: torch.tensor(splits[name]) for name in self.splits}

    def beside(self, unreadable: Mapping[str, str]) -> Self:
        """The same place, where the listing met folders that could not be read."""
        self._source.unlisted = {**unreadable, **self._source.unlisted}
        return self

    def rows(self, split: str | None) -> PictureSource:
        """One split, or everything."""
        if not self._splits:
            return self._source
        every = torch.cat(list(self._splits.values())).sort().values
        return Rows(self._source, self._splits[split] if split else every)
