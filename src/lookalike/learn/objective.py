"""How a query is scored against its entries: a value that returns the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lookalike.learn.dictionary import Entries


class Objective(Protocol):
    """The mean loss of queries (B, D) against their entries."""

    def __call__(self, query: Tensor, entries: Entries) -> Tensor:
        """A scalar, in fp32 or better."""
        ...


def _products_dtype(query: Tensor) -> torch.dtype:
    """Products run in autocast's type, sums never do."""
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


class _LogSumExp(torch.autograd.Function):
    """log Σⱼ exp(q·kⱼ/τ) over (K, D) negatives in chunks of K, so that memory does not grow with K.

    The running sums are those of exact attention in blocks (Milakov & Gimelshein 2018): beside the sum it carries
    the softmax-weighted mean of the negatives, which is the query's gradient, so the backward pass multiplies nothing.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, negatives: Tensor, ignore: Tensor | None, temperature: float, chunk: int
    ) -> Tensor:
        dtype = _products_dtype(query)
        sums = torch.float64 if query.dtype == torch.float64 else torch.float32
        scaled = (query / temperature).to(dtype)
        top = torch.full((len(query), 1), -torch.inf, dtype=sums, device=query.device)
        total = torch.zeros_like(top)
        mean = torch.zeros(query.shape, dtype=sums, device=query.device)
        for start in range(0, len(negatives), chunk):
            keys = negatives[start : start + chunk].to(dtype)
            logits = (scaled @ keys.T).to(sums)
            if ignore is not None:
                logits.masked_fill_(ignore[:, start : start + chunk], -torch.inf)
            risen = torch.maximum(top, logits.amax(1, keepdim=True))
            fade = (top - risen).exp().nan_to_num_(0.0)  # -inf minus -inf: nothing was summed yet
            weights = logits.sub_(risen.nan_to_num(neginf=0.0)).exp_()
            total = total * fade + weights.sum(1, keepdim=True)
            mean = mean * fade + (weights.to(dtype) @ keys).to(sums)
            top = risen
        result = top + total.log()
        ctx.save_for_backward(query, negatives, ignore, result, mean / total.clamp_min(torch.finfo(sums).tiny))
        ctx.temperature, ctx.chunk = temperature, chunk
        return result[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        query, negatives, ignore, result, mean = ctx.saved_tensors
        temperature, chunk = ctx.temperature, ctx.chunk
        scale = grad[:, None] / temperature
        to_negatives = None
        if ctx.needs_input_grad[1]:  # keys with gradient: recompute the weights
            to_negatives = torch.empty_like(negatives)
            for start in range(0, len(negatives), chunk):
                keys = negatives[start : start + chunk]
                logits = query @ keys.T / temperature
                if ignore is not None:
                    logits = logits.masked_fill(ignore[:, start : start + chunk], -torch.inf)
                to_negatives[start : start + chunk] = ((logits - result).exp().nan_to_num(0.0) * scale).T.to(
                    query.dtype
                ) @ query
        return (scale * mean).to(query.dtype), to_negatives, None, None, None


@dataclass(frozen=True)
class InfoNCE:
    """−log(exp(q·k⁺/τ) / (exp(q·k⁺/τ) + Σ exp(q·k⁻/τ))): MoCo (arXiv 1911.05722, equation 1), CPC (1807.03748).

    ``chunk`` is how many negatives are scored at a time: it bounds memory and changes no value.
    """

    temperature: float = 0.07
    chunk: int = 8192

    def __call__(self, query: Tensor, entries: Entries) -> Tensor:
        """The mean over B queries, in fp32 or better."""
        positive = (query * entries.positive).sum(1) / self.temperature
        negative: Tensor = _LogSumExp.apply(query, entries.negatives, entries.ignore, self.temperature, self.chunk)
        return (torch.logaddexp(positive.to(negative.dtype), negative) - positive).mean()


@torch.no_grad()
def top1(query: Tensor, entries: Entries, chunk: int = 8192) -> Tensor:
    """The share of queries whose positive scores above every negative: the pretext task's accuracy, a scalar."""
    positive = (query * entries.positive).sum(1)
    won = torch.ones(len(query), dtype=torch.bool, device=query.device)
    for start in range(0, len(entries.negatives), chunk):
        scores = query @ entries.negatives[start : start + chunk].to(query.dtype).T
        if entries.ignore is not None:
            scores = scores.masked_fill(entries.ignore[:, start : start + chunk], -torch.inf)
        won &= positive > scores.amax(1)
    return won.float().mean()
