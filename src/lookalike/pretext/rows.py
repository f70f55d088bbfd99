"""Which rows of the data a pretext reads, beside the examples that it is asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lookalike.types import Film

Filmed = Callable[[], Film]
"""Gives the times of the frames that the rows are; raises UserError where they are none."""


class OwnRow:
    """What most pretexts do: every example is made of its own row alone."""

    things = "pictures"  # what evaluations call the rows that they look at

    def reads(self, film: Filmed, rows: Tensor, seed: int, epoch: int) -> Tensor:
        """The rows (R,) that training reads for the examples at ``rows`` (B,)."""
        return rows

    def looks(self, film: Filmed, rows: Tensor) -> Tensor:
        """The rows (R,) that evaluations read for the examples at ``rows`` (B,)."""
        return rows

    def asked(self, film: Filmed, count: int) -> Tensor:
        """The examples, of ``count`` rows, that evaluations look at."""
        return torch.arange(count)
