"""Who makes the keys: the columns of figure 2 in the MoCo paper, as one field of a recipe."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lookalike.core import dist
from lookalike.core.devices import transfer
from lookalike.core.errors import Bounded, Probability
from lookalike.core.seeding import hashed, scramble
from lookalike.learn.dictionary import BankOfKeys, Dictionary
from lookalike.models.encoder import Encoder, unit
from lookalike.types import Batch, View

Pair = tuple[Tensor, Tensor]
"""Queries (B, D), which carry gradient, and the keys (B, D) of the same examples."""


class QueryEncoder:
    """How a learner turns a view into a query, in the two halves between which end-to-end takes its keys.

    ``tokens`` (B, N, F) are those of ``view``, where the backbone has computed them already.
    """

    def __init__(
        self, encoder: Encoder, predictor: nn.Module | None, view: View | None = None, tokens: Tensor | None = None
    ) -> None:
        self._encoder, self._predictor = encoder, predictor
        self._view, self._tokens = view, tokens

    def project(self, view: View) -> Tensor:
        """(B, D) the head's output."""
        if self._tokens is not None and view is self._view:
            return self._encoder.project_tokens(self._tokens)
        return self._encoder.project(**view)

    def predict(self, projected: Tensor) -> Tensor:
        """(B, D) unit queries: through the predictor, where there is one."""
        if self._predictor is None:
            return unit(projected)
        with self._encoder.computing():
            predicted = self._predictor(projected)
        return unit(predicted)

    def query(self, view: View) -> Tensor:
        """(B, D) unit queries of a view."""
        return self.predict(self.project(view))


class Keys(ABC):
    """Turns two views of each example into (query, key) pairs; a value whose ``build`` gives what a learner uses."""

    @property
    def directions(self) -> int:
        """Pairs an example."""
        return 1

    def build(self, encoder: Encoder, dictionary: Dictionary | None = None) -> Keys:
        """For an encoder: the value itself, where it has no state."""
        return self

    @abstractmethod
    def pairs(self, encoder: QueryEncoder, batch: Batch, keys: tuple[Tensor, ...] = ()) -> list[Pair]:
        """One pair, or two when both views are queries; ``keys`` are what ``precomputed`` gave for these examples."""

    def precomputed(self, batch: Batch) -> tuple[Tensor, ...]:
        """The keys (B, D), without gradient, that do not depend on the queries: one of each pair, or none.

        Where there are some, the queries may be computed slice by slice.
        """
        return ()

    def follow(self, encoder: Encoder, progress: float) -> None:  # noqa: B027  (most have no state)
        """Move what makes the keys after the optimizer step; ``progress`` runs from 0 to 1 over the run."""

    def absorbed(self, query: Tensor, key: Tensor) -> Tensor:
        """(B, D) what the dictionary absorbs of a pair."""
        return key


@dataclass(frozen=True)
class Momentum(Bounded):
    """Keys from a slowly moving twin of the encoder (MoCo, arXiv 1911.05722, section 3.2)."""

    momentum: Probability = 0.999
    symmetric: bool = False  # both views are queries: twice the cost of a step (MoCo v3, arXiv 2104.02057)
    shuffle: bool = True  # keys are normalised in other groups than their queries (shuffling BN, section 3.3)
    rising: bool = False  # to 1 by half a cosine over the run (MoCo v3, as BYOL, arXiv 2006.07733)

    def build(self, encoder: Encoder, dictionary: Dictionary | None = None) -> MomentumKeys:
        """A twin that starts as a copy of ``encoder``."""
        return MomentumKeys(self, encoder)

    @property
    def directions(self) -> int:
        """Pairs an example."""
        return 2 if self.symmetric else 1

    def at(self, progress: float) -> float:
        """The momentum at a share of the run."""
        if not self.rising:
            return self.momentum
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * progress)) / 2


