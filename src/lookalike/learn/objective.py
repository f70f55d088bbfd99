"""How a query is scored against its entries: a value that returns the loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lookalike.core import dist
from lookalike.core.devices import full_precision, wide
from lookalike.core.errors import Bounded, Count, Factor, Temperature
from lookalike.learn.dictionary import Entries


class Objective(Bounded, ABC):
    """The mean loss of queries (B, D) against their entries."""

    supervised = False  # whether labels, not rows, say which examples are alike

    @full_precision()
    def __call__(self, query: Tensor, entries: Entries) -> Tensor:
        """A scalar, in fp32 or better whatever the queries come in and the caller's context is."""
        return self.score(wide(entries.scored(query)), entries.wide())

    @abstractmethod
    def score(self, query: Tensor, entries: Entries) -> Tensor:
        """A scalar, of queries and positives in fp32 or better."""

    @abstractmethod
    def chance_loss(self, negatives: int) -> float:
        """The loss of scoring all entries alike."""

    def build(self, examples: int) -> Objective:
        """What a learner scores with: the value itself, where it has no state."""
        return self

    def settle(self, query: Tensor, entries: Entries) -> None:
        """Move what state there is; called once, after the optimizer step."""


@dataclass(frozen=True)
class InfoNCE(Objective):
    """−log(exp(q·k⁺/τ) / (exp(q·k⁺/τ) + Σ exp(q·k⁻/τ))): MoCo (arXiv 1911.05722, equation 1), CPC (1807.03748).

    Over a whole memory bank it is the full softmax of InstDisc (arXiv 1805.01978, equation 2). ``chunk`` is how many
    negatives are scored at a time: it bounds memory and changes no value. ``weight`` multiplies the loss, which is a
    sum over directions: one half makes it SimCLR's mean over both, 2τ MoCo v3's.
    """

    temperature: Temperature = 0.07
    chunk: Count = 8192
    weight: Factor = 1.0

    def chance_loss(self, negatives: int) -> float:
        """log(K + 1), weighted."""
        return self.weight * math.log(negatives + 1)

    def score(self, query: Tensor, entries: Entries) -> Tensor:
        """The mean over B queries."""
        positive = (query * entries.positive).sum(1) / self.temperature
        total = torch.logaddexp(positive, log_sum_exp(query, entries, self.temperature, self.chunk))
        pull = positive if entries.target is None else (query * entries.target).sum(1) / self.temperature
        return self.weight * (total - pull).mean()


@dataclass(frozen=True)
class DCL(InfoNCE):
    """−log(exp(q·k⁺/τ) / Σ exp(q·k⁻/τ)): the positive is left out of the denominator (arXiv 2110.06848, equation 6)."""

    temperature: Temperature = 0.1

    def chance_loss(self, negatives: int) -> float:
        """log K, weighted."""
        return self.weight * math.log(negatives)

    def score(self, query: Tensor, entries: Entries) -> Tensor:
        """The mean over B queries."""
        positive = (query * entries.positive).sum(1) / self.temperature
        return self.weight * (log_sum_exp(query, entries, self.temperature, self.chunk) - positive).mean()


@dataclass(frozen=True)
class SupCon(InfoNCE):
    """The mean of −log softmax over all positives of a query, which labels name (arXiv 2004.11362, equation 2)."""

    temperature: Temperature = 0.1

    supervised = True

    def score(self, query: Tensor, entries: Entries) -> Tensor:
        """The mean over B queries."""
        if entries.alike is None or entries.ignore is None:
            raise ValueError("supervised contrast needs entries that say which are alike: those of a batch")
        positive = (query * entries.positive).sum(1) / self.temperature
        others = entries._replace(ignore=entries.ignore & ~entries.alike)
        total = torch.logaddexp(positive, log_sum_exp(query, others, self.temperature, self.chunk))
        alike = entries.alike.to(query.dtype)
        mean = (entries.positive + alike @ entries.negatives.to(query.dtype)) / (1 + alike.sum(1, keepdim=True))
        return self.weight * (total - (query * mean).sum(1) / self.temperature).mean()


@dataclass(frozen=True)
class PolyView(InfoNCE):
    """The mean of InfoNCE over all other views of an example: where one is the positive, the rest are left out.

    The geometric loss of Shidani et al. 2024 (arXiv 2403.05490): with two views of each example it is InfoNCE.
    """

    temperature: Temperature = 0.1

    def score(self, query: Tensor, entries: Entries) -> Tensor:
        """The mean over B queries; it holds the products with all entries of a batch, (B, K)."""
        if entries.alike is None:
            raise ValueError("several positives need entries that say which are alike: those of a batch")
        negatives = log_sum_exp(query, entries, self.temperature, self.chunk)
        own = F.softplus(negatives - (query * entries.positive).sum(1) / self.temperature)
        scores = _scores(query, entries.negatives.to(query.dtype)) / self.temperature
        others = F.softplus(negatives[:, None] - scores).masked_fill(~entries.alike, 0.0)
        return self.weight * ((own + others.sum(1)) / (1 + entries.alike.sum(1))).mean()


