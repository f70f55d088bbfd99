"""Error of every objective, in loss and in gradient, against double precision: ours, and the formula under autocast.

    python benchmarks/precision.py [--batch 256] [--entries 4096] [--draws 5]

Both are called inside ``torch.autocast(bfloat16)``, as a training loop that holds it open would. ``ours`` switches it
off; ``plain`` is the published formula as one would write it, products of a batch with all entries and a logsumexp.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.core.devices import processor
from lookalike.learn.dictionary import Entries
from lookalike.learn.objective import DCL, NCE, InfoNCE, Objective, SupCon

Formula = Callable[[Tensor, Entries, float], Tensor]


class Case(NamedTuple):
    ours: Objective
    plain: Formula


def info_nce(query: Tensor, entries: Entries, temperature: float) -> Tensor:
    positive, negative = logits(query, entries, temperature)
    return (torch.cat([positive[:, None], negative], 1).logsumexp(1) - positive).mean()


def decoupled(query: Tensor, entries: Entries, temperature: float) -> Tensor:
    positive, negative = logits(query, entries, temperature)
    return (negative.logsumexp(1) - positive).mean()


def supervised(query: Tensor, entries: Entries, temperature: float) -> Tensor:
    positive, negative = logits(query, entries, temperature)
    total = torch.cat([positive[:, None], negative], 1).logsumexp(1)
    alike = entries.alike.to(query.dtype)
    found = (entries.positive + alike @ entries.negatives) / (1 + alike.sum(1, keepdim=True))
    return (total - (query * found).sum(1) / temperature).mean()


def noise(query: Tensor, entries: Entries, temperature: float) -> Tensor:
    positive, negative = logits(query, entries, temperature)
    examples = negative.shape[1] + 1
    every = torch.cat([positive[:, None], negative], 1).detach().flatten()
    log_z = torch.logsumexp(every, 0) - math.log(len(every)) + math.log(examples)
    log_noise = math.log(negative.shape[1] / examples)
    return (F.softplus(log_noise - (positive - log_z)) + F.softplus(negative - log_z - log_noise).sum(1)).mean()


def logits(query: Tensor, entries: Entries, temperature: float) -> tuple[Tensor, Tensor]:
    return (query * entries.positive).sum(1) / temperature, query @ entries.negatives.T / temperature


CASES = {
    "InfoNCE": Case(InfoNCE(0.07), info_nce),
    "DCL": Case(DCL(0.07), decoupled),
    "SupCon": Case(SupCon(0.07), supervised),
    "NCE": Case(NCE(0.07), noise),
}


def drawn(batch: int, count: int, seed: int) -> tuple[Tensor, Entries]:
    """Queries near their keys, as trained ones are, and entries of which a hundredth is alike; in double precision."""
    made = torch.Generator().manual_seed(seed)
    keys, negatives, apart = (torch.randn(n, 128, generator=made, dtype=torch.float64) for n in (batch, count, batch))
    alike = torch.rand(batch, count, generator=made) < 0.01
    rows = (F.normalize(part, dim=1).float().double() for part in (keys + 0.7 * apart, keys, negatives))
    query, positive, entries = rows  # rounded once, so that all begin with the same numbers
    return query, Entries(positive, entries, torch.zeros_like(alike), alike)


def measured(loss: Callable[[Tensor, Entries], Tensor], query: Tensor, entries: Entries) -> tuple[Tensor, Tensor]:
    query = query.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=query.dtype == torch.float32):
        found = loss(query, entries)
    return found.detach().double(), torch.autograd.grad(found, query)[0].double()


def errors(case: Case, name: str, batch: int, count: int, seed: int) -> list[float]:
    """Relative errors of ours in loss and gradient, then those of the plain formula."""
    query, entries = drawn(batch, count, seed)
    if name != "SupCon":
        entries = entries._replace(ignore=None, alike=None)
    true = measured(lambda q, e: case.plain(q, e, 0.07), query, entries)
    single = Entries(*(part.float() if part is not None and part.is_floating_point() else part for part in entries[:4]))
    ours = measured(case.ours, query.float(), single)
    plain = measured(lambda q, e: case.plain(q, e, 0.07), query.float(), single)
    return [float((part - to).norm() / to.norm()) for found in (ours, plain) for part, to in zip(found, true)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--entries", type=int, default=4096)
    parser.add_argument("--draws", type=int, default=5)
    asked = parser.parse_args()
    print(
        f"{processor()}, torch {torch.__version__}, batch {asked.batch}, {asked.entries} entries, {asked.draws} draws"
    )
    print("| objective | ours: loss | gradient | formula under autocast: loss | gradient |")
    print("|---|---|---|---|---|")
    for name, case in CASES.items():
        found = zip(*(errors(case, name, asked.batch, asked.entries, seed) for seed in range(asked.draws)))
        print(f"| {name} | " + " | ".join(f"{statistics.median(part):.1e}" for part in found) + " |")


if __name__ == "__main__":
    main()
