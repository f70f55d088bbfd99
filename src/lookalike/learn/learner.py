"""The learner: an encoder, its keys, a dictionary and an objective. ``forward`` is pure; ``advance`` moves state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lookalike import dist
from lookalike.learn.entries import Dictionary, Entries
from lookalike.learn.keys import Asker, Keys, Made, Pair
from lookalike.learn.objective import Objective, top1
from lookalike.models.encoder import Encoder
from lookalike.types import Batch


class Outcome(NamedTuple):
    """What one forward pass gives: the loss, and the pairs with the entries they were scored against."""

    loss: Tensor
    pairs: list[Pair]
    entries: list[Entries]
    slices: tuple[Outcome, ...] = ()

    def top1(self) -> Tensor:
        """The pretext accuracy; ask before ``advance``, which overwrites entries."""
        if self.slices:
            return torch.stack([part.top1() for part in self.slices]).mean()
        return torch.stack(
            [top1(query.detach(), entries) for (query, _), entries in zip(self.pairs, self.entries)]
        ).mean()

    @classmethod
    def of_slices(cls, parts: Sequence[Outcome]) -> Outcome:
        """That of a batch which was worked on in equal slices."""
        if len(parts) == 1:
            return parts[0]
        directions = zip(*(part.pairs for part in parts))
        pairs = [(torch.cat([q for q, _ in some]), torch.cat([k for _, k in some])) for some in directions]
        return cls(torch.stack([part.loss.detach() for part in parts]).mean(), pairs, [], tuple(parts))


class Learner(nn.Module):
    """Everything that training changes, apart from the optimizer."""

    def __init__(
        self,
        encoder: Encoder,
        keys: Keys,
        dictionary: Dictionary,
        objective: Objective,
        predictor: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.keys, self.dictionary = encoder, keys, dictionary
        self.objective, self.predictor = objective, predictor
        self.labels: Tensor | None = None  # (N,) of the data, not state: only for objectives that are supervised

    def forward(self, batch: Batch, made: Made = ()) -> Outcome:
        """The loss of this rank's batch; changes nothing but BatchNorm statistics.

        ``made`` are keys that ``keys.made`` gave before for these examples.
        """
        pairs = self.keys.pairs(Asker(self.encoder, self.predictor), batch, made)
        index = self._alike(batch.index)
        entries = [self.dictionary.look_up(query, key, index) for query, key in pairs]
        losses = [self.objective(query, found) for (query, _), found in zip(pairs, entries)]
        return Outcome(torch.stack(losses).sum(), pairs, entries)

    @torch.no_grad()
    def advance(self, outcome: Outcome, batch: Batch, progress: float) -> None:
        """After the optimizer step: the twin follows, then the dictionary absorbs all keys of the step, once."""
        if outcome.entries:
            self.objective.settle(outcome.pairs[0][0], outcome.entries[0])
        self.keys.follow(self.encoder, progress)
        queries = torch.cat([dist.gather(query.detach()) for query, _ in outcome.pairs])
        keys = torch.cat([dist.gather(self.keys.kept(query, key).detach()) for query, key in outcome.pairs])
        self.dictionary.absorb(queries, keys, dist.gather(batch.index).repeat(len(outcome.pairs)))
        dist.mean_(list(_statistics(self)))

    def _alike(self, index: Tensor) -> Tensor:
        """(B,) numbers that are equal for examples that are alike: rows, or labels where the objective wants them."""
        if not self.objective.supervised:
            return index
        if self.labels is None:
            raise ValueError("supervised contrast needs the labels of the examples")
        return self.labels[index]


def _statistics(module: nn.Module) -> Iterator[Tensor]:
    """The running statistics of every BatchNorm: each rank's are those of its own groups."""
    for part in module.modules():
        if isinstance(part, _BatchNorm) and part.running_mean is not None and part.running_var is not None:
            yield part.running_mean
            yield part.running_var
