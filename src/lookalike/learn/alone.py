"""Training without keys: nothing is contrasted, and reconstruction teaches alone, as in a masked autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from lookalike.learn.entries import Dictionary
from lookalike.learn.keys import Asker, Keys, Made, Pair
from lookalike.models.encoder import Encoder
from lookalike.types import Batch


@dataclass(frozen=True)
class Alone:
    """No keys, so no pairs, and the dictionary and the objective are not asked."""

    def build(self, encoder: Encoder, dictionary: Dictionary | None = None) -> NoKeys:
        """Nothing is stored."""
        return NoKeys()

    @property
    def directions(self) -> int:
        """Pairs an example."""
        return 0


class NoKeys(Keys):
    """Asks nothing."""

    def pairs(self, asker: Asker, batch: Batch, made: Made = ()) -> list[Pair]:
        """None."""
        return []
