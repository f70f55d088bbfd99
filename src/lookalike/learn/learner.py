"""The learner: an encoder, its keys, a dictionary and an objective, or a decoder; ``advance`` alone moves state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lookalike.core import dist
from lookalike.core.devices import full_precision, transfer
from lookalike.learn.dictionary import Dictionary, Entries
from lookalike.learn.keys import Keys, Pair, QueryEncoder
from lookalike.learn.objective import Objective, top1
from lookalike.models.decoder import PatchDecoder, WordDecoder
from lookalike.models.encoder import Encoder
from lookalike.types import Batch


class Outcome(NamedTuple):
    """What one forward pass gives: the loss, and the pairs with the entries they were scored against."""

    loss: Tensor
    pairs: list[Pair]
    entries: list[Entries]
    slices: tuple[Outcome, ...] = ()
    errors: Mapping[str, Tensor] = MappingProxyType({})  # of reconstruction, by what it rebuilds, unweighted

    def measures(self) -> dict[str, Tensor]:
        """What is worth logging beside the loss: ``top1`` where there are pairs, and errors of reconstruction.

        To be called before ``advance``, which overwrites entries.
        """
        if self.slices:
            parts = [part.measures() for part in self.slices]
            return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        top = {"top1": self.top1()} if self.pairs else {}
        return top | {name: error.detach() for name, error in self.errors.items()}

    @property
    def queries(self) -> Tensor | None:
        """(B, E) those of the first pairs, if there are pairs."""
        return self.pairs[0][0] if self.pairs else None

    def top1(self) -> Tensor:
        """The pretext accuracy."""
        return torch.stack(
            [top1(query.detach(), entries) for (query, _), entries in zip(self.pairs, self.entries)]
        ).mean()

    @classmethod
    def of_slices(cls, parts: Sequence[Outcome]) -> Outcome:
        """That of a batch which was worked on in equal slices."""
        if len(parts) == 1:
            return parts[0]
        directions = zip(*(part.pairs for part in parts))
        pairs = [(torch.cat([q for q, _ in pairs]), torch.cat([k for _, k in pairs])) for pairs in directions]
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
        reconstruction: PatchDecoder | WordDecoder | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.keys, self.dictionary = encoder, keys, dictionary
        self.objective, self.predictor, self.reconstruction = objective, predictor, reconstruction
        self.labels: Tensor | None = None  # (N,) of the data, not state: only for objectives that are supervised

    @full_precision()
    def forward(self, batch: Batch, keys: tuple[Tensor, ...] = ()) -> Outcome:
        """The loss of this rank's batch; changes nothing but BatchNorm statistics.

        ``keys`` are those that ``keys.precomputed`` gave for these examples.
        """
        # Queries and reconstruction share one pass through the backbone.
        tokens = self.encoder.tokens(**batch.first) if self.reconstruction is not None else None
        pairs = self.keys.pairs(QueryEncoder(self.encoder, self.predictor, batch.first, tokens), batch, keys)
        index = self._identity(batch.index)
        entries = [self.dictionary.look_up(query, key, index, n) for n, (query, key) in enumerate(pairs)]
        losses = [self.objective(query, part) for (query, _), part in zip(pairs, entries)]
        if self.reconstruction is None:
            return Outcome(torch.stack(losses).sum(), pairs, entries)
        with self.encoder.computing():
            error = self.reconstruction(tokens, **batch.first)
        losses.append(self.reconstruction.spec.weight * error)
        return Outcome(torch.stack(losses).sum(), pairs, entries, errors={self.reconstruction.measured: error})

    @torch.no_grad()
    @full_precision()
    def advance(self, outcome: Outcome, batch: Batch, progress: float) -> None:
        """After the optimizer step: the twin follows, then the dictionary absorbs all keys of the step, once."""
        if outcome.entries:
            self.objective.settle(outcome.pairs[0][0], outcome.entries[0])
        self.keys.follow(self.encoder, progress)
        if pairs := outcome.pairs[:1] if self.dictionary.one_view else outcome.pairs:
            queries = torch.cat([dist.gather(query.detach()) for query, _ in pairs])
            keys = torch.cat([dist.gather(self.keys.absorbed(query, key).detach()) for query, key in pairs])
            self.dictionary.absorb(queries, keys, dist.gather(self._on_device(batch.index)).repeat(len(pairs)))
        dist.mean_(list(_statistics(self)))

    def _on_device(self, index: Tensor) -> Tensor:
        return transfer([index], next(self.encoder.parameters()).device)[0]

    def _identity(self, index: Tensor) -> Tensor:
        """(B,) equal numbers for examples that are alike: rows, or labels where the objective is supervised."""
        index = self._on_device(index)
        if not self.objective.supervised:
            return index
        if self.labels is None:
            raise ValueError("supervised contrast needs the labels of the examples")
        return self.labels[index]


def _statistics(module: nn.Module) -> Iterator[Tensor]:
    """The running statistics of every BatchNorm: each rank's are those of its own groups."""
    for part in module.modules():
        if not isinstance(part, _BatchNorm) or getattr(part, "kept", False):
            continue
        if part.running_mean is not None and part.running_var is not None:
            yield part.running_mean
            yield part.running_var