@dataclass(frozen=True)
class NCE(Objective):
    """Is an entry the example, or one of K drawn from noise? (InstDisc, arXiv 1805.01978, equations 3 to 8.)

    The probability of an entry is exp(q·k/τ) / Z, the noise's is 1/N. ``build`` keeps Z as the first batch gives it,
    over all ranks. Called as a plain value it takes the entries for all the data and Z from them.
    """

    temperature: Temperature = 0.07

    def build(self, examples: int) -> NoiseContrast:
        """The same with Z as state, for N = ``examples``."""
        return NoiseContrast(self, examples)

    def chance_loss(self, negatives: int) -> float:
        """log(K + 1) + K log(1 + 1/K): every entry is the example with the odds 1 to K."""
        return math.log(negatives + 1) + negatives * math.log1p(1 / negatives)

    def score(self, query: Tensor, entries: Entries) -> Tensor:
        """The mean over B queries."""
        examples = entries.per_query + 1
        return self.loss(query, entries, examples, self.log_z(query, entries, examples))

    @full_precision()
    def loss(self, query: Tensor, entries: Entries, examples: int, log_z: Tensor) -> Tensor:
        """−log h(k⁺) − Σ log(1 − h(k⁻)) with h = p / (p + K/N), from its logits: nothing overflows."""
        positive, negative = self._logits(query, entries)
        log_noise = math.log(negative.shape[1] / examples)
        missed = F.softplus(log_noise - (positive - log_z))
        fooled = F.softplus(negative - log_z - log_noise)
        if entries.ignore is not None:
            fooled = fooled.masked_fill(entries.ignore, 0.0)
        return (missed + fooled.sum(1)).mean()

    @torch.no_grad()
    @full_precision()
    def log_z(self, query: Tensor, entries: Entries, examples: int) -> Tensor:
        """log(N · mean of exp(q·k/τ)) over a batch, the positives included, and over ranks."""
        positive, negative = self._logits(query, entries)
        logits = torch.cat([positive[:, None], negative], 1).flatten()
        mean = torch.logsumexp(logits, 0) - math.log(len(logits))
        every = dist.gather(mean[None])
        return torch.logsumexp(every, 0) - math.log(len(every)) + math.log(examples)

    def _logits(self, query: Tensor, entries: Entries) -> tuple[Tensor, Tensor]:
        positive = (query * entries.positive).sum(1) / self.temperature
        return positive, _products(query, entries) / self.temperature


class NoiseContrast(nn.Module, Objective):
    """``log_z`` is NaN until the first batch has given it."""

    kept: Tensor

    def __init__(self, spec: NCE, examples: int) -> None:
        super().__init__()
        self.spec, self.examples = spec, examples
        self.register_buffer("kept", torch.tensor(math.nan))

    def chance_loss(self, negatives: int) -> float:
        """As the value says."""
        return self.spec.chance_loss(negatives)

    __call__ = Objective.__call__

    def score(self, query: Tensor, entries: Entries) -> Tensor:
        """The mean over B queries."""
        return self.spec.loss(query, entries, self.examples, self._log_z(query, entries))

    @full_precision()
    def settle(self, query: Tensor, entries: Entries) -> None:
        """Fix Z."""
        self.kept.copy_(self._log_z(entries.scored(query), entries))

    def _log_z(self, query: Tensor, entries: Entries) -> Tensor:
        if self.kept.device.type == "cpu" and not self.kept.isnan():  # a GPU would have to be waited for
            return self.kept
        return torch.where(self.kept.isnan(), self.spec.log_z(query, entries, self.examples), self.kept)


# ---- scores ----


def _scores(query: Tensor, keys: Tensor) -> Tensor:
    """(B, K) products of queries (B, D) with keys (K, D), or each with its own (B, K, D)."""
    return query @ keys.T if keys.dim() == 2 else torch.bmm(keys, query[:, :, None])[:, :, 0]


def _products(query: Tensor, entries: Entries) -> Tensor:
    """(B, K) of queries with their negatives, all at once."""
    scores = _scores(query, entries.negatives.to(query.dtype))
    return scores if entries.drawn is None else scores.gather(1, entries.drawn)


