"""The learner: an encoder, its keys, a dictionary and an objective. ``forward`` is pure; ``advance`` moves state."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lookalike.learn.dictionary import Dictionary, Entries
from lookalike.learn.keys import Keys, Pair
from lookalike.learn.objective import Objective, top1
from lookalike.models.encoder import Encoder
from lookalike.types import Batch


class Outcome(NamedTuple):
    """What one forward pass gives: the loss, and the pairs with the entries they were scored against."""

    loss: Tensor
    pairs: list[Pair]
    entries: list[Entries]

    def top1(self) -> Tensor:
        """The pretext accuracy; ask before ``advance``, which overwrites entries."""
        return torch.stack(
            [top1(query.detach(), entries) for (query, _), entries in zip(self.pairs, self.entries)]
        ).mean()


class Learner(nn.Module):
    """Everything that training changes, apart from the optimizer."""

    def __init__(self, encoder: Encoder, keys: Keys, dictionary: Dictionary, objective: Objective) -> None:
        super().__init__()
        self.encoder, self.keys, self.dictionary = encoder, keys, dictionary
        self.objective = objective

    def forward(self, batch: Batch) -> Outcome:
        """The loss of a batch; changes nothing but BatchNorm statistics."""
        pairs = self.keys.pairs(self.encoder, batch)
        entries = [self.dictionary.look_up(query, key, batch.index) for query, key in pairs]
        losses = [self.objective(query, found) for (query, _), found in zip(pairs, entries)]
        return Outcome(torch.stack(losses).sum(), pairs, entries)

    @torch.no_grad()
    def advance(self, outcome: Outcome, batch: Batch, progress: float) -> None:
        """After the optimizer step: the twin follows, then the dictionary absorbs all keys of the step, once."""
        self.keys.follow(self.encoder, progress)
        queries = torch.cat([query for query, _ in outcome.pairs])
        keys = torch.cat([key for _, key in outcome.pairs])
        self.dictionary.absorb(queries, keys, batch.index.repeat(len(outcome.pairs)))
