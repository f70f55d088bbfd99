"""A dictionary for each direction, where the two views are of different kinds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from lookalike.learn.dictionary import Queue, QueueOfKeys
from lookalike.learn.entries import DTYPES, Dictionary, Entries


@dataclass(frozen=True)
class QueueEach(Queue):
    """Two queues of ``size`` keys: pictures are told from texts by texts, and texts by pictures.

    ALBEF, arXiv 2107.07651, section 3.2.
    """

    def build(self, dim: int, examples: int) -> QueueOfEach:  # type: ignore[override]
        """Two queues of random unit rows of width ``dim``."""
        return QueueOfEach(*(QueueOfKeys(self.size, dim, DTYPES[self.precision]) for _ in range(2)))

    def __str__(self) -> str:
        return f"two queues of {self.size:,} keys"


class QueueOfEach(Dictionary):
    """The first queue holds keys of second views, which first views ask for; the second the other way round."""

    def __init__(self, first: QueueOfKeys, second: QueueOfKeys) -> None:
        super().__init__()
        self.queues = nn.ModuleList([first, second])

    def side(self, direction: int) -> Dictionary:
        """The queue of one direction."""
        found: Dictionary = self.queues[direction]  # type: ignore[assignment]
        return found

    def look_up(self, query: Tensor, key: Tensor, index: Tensor) -> Entries:
        """Raises: which queue is meant, ``side`` says."""
        raise NotImplementedError

    def absorb(self, query: Tensor, key: Tensor, index: Tensor) -> None:
        """The keys of each direction go where that direction asks."""
        parts = zip(*(part.chunk(2) for part in (query, key, index)))
        for direction, part in enumerate(parts):
            self.side(direction).absorb(*part)