def _mixed(weights: Tensor, keys: Tensor) -> Tensor:
    """(B, D) sums of keys (K, D) or (B, K, D) by weights (B, K)."""
    return weights @ keys if keys.dim() == 2 else torch.bmm(weights[:, None], keys)[:, 0]


def _scored(query: Tensor, negatives: Tensor, ignore: Tensor | None, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Negatives in parts of ``chunk``, in the query's type, and their products (B, chunk), −∞ for those to ignore."""
    ignored = repeat(None) if ignore is None else torch.split(ignore, chunk, dim=1)
    for part, where in zip(torch.split(negatives, chunk, dim=-2), ignored):
        keys = part.to(query.dtype)
        scores = _scores(query, keys)
        yield keys, scores if where is None else scores.masked_fill_(where, -torch.inf)


class _LogSumExp(torch.autograd.Function):
    """log Σⱼ exp(q·kⱼ/τ) over K negatives in chunks, so that memory does not grow with K.

    The running sums are those of exact attention in blocks (Milakov & Gimelshein 2018): beside the sum it carries
    the softmax-weighted mean of the negatives, which is the query's gradient, so the backward pass multiplies nothing.
    """

    @staticmethod
    @full_precision()
    def forward(
        ctx: Any, query: Tensor, negatives: Tensor, ignore: Tensor | None, temperature: float, chunk: int
    ) -> Tensor:
        scaled = wide(query) / temperature
        top = torch.full_like(scaled[:, :1], -torch.inf)
        total, mean = torch.zeros_like(top), torch.zeros_like(scaled)
        for keys, logits in _scored(scaled, negatives, ignore, chunk):
            risen = torch.maximum(top, logits.amax(1, keepdim=True))
            fade = (top - risen).exp().nan_to_num_(0.0)  # -inf minus -inf: nothing was summed yet
            weights = logits.sub_(risen.nan_to_num(neginf=0.0)).exp_()
            total = total * fade + weights.sum(1, keepdim=True)
            mean = mean * fade + _mixed(weights, keys)
            top = risen
        result = top + total.log()
        ctx.save_for_backward(query, negatives, ignore, result, mean / total.clamp_min(torch.finfo(total.dtype).tiny))
        ctx.temperature, ctx.chunk = temperature, chunk
        return result[:, 0]

    @staticmethod
    @once_differentiable
    @full_precision()
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        query, negatives, ignore, result, mean = ctx.saved_tensors
        scale = grad[:, None] / ctx.temperature
        to_negatives = None
        if ctx.needs_input_grad[1]:  # keys with gradient: recompute the weights
            parts = []
            rows = query.to(result.dtype)
            for keys, scores in _scored(rows, negatives, ignore, ctx.chunk):
                weights = (scores / ctx.temperature - result).exp().nan_to_num(0.0) * scale
                parts.append(weights.T @ rows if keys.dim() == 2 else weights[:, :, None] * rows[:, None])
            to_negatives = torch.cat(parts, -2).to(negatives.dtype)
        return (scale * mean).to(query.dtype), to_negatives, None, None, None


def log_sum_exp(query: Tensor, entries: Entries, temperature: float, chunk: int) -> Tensor:
    """(B,) log Σ exp(q·k⁻/τ) over the negatives of all ranks; −∞ where there is none."""
    if entries.drawn is not None:
        return (_products(query, entries) / temperature).logsumexp(1)
    if not entries.sharded:
        own: Tensor = _LogSumExp.apply(query, entries.negatives, entries.ignore, temperature, chunk)
        return own
    # The queries travel, not the rows: each rank sums over its part for the queries of all.
    here: Tensor = _LogSumExp.apply(dist.gather(query), entries.negatives, entries.ignore, temperature, chunk)
    return dist.share(dist.gather(here).view(dist.world(), -1).logsumexp(0))


@torch.no_grad()
@full_precision()
def top1(query: Tensor, entries: Entries, chunk: int = 8192) -> Tensor:
    """The share of queries whose positive scores above every negative: the pretext task's accuracy, a scalar."""
    query, entries = wide(entries.scored(query)), entries.wide()
    positive = (query * entries.positive).sum(1)
    if entries.drawn is not None:
        return (positive > _products(query, entries).amax(1)).float().mean()
    queries = dist.gather(query) if entries.sharded else query
    best = torch.full((len(queries),), -torch.inf, dtype=query.dtype, device=query.device)
    for _, scores in _scored(queries, entries.negatives, entries.ignore, chunk):
        best = torch.maximum(best, scores.amax(1))
    if entries.sharded:
        best = dist.share(dist.gather(best).view(dist.world(), -1).amax(0))
    return (positive > best).float().mean()