class MomentumKeys(nn.Module, Keys):
    """Holds the twin: it gets no gradient, and its parameters are the moving average of the encoder's."""

    def __init__(self, spec: Momentum, encoder: Encoder) -> None:
        super().__init__()
        self.spec = spec
        self.twin = copy.deepcopy(encoder).requires_grad_(False)
        self.twin.whitening = None  # nobody evaluates the twin

    def pairs(self, encoder: QueryEncoder, batch: Batch, keys: tuple[Tensor, ...] = ()) -> list[Pair]:
        """The first views are queries of the second ones and, if symmetric, the other way round."""
        views = (batch.first, batch.second) if self.spec.symmetric else (batch.first,)
        return list(zip([encoder.query(view) for view in views], keys or self.precomputed(batch)))

    def precomputed(self, batch: Batch) -> tuple[Tensor, ...]:
        """Those of the second view and, if symmetric, of the first."""
        views = (batch.second, batch.first) if self.spec.symmetric else (batch.second,)
        order = shuffled(dist.gather(batch.index)) if self.spec.shuffle else None
        return tuple(self._encode(view, order) for view in views)

    @torch.no_grad()
    def _encode(self, view: View, order: Tensor | None) -> Tensor:
        if order is None:
            keys: Tensor = self.twin(**view)
            return keys
        keys = self.twin(**{name: dist.exchange(part, order) for name, part in view.items()})
        (back,) = transfer([order.argsort()], keys.device)
        return dist.share(dist.gather(keys)[back])

    @torch.no_grad()
    def follow(self, encoder: Encoder, progress: float) -> None:
        """Average the parameters, head included, in one fused pass; BatchNorm's buffers are the twin's own."""
        weight = 1 - self.spec.at(progress)
        torch._foreach_lerp_(list(self.twin.parameters()), list(encoder.parameters()), weight)


def shuffled(index: Tensor) -> Tensor:
    """A permutation (B,) that depends on the rows of the batch alone: equal on every process, and no state to save."""
    salt = scramble(index.sum() + hashed(len(index)))
    return scramble(index + salt).argsort(stable=True)


@dataclass(frozen=True)
class EndToEnd(Keys):
    """Keys from the encoder itself, with gradient: SimCLR (arXiv 2002.05709), figure 2(a) of the MoCo paper.

    Both views go through the encoder once; the predictor, where there is one, makes queries alone.
    """

    symmetric: bool = True  # both views are queries

    @property
    def directions(self) -> int:
        """Pairs an example."""
        return 2 if self.symmetric else 1

    def pairs(self, encoder: QueryEncoder, batch: Batch, keys: tuple[Tensor, ...] = ()) -> list[Pair]:
        """The first views are queries of the second ones and, if symmetric, the other way round."""
        first, second = encoder.project(batch.first), encoder.project(batch.second)
        pairs = [(encoder.predict(first), unit(second))]
        if self.symmetric:
            pairs.append((encoder.predict(second), unit(first)))
        return pairs


@dataclass(frozen=True)
class Stored:
    """Keys that the dictionary holds: InstDisc (arXiv 1805.01978), figure 2(b) of the MoCo paper."""

    directions: ClassVar[int] = 1

    def build(self, encoder: Encoder, dictionary: Dictionary | None = None) -> StoredKeys:
        """Only a memory bank knows the row of an example."""
        if not isinstance(dictionary, BankOfKeys):
            raise ValueError("stored keys need a memory bank: no other dictionary has a row for every example")
        return StoredKeys(dictionary)


class StoredKeys(Keys):
    """One view a step: its query is compared with its example's row, which then moves toward it."""

    def __init__(self, bank: BankOfKeys) -> None:
        self._bank = bank

    def pairs(self, encoder: QueryEncoder, batch: Batch, keys: tuple[Tensor, ...] = ()) -> list[Pair]:
        """Queries of first views, each with its example's row."""
        query = encoder.query(batch.first)
        return [(query, self._bank.stored(batch.index).to(query.dtype))]

    def absorbed(self, query: Tensor, key: Tensor) -> Tensor:
        """The query."""
        return query


@dataclass(frozen=True)
class Alone(Keys):
    """No keys, so no pairs, and neither dictionary nor objective: reconstruction trains alone (masked autoencoder)."""

    @property
    def directions(self) -> int:
        """Pairs an example."""
        return 0

    def pairs(self, encoder: QueryEncoder, batch: Batch, keys: tuple[Tensor, ...] = ()) -> list[Pair]:
        """An empty list."""
        return []
