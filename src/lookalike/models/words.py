"""A decoder that names the tokens an encoder did not see: the masked language model (BERT, arXiv 1810.04805)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Words:
    """One layer, then a score for every token of the vocabulary; thrown away after training."""

    weight: float = 1.0  # of its error

    def build(self, features: int, vocabulary: int) -> WordDecoder:
        """Random weights, for an encoder whose tokens have ``features`` numbers."""
        return WordDecoder(self, features, vocabulary)

    def guess(self, vocabulary: int) -> float:
        """The weighted error of naming all tokens alike."""
        return self.weight * math.log(vocabulary)


class WordDecoder(nn.Module):
    """Scores only the tokens that are asked for."""

    measured = "words"

    def __init__(self, spec: Words, features: int, vocabulary: int) -> None:
        super().__init__()
        self.spec = spec
        self.layer = nn.Sequential(nn.Linear(features, features), nn.GELU(), nn.LayerNorm(features))
        self.score = nn.Linear(features, vocabulary)
        nn.init.normal_(self.score.weight, std=0.02)
        nn.init.zeros_(self.score.bias)

    def forward(
        self, last: Tensor, tokens: Tensor, attend: Tensor, asked: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """The mean over texts of the mean cross entropy over tokens ``asked`` (B, L), −1 where one is not; unweighted.

        ``last`` (T, F) is the encoder's last layer. Texts count alike, however many of their tokens are asked: so the
        mean over a batch is the mean over its shares, on any number of processes.
        """
        true = asked[attend]
        where = (true >= 0).nonzero()[:, 0]
        scores = self.score(self.layer(last[where]))
        scores = scores if scores.dtype == torch.float64 else scores.float()
        counts = (asked >= 0).sum(1)
        share = (1 / counts.clamp(min=1))[:, None].expand_as(asked)[attend][where]
        return (F.cross_entropy(scores, true[where], reduction="none") * share).sum() / len(tokens)
